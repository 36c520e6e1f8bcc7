"""The report of a comparison: tables, plots and one HTML page from ``results.json``.

Nothing here trains or measures. A run that failed stays visible, with its reason, in every
table; it takes no part in any mean.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_layers.study.plots import (
    PLOT_NAMES,
    Style,
    draw_plots,
    finite,
    short_number,
    variant_styles,
)
from memory_layers.study.report_page import Cell, Page, Row, Table, render_page, short_reason
from memory_layers.study.report_summary import (
    FORMS,
    by_variant,
    failure,
    finished,
    spread,
    summary_table,
)

if TYPE_CHECKING:
    import rich.table

__all__ = ["markdown_table", "render_table", "summary_table", "write_report"]

_DASH = "\u2013"
_HEAD = (
    "Variant",
    "Seeds",
    "Held-out questions\u00a0↑",
    "Shown questions\u00a0↑",
    "Statements\u00a0↑",
    "Answer NLL\u00a0↓",
    "Bits stored\u00a0↑",
    "FLOPs per token",
    "Parameters",
    "Tokens",
    "Seconds",
)
_TERMINAL_HEAD = (
    "Variant",
    "Seeds",
    "Held-out\nrecall",
    "Shown\nrecall",
    "Bits\nstored",
    "FLOPs\n/token",
    "Params",
    "Time\n(s)",
)
_RUN_HEAD = (
    "Variant, seed",
    "Held-out questions",
    "Answer NLL",
    "Bits stored",
    "Last loss",
    "Learning rate",
    "Value learning rate",
    "Slots read",
    "KL to uniform",
    "Tokens",
    "Seconds",
)


def render_table(results: Mapping[str, Any]) -> rich.table.Table:
    """Return the summary as a table for a terminal of 80 columns or more.

    It has fewer columns than the report. The reasons of failed runs stand below it.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    # Text, not str, so that square brackets in a name are not taken for rich's markup.
    table = RichTable(
        title=Text(_title(results)),
        box=box.SIMPLE_HEAD,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        caption_justify="left",
    )
    for i, title in enumerate(_TERMINAL_HEAD):
        table.add_column(
            Text(title), justify="left" if i == 0 else "right", overflow="fold", no_wrap=i > 0
        )
    reasons = []
    for row in summary_table(results):
        if row["seeds"]:
            heldout = _spread_cell(row["question_heldout"], ".3f", row["seeds"])
            shown, bits = (
                row[key] and row[key]["mean"] for key in ("question_shown", "bits_stored")
            )
            cells = (
                row["variant"],
                str(row["seeds"]),
                f"{heldout.text}\n{heldout.small}".strip(),
                _number(shown, ".3f"),
                _number(bits, ",.0f"),
                f"{_number(row['flops_per_token'])}\n{_number(row['flops_ratio'], '.2f')} \u00d7",
                _number(row["params_total"]),
                _number(row["seconds"], ",.0f"),
            )
            table.add_row(*map(Text, cells))
        for run in row["failed"]:
            seed = f"seed {run['seed']}"
            name = Text(f"{row['variant']}\n{seed}", style="red")
            table.add_row(name, "", Text("failed", style="red"))
            reasons.append(f"{row['variant']}, {seed} failed: {short_reason(run['error'])}")
    table.caption = Text("\n".join(reasons)) if reasons else None
    return table


def markdown_table(results: Mapping[str, Any]) -> str:
    """Return the summary as a GitHub table, ending in a line break."""
    lines = [
        "| " + " | ".join(_HEAD) + " |",
        "|:---|" + "---:|" * (len(_HEAD) - 1),
    ]
    for row in _summary_rows(results, {}):
        # In a code span only the bar and the backtick have a meaning.
        plain = " ".join(row.title.text.split())
        name = "`" + plain.replace("`", "'").replace("|", "\\|") + "`"
        if row.title.small:
            name += f", {_markdown(row.title.small)}"
        if row.failure is None:
            cells = [f"{c.text} ({c.small})" if c.small else c.text for c in row.cells]
        else:
            reason = f"failed: {short_reason(row.failure)}"
            cells = [_DASH, reason] + [_DASH] * (len(_HEAD) - 3)
        lines.append("| " + " | ".join([name, *map(_markdown, cells)]) + " |")
    return "\n".join(lines) + "\n"


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Write ``report.html`` and ``plots/*.png`` into a folder.

    Args:
        results: The content of ``results.json``.
        folder: Created if it is missing. Plots of an earlier report that this one does not
            have are removed.

    Returns:
        The path of the page, which needs no other file to be read.
    """
    all_runs = by_variant(results)
    styles = variant_styles(list(all_runs))
    done = {name: [run for run in runs if finished(run)] for name, runs in all_runs.items()}
    groups = {name: runs for name, runs in done.items() if runs}
    plots = draw_plots(groups, styles)
    page = Page(
        title=_title(results),
        lead=_lead(results),
        notes=_notes(results),
        summary=Table(_HEAD, _summary_rows(results, styles), "Results by variant"),
        plots=plots,
        relations=_relation_tables(results, groups),
        runs=Table(_RUN_HEAD, _run_rows(results, styles), "Every run"),
        provenance=_provenance(results),
    )
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for name in PLOT_NAMES:
        path = folder / "plots" / f"{name}.png"
        if name in plots:
            _write(path, plots[name])
        else:
            path.unlink(missing_ok=True)
    path = folder / "report.html"
    _write(path, render_page(page).encode("utf-8", errors="replace"))
    return path


def _write(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _spread_cell(found: Mapping[str, Any] | None, form: str, seeds: int) -> Cell:
    if found is None:
        return Cell(_DASH)
    small = f"{found['min']:{form}}{_DASH}{found['max']:{form}}" if found["n"] > 1 else ""
    if found["n"] < seeds:
        small = f"{small} {found['n']} of {seeds} seeds".strip()
    return Cell(format(found["mean"], form), small)


def _number(value: object, form: str = "") -> str:
    number = finite(value)
    if number is None:
        return _DASH
    return format(number, form) if form else short_number(number)


def _summary_rows(results: Mapping[str, Any], styles: Mapping[str, Style]) -> list[Row]:
    rows = []
    for row in summary_table(results):
        name, seeds = row["variant"], row["seeds"]
        colour = styles[name].colour if name in styles else None
        if seeds:
            ratio = row["flops_ratio"]
            cost = "" if ratio is None else f"{ratio:.2f} \u00d7 {row['flops_base']}"
            cells = [
                Cell(str(seeds)),
                *(_spread_cell(row[form], ".3f", seeds) for form, _ in FORMS),
                _spread_cell(row["answer_nll"], ".3f", seeds),
                _spread_cell(row["bits_stored"], ",.0f", seeds),
                Cell(_number(row["flops_per_token"]), cost),
                Cell(_number(row["params_total"]), f"{_number(row['params_active'])} active"),
                Cell(_number(row["tokens"])),
                Cell(_number(row["seconds"], ",.0f")),
            ]
            rows.append(Row(Cell(name), cells, colour))
        for run in row["failed"]:
            rows.append(Row(Cell(name, f"seed {run['seed']}"), (), colour, run["error"]))
    return rows


def _run_rows(results: Mapping[str, Any], styles: Mapping[str, Style]) -> list[Row]:
    rows = []
    for variant, runs in by_variant(results).items():
        for run in runs:
            title, colour = Cell(variant, f"seed {run.get('seed')}"), styles[variant].colour
            if not finished(run):
                rows.append(Row(title, (), colour, failure(run)))
                continue
            usage = run.get("slot_usage") or {}
            history = run.get("history") or [{}]
            used = finite(usage.get("used_share"))
            cells = (
                _number((run.get("recall") or {}).get("question_heldout"), ".3f"),
                _number((run.get("answer_nll") or {}).get("question_heldout"), ".3f"),
                _number(run.get("bits_stored"), ",.0f"),
                _number(history[-1].get("loss"), ".3f"),
                _number(run.get("learning_rate"), ".3g"),
                _number(run.get("value_learning_rate"), ".3g"),
                _DASH if used is None else f"{used:.0%} of {_number(usage.get('slots'))}",
                _number(usage.get("kl_to_uniform"), ".2f"),
                _number(run.get("tokens")),
                _number(run.get("seconds"), ",.0f"),
            )
            rows.append(Row(title, [Cell(text) for text in cells], colour))
    return rows


def _relation_tables(
    results: Mapping[str, Any], groups: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Table]:
    found = {
        name: [(run.get("recall") or {}).get("by_relation") or {} for run in runs]
        for name, runs in groups.items()
    }
    counts = (results.get("facts") or {}).get("relations") or {}
    named = dict.fromkeys(counts) | dict.fromkeys(
        relation for runs in found.values() for run in runs for relation in run
    )
    tables = {}
    for form, title in FORMS:
        rows = []
        measured = False
        for relation in named:
            cells = [Cell(_number(counts.get(relation), ",.0f"))]
            for runs in found.values():
                recall = spread((run.get(relation) or {}).get(form) for run in runs)
                measured = measured or recall is not None
                cells.append(_spread_cell(recall, ".3f", len(runs)))
            rows.append(Row(Cell(relation), cells))
        if measured:
            tables[title] = Table(("Relation", "Facts", *found), rows, f"{title} by relation")
    return tables


def _title(results: Mapping[str, Any]) -> str:
    return f"Comparison: {results.get('name') or 'unnamed'}"


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _lead(results: Mapping[str, Any]) -> str:
    rows = summary_table(results)
    if not rows:
        return "The results hold no runs."
    facts = results.get("facts") or {}
    text = f"Compared {_join([row['variant'] for row in rows])}"
    if facts.get("facts"):
        text += f", taught {facts['facts']:,} facts"
        relations = len(facts.get("relations") or ())
        text += f" of {relations} relation{'s' * (relations != 1)}" if relations else ""
    ranked = sorted(
        (
            (row["question_heldout"]["mean"], row["variant"])
            for row in rows
            if row["question_heldout"]
        ),
        key=lambda pair: -pair[0],
    )
    if not ranked:
        return f"{text}: no recall of held-out questions was measured."
    means = [mean for mean, _ in ranked]
    # Two decimals read best, unless they hide a difference or round a miss up to 1.
    coarse = len({f"{m:.2f}" for m in means}) == len(set(means))
    digits = 2 if coarse and not any(0.995 <= m < 1 for m in means) else 3
    scores = ", ".join(f"{name} {mean:.{digits}f}" for mean, name in ranked)
    return f"{text}: {scores} of held-out questions answered exactly."


def _notes(results: Mapping[str, Any]) -> list[str]:
    rows = summary_table(results)
    notes = []
    failed = sum(len(row["failed"]) for row in rows)
    if failed:
        total = failed + sum(row["seeds"] for row in rows)
        notes.append(f"{failed} of {total} runs failed; the tables show the reason.")
    fewest = min((row["seeds"] for row in rows if row["seeds"]), default=None)
    most = max((row["seeds"] for row in rows), default=0)
    names = [row["variant"] for row in rows if row["seeds"] == 1]
    if most == 1:
        notes.append(
            "Every figure comes from one seed. One seed shows no spread: how far another seed "
            "would have landed is not known."
        )
    elif names:
        notes.append(f"The figures of {_join(names)} come from one seed, which shows no spread.")
    elif fewest == 2:
        notes.append("Some figures come from two seeds; the spread of two is a rough guide only.")
    return notes


def _provenance(results: Mapping[str, Any]) -> dict[str, str]:
    facts = results.get("facts") or {}
    shown, heldout = finite(facts.get("shown")), finite(facts.get("heldout"))
    split = "" if shown is None or heldout is None else f", {shown:,.0f} shown as questions"
    split += f", {heldout:,.0f} held out" if split else ""
    entries = {
        "Device": results.get("device"),
        "Versions": ", ".join(f"{k} {v}" for k, v in (results.get("versions") or {}).items()),
        "Commit": results.get("commit"),
        "Command": results.get("command"),
        "Facts": f"{facts.get('source') or 'source not recorded'}{split}" if facts else None,
        "Date": results.get("date"),
    }
    return {name: str(value or "not recorded") for name, value in entries.items()}


def _markdown(text: str) -> str:
    """Escape what would end a cell or start markup of GitHub's."""
    flat = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
