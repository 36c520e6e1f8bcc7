"""Teaching: the rows of the value tables that one teaching wrote, and where they come from.

Next: patches.py, the teachings of one memory together.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import reduce
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from memory_layers.common.errors import UserError

Rule = Literal["refuse", "first", "last", "sum"]

# Of a description, with their types in JSON.
_FIELDS: Mapping[str, type] = MappingProxyType(
    {
        "id": str,
        "created": str,
        "author": str,
        "data": list,
        "settings": dict,
        "based_on": list,
        "reverted_facts": int,
        "rows": int,
        "facts": list,
    }
)


@dataclass(frozen=True, eq=False)
class Fact:
    """A fact that was taught, and the rows that it hangs on.

    Attributes:
        prompt: What the model is asked.
        answer: What it is to say.
        rows: Slots, int64 [any number], of the teaching: those that it wrote or that are read where
            it is asked.
        asked: Digests of the prompts that were trained on, by which a fact is known again.
        reads: Other slots, int64 [any number], of any teaching, that are read with it. What the
            model says may change without them.
    """

    prompt: str
    answer: str
    rows: Tensor
    asked: tuple[str, ...] = ()
    reads: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


@dataclass(frozen=True, eq=False, kw_only=True)
class Teaching:
    """Rows of value tables that one teaching wrote, who taught it, when, and from which data.

    Attributes:
        slots: int64 [R], ascending. With a table for each layer, slots count on from one table to
            the next.
        values: [R, V], what these rows are. All others are as before.
        id: 12 hexadecimal digits, the same for as long as the teaching exists.
        created: When it was taught, in UTC, such as "2025-03-01T12:00:00Z". "": unknown.
        author: Who taught it, as given.
        data: What it was taught from: for each source its `name`, and what else is known, such as
            `sha256`, `rows` and `facts`.
        settings: How it was taught.
        facts: Facts and the rows that each of them hangs on, to revert them alone.
        based_on: Ids of teachings that had written rows before, which this one trained further.
        reverted_facts: Number of facts that have been reverted since.

    Raises:
        UserError: Slots are not ascending or not those of `values`, or a value is not finite.
    """

    slots: Tensor
    values: Tensor
    id: str = ""
    created: str = ""
    author: str = ""
    data: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Sequence[Fact] = ()
    based_on: Sequence[str] = ()
    reverted_facts: int = 0

    def __post_init__(self) -> None:
        """Check what a file or a caller has given, and name a teaching that has no id yet."""
        slots, values = self.slots, self.values
        if slots.dtype != torch.int64 or slots.dim() != 1:
            raise UserError(f"slots must be int64 [R], got {slots.dtype} {list(slots.shape)}")
        if values.dim() != 2 or len(values) != len(slots) or not values.is_floating_point():
            raise UserError(
                f"values must be floating point [{len(slots)}, V], got {values.dtype} "
                f"{list(values.shape)}"
            )
        if len(slots) and (slots[0] < 0 or (slots.diff() <= 0).any()):
            raise UserError("slots must be ascending from 0 on, each of them once")
        if not values.isfinite().all():
            row = int((~values.isfinite()).any(1).nonzero()[0])
            raise UserError(f"the values of slot {int(slots[row])} are not finite")
        for number, fact in enumerate(self.facts):
            rows = fact.rows
            if rows.dtype != torch.int64 or rows.dim() != 1 or not torch.isin(rows, slots).all():
                raise UserError(f"the rows of fact {number} must be among the slots, int64 [rows]")
            if fact.reads.dtype != torch.int64 or fact.reads.dim() != 1:
                raise UserError(f"what fact {number} reads must be slots, int64 [any number]")
        if not self.id:
            object.__setattr__(self, "id", self.digest()[:12])

    def describe(self) -> dict[str, Any]:
        """Return all but the tensors, for JSON."""
        return {
            "id": self.id,
            "created": self.created,
            "author": self.author,
            "data": list(self.data),
            "settings": self.settings,
            "based_on": list(self.based_on),
            "reverted_facts": self.reverted_facts,
            "rows": len(self.slots),
            "facts": [
                {"prompt": fact.prompt, "answer": fact.answer}
                | ({"asked": list(fact.asked)} if fact.asked else {})
                for fact in self.facts
            ],
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors for a file. Rows of facts are one after the other, with offsets."""
        found = {"slots": self.slots, "values": self.values}
        if self.facts:
            found |= _joined("fact_rows", "fact_offsets", [fact.rows for fact in self.facts])
        if any(len(fact.reads) for fact in self.facts):
            found |= _joined("fact_reads", "read_offsets", [fact.reads for fact in self.facts])
        return found

    @classmethod
    def restore(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Teaching":
        """Build a teaching of what `describe` and `tensors` returned.

        Raises:
            UserError: They do not belong together, or one of them is damaged.
        """
        _check_description(description)
        values = dict(description)
        texts, count = values.pop("facts"), values.pop("rows")
        names = {"slots", "values"} | ({"fact_rows", "fact_offsets"} if texts else set())
        read = {"fact_reads", "read_offsets"} if texts and "fact_reads" in tensors else set()
        if tensors.keys() != names | read:
            raise UserError(f"its tensors must be {sorted(names)}, got {sorted(tensors)}")
        if not all(tensor.dim() for tensor in tensors.values()):
            raise UserError("its tensors must have a dimension at least, one has none")
        if len(tensors["slots"]) != count:
            raise UserError(f"it must have {count} slots, got {len(tensors['slots'])}")
        facts: list[Fact] = []
        if texts:
            rows = _parted("fact_rows", "fact_offsets", tensors, len(texts))
            reads = [Fact("", "", rows[0]).reads] * len(texts)
            if read:
                reads = _parted("fact_reads", "read_offsets", tensors, len(texts))
            facts = [
                Fact(text["prompt"], text["answer"], part, tuple(text.get("asked", ())), other)
                for text, part, other in zip(texts, rows, reads, strict=True)
            ]
        return cls(slots=tensors["slots"], values=tensors["values"], facts=facts, **values)

    def digest(self) -> str:
        """Return a digest of every bit: description, slots, values and facts."""
        text = json.dumps(self.describe(), sort_keys=True, ensure_ascii=True)
        return digest_of(text, self.tensors())

    def without(self, slots: Tensor, facts: Sequence[int] = ()) -> "Teaching":
        """Return the teaching without some rows and facts.

        Args:
            slots: int64 [any number].
            facts: Indices of facts.
        """
        kept = ~torch.isin(self.slots, slots)
        gone = set(facts)
        left = [
            replace(fact, rows=fact.rows[~torch.isin(fact.rows, slots)])
            for number, fact in enumerate(self.facts)
            if number not in gone
        ]
        return replace(
            self,
            slots=self.slots[kept],
            values=self.values[kept],
            facts=left,
            reverted_facts=self.reverted_facts + len(gone),
        )


def _joined(name: str, offsets: str, parts: Sequence[Tensor]) -> dict[str, Tensor]:
    sizes = torch.tensor([0, *map(len, parts)])
    return {name: torch.cat([*parts]), offsets: sizes.cumsum(0)}


def _parted(name: str, cuts: str, tensors: Mapping[str, Tensor], count: int) -> list[Tensor]:
    """Undo `_joined`."""
    rows, offsets = tensors[name], tensors[cuts]
    whole = offsets.dtype == torch.int64 and offsets.shape == (count + 1,)
    if not whole or offsets[0] != 0 or offsets[-1] != len(rows) or (offsets.diff() < 0).any():
        raise UserError(f"{cuts} must cut {name} into those of each fact")
    return list(rows.split(offsets.diff().tolist()))


def new_teaching(
    slots: Tensor,
    values: Tensor,
    *,
    author: str = "",
    data: Sequence[Mapping[str, Any]] = (),
    settings: Mapping[str, Any] | None = None,
    facts: Iterable[Fact] = (),
    based_on: Sequence[str] = (),
) -> Teaching:
    """Build the teaching of rows that have just been written, dated now.

    Args:
        slots: int64 [R], ascending.
        values: [R, V].
        author: Who taught it.
        data: For each source its `name`, and what else is known: plain values.
        settings: Plain values.
        facts: Rows of a fact that are not among the slots are read, and were not written.
        based_on: Ids of teachings whose rows it trained further.

    Raises:
        UserError: Data or settings are no plain values, author or facts no text, or the rows are
            not finite.
    """
    try:
        # As they come back from a file: tuples as lists, keys as words.
        plain = json.loads(json.dumps([list(data), dict(settings or {})], allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"data and settings must be plain values, as in JSON: {error}") from error
    written = []
    for fact in facts:
        rows, reads = (of.to(device="cpu", dtype=torch.int64) for of in (fact.rows, fact.reads))
        own = rows.unique()[torch.isin(rows.unique(), slots)]
        others = torch.cat([rows, reads]).unique()
        written.append(replace(fact, rows=own, reads=others[~torch.isin(others, own)]))
    taught = Teaching(
        slots=slots,
        values=values,
        # Drawn: what is taught again within a second may be equal in all else.
        id=secrets.token_hex(6),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        author=author,
        data=plain[0],
        settings=plain[1],
        facts=written,
        based_on=based_on,
    )
    _check_description(taught.describe())
    return taught


def current_rows(teachings: Sequence[Teaching]) -> Iterator[tuple[Teaching, Tensor]]:
    """Yield each teaching and a mask of its rows, bool [R]: those that none has trained further."""
    for teaching in teachings:
        later = [t.slots for t in teachings if teaching.id in t.based_on]
        slots = teaching.slots
        yield teaching, ~torch.isin(slots, torch.cat(later)) if later else slots >= 0


def combine(teachings: Sequence[Teaching], rule: Rule, known_by: int = 0) -> tuple[Tensor, Tensor]:
    """Return the rows of all teachings together: a function of these, however they came together.

    Args:
        teachings: Of one memory, in the order in which they were added.
        rule: For a row that several wrote: the "first" of them, the "last" or the "sum", which is
            taken in the order of their ids.
        known_by: Columns of a row that say what it is for, before its values. They are never added
            up: the first of the ids has them.

    Returns:
        Slots, int64 [R] and ascending, and values [R, V] in the widest type of the teachings.
    """
    parts = [(t.id, t.slots[mask], t.values[mask]) for t, mask in current_rows(teachings)]
    if not parts:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, 0)
    if rule == "sum":
        parts.sort(key=lambda part: part[0])
    elif rule == "first":
        parts.reverse()
    slots = torch.cat([part[1] for part in parts]).unique()
    dtype = reduce(torch.promote_types, (part[2].dtype for part in parts))
    values = torch.zeros(len(slots), parts[0][2].shape[1], dtype=dtype)
    written = torch.zeros(len(slots), 1, dtype=torch.bool)
    for _, some, rows in parts:
        places, new = torch.searchsorted(slots, some), rows.to(dtype)
        if rule == "sum":
            # Not added to zero, which would lose the sign of -0.
            both = values[places] + new
            both[:, :known_by] = values[places][:, :known_by]
            new = torch.where(written[places], both, new)
        values[places], written[places] = new, True
    return slots, values


def _check_description(description: Mapping[str, Any]) -> None:
    """Refuse what `describe` does not return."""
    for name in sorted(description.keys() | _FIELDS.keys()):
        kind = _FIELDS.get(name)
        if kind is None or not isinstance(description.get(name), kind):
            wanted = "left out" if kind is None else f"of type {kind.__name__}"
            raise UserError(f"{name} must be {wanted}, got {description.get(name)!r}")
    texts = [text for fact in description["facts"] for text in _texts(fact)]
    if not all(isinstance(text, str) for text in [*texts, *description["based_on"]]):
        raise UserError("facts must have a prompt and an answer, and based_on must be ids")
    if not all(isinstance(source, dict) for source in description["data"]):
        raise UserError("data must be a list of sources with a name")


def _texts(fact: Any) -> list[Any]:  # noqa: ANN401
    if not isinstance(fact, dict) or fact.keys() - {"asked"} != {"prompt", "answer"}:
        return [None]
    asked = fact.get("asked", [])
    return [fact["prompt"], fact["answer"], *(asked if isinstance(asked, list) else [None])]


def digest_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of a text and of names, types, shapes and bits of tensors."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
