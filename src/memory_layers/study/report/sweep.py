"""The report of a sweep: what each memory size gives each base, the laws, the exchange rates.

Nothing here trains, measures or fits. Next: page.py, which turns the texts into a page.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_layers.study import summary
from memory_layers.study.fits import LAWS, heldout
from memory_layers.study.intervals import spread
from memory_layers.study.metrics import METRICS, tokens_read
from memory_layers.study.plots.curves import loss_plot
from memory_layers.study.plots.drawing import variant_styles
from memory_layers.study.plots.sweep import PLOT_NAMES, draw_scale_plots, slots_label
from memory_layers.study.report import page, rates, text
from memory_layers.study.report.guessing import guess_notes, guess_parts
from memory_layers.study.report.page import Cell, Figure, Glossary, Page, Row, Table, write_page
from memory_layers.study.report.tables import DASH, TIMES, number, run_table, spread_cell
from memory_layers.study.report.terminal import terminal_table
from memory_layers.study.report.variants import describe_variants, example_tables

if TYPE_CHECKING:
    import rich.table

_HEAD = (
    "Base, slots", "Seeds", "Held-out recall\u00a0↑", "Answer NLL\u00a0↓",
    "Worth of dense compute, by recall", "Worth of dense compute, by NLL",
)  # fmt: skip
_TERMINAL_HEAD = (
    "Base, slots", "Seeds", "Held-out\nrecall", "Answer\nNLL", "Worth, by\nrecall",
    "Worth, by\nNLL",
)  # fmt: skip
_COSTS = ("flops_per_token", "params_total", "seconds")
_RUN_COLUMNS = ("question_heldout", "answer_nll", *_COSTS[:2], "slots_read", "seconds")
_FIT_HEAD = ("Law", "Of", "Slope for each doubling", "Intercept", "R²", "Runs", "Left out")
_FORMS = (
    "Recall: logit(recall) = intercept + slope · log2(x), by maximum likelihood. Answer NLL: a "
    "power law, ln(NLL) = intercept + slope · log2(x), by least squares. x is the number of slots "
    "or the FLOPs of a token. A slope is what each doubling adds. Ranges are 95 % intervals over "
    "1,000 draws of the runs with replacement."
)


def scale_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Summarise each base at each memory size over its seeds.

    Returns:
        One row a cell, in the order of the sweep: `base`, `slots`, `runs` and `failed`, lists of
        entries, `recall` and `answer_nll`, what `spread` returns, and `exchange`, by metric.
    """
    rates = {(e["base"], e["slots"], e["metric"]): e for e in results["exchange"]}
    cells: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for run in results["runs"]:
        cells.setdefault((run["base"], run["slots"]), []).append(run)
    return [
        {
            "base": base,
            "slots": slots,
            "runs": [run for run in group if summary.finished(run)],
            "failed": [run for run in group if not summary.finished(run)],
            "exchange": {metric: rates.get((base, slots, metric)) for metric in LAWS},
            **{metric: spread(heldout(run, metric) for run in group) for metric in LAWS},
        }
        for (base, slots), group in cells.items()
    ]


def render_scale_table(results: Mapping[str, Any]) -> "rich.table.Table":
    """Return the summary for a terminal. The reasons of failed runs stand below it."""
    rows = [Row(Cell(_cell_name(row)), _summary_cells(row)[:-1]) for row in scale_rows(results)]
    reasons = [
        f"{_cell_name(run)}, seed {run['seed']} {summary.status(run)}: "
        + page.short_reason(summary.failure(run))
        for row in scale_rows(results)
        for run in row["failed"]
    ]
    head = (*_TERMINAL_HEAD, *(METRICS[key].short for key in _COSTS[:-1]))
    below = [*rates.rate_notes(results), *reasons, *guess_notes(results)]
    return terminal_table(_title(results), head, rows, below)


def write_scale_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.html` and, for each plot, `plots/NAME.png` and `plots/NAME.csv`.

    Args:
        results: The content of results.json.
        folder: Plots of an earlier report that this one does not have are removed.

    Returns:
        The path of the page, which needs no other file to be read.
    """
    variants = summary.by_variant(results)
    styles = variant_styles(list(variants))
    of_base = variant_styles(results["bases"])
    base_styles = {name: of_base[group[0]["base"]] for name, group in variants.items()}
    rows = [
        Row(Cell(_cell_name(row)), _summary_cells(row), of_base[row["base"]].colour)
        for row in scale_rows(results)
    ]
    head = (*_HEAD, *(METRICS[key].label for key in _COSTS))
    groups = summary.by_variant({"runs": [run for run in results["runs"] if summary.finished(run)]})
    plots = draw_scale_plots(results)
    losses = loss_plot(groups, styles)
    runs = run_table(results, base_styles, _RUN_COLUMNS, "Run", _cell_name)
    each = f"{results['threads']} thread{'s' * (results['threads'] != 1)} each"
    content = Page(
        title=_title(results),
        lead=_lead(results),
        notes=_notes(results),
        sections={
            "Results": [Table(head, rows, "Results by base and memory size")],
            "What each model is": [describe_variants(results)],
            **{
                law.title: [
                    Figure(f"{metric}_{kind}", plot, kind, law.title)
                    for kind, plot in plots[metric].items()
                ]
                for metric, law in LAWS.items()
            },
            "Over training": [Figure("loss_over_tokens", losses)] if losses else [],
            "Learning rates": [
                part
                for part in (rates.rates_text(results), *rates.rate_tables(results, styles))
                if part
            ],
            "What can be guessed": guess_parts(results),
            "Fitted laws": [_FORMS, _laws(results)],
            "Example answers": example_tables(groups, styles),
            "What the figures mean": [Glossary("sweep")],
            "Every run": [replace(runs, head=("Run", "Held-out recall", *runs.head[2:]))],
        },
        footer={**text.provenance(results), "Runs": f"{results['workers']} at a time, {each}"},
    )
    return write_page(content, folder, (*PLOT_NAMES, "loss_over_tokens"))


def _title(results: Mapping[str, Any]) -> str:
    return f"Sweep: {results['name']}"


def _cell_name(row: Mapping[str, Any]) -> str:
    return f"{row['base']}, {slots_label(row['slots']) if row['slots'] else 'dense'}"


def _worth(entry: Mapping[str, Any] | None) -> Cell:
    """Write an exchange rate. A star marks what lies outside the measured dense models."""
    if entry is None or entry["times"] is None:
        return Cell(DASH)
    high = "∞" if entry["high"] is None else _ratio(entry["high"])
    low = "∞" if entry["low"] is None else _ratio(entry["low"])
    star = "*" if entry["extrapolated"] else ""
    return Cell(f"{_ratio(entry['times'])} {TIMES}{star}", f"{low}{DASH}{high}")


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 9.95 else f"{value:,.0f}" if value < 1e6 else ">10⁶"


def _summary_cells(row: Mapping[str, Any]) -> list[Cell]:
    seeds = f"{len(row['failed'])} not finished" if row["failed"] else ""
    return [
        Cell(str(len(row["runs"])), seeds),
        *(spread_cell(row[metric], ".3f", len(row["runs"]), ranges=False) for metric in LAWS),
        *(_worth(row["exchange"][metric]) for metric in LAWS),
        *(Cell(number(summary.mean_of(row["runs"], k), METRICS[k].form)) for k in _COSTS),
    ]


def _laws(results: Mapping[str, Any]) -> Table:
    fits = results["fits"]
    laws = [("dense models over FLOPs", fits["flops"])]
    laws += [(f"{base} over slots", by_metric) for base, by_metric in fits["slots"].items()]
    rows = []
    for title, by_metric in laws:
        for metric, fit in by_metric.items():
            name = Cell(title, LAWS[metric].name)
            if "reason" in fit:
                rows.append(Row(name, failure=fit["reason"], status="no fit"))
                continue
            slope, intercept = (
                Cell(f"{fit[key]:.3f}", DASH.join(f"{end:.3f}" for end in fit[f"{key}_interval"]))
                for key in ("slope", "intercept")
            )
            of = Cell(LAWS[metric].of.format(LAWS[metric].name.removeprefix("answer ")))
            counts = Cell(str(fit["runs"]), f"{fit['points']} sizes")
            left_out = Cell(str(len(fit["left_out"]) or DASH))
            rows.append(
                Row(name, [of, slope, intercept, Cell(f"{fit['r2']:.3f}"), counts, left_out])
            )
    return Table(_FIT_HEAD, rows, "Fitted laws")


def _lead(results: Mapping[str, Any]) -> str:
    sizes = [slots_label(size) if size else "0" for size in results["slots"]]
    count = len(results["bases"])
    text = (
        f"{count} base model{'s' * (count != 1)} with {', '.join(sizes)} slots of memory, "
        f"{len(results['seeds'])} seed{'s' * (len(results['seeds']) != 1)} each"
    )
    facts = (results.get("facts") or {}).get("facts")
    text += f", taught {facts:,} facts" if facts else ""
    tokens = {tokens_read(run) for run in results["runs"] if summary.finished(run)}
    text += f" on {number(tokens.pop())} tokens." if len(tokens) == 1 else "."
    for base in results["bases"]:
        rows = [row for row in scale_rows(results) if row["base"] == base and row["recall"]]
        if rows:
            ends = sorted(rows, key=lambda row: row["slots"])
            means = [f"{row['recall']['mean']:.2f}" for row in (ends[0], ends[-1])]
            text += f" Recall of {base}: {means[0]} with {_size(ends[0])}"
            text += f", {means[1]} with {_size(ends[-1])}." if len(ends) > 1 else "."
    return text


def _size(row: Mapping[str, Any]) -> str:
    return f"{slots_label(row['slots'])} slots" if row["slots"] else "no memory"


def _notes(results: Mapping[str, Any]) -> list[str]:
    notes = [*text.notes(results), *rates.rate_notes(results), *guess_notes(results)]
    for metric, fit in results["fits"]["flops"].items():
        if "reason" in fit:
            notes.append(
                f"No exchange rate by {LAWS[metric].name}, as dense models have no fit: "
                f"{fit['reason']}."
            )
    if any(entry["extrapolated"] for entry in results["exchange"]):
        notes.append(
            "Rates marked * lie outside the compute of the dense models that were trained: they "
            "continue the fitted line where nothing was measured."
        )
    return notes
