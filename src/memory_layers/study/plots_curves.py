"""Lines of recall: over the course of training, by entropy of the answer and by exposures.

Next: :mod:`memory_layers.study.plots` collects them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memory_layers.study.intervals import finite, spread
from memory_layers.study.plots_base import (
    INK,
    Groups,
    Plot,
    Style,
    draw_means,
    error_lengths,
    finish,
    label_ends,
    new_figure,
    recall_axis,
    short_number,
    tick_formatter,
)

if TYPE_CHECKING:
    import numpy as np

Run = Mapping[str, Any]


@dataclass(frozen=True)
class _Curve:
    """One variant's recall over training: the mean over seeds, their range, and the end."""

    name: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    end: Mapping[str, Any] | None


def history_plot(groups: Groups, styles: Mapping[str, Style], key: str, label: str) -> Plot | None:
    """Draw held-out recall over training.

    Args:
        groups: The finished runs of each variant.
        styles: The style of each variant.
        key: Entry of the history on the horizontal axis: "tokens" or "flops".
        label: What it is called.
    """
    lines = {name: [_points(run, key) for run in runs] for name, runs in groups.items()}
    curves = [c for name, found in lines.items() if (c := _curve(name, found)) is not None]
    if not curves:
        return None
    figure, axes = new_figure(4.2)
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
        if curve.end and (lengths := error_lengths([curve.end], high=1.0)):
            end = (curve.x[-1:], curve.mean[-1:])
            axes.errorbar(*end, yerr=lengths, color=style.colour, capsize=2.5, elinewidth=1)
    lowest = min(float(curve.x[0]) for curve in curves)
    highest = max(float(curve.x[-1]) for curve in curves)
    if key == "flops" and lowest > 0 and highest >= 10 * lowest:
        axes.set_xscale("log")
        label += " (log scale)"
    elif key == "tokens":
        axes.xaxis.set_major_formatter(tick_formatter(short_number))
    axes.set_xlabel(label, fontsize=12)
    recall_axis(axes, max(float(curve.high.max()) for curve in curves))
    ends = {curve.name: (float(curve.x[-1]), float(curve.mean[-1])) for curve in curves}
    label_ends(axes, ends, styles)
    several = any(len(runs) > 1 for runs in groups.values())
    title = "Mean and range over seeds" if several else "One seed per variant"
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    rows = [
        (name, run.get("seed"), x, y)
        for name, runs in groups.items()
        for run, points in zip(runs, lines[name], strict=True)
        for x, y in points
    ]
    return finish(figure, ("variant", "seed", key, "question_heldout"), rows)


def _points(run: Run, key: str) -> list[tuple[float, float]]:
    points = {}
    for entry in run.get("history") or ():
        x, y = finite(entry.get(key)), finite(entry.get("question_heldout"))
        if x is not None and y is not None:
            points[x] = y
    return sorted(points.items())


def _curve(name: str, seeds: Sequence[Sequence[tuple[float, float]]]) -> _Curve | None:
    """Average the held-out recall of the seeds where all of them have measurements."""
    import numpy as np

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
    low, high = values.min(axis=0), values.max(axis=0)
    last = spread(values[:, -1].tolist())
    return _Curve(name, grid, values.mean(axis=0), low, high, last)


def entropy_plot(groups: Groups, styles: Mapping[str, Style]) -> Plot | None:
    """Draw held-out recall by how rare the answer is within its relation."""

    def middle(bin_: Mapping[str, Any]) -> float | None:
        low, high = finite(bin_.get("low")), finite(bin_.get("high"))
        return None if low is None or high is None else (low + high) / 2

    values, rows = _binned(groups, "recall_by_entropy", ("low", "high", "facts"), middle)
    if not values:
        return None
    figure, axes = new_figure(4.2)
    axes.set_xlabel("Information in the answer (bits)", fontsize=12)
    draw_means(axes, values, styles)
    columns = ("variant", "seed", "low_bits", "high_bits", "facts", "question_heldout")
    return finish(figure, columns, rows)


def exposure_plot(groups: Groups, styles: Mapping[str, Style]) -> Plot | None:
    """Draw held-out recall by the number of statements of a fact in the corpus."""
    from matplotlib.ticker import FixedLocator, NullLocator

    def place(bin_: Mapping[str, Any]) -> float | None:
        # A fact that no document states has no logarithm. It stands one step left of one.
        count = finite(bin_.get("exposures"))
        return None if count is None else max(count, 0.5)

    values, rows = _binned(groups, "recall_by_exposures", ("exposures", "facts"), place)
    if not values:
        return None
    places = sorted({x for points in values.values() for x in points})
    figure, axes = new_figure(4.2)
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
    axes.set_xlabel("Statements of the fact in the corpus (log scale)", fontsize=12)
    draw_means(axes, values, styles)
    return finish(figure, ("variant", "seed", "exposures", "facts", "question_heldout"), rows)


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
