"""The report of a comparison: tables, plots and one HTML page from results.json.

Nothing here trains or measures. A run without a result stays visible, with its reason, in every
table; it takes no part in any mean. Next: tables.py, text.py, variants.py, and page.py, which
writes the page.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_layers.study.metrics import METRICS
from memory_layers.study.plots.comparison import PLOT_NAMES, draw_plots
from memory_layers.study.plots.drawing import variant_styles
from memory_layers.study.plots.exposure import EXPOSURE_PLOTS
from memory_layers.study.report import rates, tables, text
from memory_layers.study.report.exposure import exposure_parts, half_line
from memory_layers.study.report.guessing import guess_notes, guess_parts
from memory_layers.study.report.matched import match_table, match_text
from memory_layers.study.report.page import Cell, Figure, Glossary, Page, Part, write_page
from memory_layers.study.report.terminal import terminal_table
from memory_layers.study.report.variants import describe_variants, example_tables
from memory_layers.study.summary import by_variant, finished, summary_table

if TYPE_CHECKING:
    import rich.table

_RUN_COLUMNS = (
    "question_heldout", "answer_nll", "text_nll", "bits_stored", "last_loss", "learning_rate",
    "value_learning_rate", "slots_read", "kl_to_uniform", "seconds",
)  # fmt: skip


def render_table(results: Mapping[str, Any]) -> "rich.table.Table":
    """Return the summary as a table for a terminal of 80 columns or more.

    It has fewer columns than the report. The reasons of runs without a result stand below it.
    """
    # There is no room for both.
    hidden = (
        "question_shown" if any(row["text_nll"] for row in summary_table(results)) else "text_nll"
    )
    columns = [key for key, metric in METRICS.items() if metric.short and key != hidden]
    rows = tables.summary_rows(
        results,
        {},
        lambda row: [Cell(str(row["seeds"])), *(_terminal_cell(row, key) for key in columns)],
    )
    notes = text.notes(results)[:1] if results.get("complete") is False else []
    notes += [line] if (line := half_line(results)) else []
    notes += rates.rate_notes(results)
    notes += [
        f"{row.title.text}, {row.title.small} {row.reason}"
        for row in rows
        if row.failure is not None
    ]
    notes += guess_notes(results)
    head = ("Variant", "Seeds", *(METRICS[key].short for key in columns))
    return terminal_table(text.report_title(results), head, rows, notes)


def _terminal_cell(row: Mapping[str, Any], key: str) -> Cell:
    found, form = row[key], METRICS[key].form
    if key == "question_heldout":
        heldout = tables.spread_cell(found, form, row["seeds"])
        # The column is as wide as the range, so that the interval needs a line of its own.
        return Cell(heldout.text.replace(" ±", "\n±"), heldout.small)
    small = ""
    if ratio := {"flops_per_token": "flops_ratio", "seconds": "seconds_ratio"}.get(key):
        small = f"{tables.number(row[ratio], '.2f')} {tables.TIMES}"
    return Cell(tables.number(found["mean"] if isinstance(found, Mapping) else found, form), small)


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.html` and, for each plot, `plots/NAME.png` and `plots/NAME.csv`.

    Args:
        results: The content of results.json.
        folder: Created if it is missing. Plots of an earlier report that this one does not
            have are removed.

    Returns:
        The path of the page, which needs no other file to be read.
    """
    page = Page(
        title=text.report_title(results),
        lead=text.lead(results),
        notes=[*text.notes(results), *rates.rate_notes(results), *guess_notes(results)],
        sections=_sections(results),
        footer=text.provenance(results),
    )
    return write_page(page, folder, (*PLOT_NAMES, *EXPOSURE_PLOTS))


def _sections(results: Mapping[str, Any]) -> dict[str, list[Part]]:
    styles = variant_styles(list(by_variant(results)))
    done = {
        name: [run for run in runs if finished(run)] for name, runs in by_variant(results).items()
    }
    groups = {name: runs for name, runs in done.items() if runs}
    by_exposures = exposure_parts(results, styles)
    drawn = {part.name for part in by_exposures if isinstance(part, Figure)}
    figures: dict[str, list[Part]] = {
        section: [Figure(name, plot) for name, plot in plots.items() if name not in drawn]
        for section, plots in draw_plots(groups, styles).items()
    }

    def present(*parts: Part | None) -> list[Part]:
        return [part for part in parts if part]

    differences = tables.difference_tables(results, styles)
    verdicts = text.verdict_text(results) if differences else []
    return {
        "Results": [tables.results_table(results, styles)],
        "Recall by exposures": by_exposures,
        "What each variant is": present(describe_variants(results)),
        "What was matched": present(match_text(results), match_table(results, styles)),
        "Learning rates": present(rates.rates_text(results), *rates.rate_tables(results, styles)),
        "Differences": [*verdicts, *differences],
        **figures,
        "What can be guessed": guess_parts(results),
        "Recall by relation": [*tables.relation_tables(results, groups)],
        "Bits by variant": present(tables.bits_table(results, styles)),
        "Example answers": [*example_tables(groups, styles)],
        "What the figures mean": [Glossary("comparison")],
        "Every run": [tables.run_table(results, styles, _RUN_COLUMNS, "Variant, seed")],
    }
