"""The report of a sweep: what each memory size gives each base, the laws, the exchange rates.

Nothing here trains, measures or fits. Next: report_page.py, which turns the texts into a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_layers.study.fits import METRICS, measured
from memory_layers.study.intervals import finite, spread
from memory_layers.study.plots_base import Plot, variant_styles
from memory_layers.study.report_page import (
    Cell,
    Definitions,
    Figure,
    Page,
    Row,
    Section,
    Table,
    short_reason,
    write_page,
)
from memory_layers.study.report_summary import failure, finished, status
from memory_layers.study.report_tables import number, spread_cell
from memory_layers.study.report_text import provenance
from memory_layers.study.scale_plots import PLOT_NAMES, draw_scale_plots, slots_label

if TYPE_CHECKING:
    import rich.table

_DASH = "\u2013"
_TIMES = "\u00d7"
_NAMES = {"recall": "recall", "answer_nll": "answer NLL"}
_HEAD = (
    "Base, slots",
    "Seeds",
    "Held-out recall\u00a0↑",
    "Answer NLL\u00a0↓",
    "Worth of dense compute, by recall",
    "Worth of dense compute, by NLL",
    "FLOPs per token",
    "Parameters",
    "Seconds",
)
_TERMINAL_HEAD = (
    "Base, slots",
    "Seeds",
    "Held-out\nrecall",
    "Answer\nNLL",
    "Worth, by\nrecall",
    "Worth, by\nNLL",
    "FLOPs\n/token",
    "Params",
)
_FIT_HEAD = ("Law", "Of", "Slope for each doubling", "Intercept", "R²", "Runs", "Left out")
_FORMS = (
    "Recall: logit(recall) = intercept + slope · log2(x), by maximum likelihood. Answer NLL: a "
    "power law, ln(NLL) = intercept + slope · log2(x), by least squares. x is the number of slots "
    "or the FLOPs of a token. A slope is what each doubling adds. Ranges are 95 % intervals over "
    "1,000 draws of the runs with replacement."
)
# (kind of plot, what it shows, how to read it)
_CAPTIONS = (
    (
        "over_slots",
        " over memory size.",
        (
            "Small marks are runs, large ones means over seeds. Lines are the fitted laws, bands "
            "their 95 % intervals. The mark at 0 is the same base model without memory."
        ),
    ),
    (
        "over_flops",
        " over compute.",
        (
            "The dashed line is the law of dense models. Memory adds points above a base model, "
            "not to its right: how far right the dashed line has to go to reach them is what "
            "memory is worth."
        ),
    ),
    (
        "exchange",
        ": what memory is worth in compute.",
        (
            "FLOPs of a dense model that does as well by the law, over those of the memory model. "
            "Vertical lines are 95 % intervals. Hollow marks lie outside the dense models that "
            "were trained."
        ),
    ),
)
_MEANINGS = (
    (
        "Held-out recall",
        (
            "The share of questions answered exactly, by greedy decoding, about facts that the "
            "model has seen only as statements."
        ),
    ),
    (
        "Answer NLL",
        "Negative log-likelihood of the right answer to these questions, in nats. Lower is better.",
    ),
    (
        "Worth of dense compute",
        (
            "FLOPs of a token of the dense model that the fitted law of dense models expects to "
            "do as well, over the FLOPs of a token of the memory model. All runs read the same "
            "tokens. ∞ says that in some draws of the runs no dense model does as well."
        ),
    ),
    ("±", "Half the width of the 95 % interval of a mean over seeds, by Student's t."),
)
_RUN_HEAD = (
    "Run",
    "Held-out recall",
    "Answer NLL",
    "FLOPs per token",
    "Parameters",
    "Slots read",
    "Tokens",
    "Seconds",
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
            "runs": [run for run in group if finished(run)],
            "failed": [run for run in group if not finished(run)],
            "exchange": {metric: rates.get((base, slots, metric)) for metric in METRICS},
            **{metric: spread(measured(run, metric) for run in group) for metric in METRICS},
        }
        for (base, slots), group in cells.items()
    ]


def render_scale_table(results: Mapping[str, Any]) -> rich.table.Table:
    """Return the summary for a terminal. The reasons of failed runs stand below it."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(
        title=Text(_title(results)), box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False
    )
    for i, title in enumerate(_TERMINAL_HEAD):
        table.add_column(Text(title), justify="left" if i == 0 else "right", no_wrap=i > 0)
    reasons = []
    for row in scale_rows(results):
        cells = [Cell(_cell_name(row)), *_summary_cells(row)[:-1]]
        table.add_row(*(Text(f"{cell.text}\n{cell.small}".strip()) for cell in cells))
        for run in row["failed"]:
            reasons.append(f"{_run_name(run)} {status(run)}: {short_reason(failure(run))}")
    table.caption_justify = "left"
    table.caption = Text("\n".join(reasons)) if reasons else None
    return table


def write_scale_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.html` and, for each plot, `plots/NAME.png` and `plots/NAME.csv`.

    Args:
        results: The content of `results.json`.
        folder: Plots of an earlier report that this one does not have are removed.

    Returns:
        The path of the page, which needs no other file to be read.
    """
    plots = draw_scale_plots(results)
    page = Page(
        title=_title(results),
        lead=_lead(results),
        notes=_notes(results),
        sections=[
            Section("Results", [_summary(results)]),
            Section("Recall", _figures(plots, "recall")),
            Section("Answer NLL", _figures(plots, "answer_nll")),
            Section("Fitted laws", [_FORMS, _laws(results)]),
            Section("What the figures mean", [Definitions(_MEANINGS)]),
            Section("Every run", [_every_run(results)]),
        ],
        footer=_footer(results),
    )
    return write_page(page, folder, PLOT_NAMES)


def _figures(plots: Mapping[str, Plot], metric: str) -> list[Figure]:
    name = _NAMES[metric][:1].upper() + _NAMES[metric][1:]
    return [
        Figure(f"{metric}_{kind}", f"{name}{title}", text, plot.png, plot.csv)
        for kind, title, text in _CAPTIONS
        if (plot := plots.get(f"{metric}_{kind}")) is not None
    ]


def _title(results: Mapping[str, Any]) -> str:
    return f"Sweep: {results['name']}"


def _cell_name(row: Mapping[str, Any]) -> str:
    return f"{row['base']}, {slots_label(row['slots']) if row['slots'] else 'dense'}"


def _run_name(run: Mapping[str, Any]) -> str:
    return f"{_cell_name(run)}, seed {run['seed']}"


def _worth(entry: Mapping[str, Any] | None) -> Cell:
    """Write an exchange rate. A star marks what lies outside the measured dense models."""
    if entry is None or entry["times"] is None:
        return Cell(_DASH)
    high = "∞" if entry["high"] is None else _ratio(entry["high"])
    low = "∞" if entry["low"] is None else _ratio(entry["low"])
    star = "*" if entry["extrapolated"] else ""
    return Cell(f"{_ratio(entry['times'])} {_TIMES}{star}", f"{low}{_DASH}{high}")


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 9.95 else f"{value:,.0f}" if value < 1e6 else ">10⁶"


def _summary_cells(row: Mapping[str, Any]) -> list[Cell]:
    def mean(key: str) -> float | None:
        found = spread(run.get(key) for run in row["runs"])
        return found["mean"] if found else None

    seeds = f"{len(row['failed'])} not finished" if row["failed"] else ""
    return [
        Cell(str(len(row["runs"])), seeds),
        *(spread_cell(row[metric], ".3f", len(row["runs"]), ranges=False) for metric in METRICS),
        *(_worth(row["exchange"][metric]) for metric in METRICS),
        Cell(number(mean("flops_per_token"))),
        Cell(number(mean("params_total"))),
        Cell(number(mean("seconds"), ",.0f")),
    ]


def _summary(results: Mapping[str, Any]) -> Table:
    styles = variant_styles(results["bases"])
    rows = [
        Row(Cell(_cell_name(row)), _summary_cells(row), styles[row["base"]].colour)
        for row in scale_rows(results)
    ]
    return Table(_HEAD, rows, "Results by base and memory size")


def _laws(results: Mapping[str, Any]) -> Table:
    fits = results["fits"]
    laws = [("dense models over FLOPs", fits["flops"])]
    laws += [(f"{base} over slots", by_metric) for base, by_metric in fits["slots"].items()]
    rows = []
    for title, by_metric in laws:
        for metric, fit in by_metric.items():
            name = Cell(title, _NAMES[metric])
            if "reason" in fit:
                rows.append(Row(name, failure=fit["reason"], status="no fit"))
                continue
            slope, intercept = (
                Cell(f"{fit[key]:.3f}", _DASH.join(f"{end:.3f}" for end in fit[f"{key}_interval"]))
                for key in ("slope", "intercept")
            )
            of = Cell("logit(recall)" if metric == "recall" else "ln(NLL)")
            counts = Cell(str(fit["runs"]), f"{fit['points']} sizes")
            left_out = Cell(str(len(fit["left_out"]) or _DASH))
            rows.append(
                Row(name, [of, slope, intercept, Cell(f"{fit['r2']:.3f}"), counts, left_out])
            )
    return Table(_FIT_HEAD, rows, "Fitted laws")


def _every_run(results: Mapping[str, Any]) -> Table:
    styles = variant_styles(results["bases"])
    rows = []
    for run in results["runs"]:
        title, colour = Cell(_cell_name(run), f"seed {run['seed']}"), styles[run["base"]].colour
        if not finished(run):
            rows.append(Row(title, (), colour, failure(run), status(run)))
            continue
        used = finite((run.get("slot_usage") or {}).get("used_share"))
        texts = (
            number(measured(run, "recall"), ".3f"),
            number(measured(run, "answer_nll"), ".3f"),
            number(run.get("flops_per_token")),
            number(run.get("params_total")),
            _DASH if used is None else f"{used:.0%}",
            number(run.get("tokens")),
            number(run.get("seconds"), ",.0f"),
        )
        rows.append(Row(title, [Cell(text) for text in texts], colour))
    return Table(_RUN_HEAD, rows, "Every run")


def _lead(results: Mapping[str, Any]) -> str:
    sizes = [slots_label(size) if size else "0" for size in results["slots"]]
    count = len(results["bases"])
    text = (
        f"{count} base model{'s' * (count != 1)} with {', '.join(sizes)} slots of memory, "
        f"{len(results['seeds'])} seed{'s' * (len(results['seeds']) != 1)} each"
    )
    facts = (results.get("facts") or {}).get("facts")
    text += f", taught {facts:,} facts." if facts else "."
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
    notes = []
    failed = [run for run in results["runs"] if not finished(run)]
    if failed:
        notes.append(
            f"{len(failed)} of {len(results['runs'])} runs did not finish and are in no mean and "
            f"no fit: {'; '.join(f'{_run_name(run)} ({status(run)})' for run in failed)}."
        )
    if len(results["seeds"]) < 3:
        notes.append(
            "Fewer than three seeds: how far another seed would have landed is hardly known."
        )
    for metric, fit in results["fits"]["flops"].items():
        if "reason" in fit:
            notes.append(
                f"No exchange rate by {_NAMES[metric]}, as dense models have no fit: "
                f"{fit['reason']}."
            )
    if any(entry["extrapolated"] for entry in results["exchange"]):
        notes.append(
            "Rates marked * lie outside the compute of the dense models that were trained: they "
            "continue the fitted line where nothing was measured."
        )
    return notes


def _footer(results: Mapping[str, Any]) -> dict[str, str]:
    threads = results["threads"]
    each = f"{threads} thread{'s' * (threads != 1)} each"
    return {**provenance(results), "Runs": f"{results['workers']} at a time, {each}"}
