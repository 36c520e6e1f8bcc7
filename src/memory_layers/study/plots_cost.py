"""What a variant gives against what it costs: points with intervals and the Pareto front.

Next: :mod:`memory_layers.study.plots` collects them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from memory_layers.study.intervals import spread
from memory_layers.study.plots_base import (
    GRID,
    INK,
    RECALL_LABEL,
    SPREAD_COLUMNS,
    Groups,
    Plot,
    Style,
    error_lengths,
    finish,
    log_axis,
    new_figure,
    plain_text,
    spread_columns,
)
from memory_layers.study.report_summary import measured

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_COSTS = {
    "flops_per_token": "Forward FLOPs per token (log scale)",
    "params_total": "Total parameters (log scale)",
}
_GAINS = {"question_heldout": RECALL_LABEL, "text_nll": "Loss on running text (nats per token)"}

_FONT = 10
_Place = tuple[int, int, str, str]

# Where a label may stand: offset from its point in points, and its alignment. Best first.
_PLACES: tuple[_Place, ...] = (
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (7, 7, "left", "bottom"),
    (7, -7, "left", "top"),
    (-7, 7, "right", "bottom"),
    (-7, -7, "right", "top"),
    (16, 20, "left", "bottom"),
    (16, -20, "left", "top"),
    (-16, 20, "right", "bottom"),
    (-16, -20, "right", "top"),
    (24, 36, "left", "bottom"),
    (24, -36, "left", "top"),
    (-24, 36, "right", "bottom"),
    (-24, -36, "right", "top"),
)


def cost_plot(groups: Groups, styles: Mapping[str, Style], cost: str, gain: str) -> Plot | None:
    """Draw each variant as a point with its 95 % interval, and the Pareto front.

    Args:
        groups: The finished runs of each variant.
        styles: The style of each variant.
        cost: "flops_per_token" or "params_total", on a logarithmic axis.
        gain: "question_heldout" (more is better) or "text_nll" (less is better).
    """
    found: dict[str, tuple[float, dict[str, Any]]] = {}
    for name, runs in groups.items():
        price = spread(run.get(cost) for run in runs)
        value = spread(measured(run, gain) for run in runs)
        if price is not None and value is not None and price["mean"] > 0:
            found[name] = (price["mean"], value)
    if not found:
        return None
    recall = gain == "question_heldout"
    points = {name: (x, value["mean"]) for name, (x, value) in found.items()}
    front = pareto_front(points, more_is_better=recall)
    figure, axes = new_figure(4.6)
    log_axis(axes, [x for x, _ in points.values()])
    axes.set_xlabel(_COSTS[cost], fontsize=12)
    axes.set_ylabel(_GAINS[gain], fontsize=12)
    axes.set_ylim(_limits([value for _, value in found.values()], 1.0 if recall else math.inf))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    steps = [points[name] for name in front]
    # The front goes on at the level of its last point, whatever else is paid.
    steps.append((axes.get_xlim()[1], steps[-1][1]))
    axes.step(*zip(*steps, strict=True), where="post", color="#888888", linewidth=1.2, zorder=1)
    for name, (x, value) in found.items():
        style = styles[name]
        axes.errorbar(
            [x],
            [value["mean"]],
            yerr=error_lengths([value], high=1.0) if recall else error_lengths([value]),
            color=style.colour,
            marker=style.marker,
            markersize=7,
            elinewidth=1.2,
            capsize=3,
            linestyle="none",
        )
    _label_points(figure, axes, found, steps)
    return finish(
        figure,
        ("variant", cost, *SPREAD_COLUMNS, "on_front"),
        [(name, x, *spread_columns(v), int(name in front)) for name, (x, v) in found.items()],
    )


def pareto_front(
    points: Mapping[str, tuple[float, float]], *, more_is_better: bool = True
) -> list[str]:
    """Return the points that none beats at the same or a lower cost, in the order of cost.

    Args:
        points: Cost and value by name.
        more_is_better: Whether a larger value is the better one.
    """
    sign = 1 if more_is_better else -1
    front: list[str] = []
    best = float("-inf")
    # Of the points at one cost, the best comes first and hides the others.
    for name, (_, value) in sorted(points.items(), key=lambda p: (p[1][0], -sign * p[1][1])):
        if sign * value > best:
            best = sign * value
            front.append(name)
    return front


def _limits(values: Sequence[Mapping[str, Any]], most: float) -> tuple[float, float]:
    """Return the ends of the vertical axis, for values from 0 to `most`."""
    low, high = min(v["min"] for v in values), max(v["max"] for v in values)
    # Two seeds can have an interval many times their range, which would hide the differences.
    half = max((v["half"] for v in values if v["half"] is not None), default=0.0)
    room = 1.1 * max(min(half, high - low), 0.12 * (high - low), 0.02 * abs(high), 0.005)
    return max(low - room, -0.02 * high), min(high + room, 1.02 * most)


def _label_points(
    figure: Figure,
    axes: Axes,
    found: Mapping[str, tuple[float, Mapping[str, Any]]],
    front: Sequence[tuple[float, float]],
) -> None:
    """Write each name beside its point, where it covers the least of the others."""
    from matplotlib.transforms import Bbox

    # Where the points are, in pixels, is known only after the layout.
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    unit = figure.dpi / 72
    points, taken = {}, []
    for name, (x, value) in found.items():
        half = value["half"] or 0.0
        heights = (value["mean"], value["mean"] - half, value["mean"] + half)
        point, low, high = axes.transData.transform([(x, height) for height in heights])
        points[name] = point
        taken.append(Bbox.from_extents(*(point - 4 * unit), *(point + 4 * unit)))
        taken.append(Bbox.from_extents(low[0] - unit, low[1], high[0] + unit, high[1]))
    steps = axes.transData.transform(front)
    for (left, level), (right, _) in pairwise(steps):
        taken.append(Bbox.from_extents(left, level - unit, right, level + unit))
    inside = axes.get_window_extent()
    # From the right on, so that the points at the edge, with the least room, choose first.
    for name in sorted(found, key=lambda name: -points[name][0]):
        measure = axes.text(0, 0, plain_text(name), fontsize=_FONT)
        size = measure.get_window_extent()
        measure.remove()
        boxes = [_box(points[name], place, size, unit) for place in _PLACES]
        costs = [
            _covered(box, taken, inside) + 0.01 * rank * box.height * box.height
            for rank, box in enumerate(boxes)
        ]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        right, up, horizontal, vertical = _PLACES[best]
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        label = axes.annotate(
            plain_text(name),
            (found[name][0], found[name][1]["mean"]),
            xytext=(right, up),
            textcoords="offset points",
            ha=horizontal,
            va=vertical,
            fontsize=_FONT,
            color=INK,
            annotation_clip=False,
            arrowprops=line if abs(up) > 9 else None,
        )
        # Another layout would move the points that the labels keep clear of.
        label.set_in_layout(False)


def _box(point: np.ndarray, place: _Place, size: Bbox, unit: float) -> Bbox:
    """Return the pixels that a text covers at one of the places around a point."""
    from matplotlib.transforms import Bbox

    right, up, horizontal, vertical = place
    left = (
        point[0]
        + right * unit
        - {"left": 0.0, "center": 0.5, "right": 1.0}[horizontal] * (size.width)
    )
    bottom = (
        point[1] + up * unit - {"bottom": 0.0, "center": 0.5, "top": 1.0}[vertical] * (size.height)
    )
    return Bbox.from_bounds(left, bottom, size.width, size.height)


def _covered(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    """Return the area that a box shares with others or has outside of the axes, in pixels."""
    from matplotlib.transforms import Bbox

    shared = [both for other in taken if (both := Bbox.intersection(box, other)) is not None]
    visible = Bbox.intersection(box, inside)
    outside = box.width * box.height - (visible.width * visible.height if visible else 0.0)
    return outside + math.fsum(both.width * both.height for both in shared)
