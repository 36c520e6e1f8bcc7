"""From sources to examples and recall items: the whole way of the data."""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memory_layers.common.checks import check_whole
from memory_layers.common.errors import UserError
from memory_layers.common.progress import Report
from memory_layers.data.facts import shown_subjects
from memory_layers.learn.sources.build import Build, Counts, samples_of
from memory_layers.learn.sources.chat import ChatEncoder
from memory_layers.learn.sources.encode import Encoder
from memory_layers.learn.sources.look import Look, SourceLook, marked, notes_of
from memory_layers.learn.sources.objects import sources_of
from memory_layers.learn.sources.pieces import Piece, fact_pieces, key_of_piece, row_pieces
from memory_layers.learn.sources.rows import Asked
from memory_layers.learn.sources.shorter import with_shorter
from memory_layers.learn.sources.tables import Answers, Table, read_table
from memory_layers.learn.sources.types import Group, LearnData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES = 3
# Characters of the name of a question. Longer ones are cut.
NAME = 100


def read_data(
    data: Any,  # noqa: ANN401
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    weights: Sequence[float] = (),
    shown_fraction: float = 0.5,
    chat: bool | None = None,
    wordings: int = 1,
    seed: int = 0,
    progress: Report | None = None,
) -> LearnData:
    """Read what a model is to learn.

    Args:
        data: One source or a list of them: the path of a folder of facts or of a file (JSON lines,
            CSV, Parquet, text), a FactSet, rows as a list of dicts, a pandas DataFrame or a
            `datasets.Dataset`. All rows of a source are of one kind: relation, subject and answer;
            prompt and completion; messages; or text.
        tokenizer: Of the model, a fast one.
        max_length: Most tokens of a text. Longer ones are cut, and counted.
        weights: How often the rows of each source are shown in a pass. Empty: once.
        shown_fraction: Share of the subjects of facts whose questions are trained on. Those of the
            others are asked, to see whether they are answered without having been shown.
        chat: Word the questions of facts as turns of a conversation as well. None: if the
            tokenizer has a chat template.
        wordings: Prompts that are trained on for each row or group of `prompts` and `messages`.
            Where there are fewer, some of their words are left out, each time others.
        seed: Picks the subjects, and the words that are left out.
        progress: Called with the number of texts that are encoded, and how many there are.

    Returns:
        Examples, recall items, and a look at them.

    Raises:
        UserError: The data is malformed, contradicts itself, or holds an answer that the tokenizer
            cannot spell. The error names the file and the line.
        ImportError: A package for Parquet or chat templates is not installed.
    """
    check_whole("max_length", max_length, 2)
    check_whole("wordings", wordings, 1)
    if not 0 <= shown_fraction <= 1:
        raise UserError(f"shown_fraction must be between 0 and 1, got {shown_fraction}")
    sources = sources_of(data)
    weights = _weights(weights, len(sources))
    encoder = Encoder(tokenizer)
    worded = chat is True
    chat = tokenizer.chat_template is not None if chat is None else chat
    answers = Answers()
    names = ["data"] if len(sources) == 1 else [f"data[{n}]" for n in range(len(sources))]
    tables = [read_table(*pair, answers) for pair in zip(names, sources, strict=True)]
    answers.check()
    if worded and all(table.kind != "facts" for table in tables):
        raise UserError(
            "chat words facts as turns of a conversation, and the data has none. hint: leave it "
            "out (--chat)"
        )
    talks = any(t.kind == "messages" or (t.kind == "facts" and chat) for t in tables)
    groups, pieces = _pieces(tables, weights, shown_fraction, seed, chat=chat)
    given, asked = len(pieces), _asked(pieces, groups)
    if wordings > 1:
        pieces = with_shorter(pieces, wordings, encoder, seed)
    build = Build(encoder, ChatEncoder(encoder) if talks else None, max_length, groups)
    build.run(pieces, progress)
    looks = tuple(
        SourceLook(
            name=table.name, kind=table.kind, weight=weight, rows=table.rows,
            repeated=table.repeated, unused=table.unused, digest=table.digest(),
            **vars(build.counts.get(n, Counts())),
        )
        for n, (table, weight) in enumerate(zip(tables, weights, strict=True))
    )  # fmt: skip
    if not build.examples:
        raise UserError(
            f"{', '.join(look.name for look in looks)}: nothing to train on, expected rows "
            f"that are not held out and begin to answer before token {max_length}, got none. "
            "hint: give more rows, or a larger max_length"
        )
    samples = [
        marked(tokenizer, example.ids, example.spans)
        for example in samples_of(build.examples, groups, SAMPLES)
    ]
    notes = notes_of(looks, tables, max_length)
    if shorter := len(pieces) - given:
        notes.insert(0, f"{shorter:,} of the texts are prompts with some of their words left out.")
    look = Look(looks, max_length, tuple(samples), tuple(notes))
    return LearnData(tuple(build.examples), tuple(build.items), tuple(groups), look, asked)


def _weights(weights: Sequence[float], count: int) -> Sequence[float]:
    if not weights:
        return (1.0,) * count
    if len(weights) != count:
        raise UserError(
            f"weights must be one number for each of the {count} sources, got {len(weights)}"
        )
    for weight in weights:
        if not 0 < weight < math.inf:
            raise UserError(f"weights must be finite numbers > 0, got {weight}")
    return weights


def _pieces(
    tables: Sequence[Table],
    weights: Sequence[float],
    shown_fraction: float,
    seed: int,
    *,
    chat: bool,
) -> tuple[list[Group], list[Piece]]:
    """Return what is taught, and the pieces in the order of the groups."""
    picked = shown_subjects(
        {fact.subject for t in tables for _, fact in t.facts}, shown_fraction, seed
    )
    groups: list[Group] = []
    pieces: list[Piece] = []
    for n, (table, weight) in enumerate(zip(tables, weights, strict=True)):
        for where, fact in table.facts:
            name = f"{fact.relation}: {fact.subject}"
            pieces += fact_pieces(
                where, len(groups), fact, table.templates[fact.relation],
                shown=fact.subject in picked, chat=chat, seed=seed,
            )  # fmt: skip
            groups.append(Group(where, name, fact.answer, n, weight, fact.subject))
        numbers: dict[str, int] = {}
        for row in table.asked:
            number = len(groups)
            if row.group is not None:
                number = numbers.setdefault(row.group, number)
            if number == len(groups):
                answer = " ".join(row.answer.split()) if row.prompt else ""
                groups.append(Group(row.where, _name(row), answer, n, weight))
            pieces += row_pieces(row, number)
    # Rows of a group need not stand together.
    pieces.sort(key=lambda piece: piece.group)
    return groups, pieces


def _asked(pieces: Sequence[Piece], groups: Sequence[Group]) -> tuple[tuple[str, ...], ...]:
    found: list[dict[str, None]] = [{} for _ in groups]
    for piece in pieces:
        if piece.train and not groups[piece.group].subject:
            key = key_of_piece(piece).encode()
            found[piece.group][hashlib.blake2b(key, digest_size=8).hexdigest()] = None
    return tuple(tuple(digests) for digests in found)


def _name(row: Asked) -> str:
    if isinstance(row.prompt, tuple):
        turns = [turn for turn in row.prompt if turn.role != "system"]
        before = "chat: ... " if len(turns) > 1 else "chat: "
        return _beginning(before + row.prompt[-1].content)
    return _beginning(row.prompt or row.answer)


def _beginning(text: str) -> str:
    """Return a text on one line, cut."""
    line = " ".join(text.split())
    return line if len(line) <= NAME else f"{line[: NAME - 3]}..."
