"""What a report says of recall by exposures: a sentence, tables and plots.

Variants of which no finished run holds its answers are not in them. Next: comparison.py puts them
on a page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from memory_layers.study.exposure import (
    WORDINGS,
    Curves,
    Wording,
    curve_rows,
    exposed_relations,
    lift_differences,
    lift_rows,
    read_curves,
)
from memory_layers.study.half_recall import half_ratios, half_rows
from memory_layers.study.plots.drawing import Styles
from memory_layers.study.plots.exposure import EXPOSURE_PLOTS, draw_exposures
from memory_layers.study.report.page import Cell, Figure, Part, Row, Table
from memory_layers.study.report.tables import DASH, MINUS, TIMES, difference_cells
from memory_layers.study.report.text import join_words
from memory_layers.study.summary import memory_variants

_TERMS = {
    "Exposures": "How many statements of a fact the training documents have: k. The facts of a "
    "subject are stated equally often, and as many subjects have each k. Facts of k = 0 are in no "
    "document: what is answered of them is guessed.",
    "Seen and unseen wordings": "Seen: a statement in words in which the fact was read. Unseen: "
    "a question, a form in which no fact of the subject was read.",
    "Exposures for half recall": "The k at which half of the facts are recalled: recall by k, made "
    "to fall nowhere, with straight lines over log2 k between what was measured, over k below the "
    "first k above 0. A variant that never recalls half needs more than the largest k, and "
    "ratios with it are bounds.",
    "Lift": "The mean probability of the right answer, among at most 32 of the relation that are "
    "stated as often, less that of the facts of k = 0. Pooled: the mean over all k above 0.",
    "Intervals": "95 %, from 2,000 draws of subjects and seeds, the same for all variants. Of one "
    "seed they tell how far other facts would move a figure, not other seeds.",
}


def exposure_parts(results: Mapping[str, Any], styles: Styles) -> list[Part]:
    """Return what results hold on recall by exposures. Nothing for those that do not hold it."""
    both = {wording: curves for wording in WORDINGS if (curves := read_curves(results, wording))}
    if not both:
        return []
    subjects = memory_variants(results)
    figures = [
        Figure(file, plot, caption=f"{what}_over_exposures")
        for file, what in EXPOSURE_PLOTS.items()
        if (plot := draw_exposures(both, styles, what)) is not None
    ]
    return [
        *_sentences(both, subjects),
        _half_table(both, styles),
        *_ratio_tables(both, subjects, styles),
        *figures,
        *(_level_table(curves, styles, "recall") for curves in both.values()),
        *(_level_table(c, styles, "lift") for c in both.values() if c.levels[0] == 0),
        *_relation_tables(results, both, subjects),
        _TERMS,
    ]


def half_line(results: Mapping[str, Any]) -> str:
    """Return the exposures that each variant needs for half recall, the fewest first, or ""."""
    curves = read_curves(results, "unseen")
    if curves is None:
        return ""
    rows = sorted(half_rows(curves), key=lambda row: (row["exposures"] is None, row["exposures"]))
    texts = [f"{row['variant']} {half_text(row)}" for row in rows]
    return f"Exposures for half recall, unseen wordings: {', '.join(texts)}"


def half_text(row: Mapping[str, Any], *, ends: bool = True) -> str:
    """Write a row of `half_rows` in words, such as 4.00 (3.61 to 4.52), or > 64."""
    most = f"> {row['most']}"
    text = most if row["exposures"] is None else _three(row["exposures"])
    return _with_ends(text, _ends(row, none=most) if ends else "")


def ratio_text(row: Mapping[str, Any]) -> str:
    """Write a row of `half_ratios` in words, such as 2.00 × (1.71 to 2.40), or a dash."""
    return DASH if row["ratio"] is None else _with_ends(_ratio(row), _ends(row, none="∞"))


def _sentences(both: Mapping[Wording, Curves], subjects: Sequence[str]) -> list[str]:
    """Say, of each variant with memory, what it needs for half recall, and what others need."""
    curves = both.get("unseen")
    if curves is None:
        return []
    needs = {row["variant"]: row for row in half_rows(curves)}
    texts = []
    for subject in subjects:
        if subject not in needs:
            continue
        need = needs[subject]
        text = f"In wordings that it has not seen, {subject} recalls half of the facts after "
        text += f"{half_text(need)} statements."
        if need["exposures"] is None:
            text = f"In wordings that it has not seen, {subject} does not recall half of the facts "
            text += f"after {need['most']} statements."
        others = [
            f"{row['reference']} {ratio_text(row)}"
            for row in half_ratios(curves, [subject])
            if row["ratio"] is not None
        ]
        if others:
            text += f" In multiples of that, others need: {join_words(others)}."
        texts.append(text)
    return texts


def _half_table(both: Mapping[Wording, Curves], styles: Styles) -> Table:
    found = {wording: {r["variant"]: r for r in half_rows(c)} for wording, c in both.items()}
    rows = [
        Row(
            Cell(name),
            [Cell(str(len(seeds))), *(_half_cell(rows.get(name)) for rows in found.values())],
            styles[name].colour,
        )
        for name, seeds in next(iter(both.values())).seeds.items()
    ]
    head = ("Variant", "Seeds", *(f"{wording.title()} wordings ↓" for wording in both))
    return Table(head, rows, "Exposures for half recall", "open")


def _ratio_tables(
    both: Mapping[Wording, Curves], subjects: Sequence[str], styles: Styles
) -> list[Table]:
    """Return, for each variant with memory, how every other one differs from it."""
    head = ["Against", "Pairs", *(f"Times the exposures, {wording} ↑" for wording in both)]
    for wording in both:
        head += [f"Pooled lift, {wording}\u00a0↑", "Verdict"]
    tables: list[Table] = []
    for subject in subjects:
        ratios = [half_ratios(curves, [subject]) for curves in both.values()]
        lifts = [
            {row["reference"]: row for row in lift_differences(curves, [subject])}
            for curves in both.values()
        ]
        rows = []
        for entries in zip(*ratios, strict=True):
            other = entries[0]["reference"]
            cells = [Cell(str(entries[0]["seeds"]))]
            cells += [_ratio_cell(entry) for entry in entries]
            for found in lifts:
                cells += difference_cells(found.get(other), better=1)
            rows.append(Row(Cell(other), cells, styles[other].colour))
        if rows:
            label = f"{subject} against each other variant, by exposures"
            tables.append(Table(head, rows, label, "closed" if tables else "open"))
    return tables


def _level_table(curves: Curves, styles: Styles, what: str) -> Table:
    """Return recall or lift of each variant by the number of statements."""
    pooled = {row["variant"]: row for row in lift_rows(curves)} if what == "lift" else {}
    kept = [k for k in curves.levels.tolist() if k or not pooled]
    facts = dict(zip(curves.levels.tolist(), curves.facts.tolist(), strict=True))
    by_level = {(row["variant"], row["exposures"]): row for row in curve_rows(curves)}
    own = ["Pooled", "Probability at 0"] if pooled else []
    blank = [Cell("") for _ in own]
    rows = [Row(Cell("Facts"), [*blank, *(Cell(f"{facts[k]:,}") for k in kept)])]
    for name in curves.seeds:
        cells = [_estimate(by_level[name, k], what) for k in kept]
        if pooled:
            guessed = _estimate(by_level[name, 0], "probability")
            cells = [_estimate(pooled[name], what), guessed, *cells]
        rows.append(Row(Cell(name), cells, styles[name].colour))
    title = "Recall" if what == "recall" else "Lift of the probability of the right answer"
    head = ("Statements", *own, *map(str, kept))
    fold = "open" if curves.wording == WORDINGS[0] else "closed"
    return Table(head, rows, f"{title}, {curves.wording} wordings", fold)


def _relation_tables(
    results: Mapping[str, Any], both: Mapping[Wording, Curves], subjects: Sequence[str]
) -> list[Table]:
    """Return the same by relation, where there are several: half recall, ratios, pooled lift."""
    names = exposed_relations(results)
    tables = []
    for wording, whole in both.items() if len(names) > 1 else ():
        found = {name: read_curves(results, wording, [name]) for name in names}
        known = {name: curves for name, curves in found.items() if curves is not None}
        columns = [
            (
                f"Exposures for half recall by relation, {wording} wordings",
                {n: {r["variant"]: _half_cell(r) for r in half_rows(c)} for n, c in known.items()},
            ),
            *(
                (
                    f"Times the exposures of {subject} by relation, {wording} wordings",
                    {
                        n: {r["reference"]: _ratio_cell(r) for r in half_ratios(c, [subject])}
                        for n, c in known.items()
                    },
                )
                for subject in subjects
            ),
            (
                f"Pooled lift by relation, {wording} wordings",
                {
                    n: {r["variant"]: _estimate(r, "lift") for r in lift_rows(c)}
                    for n, c in known.items()
                },
            ),
        ]
        for label, cells in columns:
            shown = [name for name in whole.seeds if any(name in own for own in cells.values())]
            rows = [
                Row(
                    Cell(name, f"{results['exposure'][name]['answers']:,} answers"),
                    [
                        Cell(f"{known[name].facts.sum():,}"),
                        *(own.get(variant, Cell(DASH)) for variant in shown),
                    ],
                )
                for name, own in cells.items()
            ]
            if shown:
                tables.append(Table(("Relation", "Facts", *shown), rows, label, "closed"))
    return tables


def _half_cell(row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return Cell(DASH)
    return Cell(half_text(row, ends=False), _ends(row, none=f"above {row['most']}"))


def _ratio_cell(row: Mapping[str, Any]) -> Cell:
    if row["ratio"] is None:
        return Cell(DASH)
    return Cell(_ratio(row), _ends(row, none="∞"))


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['bound']} {_three(row['ratio'])} {TIMES}".strip()


def _ends(row: Mapping[str, Any], *, none: str) -> str:
    """Write an interval, or nothing where neither end is known."""
    if row["low"] is None:
        return ""
    high = none if row["high"] is None else _three(row["high"])
    return f"{_three(row['low'])} to {high}"


def _with_ends(text: str, ends: str) -> str:
    return f"{text} ({ends})" if ends else text


def _three(value: float) -> str:
    """Write a number with three digits or more, and with four places after the point at most."""
    places = 4 if 0 < value < 0.09995 else 3 if 0 < value < 0.9995 else 2
    return f"{value:.{places if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _estimate(row: Mapping[str, Any], what: str) -> Cell:
    low, mean, high = (f"{row[what + end]:z.3f}" for end in ("_low", "", "_high"))
    return Cell(mean.replace("-", MINUS), f"{low} to {high}".replace("-", MINUS))
