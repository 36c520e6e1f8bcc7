"""What a report says of learning rates: what was tried, what was best, and whether it can be more.

Next: comparison.py and sweep.py put it on a page.
"""

from collections.abc import Mapping
from typing import Any

from memory_layers.study.plots.drawing import Styles
from memory_layers.study.report.page import Cell, Row, Table
from memory_layers.study.report.tables import DASH, number

_MEASURES = {
    "question_heldout": ("Held-out questions\u00a0↑", ".3f"),
    "answer_nll": ("Answer NLL\u00a0↓", ".3f"),
    "text_nll": ("Text loss\u00a0↓", ".3f"),
    "seconds": ("Seconds", ",.0f"),
}


def rate_notes(results: Mapping[str, Any]) -> list[str]:
    """Return warnings about rates that may not be the best."""
    rates = results.get("rates")
    if not rates:
        return [
            "Learning rates were not swept here: a variant may do better at another rate than that "
            "of the file. `sweep: {optim.lr: [...]}` tries some for each."
        ]
    return [
        f"The best {field} of {name}, {swept['best'][field]:g}, is the {edge} that was tried: one "
        "beyond it may be better."
        for name, swept in rates["variants"].items()
        for field, edge in swept["edges"].items()
    ]


def rate_tables(results: Mapping[str, Any], styles: Styles) -> list[Table]:
    """Return the best rates of each variant, and all that were tried."""
    rates = results.get("rates")
    if not rates:
        return []
    fields = rates["fields"]
    best, tried = [], []
    for name, swept in rates["variants"].items():
        colour = styles[name].colour if name in styles else None
        cells = [Cell(number(swept["best"].get(f), ".3g"), _edge(swept, f)) for f in fields]
        best.append(Row(Cell(name), [*cells, Cell(str(len(swept["tried"])))], colour))
        for run in swept["tried"]:
            values = [Cell(number(run.get(field), ".3g")) for field in fields]
            ended = run["status"].replace("_", " ")
            if run["status"] == "ok":
                cells = [Cell(number(run.get(key), form)) for key, (_, form) in _MEASURES.items()]
            else:
                cells = [Cell(ended), *[Cell(DASH)] * (len(_MEASURES) - 1)]
            tried.append(Row(Cell(name), [*values, *cells], colour))
    headings = [heading for heading, _ in _MEASURES.values()]
    return [
        Table(["Variant", *fields, "Runs"], best, "Best learning rates"),
        Table(["Variant", *fields, *headings], tried, "All that were tried", "closed"),
    ]


def rates_text(results: Mapping[str, Any]) -> str:
    """Return how the rates were found."""
    rates = results.get("rates")
    if not rates:
        return ""
    return (
        f"Each variant was first trained with seed {rates['seed']}, on the facts of that seed, at "
        "each of these rates, one field after the other, and is compared at what recalled most. "
        "Where that was at an edge, rates beyond it were tried."
    )


def _edge(swept: Mapping[str, Any], field: str) -> str:
    edge = swept["edges"].get(field)
    return f"{edge} tried" if edge else ""
