"""What all plots share: styles, labels, number formats, PNG bytes and the data as CSV.

No function touches global matplotlib state, and matplotlib is imported only when one draws.
Next: :mod:`memory_layers.study.plots`, the plots of a comparison.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memory_layers.study.intervals import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

Groups = Mapping[str, Sequence[Mapping[str, Any]]]

INK = "#222222"
GRID = "#dddddd"
RECALL_LABEL = "Recall on held-out questions"

# Okabe and Ito's palette, which stays distinct under the common colour-vision deficiencies. Its
# yellow is left out because it is too faint on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":", "-.")
_HATCHES = ("", "///", "...", "xxx")
_DPI = 150
_WIDTH = 6.4
_LABEL_LENGTH = 22


@dataclass(frozen=True)
class Plot:
    """A figure as PNG bytes, and the numbers it shows as CSV text."""

    png: bytes
    csv: str


@dataclass(frozen=True)
class Style:
    """How one variant is drawn, in every plot."""

    colour: str
    marker: str
    dash: str
    hatch: str


def variant_styles(variants: Sequence[str]) -> dict[str, Style]:
    """Give each variant a style by its position; past seven, all but the colours differ."""
    styles = {}
    for i, name in enumerate(variants):
        lap, position = i // len(_COLOURS), i % len(_COLOURS)
        styles[name] = Style(
            _COLOURS[position],
            _MARKERS[(position + 3 * lap) % len(_MARKERS)],
            _DASHES[lap % len(_DASHES)],
            _HATCHES[lap % len(_HATCHES)],
        )
    return styles


def short_number(value: float) -> str:
    """Write a count with three digits and a suffix: 1234567 becomes "1.23M"."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 999,600 must read 1.00M, not 1000k.
        if abs(value) >= size * 0.9995:
            scaled = value / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f}{suffix}"
    return f"{value:.0f}"


def new_figure(height: float) -> tuple[Figure, Axes]:
    """Return a figure of the width of all plots, and its axes.

    Args:
        height: In inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11, color="#888888")
    axes.set_axisbelow(True)
    return figure, axes


def finish(figure: Figure, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Plot:
    """Turn a figure and the numbers it shows into a :class:`Plot`.

    Args:
        figure: Everything is drawn.
        columns: Names of the columns of `rows`.
        rows: Texts, numbers, and None for what is not known.
    """
    return Plot(render_png(figure), csv_text(columns, rows))


def render_png(figure: Figure) -> bytes:
    """Return a figure as a PNG image."""
    engine = figure.get_layout_engine()
    if engine is not None:
        # Once, where savefig would do it twice.
        engine.execute(figure)
        figure.set_layout_engine(None)
    buffer = io.BytesIO()
    # Without the version in the file, the same results give the same bytes on any release.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as CSV. None is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def plain_text(name: str) -> str:
    """Make a name safe as plot text: no mathematics, no line breaks, not too long."""
    flat = "".join(c if c.isprintable() else " " for c in name)
    if len(flat) > _LABEL_LENGTH:
        flat = flat[: _LABEL_LENGTH - 1] + "…"
    # Matplotlib leaves labels that start with an underscore out of legends.
    return (" " + flat if flat.startswith("_") else flat).replace("$", r"\$")


def error_lengths(
    found: Sequence[Mapping[str, Any]], low: float = 0.0, high: float = math.inf
) -> list[list[float]] | None:
    """Return how far the 95 % intervals reach below and above their means.

    Args:
        found: What :func:`~memory_layers.study.intervals.spread` returned for each mean.
        low: The least possible value. Intervals end there.
        high: The largest.

    Returns:
        Two lists of lengths, 0 for a single seed. None if every mean is of a single seed.
    """
    if all(row["half"] is None for row in found):
        return None
    return [
        [max(0.0, min(row["half"] or 0.0, row["mean"] - low)) for row in found],
        [max(0.0, min(row["half"] or 0.0, high - row["mean"])) for row in found],
    ]


def spread_columns(found: Mapping[str, Any]) -> list[object]:
    """Return the CSV fields of a mean over seeds: see ``SPREAD_COLUMNS``."""
    mean, half = found["mean"], found["half"]
    ends = [None, None] if half is None else [mean - half, mean + half]
    return [mean, *ends, found["min"], found["max"], found["n"]]


SPREAD_COLUMNS = ("mean", "low_95", "high_95", "min", "max", "seeds")


def recall_axis(axes: Axes, top: float) -> None:
    """Let the vertical axis run from 0 to 1, or to little more than the highest recall."""
    axes.set_ylabel(RECALL_LABEL, fontsize=12)
    axes.set_ylim(0, 1.02 if top > 0.5 else max(top * 1.2, 0.02))
    axes.grid(axis="y", color=GRID, linewidth=0.8)


def draw_means(
    axes: Axes,
    values: Mapping[str, Mapping[float, Sequence[float]]],
    styles: Mapping[str, Style],
) -> None:
    """Draw recall as one line a variant with 95 % intervals, its name at the end of the line.

    Args:
        axes: Its horizontal scale is set.
        values: For each variant, the recall of each seed by horizontal position.
        styles: The style of each variant.
    """
    ends, top = {}, 0.0
    for name, points in values.items():
        places = sorted(points)
        found = [row for place in places if (row := spread(points[place])) is not None]
        style = styles[name]
        axes.errorbar(
            places,
            [row["mean"] for row in found],
            yerr=error_lengths(found, high=1.0),
            color=style.colour,
            linestyle=style.dash,
            marker=style.marker,
            markersize=5,
            linewidth=1.8,
            elinewidth=1,
            capsize=2,
        )
        top = max(top, *(row["max"] for row in found))
        ends[name] = (places[-1], found[-1]["mean"])
    recall_axis(axes, top)
    label_ends(axes, ends, styles)


def label_ends(
    axes: Axes, ends: Mapping[str, tuple[float, float]], styles: Mapping[str, Style]
) -> None:
    """Write each variant's name right of the axes, joined to the end of its line.

    Args:
        axes: Its vertical limits are final.
        ends: Where each line ends.
        styles: The style of each variant.
    """
    bottom, top = axes.get_ylim()
    order = sorted(ends, key=lambda name: ends[name][1])
    gap = min(0.065, 1 / len(order))
    heights: list[float] = []
    for name in order:
        wanted = (ends[name][1] - bottom) / (top - bottom)
        heights.append(max(wanted, heights[-1] + gap) if heights else wanted)
    # Names pushed over the top edge are pressed down again, from the highest on.
    ceiling = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - gap
    for name, height in zip(order, heights, strict=True):
        axes.annotate(
            plain_text(name),
            xy=ends[name],
            xytext=(1.06, height),
            textcoords="axes fraction",
            color=INK,
            fontsize=11,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": styles[name].colour,
                "linewidth": 0.8,
                "shrinkA": 2,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def legend(figure: Figure, axes: Axes) -> None:
    """Write the names of all bars above the axes, as many side by side as fit."""
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


def log_axis(axes: Axes, values: Sequence[float]) -> None:
    """Give the horizontal axis a logarithmic scale with room around some positive values."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = min(values), max(values)
    room = (high / low) ** 0.1 * 1.15
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    # Over less than a decade, powers of ten alone would leave the axis without numbers.
    narrow = high < 3 * low
    locator = MaxNLocator(5) if narrow else LogLocator(subs=(1, 2, 5), numticks=12)
    if high > 1000 * low:
        locator = LogLocator(numticks=12)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(tick_formatter(short_number))


def tick_formatter(write: Callable[[float], str]) -> FuncFormatter:
    """Return a formatter of axis ticks that leaves out decimals without a meaning."""
    from matplotlib.ticker import FuncFormatter

    def tick(value: float, _position: int | None) -> str:
        text = write(value)
        # Axis ticks are round numbers: "1.50M" reads better as "1.5M" and "2.00M" as "2M".
        digits = text.rstrip("TBMk")
        suffix = text[len(digits) :]
        return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + suffix

    return FuncFormatter(tick)
