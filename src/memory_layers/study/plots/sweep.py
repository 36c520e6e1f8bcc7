"""The plots of a sweep and the numbers they draw: over slots, over FLOPs, exchange rates.

Each figure is drawn from a table of its own, which is written beside it as CSV. Next:
report/sweep.py, which puts them on a page.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from memory_layers.common.text import short_number
from memory_layers.study.fits import LAWS, heldout
from memory_layers.study.metrics import METRICS
from memory_layers.study.plots import drawing
from memory_layers.study.plots.drawing import INK, Plot, Style, Styles, finish, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DENSE = Style("#444444", "o", "--", "")
# The dense model has no place on a logarithmic axis of slots: it stands this far left of it.
_GAP = 2.0


@dataclass(frozen=True)
class _Point:
    """A row of a plot's table. `kind`: "run", "mean", "fit" or "exchange"."""

    kind: str
    base: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    slots: int | None = None
    seed: int | None = None
    extrapolated: bool | None = None


def draw_scale_plots(results: Mapping[str, Any]) -> dict[str, dict[str, Plot]]:
    """Draw every plot the sweep has data for, by metric and kind, in the order of the report."""
    styles = drawing.variant_styles(results["bases"])
    return {
        metric: {
            kind: plot
            for kind, draw in _KINDS.items()
            if (plot := draw(results, metric, styles)) is not None
        }
        for metric in LAWS
    }


def slots_label(slots: float) -> str:
    """Write a number of slots: powers of two as 4k, 64k and 1M, others with three digits."""
    for size, suffix in ((2**20, "M"), (2**10, "k")):
        if slots >= size and slots % size == 0:
            return f"{slots / size:.0f}{suffix}"
    return short_number(slots)


def _over_slots(results: Mapping[str, Any], metric: str, styles: Styles) -> Plot | None:
    points = _points(results, metric, "slots")
    if not points:
        return None
    for base, fits in results["fits"]["slots"].items():
        points += _curve(fits[metric], base)
    figure, axes = new_figure("Slots (log scale)", METRICS[LAWS[metric].key].axis)
    sizes = sorted({point.x for point in points if point.kind == "run"})
    above = [size for size in sizes if size]
    zero = math.log2(above[0]) - _GAP if above else 0.0

    def place(x: float) -> float:
        return math.log2(x) if x else zero

    for base, style in styles.items():
        own = [point for point in points if point.base == base]
        _draw(axes, own, style, place, joined=False)
    axes.set_xticks([place(size) for size in sizes], [_size_name(size) for size in sizes])
    return _finish(figure, axes, metric, points, styles)


def _over_flops(results: Mapping[str, Any], metric: str, styles: Styles) -> Plot | None:
    points = _points(results, metric, "flops_per_token")
    if not points:
        return None
    curve = _curve(results["fits"]["flops"][metric], "dense")
    figure, axes = new_figure("FLOPs per token (log scale)", METRICS[LAWS[metric].key].axis)
    dense = [point for point in points if not point.slots]
    _draw(axes, [*dense, *curve], _DENSE, float, joined=False)
    for base, style in styles.items():
        own = [point for point in points if point.base == base and point.slots]
        _draw(axes, own, style, float, joined=True)
    drawing.log_axis(axes, [point.x for point in points])
    with_memory = {point.base for point in points if point.slots}
    shown = {f"{base} + memory": style for base, style in styles.items() if base in with_memory}
    shown = {"dense": _DENSE, **shown}
    return _finish(figure, axes, metric, [*points, *curve], shown)


def _exchange(results: Mapping[str, Any], metric: str, styles: Styles) -> Plot | None:
    points = [
        _Point("exchange", e["base"], e["slots"], e["times"], e["low"], e["high"], e["slots"],
               extrapolated=e["extrapolated"])
        for e in results["exchange"]
        if e["metric"] == metric and e["times"] is not None
    ]  # fmt: skip
    if not points:
        return None
    figure, axes = new_figure("Slots (log scale)", "Dense compute for the same result")
    heights = [point.y for point in points]
    bottom, top = min(1.0, *heights) / 2, max(1.0, *heights) * 2
    axes.axhline(1, color=INK, linewidth=1, linestyle=":")
    shift = 0.0
    bases = {point.base for point in points}
    shown = {base: style for base, style in styles.items() if base in bases}
    for base, style in shown.items():
        own = [point for point in points if point.base == base]
        places = [math.log2(point.x) + shift for point in own]
        shift += 0.12
        axes.plot(places, [point.y for point in own], style.dash, color=style.colour, lw=1.6)
        for x, point in zip(places, own, strict=True):
            low = max(point.low or bottom, bottom)
            high = top if point.high is None else min(point.high, top)
            axes.plot([x, x], [low, high], color=style.colour, linewidth=1, alpha=0.7)
            face = "white" if point.extrapolated else style.colour
            axes.plot(
                x, point.y, style.marker, color=style.colour, markerfacecolor=face, markersize=6
            )
    sizes = sorted({point.x for point in points})
    axes.set_xticks([math.log2(size) for size in sizes], [_size_name(size) for size in sizes])
    axes.set_yscale("log", base=2)
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} ×")
    legend(figure, shown)
    return _plot(figure, points)


def _points(results: Mapping[str, Any], metric: str, key: str) -> list[_Point]:
    """Return a point for each run that measured the metric, and one for each cell's mean."""
    cells: dict[tuple[str, int], list[_Point]] = {}
    for run in results["runs"]:
        y = heldout(run, metric)
        if y is not None:
            base, slots = run["base"], run["slots"]
            point = _Point("run", base, run[key], y, slots=slots, seed=run["seed"])
            cells.setdefault((base, slots), []).append(point)
    points = [point for group in cells.values() for point in group]
    for (base, slots), group in cells.items():
        values = [point.y for point in group]
        mean = math.fsum(values) / len(values)
        points.append(_Point("mean", base, group[0].x, mean, min(values), max(values), slots=slots))
    return points


def _curve(fit: Mapping[str, Any], base: str) -> list[_Point]:
    if "curve" not in fit:
        return []
    curve = fit["curve"]
    rows = zip(curve["x"], curve["y"], curve["low"], curve["high"], strict=True)
    return [_Point("fit", base, *row) for row in rows]


def _draw(
    axes: "Axes",
    points: Sequence[_Point],
    style: Style,
    place: Callable[[float], float],
    *,
    joined: bool,
) -> None:
    """Draw one base: its runs small, their means large, its fit as a line with a band."""
    kinds: dict[str, list[_Point]] = {}
    for point in sorted(points, key=lambda point: point.slots or 0):
        kinds.setdefault(point.kind, []).append(point)
    for kind, own in kinds.items():
        x, y = [place(point.x) for point in own], [point.y for point in own]
        colour = style.colour
        if kind == "run":
            axes.plot(x, y, style.marker, color=colour, markersize=3, alpha=0.45, linewidth=0)
        elif kind == "mean":
            line = style.dash if joined else ""
            axes.plot(x, y, style.marker + line, color=colour, markersize=6, lw=1.2)
        else:
            band = np.array([(point.low, point.high) for point in own], dtype=np.float64).T
            axes.fill_between(x, *band, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, y, color=colour, linestyle=style.dash, linewidth=1.6)


def _finish(
    figure: "Figure", axes: "Axes", metric: str, points: Sequence[_Point], shown: Styles
) -> Plot:
    highest = max(point.y for point in points)
    limit = 1.02 if metric == "recall" and highest > 0.5 else max(1.15 * highest, 0.02)
    axes.set_ylim(0, limit)
    legend(figure, shown)
    return _plot(figure, points)


def _plot(figure: "Figure", points: Sequence[_Point]) -> Plot:
    """Return the figure with its points as data. Columns that no point fills are left out."""
    rows = [astuple(point) for point in points]
    filled = [i for i in range(len(rows[0])) if any(row[i] is not None for row in rows)]
    names = [field.name for field in fields(_Point)]
    return finish(figure, [names[i] for i in filled], [[row[i] for i in filled] for row in rows])


def _size_name(slots: float) -> str:
    return slots_label(slots) if slots else "0\n(dense)"


_KINDS = {"over_slots": _over_slots, "over_flops": _over_flops, "exchange": _exchange}
PLOT_NAMES = tuple(f"{metric}_{kind}" for metric in LAWS for kind in _KINDS)
