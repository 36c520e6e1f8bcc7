"""Write the generated parts of documents from result files: python experiments/update_docs.py.

`--check` changes nothing and fails when a document is out of step. A document takes part in a
section when it has the section's markers.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from memory_layers.bench.results import newest
from memory_layers.bench.sizes import USED
from memory_layers.bench.tables import suite_markdown, targets_markdown
from memory_layers.study.report import markdown_table

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")
DEMO = ROOT / "experiments" / "00-demo"


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


def targets_section() -> str:
    """Return the newest table of targets of each machine, and where its file is."""
    found = newest("targets", "cpu")
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


def _file(path: Path) -> str:
    return f"Result file: `{path.relative_to(ROOT)}`."


SECTIONS: dict[str, Callable[[], str]] = {
    "demo": demo_section,
    "targets": targets_section,
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
    for name in re.findall("<!-- ([a-z-]+):begin -->", text):
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
