"""Lines: loss and recall over the course of training, recall by entropy and by exposures.

Next: comparison.py collects them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from memory_layers.common.text import short_number
from memory_layers.study.intervals import finite, spread
from memory_layers.study.metrics import Run, tokens_at
from memory_layers.study.plots import drawing
from memory_layers.study.plots.drawing import RECALL_LABEL, Plot, Styles, finish, legend, new_figure
from memory_layers.study.summary import Groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_UNITS = {"tokens": "tokens", "flops": "FLOPs", "seconds": "time (seconds)"}
# Horizontal place and value, ascending.
_Points = list[tuple[float, float]]


@dataclass(frozen=True)
class _Curve:
    """One variant over training: the mean over seeds, their range, and the end."""

    name: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    end: Mapping[str, Any]


def history_plot(groups: Groups, styles: Styles, key: str) -> Plot | None:
    """Draw held-out recall over the tokens, the compute ("flops") or the seconds of training."""
    times = _mean_times(groups) if key == "seconds" else {}

    def place(run: Run, entry: Mapping[str, Any]) -> object:
        if key == "seconds":
            return times.get((run.get("variant"), entry.get("step")))
        return tokens_at(run, entry) if key == "tokens" else entry.get(key)

    lines, rows = _lines(
        groups,
        lambda run: (
            (place(run, entry), recall)
            for entry in run.get("history") or ()
            if (recall := entry.get("question_heldout")) is not None
        ),
    )
    curves = _curves(lines)
    if not curves:
        return None
    figure, axes = new_figure(f"Training {_UNITS[key]}", RECALL_LABEL)
    for curve in curves:
        style = styles[curve.name]
        axes.fill_between(curve.x, curve.low, curve.high, color=style.colour, alpha=0.15, lw=0)
        line = style.marker + style.dash
        axes.plot(curve.x, curve.mean, line, color=style.colour, markersize=4, lw=1.6)
    lowest = min(float(curve.x[0]) for curve in curves)
    highest = max(float(curve.x[-1]) for curve in curves)
    if key == "flops" and lowest > 0 and highest >= 10 * lowest:
        axes.set_xscale("log")
        axes.set_xlabel("Training FLOPs (log scale)")
    elif highest >= 1000:
        axes.xaxis.set_major_formatter(drawing.tick_formatter(short_number))
    # The error bars of the ends stand side by side.
    axes.margins(x=0.03 + 0.006 * len(curves))
    drawing.recall_axis(axes, max(float(curve.high.max()) for curve in curves))
    _name(figure, axes, groups, curves, styles)
    ends = [(float(curve.x[-1]), curve.end, styles[curve.name]) for curve in curves]
    drawing.draw_intervals(figure, axes, ends, high=1.0)
    return finish(figure, ("variant", "seed", key, "question_heldout"), rows)


def _mean_times(groups: Groups) -> dict[tuple[object, object], float]:
    """Return the seconds of each variant and step, the mean over its runs.

    How fast a run was depends on what ran beside it: seeds that were evaluated at the same steps
    may have no time in common.
    """
    found: dict[tuple[object, object], list[float]] = {}
    for runs in groups.values():
        for run in runs:
            for entry in run.get("history") or ():
                if (seconds := finite(entry.get("seconds"))) is not None:
                    at = run.get("variant"), entry.get("step")
                    found.setdefault(at, []).append(seconds)
    return {at: sum(values) / len(values) for at, values in found.items()}


def loss_plot(groups: Groups, styles: Styles) -> Plot | None:
    """Draw the loss of training over tokens and, where it was measured, that of held-out text."""
    training, rows = _lines(groups, lambda run: _losses(run, "training"), ("training",))
    text, more = _lines(groups, lambda run: _losses(run, "text"), ("text",))
    curves = _curves(training)
    if all(len(curve.x) < 2 for curve in curves):
        return None
    figure, axes = new_figure("Training tokens", "Loss (nats per token)")
    for curve in curves:
        style = styles[curve.name]
        axes.plot(curve.x, curve.mean, color=style.colour, linestyle=style.dash, linewidth=1.4)
    for curve in _curves(text):
        style = styles[curve.name]
        axes.plot(curve.x, curve.mean, f"{style.marker}:", color=style.colour, markersize=4, lw=0.8)
    axes.xaxis.set_major_formatter(drawing.tick_formatter(short_number))
    _name(figure, axes, groups, curves, styles)
    return finish(figure, ("variant", "seed", "kind", "tokens", "loss"), [*rows, *more])


def _losses(run: Run, kind: str) -> list[tuple[object, object]]:
    """Return tokens and losses. Results of before have the loss of training where recall is."""
    recorded = run.get("losses")
    if recorded is not None:
        return [(tokens_at(run, {"step": step}), loss) for step, loss in recorded[kind]]
    if kind == "text":
        return []
    return [(tokens_at(run, entry), entry.get("loss")) for entry in run.get("history") or ()]


def _lines(
    groups: Groups,
    points: Callable[[Run], Iterable[tuple[object, object]]],
    columns: tuple[str, ...] = (),
) -> tuple[dict[str, list[_Points]], list[Sequence[object]]]:
    """Return the points of each run of each variant, and the rows of the CSV."""
    lines: dict[str, list[_Points]] = {}
    rows: list[Sequence[object]] = []
    for name, runs in groups.items():
        for run in runs:
            numbers = {
                x: y
                for place, value in points(run)
                if (x := finite(place)) is not None and (y := finite(value)) is not None
            }
            lines.setdefault(name, []).append(sorted(numbers.items()))
            rows += [(name, run.get("seed"), *columns, x, y) for x, y in lines[name][-1]]
    return lines, rows


def _curves(lines: Mapping[str, Sequence[_Points]]) -> list[_Curve]:
    """Average the seeds of each variant where all of them have measurements."""
    return [c for name, seeds in lines.items() if (c := _curve(name, seeds)) is not None]


def _curve(name: str, seeds: Sequence[_Points]) -> _Curve | None:
    lines = [np.array(points) for points in seeds if points]
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
    last = spread(values[:, -1].tolist())
    assert last is not None
    return _Curve(name, grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0), last)


def _name(
    figure: "Figure", axes: "Axes", groups: Groups, curves: Sequence[_Curve], styles: Styles
) -> None:
    """Write the names of the curves, the highest first, and of how many seeds they are."""
    several = any(len(runs) > 1 for runs in groups.values())
    title = "Mean over seeds" if several else "One seed per variant"
    axes.set_title(title, fontsize=11, color=drawing.INK, loc="left")
    legend(figure, {c.name: styles[c.name] for c in sorted(curves, key=lambda c: -c.mean[-1])})


def entropy_plot(groups: Groups, styles: Styles) -> Plot | None:
    """Draw held-out recall by how rare the answer is within its relation."""

    def middle(bin_: Mapping[str, Any]) -> float | None:
        low, high = finite(bin_.get("low")), finite(bin_.get("high"))
        return None if low is None or high is None else (low + high) / 2

    values, rows = _binned(groups, "recall_by_entropy", ("low", "high", "facts"), middle)
    if not values:
        return None
    figure, axes = new_figure("Information in the answer (bits)", RECALL_LABEL)
    columns = ("variant", "seed", "low_bits", "high_bits", "facts", "question_heldout")
    _draw_bins(figure, axes, values, styles)
    return finish(figure, columns, rows)


def exposure_plot(groups: Groups, styles: Styles) -> Plot | None:
    """Draw held-out recall by the number of statements of a fact in the corpus."""
    from matplotlib.ticker import FixedLocator, NullLocator

    def place(bin_: Mapping[str, Any]) -> float | None:
        # A fact that no document states has no logarithm. It stands one step left of one.
        count = finite(bin_.get("exposures"))
        return None if count is None else max(count, 0.5)

    values, rows = _binned(groups, "recall_by_exposures", ("exposures", "facts"), place)
    places = sorted({x for points in values.values() for x in points})
    if len(places) < 2:
        return None
    figure, axes = new_figure("Statements of the fact in the corpus (log scale)", RECALL_LABEL)
    axes.set_xscale("log", base=2)
    room = (places[-1] / places[0]) ** 0.05 * 1.05
    axes.set_xlim(places[0] / room, places[-1] * room)
    # Every second one where they would run into one another, at about 24 to the width.
    distance = math.log(room * room * places[-1] / places[0]) / 24
    ticks: list[float] = []
    for x in places:
        if not ticks or math.log(x / ticks[-1]) >= distance:
            ticks.append(x)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{x:.0f}" if x >= 1 else "0" for x in ticks])
    _draw_bins(figure, axes, values, styles)
    return finish(figure, ("variant", "seed", "exposures", "facts", "question_heldout"), rows)


def _draw_bins(
    figure: "Figure",
    axes: "Axes",
    values: Mapping[str, Mapping[float, Sequence[float]]],
    styles: Styles,
) -> None:
    """Draw the recall of each seed, by variant and place, as lines with 95 % intervals."""
    found = {
        name: [(x, row) for x in sorted(by_place) if (row := spread(by_place[x])) is not None]
        for name, by_place in values.items()
    }
    drawing.recall_axis(axes, max(row["max"] for rows in found.values() for _, row in rows))
    order = sorted(found, key=lambda name: -found[name][-1][1]["mean"])
    legend(figure, {name: styles[name] for name in order})
    points = [(x, row, styles[name]) for name, rows in found.items() for x, row in rows]
    axes.update_datalim([(x, row["mean"]) for x, row, _ in points])
    axes.autoscale_view(scaley=False)
    places = iter(drawing.draw_intervals(figure, axes, points, size=4, high=1.0))
    for name, rows in found.items():
        style = styles[name]
        x, means = [next(places) for _ in rows], [row["mean"] for _, row in rows]
        axes.plot(x, means, color=style.colour, linestyle=style.dash, lw=1.4)


def _binned(
    groups: Groups,
    key: str,
    columns: Sequence[str],
    place: Callable[[Mapping[str, Any]], float | None],
) -> tuple[dict[str, dict[float, list[float]]], list[Sequence[object]]]:
    """Collect the recall of each variant by bin, and the rows of the CSV."""
    values: dict[str, dict[float, list[float]]] = {}
    rows: list[Sequence[object]] = []
    for name, runs in groups.items():
        for run in runs:
            for bin_ in run.get(key) or ():
                x, recall = place(bin_), finite(bin_.get("recall"))
                if x is None or recall is None:
                    continue
                values.setdefault(name, {}).setdefault(x, []).append(recall)
                rows.append((name, run.get("seed"), *(bin_.get(c) for c in columns), recall))
    return values, rows
