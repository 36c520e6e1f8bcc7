"""Write the generated parts of documents from result files: python -m tools.update_docs.

`--check` changes nothing and fails when a document is out of step. A document takes part in a
section when it has the section's markers.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.results import newest
from benchmarks.sizes import USED
from benchmarks.tables import suite_markdown, targets_markdown
from benchmarks.targets import ROWS
from memory_layers.configs import find_config
from memory_layers.plan import DEVICES
from memory_layers.study.report import markdown_table
from memory_layers.train.config import load_run
from tools import results_sections as studies
from tools.floors import floors_table
from tools.scale import scale_section

ROOT = Path(__file__).parent.parent
STUDIES = ("01-headline", "02-recipe", "03-ablations", "04-scale", "05-teach")
DOCUMENTS = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("performance", "scale", "results")),
    ROOT / "docs" / "guides" / "add_memory.md",
    *(ROOT / "experiments" / name / "README.md" for name in STUDIES),
)
LARGEST = {"scale-1b": "1.3b_memory_64m", "scale-8b": "8b_memory_16m"}
DEMO = ROOT / "experiments" / "00-demo"
SM90 = ROOT / "benchmarks" / "sm_90.json"


def demo_section() -> str:
    """Return the demo's sentence, table and plot."""
    results = json.loads((DEMO / "results.json").read_text("utf-8"))
    facts = results["facts"]
    seeds = len({run["seed"] for run in results["runs"]})
    intro = (
        f"{facts['facts']:,} real facts about {facts['shown'] + facts['heldout']:,} subjects. "
        "Each is read as a statement in several wordings, and for half of the subjects also as a "
        "question. Recall counts the questions answered exactly; *held-out* ones were never shown "
        f"as questions. All models see the same tokens, {seeds} seed{'s' if seeds > 1 else ''}, "
        f"on {results['device']}."
    )
    return "\n\n".join(
        [
            intro,
            markdown_table(results).strip(),
            "![Recall on held-out questions over tokens seen]"
            "(experiments/00-demo/plots/recall_over_tokens.png)",
            "Learning rates, seeds and what was tried: [experiments/00-demo](experiments/00-demo).",
        ]
    )


def complete_targets() -> list[tuple[Path, dict]]:
    """Return the newest table of targets of each machine that has every row."""
    found = newest("targets", "cpu")
    return [(path, r) for path, r in found if len(r["results"]["rows"]) == len(ROWS)]


def targets_section() -> str:
    """Return the newest table of targets of each machine, and where its file is."""
    found = complete_targets()
    parts = [f"{targets_markdown(record)}\n{_file(path)}" for path, record in found]
    return "\n\n".join(parts) or "Not measured yet: `memory-layers bench targets`."


def suite_section(op: str, device_type: str) -> str:
    """Return the newest results of a suite on a kind of device, a table for each size and slots.

    Args:
        op: Name of the suite.
        device_type: "cpu" or "cuda".
    """
    parts = []
    for path, record in newest(op, device_type):
        sizes = ", ".join(f"{name} = {value}" for name, value in record["sizes"].items())
        slots = f", {record['slots']} slots" if op in ("read", "write", "step") else ""
        parts.append(f"{sizes}{slots}:\n\n{suite_markdown(record)}\n{_file(path)}")
    missing = f"Not measured yet: `memory-layers bench {op} --device {device_type}`."
    return "\n\n".join(parts) or missing


def floors_section() -> str:
    """Return bytes, operations and floors, with the bandwidth of the newest table of targets."""
    found = complete_targets()
    if not found:
        return floors_table(None)
    path, record = found[-1]
    bandwidth = record["results"]["groups"]["step"]["bandwidth_gbs"]
    source = f"Copy: {bandwidth:.1f} GB/s on {record['device']}. {_file(path)}"
    return f"{floors_table(bandwidth * 1e9)}\n\n{source}"


def generate_parts() -> str:
    """Return where the time goes while text is written, from the newest result of each machine."""
    parts = []
    for path, record in newest("generate", "cpu"):
        facts = record["results"]["facts"]
        columns = facts["ms_by_part"]
        # The parts of the memory layers come last: they are inside another row.
        rows = sorted({part for spent in columns.values() for part in spent}, key=_part_order)
        lines = ["| ms a token | " + " | ".join(columns) + " |", "|:---|" + "---:|" * len(columns)]
        for row in rows:
            cells = [
                f"{spent[row] / facts['new_tokens']:.2f}" if row in spent else "–"
                for spent in columns.values()
            ]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines) + f"\n\n{_file(path)}")
    return "\n\n".join(parts) or "Not measured yet: `memory-layers bench generate`."


def _part_order(part: str) -> tuple[bool, str]:
    return part.startswith("memory: "), part


def sm90_section() -> str:
    """Return the worst registers, spills and shared memory of each kernel compiled for sm_90."""
    if not SM90.exists():
        return "Not compiled yet: `python -m benchmarks.sm90 --out benchmarks/sm_90.json`."
    record = json.loads(SM90.read_text("utf-8"))
    kernels: dict[str, list[dict]] = {}
    for found in record["kernels"]:
        kernels.setdefault(found["kernel"], []).append(found)
    lines = ["| kernel | cases | registers | spilled bytes | shared KiB |", "|---|---|---|---|---|"]
    for name, cases in sorted(kernels.items()):
        registers = max(case["registers"] for case in cases)
        spilled = max(case["spill_store_bytes"] + case["spill_load_bytes"] for case in cases)
        shared = max(case["shared_bytes"] for case in cases) / 1024
        lines.append(f"| `{name}` | {len(cases)} | {registers} | {spilled} | {shared:.1f} |")
    return "\n".join(lines) + f"\n\nTriton {record['versions']['triton']}. {_file(SM90)}"


def largest_section(name: str) -> str:
    """Return the prediction for one of the paper's largest memories on 8 to 1024 H100s."""
    return scale_section(load_run(find_config(name)), DEVICES["h100"])


def _file(path: Path) -> str:
    return f"Result file: `{path.relative_to(ROOT)}`."


SECTIONS: dict[str, Callable[[], str]] = {
    "demo": demo_section,
    "headline": partial(studies.table_section, "01-headline"),
    "headline-verdict": studies.verdict_section,
    "headline-differences": partial(studies.differences_section, "01-headline"),
    "headline-exposures": partial(studies.exposures_section, "01-headline"),
    "headline-sweep": partial(studies.runs_section, "01-headline", "sweep.json"),
    "headline-tried": studies.tried_section,
    "headline-bits": partial(studies.table_section, "01-headline", studies.BITS),
    "recipe": partial(studies.table_section, "02-recipe"),
    "recipe-differences": partial(studies.recipe_differences, "02-recipe"),
    "recipe-usage": partial(studies.usage_section, "02-recipe"),
    "recipe-together": partial(studies.runs_section, "02-recipe", "together.json"),
    "ablations": partial(studies.ablation_section, "03-ablations"),
    "recipe-remedy": partial(studies.runs_section, "02-recipe", "remedy.json"),
    "recipe-remedy-usage": partial(studies.usage_section, "02-recipe", "remedy.json"),
    "recipe-remedy-differences": partial(studies.recipe_differences, "02-recipe", "remedy.json"),
    "teach": studies.teach_section,
    "generate-parts": generate_parts,
    "scaling": partial(studies.scaling_section, "04-scale"),
    "targets": targets_section,
    "floors": floors_section,
    "sm90": sm90_section,
    **{marker: partial(largest_section, name) for marker, name in LARGEST.items()},
    **{
        f"bench-{op}-{device_type}": partial(suite_section, op, device_type)
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
    """Return a document with every section that it has markers for written anew."""
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
