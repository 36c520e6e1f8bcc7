"""Recall, and lift of the probability of the right answer, by exposures, with bands of 95 %.

Next: report/exposure.py, which shows them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from memory_layers.study.exposure import Curves, Wording, curve_rows
from memory_layers.study.plots import drawing
from memory_layers.study.plots.drawing import Plot, Styles, finish, legend, new_pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES = {
    "recall": "Recall",
    "lift": "Probability of the right answer\nabove that at k = 0",
}
_TITLES: Mapping[Wording, str] = {"unseen": "Unseen wordings", "seen": "Seen wordings"}
# How far left of the first number of statements k = 0 stands, in powers of two.
_APART = 1.5

# The files of the plots: the first is in place of recall_by_exposures of comparison.py.
EXPOSURE_PLOTS: Mapping[str, Literal["recall", "lift"]] = {
    "recall_by_exposures": "recall",
    "lift_by_exposures": "lift",
}


def draw_exposures(
    both: Mapping[Wording, Curves], styles: Styles, what: Literal["recall", "lift"]
) -> Plot | None:
    """Draw recall or lift over the number of statements, unseen and seen wordings side by side.

    Args:
        both: What was answered in each wording.
        styles: The style of each variant.
        what: To be drawn.

    Returns:
        None without a number to draw.
    """
    rows = {
        wording: [row for row in curve_rows(curves) if row.get(what) is not None]
        for wording, curves in both.items()
    }
    flat = [row for found in rows.values() for row in found]
    if not flat:
        return None
    figure, axes = new_pair("Statements of the fact (log scale)", _AXES[what], (
        _TITLES["unseen"], _TITLES["seen"],
    ))  # fmt: skip
    levels = sorted({row["exposures"] for row in flat})
    drawing.recall_axis(axes[0], max(row[f"{what}_high"] for row in flat))
    if what == "lift":
        bottom = min(0.0, *(row["lift_low"] for row in flat))
        axes[0].set_ylim(bottom=bottom * 1.05)
    else:
        for place in axes:
            place.axhline(0.5, color="#888888", lw=0.8, ls=":", zorder=1)
    last: dict[str, float] = {}
    for place, wording in zip(axes, _TITLES, strict=True):
        _ticks(place, levels)
        for name in styles:
            own = [row for row in rows.get(wording, ()) if row["variant"] == name]
            if own:
                last.setdefault(name, own[-1][what])
                _draw(place, own, what, styles[name], levels)
    legend(figure, {name: styles[name] for name in sorted(last, key=lambda name: -last[name])})
    columns = ("variant", "wording", "exposures", "facts", "seeds",
               what, f"{what}_low", f"{what}_high")  # fmt: skip
    return finish(figure, columns, [[row[name] for name in columns] for row in flat])


def _draw(
    axes: "Axes",
    rows: Sequence[Mapping[str, Any]],
    what: str,
    style: drawing.Style,
    levels: Sequence[int],
) -> None:
    guessed = [row for row in rows if not row["exposures"]]
    told = [row for row in rows if row["exposures"]]
    x = [_place(row["exposures"], levels) for row in told]
    low, mean, high = ([row[what + end] for row in told] for end in ("_low", "", "_high"))
    axes.fill_between(x, low, high, color=style.colour, alpha=0.15, lw=0)
    line: dict[str, Any] = {"color": style.colour, "marker": style.marker, "markersize": 4}
    axes.plot(x, mean, linestyle=style.dash, lw=1.6, **line)
    for row in guessed:
        ends = [[row[what] - row[f"{what}_low"]], [row[f"{what}_high"] - row[what]]]
        axes.errorbar([_place(0, levels)], [row[what]], yerr=ends, elinewidth=1.2, **line)


def _ticks(axes: "Axes", levels: Sequence[int]) -> None:
    axes.set_xticks([_place(level, levels) for level in levels], [str(level) for level in levels])
    if levels[0] == 0:
        # k = 0 is no point of the scale: a line stands between them.
        axes.axvline(_place(0, levels) + _APART / 2, color="#bbbbbb", lw=0.8, ls=":")


def _place(level: int, levels: Sequence[int]) -> float:
    if level:
        return math.log2(level)
    first = next((other for other in levels if other), 1)
    return math.log2(first) - _APART
