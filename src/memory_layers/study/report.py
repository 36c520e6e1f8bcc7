"""The report of a comparison: tables, plots and one HTML page from ``results.json``.

Nothing here trains or measures. A run without a result stays visible, with its reason, in every
table; it takes no part in any mean. Next: report_summary.py (means and verdicts),
report_tables.py, report_text.py, plots.py, and report_page.py, which writes any such page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_layers.study.plots import PLOT_NAMES, draw_plots
from memory_layers.study.plots_base import Plot, Style, variant_styles
from memory_layers.study.report_page import (
    Definitions,
    Figure,
    Folded,
    Page,
    Part,
    Section,
    short_reason,
    write_page,
)
from memory_layers.study.report_summary import by_variant, comparisons, finished, summary_table
from memory_layers.study.report_tables import (
    TIMES,
    bits_table,
    difference_tables,
    markdown_table,
    match_table,
    number,
    relation_tables,
    results_table,
    run_table,
    spread_cell,
)
from memory_layers.study.report_text import (
    CAPTIONS,
    DEFINITIONS,
    lead,
    match_text,
    notes,
    provenance,
    title,
    verdict_text,
)

if TYPE_CHECKING:
    import rich.table

__all__ = ["comparisons", "markdown_table", "render_table", "summary_table", "write_report"]

_TERMINAL_HEAD = (
    "Variant",
    "Seeds",
    "Held-out\nrecall",
    "Shown\nrecall",
    "Text\nloss",
    "Bits\nstored",
    "FLOPs\n/token",
    "Params",
    "Time\n(s)",
)


def render_table(results: Mapping[str, Any]) -> rich.table.Table:
    """Return the summary as a table for a terminal of 80 columns or more.

    It has fewer columns than the report. The reasons of runs without a result stand below it.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    rows = summary_table(results)
    # There is no room for both.
    hidden = "Shown\nrecall" if any(row["text_nll"] for row in rows) else "Text\nloss"
    # Text, not str, so that square brackets in a name are not taken for rich's markup.
    table = RichTable(
        title=Text(title(results)),
        box=box.SIMPLE_HEAD,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        caption_justify="left",
    )
    head = [name for name in _TERMINAL_HEAD if name != hidden]
    for i, name in enumerate(head):
        table.add_column(
            Text(name), justify="left" if i == 0 else "right", overflow="fold", no_wrap=i > 0
        )
    reasons = []
    for row in rows:
        if row["seeds"]:
            cells = zip(_TERMINAL_HEAD, _terminal_cells(row), strict=True)
            table.add_row(*(Text(text) for name, text in cells if name != hidden))
        for run in row["failed"]:
            seed = f"seed {run['seed']}"
            name = Text(f"{row['variant']}\n{seed}", style="red")
            table.add_row(name, "", Text(run["status"].replace(" ", "\n"), style="red"))
            reason = short_reason(run["error"])
            reasons.append(f"{row['variant']}, {seed} {run['status']}: {reason}")
    if results.get("complete") is False:
        reasons.insert(0, notes(results)[0])
    table.caption = Text("\n".join(reasons)) if reasons else None
    return table


def _terminal_cells(row: Mapping[str, Any]) -> list[str]:
    heldout = spread_cell(row["question_heldout"], ".3f", row["seeds"])
    shown, text, bits = (
        row[key] and row[key]["mean"] for key in ("question_shown", "text_nll", "bits_stored")
    )
    return [
        row["variant"],
        str(row["seeds"]),
        # The column is as wide as the range, so that the interval needs a line of its own.
        f"{heldout.text.replace(' ±', chr(10) + '±')}\n{heldout.small}".strip(),
        number(shown, ".3f"),
        number(text, ".3f"),
        number(bits, ",.0f"),
        f"{number(row['flops_per_token'])}\n{number(row['flops_ratio'], '.2f')} {TIMES}",
        number(row["params_total"]),
        number(row["seconds"], ",.0f"),
    ]


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Write ``report.html`` and, for each plot, ``plots/NAME.png`` and ``plots/NAME.csv``.

    Args:
        results: The content of ``results.json``.
        folder: Created if it is missing. Plots of an earlier report that this one does not
            have are removed.

    Returns:
        The path of the page, which needs no other file to be read.
    """
    styles = variant_styles(list(by_variant(results)))
    done = {
        name: [run for run in runs if finished(run)] for name, runs in by_variant(results).items()
    }
    groups = {name: runs for name, runs in done.items() if runs}
    plots = draw_plots(groups, styles)
    page = Page(
        title=title(results),
        lead=lead(results),
        notes=notes(results),
        sections=_sections(results, groups, styles, plots),
        footer=provenance(results),
    )
    return write_page(page, folder, PLOT_NAMES)


def _sections(
    results: Mapping[str, Any],
    groups: Mapping[str, Sequence[Mapping[str, Any]]],
    styles: Mapping[str, Style],
    plots: Mapping[str, Plot],
) -> list[Section]:
    def figures(*names: str) -> Iterable[Part]:
        for name in names:
            if name in plots:
                yield Figure(name, *CAPTIONS[name], plots[name].png, plots[name].csv)

    match, bits = match_table(results, styles), bits_table(results, styles)
    differences = [
        Folded(table.label, table, shown=i == 0)
        for i, table in enumerate(difference_tables(results, styles).values())
    ]
    relations = [
        Folded(form, table, shown=i == 0)
        for i, (form, table) in enumerate(relation_tables(results, groups).items())
    ]
    costs = ("recall_against_flops", "recall_against_parameters", "text_loss_against_flops")
    amounts = ("bits_per_parameter", "bits_per_active_parameter", "bits_per_train_flop")
    return [
        Section("Results", [results_table(results, styles)]),
        Section("What was matched", [match_text(results), match] if match else []),
        Section("Differences", [*verdict_text(results), *differences] if differences else []),
        Section("What it gives for what it costs", list(figures(*costs))),
        Section("Over training", list(figures("recall_over_tokens", "recall_over_flops"))),
        Section(
            "Which facts are recalled",
            list(figures("recall_by_entropy", "recall_by_exposures", "recall_by_relation")),
        ),
        Section("Recall by relation", relations),
        Section("Knowledge in bits", [*figures(*amounts), *([bits] if bits else [])]),
        Section("Use of the memory", list(figures("slot_usage"))),
        Section("What the figures mean", [Definitions(DEFINITIONS)]),
        Section("Every run", [run_table(results, styles)]),
    ]
