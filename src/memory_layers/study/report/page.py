"""The page of a report: ready texts that report.html.j2 turns into escaped, self-contained HTML.

Next: comparison.py and sweep.py fill a page.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from memory_layers.common.files import replacing
from memory_layers.study.plots.drawing import Plot


@dataclass(frozen=True)
class Cell:
    """A table cell: a value and, in smaller print below it, its spread or unit."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Row:
    """A table row. With `failure` set, `status` and the reason fill the row."""

    title: Cell
    cells: Sequence[Cell] = ()
    colour: str | None = None
    failure: str | None = None
    status: str = "failed"

    @property
    def reason(self) -> str:
        """How the run ended and why, in a line."""
        return f"{self.status}: {short_reason(self.failure or '')}"


@dataclass(frozen=True)
class Table:
    """A table with one header row.

    Attributes:
        head: Titles of the columns.
        rows: Its rows.
        label: What screen readers call it.
        fold: The table stands "open" or "closed" below its label, which shows and hides it.
        prose: Cells hold sentences, aligned to the left, and not numbers.
    """

    head: Sequence[str]
    rows: Sequence[Row]
    label: str
    fold: Literal["", "open", "closed"] = ""
    prose: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot. The template has its caption, by its name or as that of `caption` of a `subject`."""

    name: str
    plot: Plot
    caption: str = ""
    subject: str = ""


@dataclass(frozen=True)
class Glossary:
    """What the figures of a report mean: the template has the texts."""

    kind: Literal["comparison", "sweep"]


# A string is a paragraph, a mapping a list of terms.
Part = str | Table | Figure | Glossary | Mapping[str, str]


@dataclass(frozen=True)
class Page:
    """Everything the page shows, as plain text. Sections without parts are left out."""

    title: str
    lead: str
    notes: Sequence[str]
    sections: Mapping[str, Sequence[Part]]
    footer: Mapping[str, str] = field(default_factory=dict)


def write_page(page: Page, folder: Path, names: Iterable[str] = ()) -> Path:
    """Write `report.html` and, for each figure, `plots/NAME.png` and `plots/NAME.csv`.

    Args:
        page: Its figures need different names.
        folder: Created if it is missing.
        names: Figures that this kind of report may have. Files of an earlier report for those that
            this page does not have are removed.

    Returns:
        The path of the page, which needs no other file to be read.
    """
    parts = [part for section in page.sections.values() for part in section]
    files = {folder / "report.html": render_page(page).encode("utf-8", errors="replace")}
    for part in parts:
        if isinstance(part, Figure):
            files[folder / "plots" / f"{part.name}.png"] = part.plot.png
            files[folder / "plots" / f"{part.name}.csv"] = _encoded(part.plot.csv)
    for path in (folder / "plots" / f"{name}.{ending}" for name in names for ending in _ENDINGS):
        if path not in files:
            path.unlink(missing_ok=True)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    with replacing(*files) as places:
        for place, content in zip(places, files.values(), strict=True):
            place.write_bytes(content)
    return folder / "report.html"


def render_page(page: Page) -> str:
    """Return the whole page as one self-contained HTML document."""
    from jinja2 import Environment

    here = resources.files("memory_layers.study.report")
    style = resources.files("memory_layers.common").joinpath("report.css")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda data: base64.b64encode(
        data if isinstance(data, bytes) else _encoded(data)
    ).decode("ascii")
    environment.tests |= {
        name: lambda part, kind=kind: isinstance(part, kind)
        for name, kind in (("table", Table), ("figure", Figure), ("glossary", Glossary))
    }
    template = environment.from_string(here.joinpath("report.html.j2").read_text("utf-8"))
    return template.render(page=page, style=style.read_text("utf-8"))


def short_reason(text: str) -> str:
    """Return the last line that is not blank: of a traceback, the one with the reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else "no reason was recorded"
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 1] + "…"


_ENDINGS = ("png", "csv")
_REASON_LENGTH = 160


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")
