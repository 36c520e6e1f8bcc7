"""The HTML of a comparison's report: one page, no scripts, nothing fetched.

This module only turns ready texts into markup and escapes all of them. What they say is
computed in :mod:`memory_layers.study.report`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources


@dataclass(frozen=True)
class Cell:
    """A table cell: a value and, in smaller print below it, its spread or unit."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Row:
    """A table row. With ``failure`` set, the reason fills the row in place of its cells."""

    title: Cell
    cells: Sequence[Cell] = ()
    colour: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Table:
    """A table with one header row."""

    head: Sequence[str]
    rows: Sequence[Row]
    label: str


@dataclass(frozen=True)
class Page:
    """Everything the page shows, as plain text."""

    title: str
    lead: str
    notes: Sequence[str]
    summary: Table
    plots: Mapping[str, bytes]
    relations: Mapping[str, Table]
    runs: Table
    provenance: Mapping[str, str] = field(default_factory=dict)


# (name of the plot, what it shows, how to read it)
_CAPTIONS = (
    (
        "recall_over_tokens",
        "Recall over training tokens.",
        (
            "At the same horizontal position every variant has read the same amount of text. "
            "Higher is better; a line that is still rising had not finished learning."
        ),
    ),
    (
        "recall_over_flops",
        "Recall over training FLOPs.",
        (
            "At the same horizontal position every variant has spent the same compute. A line "
            "further left reaches the same recall more cheaply."
        ),
    ),
    (
        "recall_by_relation",
        "Recall by relation.",
        (
            "One group of bars per kind of fact, one bar per variant, at the end of training. Thin "
            "black lines run from the lowest to the highest seed where there are several."
        ),
    ),
    (
        "slot_usage",
        "How evenly the memory is used.",
        (
            "Slots are grouped by how many reads they received in the measurement. A tall bar at 0 "
            "means slots that nothing read: parameters without a use."
        ),
    ),
)

_METRICS = (
    (
        "Recall",
        (
            "The share of questions for which every token of the answer is produced exactly, by "
            "greedy decoding. A partly right answer counts as wrong."
        ),
    ),
    (
        "Held-out questions",
        (
            "Facts the model has seen only as statements. The question form was never shown for "
            "that subject, so the model has to find the fact from a wording it has not met it in."
        ),
    ),
    (
        "Shown questions",
        "Facts whose question and answer were part of the training text, beside the statement.",
    ),
    ("Statements", "The answer is completed in the wording the fact was taught in."),
    (
        "Answer NLL",
        (
            "Negative log-likelihood of the right answer to held-out questions, in nats. Lower is "
            "better. It still moves where recall is near 0 or 1."
        ),
    ),
    (
        "Bits stored",
        (
            "Sum of log2(number of distinct answers of the relation) over the held-out and shown "
            "question facts the model recalled. A recalled fact counts for more when there were "
            "more answers to choose from."
        ),
    ),
    (
        "FLOPs per token",
        (
            "Compute of one training token, and its ratio to the base variant's. Parameters that "
            "are stored but not touched by a token cost none."
        ),
    ),
    (
        "Parameters",
        (
            "All that are stored and, in small print, those that are active for a token: of a "
            "memory layer, only the slots it reads."
        ),
    ),
    (
        "Spread",
        (
            "Small figures such as 0.71\u20130.74 are the lowest and the highest seed; the figure "
            "above them is the mean over the seeds."
        ),
    ),
)

_REASON_LENGTH = 160

# The page may show its own images and style, and load or run nothing else.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render_page(page: Page) -> str:
    """Return the whole page as one self-contained HTML document."""
    style = (
        resources.files("memory_layers.study").joinpath("report.css").read_text(encoding="utf-8")
    )
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{escape(page.title)}</title>",
        f"<style>\n{style}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{escape(page.title)}</h1>",
        f'<p class="lead">{escape(page.lead)}</p>',
        *(f'<p class="note">{escape(note)}</p>' for note in page.notes),
        "<h2>Results</h2>",
        _table(page.summary),
        *_plots(page.plots),
        *_relations(page.relations),
        "<h2>What the figures mean</h2>",
        _definitions(_METRICS, "metrics"),
        "<h2>Every run</h2>",
        _table(page.runs),
        "<footer>",
        _definitions(page.provenance.items(), "facts"),
        "</footer>",
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _cell(cell: Cell) -> str:
    small = f"<small>{escape(cell.small)}</small>" if cell.small else ""
    return escape(cell.text) + small


def _row(row: Row, width: int) -> str:
    dot = f'<span class="dot" style="background:{escape(row.colour)}"></span>' if row.colour else ""
    marked = ' class="marked"' if dot else ""
    title = f'<th scope="row"{marked}>{dot}{_cell(row.title)}</th>'
    if row.failure is None:
        cells = "".join(f"<td>{_cell(cell)}</td>" for cell in row.cells)
    else:
        cells = f'<td class="failed" colspan="{width - 1}">{_failure(row.failure)}</td>'
    return f"<tr>{title}{cells}</tr>"


def short_reason(text: str) -> str:
    """Return the last line that is not blank: of a traceback, the one with the reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else "no reason was recorded"
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 1] + "…"


def _failure(reason: str) -> str:
    short = short_reason(reason)
    shown = f"failed: {escape(short)}"
    if reason.strip() in ("", short):
        return shown
    return f"<details><summary>{shown}</summary><pre>{escape(reason.strip())}</pre></details>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in table.head)
    rows = "\n".join(_row(row, len(table.head)) for row in table.rows)
    # Focusable, so that a keyboard can scroll what a finger can.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.label)}">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


def _plots(plots: Mapping[str, bytes]) -> Iterable[str]:
    figures = [
        f'<figure><img src="data:image/png;base64,{base64.b64encode(plots[name]).decode("ascii")}"'
        f' alt="{escape(title)}"><figcaption><b>{escape(title)}</b> {escape(text)}</figcaption>'
        "</figure>"
        for name, title, text in _CAPTIONS
        if name in plots
    ]
    if figures:
        yield "<h2>Plots</h2>"
        yield '<div class="plots">'
        yield from figures
        yield "</div>"


def _relations(tables: Mapping[str, Table]) -> Iterable[str]:
    if not tables:
        return
    yield "<h2>Recall by relation</h2>"
    for i, (title, table) in enumerate(tables.items()):
        if i == 0:
            yield f"<h3>{escape(title)}</h3>"
            yield _table(table)
        else:
            yield f"<details><summary>{escape(title)}</summary>{_table(table)}</details>"


def _definitions(items: Iterable[tuple[str, str]], kind: str) -> str:
    entries = "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in items
    )
    return f'<dl class="{kind}">\n{entries}\n</dl>'
