"""A look at the data: what is trained on, what is cut, and a few rows as the model sees them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from memory_layers.common.text import markdown_table
from memory_layers.data.lines import shorten
from memory_layers.data.templates import has_subject_first
from memory_layers.learn.sources.tables import Table
from memory_layers.learn.sources.types import Kind

# Around what is trained on.
OPEN, CLOSE = "[[", "]]"


@dataclass(frozen=True)
class SourceLook:
    """Counts of one source.

    Attributes:
        name: Its path, or its place in what was given.
        kind: Of its rows.
        weight: How often a row is shown in a pass.
        rows: As they are in the source.
        repeated: Rows that stand there again, word for word. They are left out.
        examples: Texts that are trained on.
        items: Prompts that are asked.
        unseen: How many of them are in no text that is trained on.
        tokens: Of the examples.
        learned: Tokens that are trained on.
        longest: Tokens of the longest text before it was cut.
        longest_at: Place of that text.
        cut: Texts whose end was cut off, or that became several, for being longer than max_length.
        left_out: Texts of which nothing would be learned before the cut.
        unused: Columns that are not read.
        digest: SHA-256 of the rows, not of their tokens: some chat templates write the date.
    """

    name: str
    kind: Kind
    weight: float
    rows: int
    repeated: int
    examples: int
    items: int
    unseen: int
    tokens: int
    learned: int
    longest: int
    longest_at: str
    cut: int
    left_out: int
    unused: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Look:
    """What is trained on, in numbers and samples.

    Attributes:
        sources: One for each.
        max_length: Most tokens of a text.
        samples: A few examples, what is trained on between [[ and ]].
        notes: What else to know.
    """

    sources: tuple[SourceLook, ...]
    max_length: int
    samples: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return asdict(self)

    def __str__(self) -> str:
        head = (
            "source",
            "rows",
            "texts",
            "tokens",
            "trained on",
            "longest",
            "cut",
            "asked",
            "unseen",
        )
        rows = [
            (
                f"{look.name} ({look.kind}{'' if look.weight == 1 else f' x {look.weight:g}'})",
                *(
                    f"{n:,}"
                    for n in (look.rows, look.examples, look.tokens, look.learned, look.longest)
                ),
                f"{look.cut + look.left_out:,}",
                f"{look.items:,}",
                f"{look.unseen:,}",
            )
            for look in self.sources
        ]
        lines = [markdown_table(head, rows)]
        lines += [f"- {note}" for note in self.notes]
        lines += ["", f"What is trained on stands in {OPEN} {CLOSE}:"]
        lines += [f"  {sample}" for sample in self.samples]
        return "\n".join(lines)


def marked(
    tokenizer: Any,  # noqa: ANN401
    ids: np.ndarray,
    spans: Sequence[tuple[int, int]],
    width: int = 400,
) -> str:
    """Return a text with what is learned in brackets, on one line.

    Args:
        tokenizer: Decodes the tokens.
        ids: [L] int.
        spans: First token and end of what is learned.
        width: Most characters. The middle of a longer text is left out.
    """
    parts, at = [], 0
    for start, end in spans:
        parts += [_decoded(tokenizer, ids[at:start]), OPEN, _decoded(tokenizer, ids[start:end])]
        parts.append(CLOSE)
        at = end
    text = "".join([*parts, _decoded(tokenizer, ids[at:])]).replace("\n", "\\n")
    half = (width - 5) // 2
    return text if len(text) <= width else f"{text[:half]} ... {text[-half:]}"


def notes_of(sources: Sequence[SourceLook], tables: Sequence[Table], max_length: int) -> list[str]:
    """Say in words what was left out, cut or not read."""
    notes = []
    for look, table in zip(sources, tables, strict=True):
        wordings = [text for named in table.templates.values() for text in named.statements]
        if backward := [text for text in wordings if not has_subject_first(text)]:
            notes.append(
                f"{look.name}: {len(backward)} of {len(wordings)} statements have the answer "
                f"before the subject, such as {shorten(backward[0])}. They are not trained on: "
                "what would be learned is that a text begins with the answer."
            )
        notes += table.notes
        if table.blank:
            notes.append(f"{look.name}: {table.blank:,} texts are blank and left out.")
        if look.repeated:
            notes.append(f"{look.name}: {look.repeated:,} rows stand there again and are left out.")
        if look.cut:
            notes.append(
                f"{look.name}: {look.cut:,} texts are longer than {max_length:,} tokens and are "
                f"{'in pieces' if look.kind == 'text' else 'cut at their end'}. The longest, "
                f"{look.longest_at}, has {look.longest:,}."
            )
        if look.left_out:
            notes.append(
                f"{look.name}: of {look.left_out:,} texts nothing would be trained on before the "
                f"cut at {max_length:,} tokens. They are left out."
            )
        spaced = [
            row for row in table.asked if isinstance(row.prompt, str) and row.prompt[-1:] == " "
        ]
        if spaced:
            notes.append(
                f"{look.name}: {len(spaced):,} prompts end with a space, such as that of "
                f"{spaced[0].where}. It is learned as the beginning of the answer: ask without it."
            )
        if look.unused:
            notes.append(f"{look.name}: not read: {', '.join(look.unused)}.")
    if any(look.items for look in sources) and not any(look.unseen for look in sources):
        notes.append(
            "All prompts that are asked are trained on, so whether other words bring the answer "
            "too is not measured. `heldout:` of templates.yaml and the columns paraphrases and "
            "heldout add prompts that are not."
        )
    return notes


def _decoded(tokenizer: Any, ids: np.ndarray) -> str:  # noqa: ANN401
    return tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
