"""What all plots share: styles, legends, error bars, PNG bytes and the data as CSV.

No function touches global matplotlib state, and matplotlib is imported only when one draws.
Next: curves.py, bars.py and cost.py, then comparison.py and sweep.py, which collect them.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from memory_layers.common.text import short_number
from memory_layers.study.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

INK = "#222222"
RECALL_LABEL = METRICS["question_heldout"].axis
SPREAD_COLUMNS = ("mean", "low_95", "high_95", "min", "max", "seeds")
DPI = 150

# Seven of Okabe and Ito's colours, without the yellow, which is too faint on white. The others were
# chosen one by one, each the farthest from all before it as people with normal, deuteranopic and
# protanopic vision see them.
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444",
    "#0F0F78", "#692D00", "#E1C378", "#2D1E4B", "#0078F0", "#E1B4B4", "#D22D3C",
    "#3C1E0F", "#784B78", "#1E3C87", "#C3C3E1", "#00A5FF", "#3C783C",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")
_HATCHES = ("", "///", "...")
_WIDTH = 7.2
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
    dash: Literal["-", "--", ":"]
    hatch: str

    @property
    def bar(self) -> dict[str, Any]:
        """How matplotlib draws bars of the variant."""
        return {"facecolor": self.colour, "hatch": self.hatch, "edgecolor": "white", "linewidth": 0}


Styles = Mapping[str, Style]


def variant_styles(variants: Sequence[str]) -> dict[str, Style]:
    """Give each variant a style by its position. Colours repeat after twenty, styles after 420."""
    return {
        name: Style(
            _COLOURS[i % len(_COLOURS)],
            _MARKERS[i % len(_MARKERS)],
            _DASHES[i // len(_MARKERS) % len(_DASHES)],
            _HATCHES[i // len(_MARKERS) % len(_HATCHES)],
        )
        for i, name in enumerate(variants)
    }


def new_figure(
    x: str, y: str = "", *, height: float = 4.2, grid: Literal["x", "y"] = "y"
) -> tuple["Figure", "Axes"]:
    """Return a figure of the width of all plots, and its axes.

    Args:
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        height: In inches.
        grid: The axis whose ticks have lines.
    """
    figure = _blank_figure(height)
    axes = figure.add_subplot()
    _dress(axes, x, y, grid)
    return figure, axes


def new_pair(x: str, y: str, titles: tuple[str, str]) -> tuple["Figure", list["Axes"]]:
    """Return a figure of the width of all plots, and two axes side by side with the same heights.

    Args:
        x: Label of both horizontal axes.
        y: Label of the vertical axis that they share.
        titles: Of the axes, from the left.
    """
    figure = _blank_figure(4.2)
    both = list(figure.subplots(1, 2, sharey=True))
    for axes, title in zip(both, titles, strict=True):
        _dress(axes, "", "", "y")
        axes.set_title(title, fontsize=11, color=INK, loc="left")
    both[0].set_ylabel(y, fontsize=12)
    figure.supxlabel(x, fontsize=12)
    return figure, both


def _blank_figure(height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _dress(axes: "Axes", x: str, y: str, grid: Literal["x", "y"]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11, color="#888888")
    axes.set_axisbelow(True)
    axes.set_xlabel(x, fontsize=12)
    axes.set_ylabel(y, fontsize=12)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.8)


def finish(figure: "Figure", columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Plot:
    """Turn a figure and the numbers it shows into a Plot.

    Args:
        figure: Everything is drawn.
        columns: Names of the columns of `rows`.
        rows: Texts, numbers, and None for what is not known, an empty field.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return Plot(render_png(figure), buffer.getvalue())


def render_png(figure: "Figure") -> bytes:
    """Return a figure as a PNG image."""
    lay_out(figure)
    buffer = io.BytesIO()
    # Without the version in the file, the same results give the same bytes on any release.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def lay_out(figure: "Figure") -> None:
    """Put everything in its final place. What is added later moves nothing."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)


def plain_text(name: str) -> str:
    """Make a name safe as plot text: no mathematics, no line breaks, not too long."""
    flat = "".join(c if c.isprintable() else " " for c in name)
    if len(flat) > _LABEL_LENGTH:
        flat = flat[: _LABEL_LENGTH - 1] + "…"
    # Matplotlib leaves labels that start with an underscore out of legends.
    return (" " + flat if flat.startswith("_") else flat).replace("$", r"\$")


def legend(figure: "Figure", styles: Styles, *, bars: bool = False, lines: bool = True) -> None:
    """Write the names right of the axes, in the order of `styles`.

    Args:
        figure: The names get as much of its width as they need.
        styles: What is drawn, by its name.
        bars: Variants are bars, with hatches in place of markers.
        lines: Variants have a line beside their marker.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(**style.bar)
        if bars
        else Line2D(
            [], [], color=style.colour, marker=style.marker, ls=style.dash if lines else "none"
        )
        for style in styles.values()
    ]
    figure.legend(
        handles,
        [plain_text(name) for name in styles],
        loc="outside right upper",
        frameon=False,
        fontsize=10,
        # Twenty names fit beside axes of four inches.
        labelspacing=0.5 if len(styles) < 15 else 0.25,
        handlelength=1.2 if bars or not lines else 2.4,
    )


def error_lengths(
    found: Sequence[Mapping[str, Any]], low: float = 0.0, high: float = math.inf
) -> list[list[float]] | None:
    """Return how far the 95 % intervals reach below and above their means.

    Args:
        found: What `spread` returned for each mean.
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


def draw_intervals(
    figure: "Figure",
    axes: "Axes",
    points: Sequence[tuple[float, Mapping[str, Any], Style]],
    *,
    size: float = 0.0,
    high: float = math.inf,
) -> list[float]:
    """Draw error bars side by side: where one would cover another, both move aside.

    Args:
        figure: Everything else is drawn. It is laid out.
        axes: Its scales and limits are final.
        points: Horizontal place, what `spread` returned, and style.
        size: Of the markers, which move with their error bars. 0: none.
        high: The largest possible value. Intervals end there.

    Returns:
        The horizontal places they got, of all points or, without markers, of those with a bar.
    """
    points = [point for point in points if size or point[1]["half"] is not None]
    if not points:
        return []
    lay_out(figure)
    gap = max(2.2, min(4.0, 30 / len({style for _, _, style in points})))
    pixels = axes.transData.transform([(x, found["mean"]) for x, found, _ in points])
    pixels[:, 0] = moved_apart(pixels[:, 0], gap * figure.dpi / 72)
    places = axes.transData.inverted().transform(pixels)[:, 0].tolist()
    for x, (_, found, style) in zip(places, points, strict=True):
        axes.errorbar(
            [x],
            [found["mean"]],
            yerr=error_lengths([found], high=high),
            color=style.colour,
            marker=style.marker if size else "none",
            markersize=size,
            elinewidth=1.2,
            capsize=1.5,
            linestyle="none",
        )
    return places


def moved_apart(places: np.ndarray, gap: float) -> np.ndarray:
    """Return places at least `gap` apart that are nearest to the given ones, in their order."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    moved = np.empty(len(places))
    moved[order] = isotonic_regression(places[order] - steps).x + steps
    return moved


def spread_columns(found: Mapping[str, Any]) -> list[object]:
    """Return the CSV fields of a mean over seeds: see SPREAD_COLUMNS."""
    mean, half = found["mean"], found["half"]
    ends = [None, None] if half is None else [mean - half, mean + half]
    return [mean, *ends, found["min"], found["max"], found["n"]]


def recall_axis(axes: "Axes", top: float) -> None:
    """Let the vertical axis run from 0 to 1, or to little more than the highest recall."""
    axes.set_ylim(0, 1.02 if top > 0.5 else max(top * 1.2, 0.02))


def log_axis(axes: "Axes", values: Sequence[float]) -> None:
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


def tick_formatter(write: Callable[[float], str]) -> "FuncFormatter":
    """Return a formatter of axis ticks that leaves out decimals without a meaning."""
    from matplotlib.ticker import FuncFormatter

    def tick(value: float, _position: int | None) -> str:
        text = write(value)
        # Axis ticks are round numbers: "1.50M" reads better as "1.5M" and "2.00M" as "2M".
        digits = text.rstrip("TBMk")
        suffix = text[len(digits) :]
        return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + suffix

    return FuncFormatter(tick)
