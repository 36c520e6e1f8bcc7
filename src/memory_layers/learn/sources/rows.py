"""Rows, checked: which of the four kinds a row is of, and what stands in its fields."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.data.lines import has_blank, shorten, text_field, text_list
from memory_layers.learn.sources.types import Kind

COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "facts": ("relation", "subject", "answer"),
    "prompts": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}
ROLES = ("system", "user", "assistant", "tool")
OPTIONAL = ("paraphrases", "heldout", "group")
_SHAPES = "; ".join(", ".join(names) for names in COLUMNS.values())
# What others call the fields.
_OTHER_NAMES = {
    "instruction": "prompt", "question": "prompt", "input": "prompt", "query": "prompt",
    "output": "completion", "response": "completion", "answer": "completion",
    "conversations": "messages", "conversation": "messages", "dialogue": "messages",
    "content": "text", "document": "text",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A row of the kinds `prompts`, `messages` and `text`.

    Attributes:
        where: Its place.
        prompt: A text, or the turns before the last one of the assistant. Empty for running text.
        answer: Completion, last turn of the assistant, or the running text.
        paraphrases: Other prompts with the same answer, not trained on.
        heldout: The prompt is not trained on.
        group: What rows of one fact share. None: the row is alone.
    """

    where: str
    prompt: str | tuple[Message, ...]
    answer: str
    paraphrases: tuple[str | tuple[Message, ...], ...] = ()
    heldout: bool = False
    group: str | None = None


def kind_of_row(where: str, row: dict[str, Any]) -> Kind:
    """Tell of which kind a row is, by the fields that are not null.

    Raises:
        UserError: It is of none, or of several.
    """
    filled = {name for name, value in row.items() if value is not None}
    kinds = [kind for kind, names in COLUMNS.items() if filled.issuperset(names)]
    if len(kinds) == 1:
        return kinds[0]
    got = f"the fields {', '.join(map(repr, row))}" if row else "an empty object"
    if kinds:
        raise UserError(
            f"{where}: the row is of several kinds at once ({', '.join(kinds)}), expected the "
            f"fields of one kind ({_SHAPES}), got {got}. hint: remove those that are not meant"
        )
    begun = [
        kind
        for kind, names in COLUMNS.items()
        if row.keys() & set(names) and not (kind == "facts" and row.keys().isdisjoint(names[:2]))
    ]
    if len(begun) == 1 and begun[0] != "messages":
        for name in COLUMNS[begun[0]]:
            text_field(where, row, name)
    others: dict[str, list[str]] = {}
    for name in row:
        if name in _OTHER_NAMES:
            others.setdefault(_OTHER_NAMES[name], []).append(repr(name))
    renamed = [f"{' joined with '.join(old)} to {new!r}" for new, old in others.items()]
    hint = f"rename {' and '.join(renamed)}" if renamed else "rename the fields"
    raise UserError(
        f"{where}: the fields are those of no kind of row, expected one of ({_SHAPES}), got {got}. "
        f"hint: {hint}"
    )


def is_blank_text(row: dict[str, Any]) -> bool:
    """Tell whether a row would be running text, and there is none in it."""
    others = (name for kind, names in COLUMNS.items() if kind != "text" for name in names)
    return has_blank(row, "text") and all(row.get(name) is None for name in others)


def parse_row(where: str, kind: Kind, row: dict[str, Any]) -> Asked:
    """Check the fields of a row of the kinds `prompts`, `messages` and `text`.

    Raises:
        UserError: One is missing, empty, or of another type.
    """
    if kind == "text":
        if used := [name for name in OPTIONAL if row.get(name) is not None]:
            raise UserError(
                f"{where}: field {used[0]!r} has no meaning for running text, expected it with "
                f"'prompt' or 'messages', got {shorten(str(row[used[0]]))}. hint: remove it"
            )
        return Asked(where, "", text_field(where, row, "text"))
    heldout, group = row.get("heldout") or False, row.get("group")
    if not isinstance(heldout, bool):
        raise UserError(
            f"{where}: field 'heldout' must be true or false, got {shorten(str(heldout))}"
        )
    if group is not None and (isinstance(group, bool) or not isinstance(group, str | int)):
        raise UserError(
            f"{where}: field 'group' must be a text or a whole number, got {shorten(str(group))}"
        )
    prompt: str | tuple[Message, ...]
    others = text_list(where, row, "paraphrases")
    paraphrases: list[str | tuple[Message, ...]] = [*others]
    if kind == "prompts":
        prompt, answer = (text_field(where, row, name) for name in COLUMNS["prompts"])
    else:
        prompt, answer = _conversation(where, row["messages"])
        if others and prompt[-1].role != "user":
            raise UserError(
                f"{where}: field 'paraphrases' needs a turn of the user before the last one of "
                f"the assistant, got one of {prompt[-1].role!r}. hint: remove the field"
            )
        paraphrases = [(*prompt[:-1], Message("user", text)) for text in others]
    return Asked(
        where, prompt, answer, tuple(paraphrases), heldout, None if group is None else str(group)
    )


def said_aloud(content: str) -> str:
    """Return what a turn says after its thoughts, which some models write and templates rewrite."""
    return content.rpartition("</think>")[2].strip() or content.strip()


def key_of(prompt: str | tuple[Message, ...]) -> str:
    """Return what is the same for prompts that differ in white space around them only."""
    if isinstance(prompt, str):
        return prompt.strip()
    return json.dumps([(turn.role, turn.content.strip()) for turn in prompt])


def _conversation(where: str, turns: object) -> tuple[tuple[Message, ...], str]:
    """Return the turns before the last one of the assistant, and its text."""
    if not isinstance(turns, list) or not turns:
        raise UserError(
            f"{where}: field 'messages' is not a list of turns, expected "
            f'[{{"role": "user", "content": "..."}}, ...], got {shorten(str(turns))}. '
            "hint: write each turn as an object in one list"
        )
    messages = [_message(f"{where}: turn {n}", turn) for n, turn in enumerate(turns, start=1)]
    spoken = [n for n, message in enumerate(messages) if message.role == "assistant"]
    if not spoken or spoken[-1] == 0:
        got = "one alone" if spoken else "none"
        raise UserError(
            f"{where}: nothing is said to the assistant that it answers, expected a turn of role "
            f"'user' and one of role 'assistant' after it, got {got}. hint: add what is missing"
        )
    last = spoken[-1]
    return tuple(messages[:last]), messages[last].content


def _message(where: str, turn: object) -> Message:
    if not isinstance(turn, Mapping):
        raise UserError(
            f"{where} is not an object, expected "
            f'{{"role": "...", "content": "..."}}, got {shorten(str(turn))}. '
            "hint: write each turn as an object"
        )
    # Tables fill up with null what only other turns have.
    fields = {str(name): value for name, value in turn.items() if value is not None}
    if unknown := sorted(fields.keys() - {"role", "content"}):
        raise UserError(
            f"{where} has the field {unknown[0]!r}, expected 'role' and 'content' alone, got "
            f"{', '.join(map(repr, fields))}. hint: remove it, or write it into 'content'"
        )
    role, content = (text_field(where, fields, name) for name in ("role", "content"))
    if role not in ROLES:
        raise UserError(
            f"{where} has the unknown role {shorten(role)}, expected one of {', '.join(ROLES)}, "
            f"got {shorten(role)}. hint: rename it"
        )
    return Message(role, content)
