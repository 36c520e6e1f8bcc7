"""The tables of a comparison: results, what was matched, differences, relations, bits, runs.

A run without a result stays in them, with its status and reason. Next: comparison.py puts them on
a page.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memory_layers.common import text
from memory_layers.common.errors import UserError
from memory_layers.common.text import short_number
from memory_layers.study import summary
from memory_layers.study.intervals import finite, spread
from memory_layers.study.metrics import BITS, FORMS, METRICS, Run, measured
from memory_layers.study.plots.drawing import Styles
from memory_layers.study.report.page import Cell, Row, Table
from memory_layers.study.summary import Groups

DASH, MINUS = "\u2013", "\u2212"
TIMES = "\u00d7"

# A row of a summary has the count of its finished runs beside the metrics.
_HEADINGS = {"seeds": "Seeds", **{key: metric.heading for key, metric in METRICS.items()}}
_STANDARD = (
    "seeds", *FORMS, "answer_nll", "text_nll", "bits_stored", "flops_per_token", "params_total",
    "tokens", "seconds",
)  # fmt: skip


def number(value: object, form: str = "") -> str:
    """Write a number, without a format as a short count, and anything else as a dash."""
    found = finite(value)
    if found is None:
        return DASH
    return format(found, form) if form else short_number(found)


def percent(value: object) -> str:
    """Write a signed share in percent, and anything that is not a number as a dash."""
    found = finite(value)
    return DASH if found is None else f"{100 * found:+.1f} %".replace("-", MINUS)


def spread_cell(
    found: Mapping[str, Any] | None,
    form: str,
    seeds: int,
    *,
    ranges: bool = True,
    unit: float = 1.0,
) -> Cell:
    """Return the cell of a mean over seeds.

    Args:
        found: What `spread` returned.
        form: Of the numbers.
        seeds: Finished runs. The cell says where fewer were measured.
        ranges: Whether the lowest and the highest seed are in the small print.
        unit: What the numbers are multiplied by.
    """
    if found is None:
        return Cell(DASH)
    mean, low, high = (found[key] * unit for key in ("mean", "min", "max"))
    if form == ".3g":
        # All of a cell's numbers with the decimals of its mean, as 4.96e-05 is hard to compare.
        size = math.floor(math.log10(abs(mean))) if mean else 0
        form = f",.{max(0, 2 - size)}f"
    half = "" if found["half"] is None else f" ± {found['half'] * unit:{form}}"
    small = f"{low:{form}}{DASH}{high:{form}}" if ranges and found["n"] > 1 else ""
    if found["n"] < seeds:
        small = f"{small} {found['n']} of {seeds} seeds".strip()
    return Cell(f"{mean:{form}}{half}", small)


def results_table(
    results: Mapping[str, Any],
    styles: Styles,
    columns: Sequence[str] | None = None,
    *,
    ranges: bool = True,
) -> Table:
    """Return the results, one row a variant and one a run without a result.

    Args:
        results: The content of results.json.
        styles: The style of each variant, for its dot.
        columns: Keys of what summary_table returns. None: the usual ones.
        ranges: Whether the lowest and the highest seed are in the small print.

    Raises:
        UserError: A column is not known.
    """
    if columns is None:
        rows = summary.summary_table(results)
        unmeasured = all(row["text_nll"] is None for row in rows)
        columns = [key for key in _STANDARD if key != "text_nll" or not unmeasured]
    unknown = [key for key in columns if key not in _HEADINGS]
    if unknown:
        raise UserError(f"columns: unknown {unknown}. hint: {', '.join(_HEADINGS)}")
    lines = summary_rows(
        results, styles, lambda row: [_result_cell(row, k, ranges) for k in columns]
    )
    return Table(["Variant", *(_HEADINGS[k] for k in columns)], lines, "Results by variant")


def summary_rows(
    results: Mapping[str, Any],
    styles: Styles,
    cells: Callable[[Mapping[str, Any]], Sequence[Cell]],
) -> list[Row]:
    """Return a row for each variant, with its `cells`, and one for each run without a result."""
    lines = []
    groups = summary.by_variant(results)
    for row in summary.summary_table(results):
        name = row["variant"]
        colour = styles[name].colour if name in styles else None
        if row["seeds"]:
            lines.append(Row(Cell(name), cells(row), colour))
        lines += [_failed(name, run, colour) for run in groups[name] if not summary.finished(run)]
    return lines


def _failed(name: str, run: Run, colour: str | None) -> Row:
    title = Cell(name, f"seed {run.get('seed')}")
    return Row(title, (), colour, summary.failure(run), summary.status(run))


def _result_cell(row: Mapping[str, Any], key: str, ranges: bool) -> Cell:
    if key == "seeds":
        return Cell(str(row[key]))
    metric = METRICS[key]
    if metric.better:
        return spread_cell(row[key], metric.form, row["seeds"], ranges=ranges, unit=metric.unit)
    small = f"{number(row['params_active'])} active" if key == "params_total" else ""
    if key == "flops_per_token" and row["flops_ratio"] is not None:
        small = f"{row['flops_ratio']:.2f} {TIMES} {row['base']}"
    if key == "seconds" and row["seconds_ratio"] is not None:
        small = f"{row['seconds_ratio']:.2f} {TIMES} {row['base']}"
    return Cell(number(row[key], metric.form), small)


def markdown_table(
    results: Mapping[str, Any], columns: Sequence[str] | None = None, *, ranges: bool = True
) -> str:
    """Return the results as a GitHub table, ending in a line break.

    Args:
        results: The content of results.json.
        columns: Keys of what summary_table returns. None: the usual ones.
        ranges: Whether the lowest and the highest seed stand in brackets.

    Raises:
        UserError: A column is not known.
    """
    table = results_table(results, {}, columns, ranges=ranges)
    width = len(table.head) - 1
    rows = []
    for row in table.rows:
        # In a code span only the bar and the backtick have a meaning.
        plain = " ".join(row.title.text.split())
        name = "`" + plain.replace("`", "'").replace("|", "\\|") + "`"
        if row.title.small:
            name += f", {_markdown(row.title.small)}"
        if row.failure is None:
            cells = [f"{c.text} ({c.small})" if c.small else c.text for c in row.cells]
        else:
            cells = [*[DASH] * min(1, width - 1), row.reason, *[DASH] * (width - 2)]
        rows.append([name, *map(_markdown, cells)])
    return text.markdown_table(table.head, rows) + "\n"


def _markdown(cell: str) -> str:
    """Escape what would end a cell or start markup of GitHub's."""
    flat = " ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|")
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def difference_tables(results: Mapping[str, Any], styles: Styles) -> list[Table]:
    """Return, for each variant with memory, how it differs from every other, paired by seed."""
    found = {(e["variant"], e["reference"], e["measure"]): e for e in summary.comparisons(results)}
    measures = {measure for _, _, measure in found} | {"question_heldout"}
    used = [name for name in METRICS if name in measures]
    head = ["Against", "Pairs"]
    for name in used:
        head += [METRICS[name].heading, "Verdict"]
    rows_of = {row["variant"]: row for row in summary.summary_table(results)}
    tables = []
    for subject in summary.memory_variants(results) if len(rows_of) > 1 else ():
        rows = []
        for other in rows_of:
            if other == subject:
                continue
            entries = {name: found.get((subject, other, name)) for name in used}
            pairs = max((e["seeds"] for e in entries.values() if e), default=0)
            cells = [Cell(str(pairs))]
            for measure, entry in entries.items():
                cells += difference_cells(entry, METRICS[measure].better)
            for cost in ("flops_per_token", "params_total"):
                own, theirs = rows_of[subject][cost], rows_of[other][cost]
                cells.append(Cell(f"{own / theirs:.2f} {TIMES}" if own and theirs else DASH))
            rows.append(Row(Cell(other), cells, styles[other].colour))
        label = f"{subject} against each other variant"
        fold = "closed" if tables else "open"
        tables.append(Table([*head, "FLOPs", "Parameters"], rows, label, fold))
    return tables


def difference_cells(entry: Mapping[str, Any] | None, better: int) -> list[Cell]:
    """Return the cells of a difference with its interval, and of its verdict.

    Args:
        entry: Of what `summary.comparisons` returned. None: no pair.
        better: 1 if more is better, -1 if less is.
    """
    if entry is None:
        return [Cell(DASH), Cell("no pair")]
    small = "" if entry["low"] is None else f"{_signed(entry['low'])} to {_signed(entry['high'])}"
    verdict = entry["verdict"]
    judged = {"above": better, "below": -better}.get(verdict, 0)
    words = Cell(verdict, ("", "better", "worse")[judged])
    return [Cell(_signed(entry["difference"]), small), words]


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", MINUS)


def bits_table(results: Mapping[str, Any], styles: Styles) -> Table | None:
    """Return the knowledge of each variant in bits for what it costs, if that was measured."""
    known = any(row[key] for row in summary.summary_table(results) for key in BITS)
    return results_table(results, styles, ("bits_stored", *BITS)) if known else None


def relation_tables(results: Mapping[str, Any], groups: Groups) -> list[Table]:
    """Return a table of recall by relation for each form of question that was asked."""
    found = {
        name: [(run.get("recall") or {}).get("by_relation") or {} for run in runs]
        for name, runs in groups.items()
    }
    counts = (results.get("facts") or {}).get("relations") or {}
    named = dict.fromkeys(counts) | dict.fromkeys(
        relation for runs in found.values() for run in runs for relation in run
    )
    tables = []
    for form in FORMS:
        spreads = {
            relation: [spread((run.get(relation) or {}).get(form) for run in runs)
                       for runs in found.values()]
            for relation in named
        }  # fmt: skip
        if not any(recall for row in spreads.values() for recall in row):
            continue
        rows = []
        for relation, row in spreads.items():
            cells = [Cell(number(counts.get(relation), ",.0f"))]
            cells += [
                spread_cell(recall, ".3f", len(runs))
                for recall, runs in zip(row, found.values(), strict=True)
            ]
            rows.append(Row(Cell(relation), cells))
        fold = "closed" if tables else "open"
        tables.append(Table(("Relation", "Facts", *found), rows, METRICS[form].label, fold))
    return tables


def run_table(
    results: Mapping[str, Any],
    styles: Styles,
    columns: Sequence[str],
    title: str,
    name_of: Callable[[Run], str] = lambda run: str(run.get("variant")),
) -> Table:
    """Return every run with its own figures, or why it has none.

    Args:
        results: The content of results.json.
        styles: The style of each variant.
        columns: Metrics.
        title: Heading of the first column.
        name_of: What that column says of a run beside its seed.
    """
    rows = []
    for variant, runs in summary.by_variant(results).items():
        colour = styles[variant].colour
        for run in runs:
            row = _failed(name_of(run), run, colour)
            if summary.finished(run):
                row = Row(row.title, [Cell(_run_text(run, key)) for key in columns], colour)
            rows.append(row)
    head = (title, *(METRICS[key].label for key in columns))
    return Table(head, rows, "Every run")


def _run_text(run: Run, key: str) -> str:
    text = number(measured(run, key), METRICS[key].form)
    slots = (run.get("slot_usage") or {}).get("slots")
    return f"{text} of {number(slots)}" if key == "slots_read" and text != DASH else text
