"""The page of a teaching: page.html.j2 turns the tables of report.py into self-contained HTML."""

import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from memory_layers.learn.report import (
    KEPT_HEAD,
    RECALL_HEAD,
    TEXT_HEAD,
    cost,
    kept_rows,
    lead,
    next_commands,
    recall_rows,
    text_rows,
)
from memory_layers.learn.result import LearnResult, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOURCE_HEAD = ("source", "kind", "weight", "rows", "repeated", "texts", "tokens", "trained on",
               "longest", "cut", "left out", "asked", "not seen")  # fmt: skip
_COLUMNS = ("rows", "repeated", "examples", "tokens", "learned", "longest", "cut", "left_out",
            "items", "unseen")  # fmt: skip
# Of Okabe and Ito, readable on white and on black. Ink takes the colour of the page's text.
_BLUE, _ORANGE, _INK = "#0072b2", "#d55e00", "#010203"
_WIDTH, _HEIGHT = 10.0, 3.6


def render_page(result: LearnResult) -> str:
    """Return the whole page as one self-contained HTML document.

    Args:
        result: Of a teaching. All its texts are escaped.

    Raises:
        ImportError: matplotlib or Jinja is not installed.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    here = resources.files("memory_layers.learn").joinpath("page.html.j2")
    style = resources.files("memory_layers.common").joinpath("report.css")
    return environment.from_string(here.read_text("utf-8")).render(
        title=f"What {result.model} learned",
        style=style.read_text("utf-8"),
        lead=lead(result),
        notes=_notes(result),
        plot=draw_curve(result.curve) if result.curve else "",
        result=result,
        recall_head=RECALL_HEAD,
        recall=recall_rows(result),
        text_head=TEXT_HEAD,
        texts=text_rows(result),
        kept_head=KEPT_HEAD,
        kept=kept_rows(result),
        cost=cost(result),
        commands=next_commands(result),
        source_head=SOURCE_HEAD,
        sources=_source_rows(result.look),
        footer=_footer(result),
    )


def draw_curve(curve: Sequence[Point]) -> str:
    """Return learning and forgetting over passes, side by side, as an SVG element.

    Args:
        curve: At least one point.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2)
    seen = [point.recall_seen for point in curve]
    unseen = [point.recall_unseen for point in curve]
    text = [100 * point.text_loss for point in curve]
    lost = [None if point.kept is None else 100 * (1 - point.kept) for point in curve]
    passes = [point.passes for point in curve]
    _draw(left, "answered exactly", passes, {"seen": seen, "not seen": unseen})
    left.set_ylim(-0.02, 1.02)
    _draw(right, "lost, %", passes, {"growth of the loss on text": text, "answers": lost})
    low, high = right.get_ylim()
    # A tenth of a percent is no cliff.
    right.set_ylim(min(low, -0.05), max(high, 1.0))
    drawn = io.StringIO()
    # A fixed salt: the same results give the same bytes. Text stays text.
    with mpl.rc_context({"svg.hashsalt": "memory-layers", "svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    return svg.replace("<svg", '<svg role="img" aria-label="Learning and forgetting"', 1)


def _draw(
    axes: "Axes",
    title: str,
    passes: Sequence[int],
    lines: Mapping[str, Sequence[float | None]],
) -> None:
    from matplotlib.ticker import MaxNLocator

    styles = (_BLUE, "o", "-"), (_ORANGE, "s", "--")
    for (name, values), (colour, marker, dash) in zip(lines.items(), styles, strict=True):
        known = [(x, y) for x, y in zip(passes, values, strict=True) if y is not None]
        if known:
            axes.plot(*zip(*known, strict=True), dash, color=colour, marker=marker, label=name)
    axes.legend(frameon=False, labelcolor=_INK)
    axes.set_xlabel("passes", color=_INK)
    axes.set_ylabel(title, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(_INK)
    axes.tick_params(colors=_INK)
    axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.8)


def _notes(result: LearnResult) -> list[str]:
    """Return what a reader has to know before believing the figures."""
    notes = []
    if result.recall and all(one.seen for one in result.recall):
        notes.append("Whether other wordings bring the answers was not measured.")
    if not result.texts and not result.kept:
        notes.append("What was forgotten was not measured.")
    if result.stopped == "interrupted":
        notes.append("The teaching was interrupted: more could have been learned.")
    return notes


def _source_rows(look: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            source["name"],
            source["kind"],
            f"{source['weight']:g}",
            *(f"{source[column]:,}" for column in _COLUMNS),
        )
        for source in look.get("sources", ())
    ]


def _footer(result: LearnResult) -> dict[str, str]:
    facts = {"base": result.model, "patch": result.out, **result.settings, **result.provenance}
    return {name.replace("_", " "): str(value) for name, value in facts.items() if value != ""}
