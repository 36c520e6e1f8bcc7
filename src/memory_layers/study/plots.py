"""The plots of a comparison, drawn to PNG bytes without global matplotlib state.

Every function takes the runs that ended well, grouped by variant, so a plot never has to know
about failed runs. A variant keeps its colour and marker in all plots of a report.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

Run = Mapping[str, Any]
Groups = Mapping[str, Sequence[Run]]

PLOT_NAMES = ("recall_over_tokens", "recall_over_flops", "recall_by_relation", "slot_usage")

# Okabe and Ito's palette, which stays distinct under the common colour-vision deficiencies. Its
# yellow is left out because it is too faint on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":", "-.")
_HATCHES = ("", "///", "...", "xxx")
_INK = "#222222"
_GRID = "#dddddd"
_DPI = 150
_WIDTH = 6.4
_LABEL_LENGTH = 22


@dataclass(frozen=True)
class Style:
    """How one variant is drawn, in every plot."""

    colour: str
    marker: str
    dash: str
    hatch: str


@dataclass(frozen=True)
class _Curve:
    """One variant's mean over seeds and its band."""

    name: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def variant_styles(variants: Sequence[str]) -> dict[str, Style]:
    """Give each variant a style by its position; past seven, dashes and hatches differ."""
    styles = {}
    for i, name in enumerate(variants):
        lap = i // len(_COLOURS) % len(_DASHES)
        position = i % len(_COLOURS)
        styles[name] = Style(_COLOURS[position], _MARKERS[position], _DASHES[lap], _HATCHES[lap])
    return styles


def finite(value: object) -> float | None:
    """Return a finite number as a float and anything else, such as None or NaN, as None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def short_number(value: float) -> str:
    """Write a count with three digits and a suffix: 1234567 becomes "1.23M"."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 999,600 must read 1.00M, not 1000k.
        if abs(value) >= size * 0.9995:
            scaled = value / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f}{suffix}"
    return f"{value:.0f}"


def draw_plots(groups: Groups, styles: Mapping[str, Style]) -> dict[str, bytes]:
    """Draw every plot the runs have data for.

    Args:
        groups: The finished runs of each variant, in the order of the legends.
        styles: The style of each variant, from :func:`variant_styles`.

    Returns:
        PNG bytes by name, a subset of ``PLOT_NAMES``.
    """
    figures = {
        "recall_over_tokens": _history_plot(groups, styles, "tokens", "Training tokens"),
        "recall_over_flops": _history_plot(groups, styles, "flops", "Training FLOPs"),
        "recall_by_relation": _relation_plot(groups, styles),
        "slot_usage": _usage_plot(groups, styles),
    }
    return {name: _png(figure) for name, figure in figures.items() if figure is not None}


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11, color="#888888")
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the version in the file, the same results give the same bytes on any release.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _text(name: str) -> str:
    """Make a name safe as plot text: no mathematics, no line breaks, not too long."""
    flat = "".join(c if c.isprintable() else " " for c in name)
    if len(flat) > _LABEL_LENGTH:
        flat = flat[: _LABEL_LENGTH - 1] + "…"
    # Matplotlib leaves labels that start with an underscore out of legends.
    return (" " + flat if flat.startswith("_") else flat).replace("$", r"\$")


def _curve(name: str, runs: Sequence[Run], key: str) -> _Curve | None:
    """Average the held-out recall of the seeds where all of them have measurements."""
    import numpy as np

    lines = []
    for run in runs:
        points = {}
        for entry in run.get("history") or ():
            x, y = finite(entry.get(key)), finite(entry.get("question_heldout"))
            if x is not None and y is not None:
                points[x] = y
        if points:
            lines.append(np.array(sorted(points.items())))
    if not lines:
        return None
    grid = lines[0][:, 0]
    start, end = max(line[0, 0] for line in lines), min(line[-1, 0] for line in lines)
    grid = grid[(grid >= start) & (grid <= end)]
    if not len(grid):
        return None
    # Seeds may have been measured at different steps; averaging only what exists at each step
    # would make the mean jump whenever a seed drops out.
    values = np.stack([np.interp(grid, line[:, 0], line[:, 1]) for line in lines])
    return _Curve(name, grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def _history_plot(
    groups: Groups, styles: Mapping[str, Style], key: str, label: str
) -> Figure | None:
    curves = [c for name, runs in groups.items() if (c := _curve(name, runs, key)) is not None]
    if not curves:
        return None
    figure, axes = _figure(4.2)
    several = any(len(runs) > 1 for runs in groups.values())
    for curve in curves:
        style = styles[curve.name]
        axes.fill_between(curve.x, curve.low, curve.high, color=style.colour, alpha=0.18, lw=0)
        axes.plot(
            curve.x,
            curve.mean,
            color=style.colour,
            linestyle=style.dash,
            marker=style.marker,
            markersize=4,
            linewidth=1.8,
        )
    lowest = min(float(curve.x[0]) for curve in curves)
    highest = max(float(curve.x[-1]) for curve in curves)
    if key == "flops" and lowest > 0 and highest >= 10 * lowest:
        axes.set_xscale("log")
        label += " (log scale)"
    elif key == "tokens":
        axes.xaxis.set_major_formatter(_tick_formatter(short_number))
    axes.set_xlabel(label, fontsize=12)
    axes.set_ylabel("Recall on held-out questions", fontsize=12)
    top = max(float(curve.high.max()) for curve in curves)
    axes.set_ylim(0, 1.02 if top > 0.5 else max(top * 1.2, 0.02))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    _label_ends(axes, curves, styles)
    title = "Mean and range over seeds" if several else "One seed per variant"
    axes.set_title(title, fontsize=11, color=_INK, loc="left")
    return figure


def _label_ends(axes: Axes, curves: Sequence[_Curve], styles: Mapping[str, Style]) -> None:
    """Write each variant's name right of the axes, joined to the end of its line."""
    top = axes.get_ylim()[1]
    order = sorted(curves, key=lambda curve: float(curve.mean[-1]))
    gap = min(0.065, 1 / len(order))
    heights: list[float] = []
    for curve in order:
        wanted = float(curve.mean[-1]) / top
        heights.append(max(wanted, heights[-1] + gap) if heights else wanted)
    # Names pushed over the top edge are pressed down again, from the highest on.
    ceiling = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - gap
    for curve, height in zip(order, heights, strict=True):
        axes.annotate(
            _text(curve.name),
            xy=(float(curve.x[-1]), float(curve.mean[-1])),
            xytext=(1.06, height),
            textcoords="axes fraction",
            color=_INK,
            fontsize=11,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": styles[curve.name].colour,
                "linewidth": 0.8,
                "shrinkA": 2,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def _relation_plot(groups: Groups, styles: Mapping[str, Style]) -> Figure | None:
    values: dict[str, dict[str, list[float]]] = {}
    for name, runs in groups.items():
        for run in runs:
            for relation, recall in ((run.get("recall") or {}).get("by_relation") or {}).items():
                number = finite((recall or {}).get("question_heldout"))
                if number is not None:
                    values.setdefault(relation, {}).setdefault(name, []).append(number)
    if not values:
        return None
    names = [name for name in groups if any(name in row for row in values.values())]
    figure, axes = _figure(min(14.0, 1.5 + len(values) * (0.3 + 0.17 * len(names))))
    size = 0.8 / len(names)
    for i, name in enumerate(names):
        rows = [(y, row[name]) for y, row in enumerate(values.values()) if name in row]
        means = [math.fsum(seeds) / len(seeds) for _, seeds in rows]
        below = [mean - min(seeds) for mean, (_, seeds) in zip(means, rows, strict=True)]
        above = [max(seeds) - mean for mean, (_, seeds) in zip(means, rows, strict=True)]
        several = any(len(seeds) > 1 for _, seeds in rows)
        axes.barh(
            [y - 0.4 + size * (i + 0.5) for y, _ in rows],
            means,
            height=size * 0.9,
            color=styles[name].colour,
            hatch=styles[name].hatch,
            edgecolor="white",
            linewidth=0,
            label=_text(name),
            # Rounding in the mean can leave a length of -1e-17, which matplotlib refuses.
            xerr=[[max(b, 0.0) for b in below], [max(a, 0.0) for a in above]] if several else None,
            error_kw={"ecolor": _INK, "elinewidth": 1, "capsize": 2},
        )
    axes.set_yticks(range(len(values)), [_text(relation) for relation in values])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("Recall on held-out questions", fontsize=12)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    _legend(figure, axes)
    return figure


def _usage_plot(groups: Groups, styles: Mapping[str, Style]) -> Figure | None:
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
    figure, axes = _figure(4.2)
    size = 0.86 / len(shares)
    for i, (name, row) in enumerate(shares.items()):
        axes.bar(
            [x - 0.43 + size * (i + 0.5) for x in range(len(bins))],
            [row.get(low, 0.0) for low in bins],
            width=size * 0.94,
            color=styles[name].colour,
            hatch=styles[name].hatch,
            edgecolor="white",
            linewidth=0,
            label=_text(name),
        )
    every = max(1, math.ceil(len(bins) / 12))
    ticks = range(0, len(bins), every)
    axes.set_xticks(ticks, [_bin_label(bins[i], upper[bins[i]]) for i in ticks])
    if len(ticks) > 5:
        axes.tick_params(axis="x", rotation=40)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axes.set_xlabel("Reads a slot received", fontsize=12)
    axes.set_ylabel("Share of slots (%)", fontsize=12)
    axes.locator_params(axis="y", nbins=6, steps=[1, 2, 5, 10])
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    _legend(figure, axes)
    return figure


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


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        # About 66 characters fit side by side, of which each swatch takes six.
        ncols=max(1, min(len(labels), 66 // (6 + max(map(len, labels))))),
        frameon=False,
        fontsize=11,
        handlelength=1.2,
        columnspacing=1.4,
    )


def _tick_formatter(write: Callable[[float], str]) -> FuncFormatter:
    from matplotlib.ticker import FuncFormatter

    def tick(value: float, _position: int | None) -> str:
        text = write(value)
        # Axis ticks are round numbers: "1.50M" reads better as "1.5M" and "2.00M" as "2M".
        digits = text.rstrip("TBMk")
        suffix = text[len(digits) :]
        return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + suffix

    return FuncFormatter(tick)
