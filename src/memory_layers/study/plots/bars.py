"""Bars: recall by relation, bits of knowledge for what they cost, reads of the memory's slots.

Next: comparison.py collects them.
"""

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from memory_layers.common.text import short_number
from memory_layers.study.intervals import finite, spread
from memory_layers.study.metrics import METRICS, measured
from memory_layers.study.plots import drawing
from memory_layers.study.plots.drawing import RECALL_LABEL, Plot, Styles, finish, legend, new_figure
from memory_layers.study.summary import Groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What dense models store at best (Allen-Zhu and Li, arXiv 2404.05405).
LITERATURE_BITS = 2.0


def relation_plot(groups: Groups, styles: Styles) -> Plot | None:
    """Draw held-out recall by relation, one bar a variant."""
    values: dict[str, dict[str, list[float]]] = {}
    rows = []
    for name, runs in groups.items():
        for run in runs:
            for relation, recall in ((run.get("recall") or {}).get("by_relation") or {}).items():
                number = finite((recall or {}).get("question_heldout"))
                if number is not None:
                    values.setdefault(relation, {}).setdefault(name, []).append(number)
                    rows.append((name, run.get("seed"), relation, number))
    if not values:
        return None
    names = [name for name in groups if any(name in row for row in values.values())]
    height = min(14.0, 1.5 + len(values) * (0.3 + 0.13 * len(names)))
    figure, axes = new_figure(RECALL_LABEL, height=height, grid="x")
    size = 0.8 / len(names)
    for i, name in enumerate(names):
        places = [y for y, row in enumerate(values.values()) if name in row]
        found = [f for row in values.values() if (f := spread(row.get(name, ()))) is not None]
        axes.barh(
            [y - 0.4 + size * (i + 0.5) for y in places],
            [row["mean"] for row in found],
            height=size * 0.9,
            **styles[name].bar,
            xerr=drawing.error_lengths(found, high=1.0),
            error_kw={"ecolor": drawing.INK, "elinewidth": 1, "capsize": 1.5},
        )
    _name_rows(axes, values)
    axes.set_xlim(0, 1.02)
    legend(figure, {name: styles[name] for name in names}, bars=True)
    return finish(figure, ("variant", "seed", "relation", "question_heldout"), rows)


def bits_plot(groups: Groups, styles: Styles, key: str) -> Plot | None:
    """Draw how much knowledge each variant stores for what it costs, one bar a variant.

    Args:
        groups: The finished runs of each variant.
        styles: The style of each variant.
        key: One of BITS.
    """
    metric = METRICS[key]
    found: dict[str, dict[str, Any]] = {}
    for name, runs in groups.items():
        values = [value for run in runs if (value := measured(run, key)) is not None]
        row = spread(value * metric.unit for value in values)
        if row is not None:
            found[name] = row
    if not found:
        return None
    figure, axes = new_figure(metric.axis, height=1.2 + 0.3 * len(found), grid="x")
    places = range(len(found))
    axes.barh(
        places,
        [row["mean"] for row in found.values()],
        height=0.7,
        color=[styles[name].colour for name in found],
        xerr=drawing.error_lengths(list(found.values())),
        error_kw={"ecolor": drawing.INK, "elinewidth": 1, "capsize": 2},
    )
    _name_rows(axes, found)
    top = max(row["max"] for row in found.values()) or 1.0
    axes.set_xlim(0, top * 1.15)
    for y, row in zip(places, found.values(), strict=True):
        axes.annotate(
            short_number(row["mean"]) if row["mean"] >= 999.5 else f"{row['mean']:#.3g}",
            (min(max(row["mean"] + (row["half"] or 0), row["max"]), top * 1.15), y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color=drawing.INK,
            annotation_clip=False,
        )
    axes.locator_params(axis="x", nbins=6)
    if key == "bits_per_parameter":
        _literature_line(axes, top)
    rows = [(name, *drawing.spread_columns(row)) for name, row in found.items()]
    return finish(figure, ("variant", *drawing.SPREAD_COLUMNS), rows)


def _name_rows(axes: "Axes", names: Collection[str]) -> None:
    """Name the bars, or groups of bars, from the top down."""
    axes.set_yticks(range(len(names)), [drawing.plain_text(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _literature_line(axes: "Axes", top: float) -> None:
    """Mark what the literature found for dense models, in words where it is far off."""
    text = f"{LITERATURE_BITS:g} bits: dense models at best, in the literature"
    if top * 3 < LITERATURE_BITS:
        text += f"\n(off the scale: {LITERATURE_BITS / top:.3g} times the longest bar)"
    else:
        axes.axvline(LITERATURE_BITS, color=drawing.INK, linewidth=1.2, linestyle="--")
        axes.set_xlim(0, 1.15 * max(top, LITERATURE_BITS))
    axes.set_title(text, fontsize=10, color=drawing.INK, loc="left")


def usage_plot(groups: Groups, styles: Styles) -> Plot | None:
    """Draw how many reads the slots of each variant's memory received."""
    shares: dict[str, dict[float, float]] = {}
    upper: dict[float, float | None] = {}
    for name, runs in groups.items():
        usages = [u for run in runs if (u := run.get("slot_usage")) and u.get("histogram")]
        for usage in usages:
            counts, edges = usage["histogram"], usage.get("histogram_edges") or []
            if len(edges) < len(counts):
                edges = [0.0, *(2.0**i for i in range(len(counts)))]
            total = math.fsum(counts) or 1.0
            for i, count in enumerate(counts):
                low = float(edges[i])
                # Bins are matched by their edge: a busier seed has more of them.
                row = shares.setdefault(name, {})
                row[low] = row.get(low, 0.0) + 100 * count / total / len(usages)
                if upper.get(low) is None:
                    upper[low] = float(edges[i + 1]) if i + 1 < len(edges) else None
    if not shares:
        return None
    bins = sorted(upper)
    figure, axes = new_figure("Reads a slot received", "Share of slots (%)")
    size = 0.86 / len(shares)
    for i, (name, row) in enumerate(shares.items()):
        axes.bar(
            [x - 0.43 + size * (i + 0.5) for x in range(len(bins))],
            [row.get(low, 0.0) for low in bins],
            width=size * 0.94,
            **styles[name].bar,
        )
    every = max(1, math.ceil(len(bins) / 12))
    ticks = range(0, len(bins), every)
    axes.set_xticks(ticks, [_bin_label(bins[i], upper[bins[i]]) for i in ticks])
    if len(ticks) > 5:
        axes.tick_params(axis="x", rotation=40)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axes.locator_params(axis="y", nbins=6, steps=[1, 2, 5, 10])
    legend(figure, {name: styles[name] for name in shares}, bars=True)
    rows = [
        (name, low, upper[low], share) for name, row in shares.items() for low, share in row.items()
    ]
    return finish(figure, ("variant", "reads_from", "reads_below", "percent_of_slots"), rows)


def _bin_label(low: float, high: float | None) -> str:
    def write(value: int) -> str:
        # Short numbers would turn 512 to 1023 into "512 to 1.02k".
        return str(value) if value < 10_000 else short_number(value)

    first = math.ceil(low)
    if high is None or not math.isfinite(high):
        return f"≥ {write(first)}"
    # Reads are whole numbers, so the bin [2, 4) holds 2 and 3.
    last = math.ceil(high) - 1
    return write(first) if last <= first else f"{write(first)}\u2013{write(last)}"
