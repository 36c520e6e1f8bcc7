"""Write the generated parts of documents from result files: python -m tools.update_docs.

`--check` changes nothing and fails when a document is out of step. A document takes part in a
section when it has the section's markers.
"""

import json
import re
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.inputs import USED
from memory_layers.common.text import short_number
from memory_layers.configs import find_config
from memory_layers.plan.devices import DEVICES
from memory_layers.study.report import markdown_table
from memory_layers.train.config import load_run
from tools import headline_sections as headline
from tools import results_sections as studies
from tools import speed
from tools.scale import scale_section

ROOT = Path(__file__).parent.parent
STUDIES = (
    "00-demo", "01-headline", "02-recipe", "03-ablations", "04-scale", "05-teach", "06-teach",
)  # fmt: skip
DOCUMENTS = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("performance", "scale", "results")),
    *(
        ROOT / "docs" / "guides" / f"{name}.md"
        for name in ("add_memory", "learn", "serve", "train")
    ),
    *(ROOT / "experiments" / name / "README.md" for name in STUDIES),
)
LARGEST = {"scale-1b": "1.3b_memory_64m", "scale-8b": "8b_memory_16m"}
DEMO = ROOT / "experiments" / "00-demo"


def demo_section() -> str:
    """Return what the demo shows, in a paragraph."""
    results = json.loads((DEMO / "results.json").read_text("utf-8"))
    facts = results["facts"]
    parts = [
        f"`{run['variant']}` answers {run['recall']['question_heldout']:.2f} "
        f"({short_number(run['flops_per_token'])} FLOPs a token, {run['seconds']:,.0f} seconds)"
        for run in results["runs"]
    ]
    return (
        f"{facts['facts']:,} real facts about {facts['shown'] + facts['heldout']:,} airports are "
        f"read in several wordings. Of questions about {facts['heldout']:,} airports of which none "
        f"was shown, {', '.join(parts)}. Time zone and country can partly be guessed "
        f"from an airport's name. One seed, on {results['device']}, with other work on them; [what "
        "was tried, and where wide dense models come level](experiments/00-demo/README.md)."
    )


def demo_table() -> str:
    """Return the demo's table."""
    results = json.loads((DEMO / "results.json").read_text("utf-8"))
    columns = ("question_heldout", "flops_per_token", "params_total", "seconds")
    return markdown_table(results, columns, ranges=False).strip()


def largest_section(name: str) -> str:
    """Return the prediction for one of the paper's largest memories on 8 to 1024 H100s."""
    return scale_section(load_run(find_config(name)), DEVICES["h100"])


def of_teaching(name: str, *args: str) -> str:
    """Return what the report of experiments/06-teach has for documents."""
    return runpy.run_path(str(ROOT / "experiments" / "06-teach" / "report.py"))[name](*args)


SECTIONS: dict[str, Callable[[], str]] = {
    "demo": demo_section,
    "demo-table": demo_table,
    "demo-rates": partial(studies.runs_section, "00-demo", "sweep.json"),
    "headline": headline.table_section,
    "headline-short": headline.short_section,
    "headline-claims": headline.claims_section,
    "headline-levels": headline.levels_section,
    "headline-lift": headline.lift_section,
    "headline-relations": headline.relations_section,
    "headline-guess": headline.guess_section,
    "headline-rates": headline.rates_section,
    "headline-sizes": headline.sizes_section,
    "headline-time": partial(headline.table_section, "time.json", "time"),
    "headline-time-claims": partial(headline.claims_section, "time.json", "time"),
    "recipe": partial(studies.table_section, "02-recipe"),
    "recipe-differences": partial(studies.recipe_differences, "02-recipe"),
    "recipe-usage": partial(studies.usage_section, "02-recipe"),
    "recipe-together": partial(studies.runs_section, "02-recipe", "together.json"),
    "ablations": partial(studies.ablation_section, "03-ablations"),
    "recipe-remedy": partial(studies.runs_section, "02-recipe", "remedy.json"),
    "recipe-remedy-usage": partial(studies.usage_section, "02-recipe", "remedy.json"),
    "recipe-remedy-differences": partial(studies.recipe_differences, "02-recipe", "remedy.json"),
    "teach": studies.teach_section,
    "teach-arms": partial(of_teaching, "section"),
    "teach-headline": partial(of_teaching, "headline", ""),
    "teach-guide": partial(of_teaching, "headline", "../../"),
    "text": studies.text_section,
    "generate-parts": speed.generate_parts,
    "scaling": partial(studies.scaling_section, "04-scale"),
    "targets": speed.targets_section,
    "floors": speed.floors_section,
    "sm90": speed.sm90_section,
    "serve-load": speed.serve_section,
    **{marker: partial(largest_section, name) for marker, name in LARGEST.items()},
    **{
        f"bench-{op}-{device_type}": partial(speed.suite_section, op, device_type)
        for op in USED
        for device_type in ("cpu", "cuda")
    },
}


def replace_section(text: str, name: str, content: str) -> str:
    """Put content between the markers `<!-- name:begin -->` and `<!-- name:end -->`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def updated(text: str) -> str:
    """Return a document with every section that it has markers for written again."""
    for name in re.findall("<!-- ([a-z0-9-]+):begin -->", text):
        text = replace_section(text, name, SECTIONS[name]())
    return text


def main() -> int:
    """Update or check the documents."""
    before = {path: path.read_text("utf-8") for path in DOCUMENTS}
    after = {path: updated(text) for path, text in before.items()}
    if "--check" in sys.argv[1:]:
        return int(before != after)
    for path, text in after.items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
