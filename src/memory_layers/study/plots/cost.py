"""What a variant gives against what it costs: points with intervals and the Pareto front.

Next: comparison.py collects them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from memory_layers.study.intervals import spread
from memory_layers.study.metrics import METRICS, measured
from memory_layers.study.plots import drawing
from memory_layers.study.plots.drawing import Plot, Styles, finish, legend, new_figure
from memory_layers.study.summary import Groups


def cost_plot(groups: Groups, styles: Styles, cost: str, gain: str) -> Plot | None:
    """Draw each variant as a point with its 95 % interval, and the Pareto front.

    Args:
        groups: The finished runs of each variant.
        styles: The style of each variant.
        cost: A metric, on a logarithmic axis.
        gain: A metric with a best direction.
    """
    found: dict[str, tuple[float, dict[str, Any]]] = {}
    for name, runs in groups.items():
        price = spread(run.get(cost) for run in runs)
        value = spread(measured(run, gain) for run in runs)
        if price is not None and value is not None and price["mean"] > 0:
            found[name] = (price["mean"], value)
    if not found:
        return None
    metric = METRICS[gain]
    points = {name: (x, value["mean"]) for name, (x, value) in found.items()}
    front = pareto_front(points, more_is_better=metric.better > 0)
    figure, axes = new_figure(METRICS[cost].axis, metric.axis)
    drawing.log_axis(axes, [x for x, _ in points.values()])
    axes.set_ylim(_limits([value for _, value in found.values()], metric.most))
    order = sorted(points, key=lambda name: points[name][1], reverse=True)
    legend(figure, {name: styles[name] for name in order}, lines=False)
    drawn = [(x, value, styles[name]) for name, (x, value) in found.items()]
    places = drawing.draw_intervals(figure, axes, drawn, size=7, high=metric.most)
    place_of = dict(zip(found, places, strict=True))
    steps = [(place_of[name], points[name][1]) for name in front]
    # The front goes on at the level of its last point, whatever else is paid.
    steps.append((axes.get_xlim()[1], steps[-1][1]))
    axes.step(*zip(*steps, strict=True), where="post", color="#888888", linewidth=1.2, zorder=1)
    columns = ("variant", cost, *drawing.SPREAD_COLUMNS, "on_front")
    rows = [(n, x, *drawing.spread_columns(v), int(n in front)) for n, (x, v) in found.items()]
    return finish(figure, columns, rows)


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
