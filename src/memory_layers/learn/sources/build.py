"""Pieces become examples and recall items, cut to the length of the model, and are counted."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from memory_layers.common.errors import UserError
from memory_layers.common.progress import Report, counted
from memory_layers.data.lines import shorten
from memory_layers.learn.sources.chat import ChatEncoder
from memory_layers.learn.sources.encode import Encoded, Encoder
from memory_layers.learn.sources.pieces import Piece, Plain
from memory_layers.learn.sources.rows import said_aloud
from memory_layers.learn.sources.tables import listed
from memory_layers.learn.sources.types import Example, Group, RecallItem

# The tokenizer keeps the tokens of all texts of a call in memory, with their offsets.
PIECES_AT_A_TIME, CHARACTERS_AT_A_TIME = 20_000, 2_000_000


@dataclass
class Counts:
    """Of one source. The attributes are those of SourceLook."""

    examples: int = 0
    items: int = 0
    unseen: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0
    longest_at: str = ""
    cut: int = 0
    left_out: int = 0


@dataclass
class Build:
    """Collects what pieces become.

    Attributes:
        encoder: Of texts.
        chat: Of conversations. None: there are none.
        max_length: Most tokens of a text.
        groups: What is taught.
        examples: What is trained on.
        items: What is asked.
        counts: By the number of the source.
    """

    encoder: Encoder
    chat: ChatEncoder | None
    max_length: int
    groups: Sequence[Group]
    examples: list[Example] = field(default_factory=list)
    items: list[RecallItem] = field(default_factory=list)
    counts: dict[int, Counts] = field(default_factory=dict)

    def run(self, pieces: Sequence[Piece], progress: Report | None) -> None:
        """Encode pieces.

        Raises:
            UserError: The tokenizer cannot spell an answer, or a chat template refuses turns.
        """
        unspelled = []
        done = counted(self._encoded(pieces), len(pieces), "encoding the data", progress)
        for piece, encoded in done:
            if not self._add(piece, encoded):
                unspelled.append(f"{piece.where}: {shorten(_answer(piece))}")
        if unspelled:
            lines = list(dict.fromkeys(unspelled))
            raise UserError(
                f"{listed(lines)}\nThe tokenizer cannot spell {len(lines)} answers, expected "
                "answers that come back when they are encoded and decoded. "
                "hint: write them otherwise, or take another model"
            )

    def _encoded(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, list[Encoded]]]:
        for part in _parts(pieces):
            texts = [piece.content for piece in part if isinstance(piece.content, Plain)]
            plain = iter(self.encoder.plain(texts))
            for piece in part:
                if isinstance(piece.content, Plain):
                    yield piece, [next(plain)]
                elif self.chat is not None:
                    yield piece, self.chat.encode(piece.where, piece.content)

    def _add(self, piece: Piece, found: list[Encoded]) -> bool:
        """Add what a piece became. False: the tokenizer cannot spell its answer."""
        counts = self.counts.setdefault(self.groups[piece.group].source, Counts())
        for encoded in found:
            if len(encoded.ids) > counts.longest:
                counts.longest, counts.longest_at = len(encoded.ids), piece.where
            if piece.train:
                self._train(piece, encoded, counts)
        if not piece.ask:
            return True
        item = self._item(piece, found[-1])
        if item is not None:
            self.items.append(replace(item, others=self._others(piece)) if piece.aliases else item)
            counts.items += 1
            counts.unseen += not piece.train
        elif not piece.train:
            counts.left_out += 1
        return self.encoder.spells(found[-1], _answer(piece))

    def _others(self, piece: Piece) -> tuple[RecallItem, ...]:
        """Return the items of other right answers."""
        pieces = [piece.with_answer(alias) for alias in piece.aliases]
        items = (self._item(other, encoded[-1]) for other, encoded in self._encoded(pieces))
        return tuple(item for item in items if item is not None)

    def _item(self, piece: Piece, asked: Encoded) -> RecallItem | None:
        """Return the recall item of a piece. None: its answer ends behind what a model reads."""
        start, end = asked.answer
        if end > self.max_length:
            return None
        ids = np.asarray(asked.ids[:end], np.int32)
        answer = _answer(piece)
        return RecallItem(ids, start, end, answer, piece.group, piece.form, piece.train, asked.last)

    def _train(self, piece: Piece, encoded: Encoded, counts: Counts) -> None:
        most = self.max_length
        too_long = len(encoded.ids) > most
        # Running text goes on in the next piece, and all else ends.
        starts = range(0, len(encoded.ids), most) if piece.form == "text" else (0,)
        added = 0
        for low in starts:
            ids = np.asarray(encoded.ids[low : low + most], np.int32)
            # The first token has nothing before it that could predict it.
            spans = tuple(
                (max(start - low, 1), min(end - low, len(ids)))
                for start, end in encoded.spans
                if max(start - low, 1) < min(end - low, len(ids))
            )
            if spans:
                added += 1
                self.examples.append(Example(ids, spans, piece.group, piece.form))
                counts.tokens += len(ids)
                counts.learned += sum(end - start for start, end in spans)
        counts.examples += added
        counts.cut += too_long and added > 0
        counts.left_out += added == 0


def _parts(pieces: Sequence[Piece]) -> Iterator[Sequence[Piece]]:
    """Yield pieces for one call of the tokenizer after the other."""
    low = characters = 0
    for n, piece in enumerate(pieces):
        size = len(piece.content.text) if isinstance(piece.content, Plain) else 0
        if n - low == PIECES_AT_A_TIME or (n > low and characters + size > CHARACTERS_AT_A_TIME):
            yield pieces[low:n]
            low, characters = n, 0
        characters += size
    yield pieces[low:]


def samples_of(examples: Iterable[Example], groups: Sequence[Group], most: int) -> list[Example]:
    """Return a few examples that differ in source or form, or the first ones."""
    kinds: Counter[tuple[int, str]] = Counter()
    ranked = []
    for n, example in enumerate(examples):
        kind = groups[example.group].source, example.form
        if kinds[kind] < most:
            ranked.append((kinds[kind], n, example))
        kinds[kind] += 1
    return [example for _, _, example in sorted(ranked, key=lambda row: row[:2])[:most]]


def _answer(piece: Piece) -> str:
    content = piece.content
    return content.answer.strip() if isinstance(content, Plain) else said_aloud(content.answer)
