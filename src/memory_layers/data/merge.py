"""Rows of facts become facts: rows that stand there again, and several answers about one subject.

Subjects that look alike are one. They differ in how Unicode composes letters, or in spaces that
break no line or have no width. Letters of another case may make another name, as in CO and Co, so
these subjects stay two and are told.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from memory_layers.data.facts import Fact
from memory_layers.data.lines import NO_WIDTH, shorten

_WITHOUT_WIDTH = dict.fromkeys(map(ord, NO_WIDTH))


def seen_alike(text: str) -> str:
    """Return what is the same for texts that look alike."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.translate(_WITHOUT_WIDTH))
    return " ".join(text.split())


def other_answers(fact: Fact, row: Fact) -> tuple[str, ...]:
    """Return the answers of a row that are none of a fact."""
    found = {seen_alike(answer): answer for answer in (row.answer, *row.aliases)}
    known = {seen_alike(answer) for answer in (fact.answer, *fact.aliases)}
    return tuple(answer for key, answer in found.items() if key not in known)


@dataclass
class MergedFacts:
    """Collects the rows of a file.

    Attributes:
        name: Of the file, for the notes.
        facts: By relation and subject, with the places where they first stand.
        repeated: Where rows are that say again what is known.
        more: How many rows have another answer than the rows before them.
    """

    name: str
    facts: dict[tuple[str, str], tuple[str, Fact]] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    more: int = 0
    _several: dict[tuple[str, str], str] = field(default_factory=dict)
    _alike: list[str] = field(default_factory=list)

    def add(self, where: str, fact: Fact) -> None:
        """Add a row, and note what it repeats.

        Args:
            where: Its place, `FILE:LINE`.
            fact: What it says.
        """
        key = fact.relation, seen_alike(fact.subject)
        if key not in self.facts:
            # What an alias repeats is no other answer.
            unlike = other_answers(replace(fact, aliases=()), fact)
            self.facts[key] = where, replace(fact, aliases=unlike) if fact.aliases else fact
            return
        first, known = self.facts[key]
        both = f"lines {_line(first)} and {_line(where)}"
        if fact.subject != known.subject:
            self._alike.append(f"{both}: {known.subject!a} and {fact.subject!a}")
        others = other_answers(known, fact)
        if others:
            self.facts[key] = first, replace(known, aliases=known.aliases + others)
        if fact.answer in others:
            self.more += 1
            self._several.setdefault(key, f"{both}: {shorten(': '.join(key))}")
        else:
            self.repeated.append(both)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was made of rows that are not the same, in words."""
        counted = [
            ("facts with several answers, of which the first is trained on and any is right",
             [*self._several.values()]),
            ("subjects written in two ways that look alike, taken for one", self._alike),
            ("subjects that differ in the case of letters alone, taken for two", self._cased()),
        ]  # fmt: skip
        return tuple(self.note(what, found) for what, found in counted if found)

    def note(self, what: str, places: Sequence[str]) -> str:
        """Return a line that says how often something is there, and where first."""
        return f"{self.name}: {what}: {len(places):,}, such as {places[0]}"

    def _cased(self) -> list[str]:
        spelled = defaultdict(list)
        for (relation, subject), (where, _) in self.facts.items():
            spelled[relation, subject.casefold()].append((where, subject))
        return [
            f"lines {_line(found[0][0])} and {_line(found[1][0])}: "
            f"{shorten(found[0][1])} and {shorten(found[1][1])}"
            for found in spelled.values()
            if len(found) > 1
        ]


def _line(where: str) -> str:
    return where.rpartition(":")[2]
