"""The HTML page of a report: no scripts, nothing fetched, every figure and its data inside.

This module only turns ready texts into markup and escapes all of them, for any report made of
sections with tables and figures. Next: :mod:`memory_layers.study.report` fills the page of a
comparison.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path


@dataclass(frozen=True)
class Cell:
    """A table cell: a value and, in smaller print below it, its spread or unit."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Row:
    """A table row. With ``failure`` set, ``status`` and the reason fill the row."""

    title: Cell
    cells: Sequence[Cell] = ()
    colour: str | None = None
    failure: str | None = None
    status: str = "failed"


@dataclass(frozen=True)
class Table:
    """A table with one header row. Screen readers call it by its label."""

    head: Sequence[str]
    rows: Sequence[Row]
    label: str


@dataclass(frozen=True)
class Figure:
    """A plot with its caption and, to download, the numbers it shows."""

    name: str
    title: str
    text: str
    png: bytes
    csv: str


@dataclass(frozen=True)
class Folded:
    """A table below a line that shows and hides it."""

    title: str
    table: Table
    shown: bool = False


@dataclass(frozen=True)
class Definitions:
    """Terms and what they mean."""

    items: Sequence[tuple[str, str]]


Part = str | Table | Figure | Folded | Definitions


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it. A string is a paragraph."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """Everything the page shows, as plain text. Sections without parts are left out."""

    title: str
    lead: str
    notes: Sequence[str]
    sections: Sequence[Section]
    footer: Mapping[str, str] = field(default_factory=dict)


_REASON_LENGTH = 160

# The page may show its own images and style, and load or run nothing else. Links that save a
# data: address load nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(page: Page, folder: Path, names: Iterable[str] = ()) -> Path:
    """Write ``report.html`` and, for each figure, ``plots/NAME.png`` and ``plots/NAME.csv``.

    Args:
        page: Its figures need different names.
        folder: Created if it is missing.
        names: Figures this kind of report may have. Files of an earlier report for those that
            this page does not have are removed.

    Returns:
        The path of the page, which needs no other file to be read.
    """
    figures = {
        part.name: part
        for section in page.sections
        for part in section.parts
        if isinstance(part, Figure)
    }
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for name in set(names) - set(figures):
        for ending in ("png", "csv"):
            (plots / f"{name}.{ending}").unlink(missing_ok=True)
    for name, figure in figures.items():
        _write(plots / f"{name}.png", figure.png)
        _write(plots / f"{name}.csv", figure.csv.encode("utf-8", errors="replace"))
    path = folder / "report.html"
    _write(path, render_page(page).encode("utf-8", errors="replace"))
    return path


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
        *(line for section in page.sections if section.parts for line in _section(section)),
        "<footer>",
        _definitions(page.footer.items(), "facts"),
        "</footer>",
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def short_reason(text: str) -> str:
    """Return the last line that is not blank: of a traceback, the one with the reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else "no reason was recorded"
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 1] + "…"


def _write(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _section(section: Section) -> Iterable[str]:
    yield "<section>"
    yield f"<h2>{escape(section.title)}</h2>"
    # Figures that follow one another stand side by side where there is room.
    for figures, parts in groupby(section.parts, lambda part: isinstance(part, Figure)):
        if figures:
            yield '<div class="plots">'
        yield from map(_part, parts)
        if figures:
            yield "</div>"
    yield "</section>"


def _part(part: Part) -> str:
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Figure):
        return _figure(part)
    if isinstance(part, Folded):
        shown = " open" if part.shown else ""
        title = f"<summary>{escape(part.title)}</summary>"
        return f"<details{shown}>{title}{_table(part.table)}</details>"
    if isinstance(part, Definitions):
        return _definitions(part.items, "metrics")
    return f"<p>{escape(part)}</p>"


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
        failure = _failure(row.status, row.failure)
        cells = f'<td class="failed" colspan="{width - 1}">{failure}</td>'
    return f"<tr>{title}{cells}</tr>"


def _failure(status: str, reason: str) -> str:
    short = short_reason(reason)
    shown = f"{escape(status)}: {escape(short)}"
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


def _figure(figure: Figure) -> str:
    image = base64.b64encode(figure.png).decode("ascii")
    data = base64.b64encode(figure.csv.encode("utf-8", errors="replace")).decode("ascii")
    title = escape(figure.title)
    return (
        f'<figure><img src="data:image/png;base64,{image}" alt="{title}">'
        f"<figcaption><b>{title}</b> {escape(figure.text)} "
        f'<a href="data:text/csv;charset=utf-8;base64,{data}" '
        f'download="{escape(figure.name)}.csv">Data (CSV)</a></figcaption></figure>'
    )


def _definitions(items: Iterable[tuple[str, str]], kind: str) -> str:
    entries = "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in items
    )
    return f'<dl class="{kind}">\n{entries}\n</dl>'
