"""Write the generated parts of the README from result files: python experiments/update_docs.py.

`--check` changes nothing and fails when the README is out of step.
"""

import json
import re
import sys
from pathlib import Path

from memory_layers.study.report import markdown_table

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
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


def replace_section(text: str, name: str, content: str) -> str:
    """Put content between the markers `<!-- name:begin -->` and `<!-- name:end -->`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def main() -> int:
    """Update or check the README."""
    before = README.read_text("utf-8")
    after = replace_section(before, "demo", demo_section())
    if "--check" in sys.argv[1:]:
        return int(before != after)
    README.write_text(after, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
