"""One source, read and checked: facts with their templates, or rows of another kind."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.untrusted import check_inside
from memory_layers.data.fact_files import (
    ALIASES,
    FACTS_FILE,
    TEMPLATES_FILE,
    fact_of,
    load_templates,
)
from memory_layers.data.facts import Fact, FactSet, RelationTemplates
from memory_layers.data.lines import shorten
from memory_layers.data.merge import MergedFacts, seen_alike
from memory_layers.data.templates import has_subject_first
from memory_layers.learn.sources.files import KINDS, Row, file_rows
from memory_layers.learn.sources.objects import object_rows
from memory_layers.learn.sources.rows import (
    COLUMNS,
    OPTIONAL,
    Asked,
    Message,
    is_blank_text,
    kind_of_row,
    parse_row,
)
from memory_layers.learn.sources.types import Kind

# Of many faults of the same kind.
LISTED = 5


@dataclass
class Table:
    """The content of one source.

    Attributes:
        name: Its path, or its place in what was given.
        kind: Of all its rows.
        templates: Of facts.
        facts: With their places, each once.
        asked: Rows of the other kinds, each once.
        rows: How many there were.
        blank: How many of them have no text.
        more: How many of them have one more answer to what is known.
        unused: Columns that are not read.
        notes: What was made of rows of facts.
    """

    name: str
    kind: Kind
    templates: dict[str, RelationTemplates] = field(default_factory=dict)
    facts: list[tuple[str, Fact]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    rows: int = 0
    blank: int = 0
    more: int = 0
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def repeated(self) -> int:
        """How many rows are there again."""
        return self.rows - self.blank - self.more - len(self.facts) - len(self.asked)

    def digest(self) -> str:
        """Return a name of the content: SHA-256, 64 hexadecimal digits."""
        content = (
            # Without what facts need not have, which is not in older digests.
            [{k: v for k, v in asdict(fact).items() if v != ()} for _, fact in self.facts],
            {name: asdict(templates) for name, templates in self.templates.items()},
            [{**asdict(row), "where": None} for row in self.asked],
        )
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Answers:
    """Keeps what every prompt is answered with, so that sources do not contradict one another."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], tuple[str, tuple[str, ...], bool]] = {}
        self._against: list[str] = []
        self._leaks: list[str] = []

    def is_new(
        self, key: tuple[str, ...], where: str, *answers: str, heldout: bool = False
    ) -> bool:
        """Note answers, and tell whether they are not known yet.

        Args:
            key: What is answered.
            where: Its place.
            answers: The answer, and others that are right.
            heldout: It is not trained on.
        """
        if key not in self._known:
            self._known[key] = where, answers, heldout
            return True
        earlier, others, was_heldout = self._known[key]
        name = shorten(": ".join(key[1:]))
        if answers[0] not in others and others[0] not in answers:
            both = f"{shorten(others[0])} and {shorten(answers[0])}"
            self._against.append(f"{earlier} and {where}: {name} has the answers {both}")
        elif heldout != was_heldout:
            self._leaks.append(f"{earlier} and {where}: {name}")
        return False

    def check(self) -> None:
        """Refuse what was noted if it is not of one mind.

        Raises:
            UserError: Two answers to the same, or something held out that is trained on as well.
        """
        if self._against:
            raise UserError(
                f"{listed(self._against)}\nThe data contradicts itself in {len(self._against)} "
                "places, expected one answer to each prompt or fact. hint: keep the right one, "
                "make prompt or subject more exact, or give other right answers of a fact as "
                '"aliases"'
            )
        if self._leaks:
            raise UserError(
                f"{listed(self._leaks)}\n{len(self._leaks)} prompts are held out and trained on, "
                "expected held-out prompts that training does not show. hint: remove one of the two"
            )


def read_table(name: str, source: Any, answers: Answers) -> Table:  # noqa: ANN401
    """Read one source.

    Args:
        name: What to call it if it has no path.
        source: A path, a FactSet, or rows in memory.
        answers: What is known from other sources. Rows that are there again are left out.

    Raises:
        UserError: Anything is wrong with it. The error names the file and the line.
        ImportError: It is a Parquet file and pyarrow is not installed.
    """
    if isinstance(source, FactSet):
        table = Table(name, "facts", source.templates, notes=source.notes)
        if not source.facts:
            raise UserError(f"{name} has no facts, expected at least one")
        _check_templates(name, source.templates)
        for n, fact in enumerate(source.facts):
            table.rows += 1
            _add_fact(table, f"{name}.facts[{n}]", fact, answers)
        return table
    if not isinstance(source, str | Path):
        return _of_rows(name, object_rows(name, source), None, answers)
    path = Path(source)
    # Unlike Path.exists, this takes a text that is too long for a path.
    if not os.path.exists(path):
        hint = "check the path"
        if isinstance(source, str) and " " in source:
            hint += ', or give texts as rows: [{"text": "..."}, ...]'
        raise UserError(
            f"{shorten(str(path), 200)[1:-1]}:1: there is no such file, expected a file or a "
            f"folder of facts, got nothing. hint: {hint}"
        )
    if path.is_dir():
        _check_folder(path)
        path /= FACTS_FILE
    return _of_rows(str(source), file_rows(path), path.with_name(TEMPLATES_FILE), answers)


def _of_rows(name: str, rows: Iterator[Row], templates: Path | None, answers: Answers) -> Table:
    first, blank = next(rows), 0
    start = first[0]
    while is_blank_text(first[1]):
        blank += 1
        first = next(rows, None)
        if first is None:
            raise UserError(
                f"{start}: all texts are empty, expected text, got {blank:,} that are empty or "
                "blank. hint: add some, or leave it out"
            )
    kind = kind_of_row(*first)
    table = Table(name, kind, rows=blank, blank=blank)
    merged = MergedFacts(name)
    columns: dict[str, None] = {}
    if kind == "facts":
        if templates is None or not templates.is_file():
            got = "rows in memory" if templates is None else f"no {templates}"
            raise UserError(
                f"{first[0]}: facts need templates that say how they are worded, got {got}. hint: "
                f"put {TEMPLATES_FILE} beside the file, or give a FactSet in Python"
            )
        table.templates = load_templates(templates)
        _check_templates(str(templates), table.templates)
    for where, row in chain([first], rows):
        if kind == "text" and is_blank_text(row):
            table.rows += 1
            table.blank += 1
            continue
        if (found := kind_of_row(where, row)) != kind:
            raise UserError(
                f"{where}: the row is of the kind {found}, expected {kind} as in the rows before "
                f"it ({', '.join(COLUMNS[kind])}), got the fields {', '.join(map(repr, row))}. "
                "hint: put each kind into a file of its own, and name both"
            )
        columns |= dict.fromkeys(row)
        table.rows += 1
        if kind == "facts":
            merged.add(where, fact_of(where, row, table.templates))
        else:
            _add_row(table, parse_row(where, kind, row), answers)
    for where, fact in merged.facts.values():
        _add_fact(table, where, fact, answers)
    table.notes, table.more = merged.notes, merged.more
    read = {*COLUMNS[kind], *OPTIONAL, *([ALIASES] if kind == "facts" else [])}
    table.unused = tuple(column for column in columns if column not in read)
    return table


def _add_fact(table: Table, where: str, fact: Fact, answers: Answers) -> None:
    key = "fact", fact.relation, seen_alike(fact.subject)
    if answers.is_new(key, where, fact.answer, *fact.aliases):
        table.facts.append((where, fact))


def _add_row(table: Table, row: Asked, answers: Answers) -> None:
    said = row.answer.strip()
    if not row.prompt:
        new = answers.is_new(("text", said), row.where, "")
    else:
        key = _key(table.kind, row.prompt)
        new = answers.is_new(key, row.where, said, heldout=row.heldout)
    if new:
        table.asked.append(row)
        for prompt in row.paraphrases:
            answers.is_new(_key(table.kind, prompt), row.where, said, heldout=True)


def _key(kind: str, prompt: str | tuple[Message, ...]) -> tuple[str, ...]:
    if isinstance(prompt, str):
        return kind, prompt.strip()
    return kind, *(part.strip() for turn in prompt for part in (turn.role, turn.content))


def _check_templates(where: str, templates: dict[str, RelationTemplates]) -> None:
    for relation, wordings in templates.items():
        if not any(map(has_subject_first, wordings.statements)):
            raise UserError(
                f"{where}: no statement of relation {relation!r} has {{subject}} before "
                f"{{answer}}, expected one that can be learned from, got "
                f"{shorten(wordings.statements[0], 100)}. "
                "hint: add a wording with the subject first"
            )


def _check_folder(folder: Path) -> None:
    check_inside(folder)
    if (folder / FACTS_FILE).is_file():
        return
    inside = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in KINDS)
    hint = f"name the files, such as {folder / inside[0]}" if inside else "check the path"
    raise UserError(
        f"{folder}:1: the folder has no {FACTS_FILE}, expected {FACTS_FILE} and {TEMPLATES_FILE}, "
        f"got {', '.join(inside[:LISTED]) or 'nothing to learn from'}. hint: {hint}"
    )


def listed(lines: list[str]) -> str:
    """Return the first few lines of a list."""
    more = len(lines) - LISTED
    return "\n".join(lines[:LISTED] + ([f"... and {more} more"] if more > 0 else []))
