"""Patch: what teachings wrote into a memory whose values start at zero, and the rest of the memory.

A folder has memory.json and memory.safetensors, and is what `load_memory` takes. Next: merging.py,
several patches together, and patching.py, which puts them onto models.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from memory_layers.common.errors import UserError
from memory_layers.common.text import did_you_mean
from memory_layers.config import MemoryConfig
from memory_layers.models.memory_files import (
    DESCRIPTION,
    read_description,
    read_weights,
    write_memory,
)
from memory_layers.models.teachings import (
    Fact,
    Rule,
    Teaching,
    combine,
    current_rows,
    digest_of,
)

_TEACHINGS = "teachings"


@dataclass(frozen=True, eq=False)
class Conflict:
    """Rows that two teachings wrote, neither of which knew of the other.

    Attributes:
        first: Id of the teaching that was added first.
        second: Id of the other.
        slots: int64 [R].
    """

    first: str
    second: str
    slots: Tensor


@dataclass(frozen=True, eq=False)
class Selection:
    """What a revert takes out.

    Attributes:
        teachings: Ids.
        facts: For each teaching the indices of the facts. None: the teachings as a whole.
        rows: int64 [R], slots that go back to what they would be without.
        kept: int64 [R], slots of what is taken out that stay all the same: another fact of the
            teaching hangs on them, or a later teaching trained them further.
        readers: Prompts of facts that stay and with which some of the rows are read. They may be
            answered otherwise.
    """

    teachings: tuple[str, ...]
    facts: Mapping[str, tuple[int, ...]] | None
    rows: Tensor
    kept: Tensor
    readers: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Patch:
    """The teachings of a memory, and all else that it consists of: its skeleton.

    Attributes:
        description: Of memory and base: the MemoryConfig, a digest of each weight of the base, and
            what else is needed to put the memory onto it.
        skeleton: Query maps, sub-keys, gates and what else is not a row of a value table, by name.
        teachings: In the order in which they were added.
        rule: For rows that several teachings wrote. "refuse": there are none.
    """

    description: Mapping[str, Any]
    skeleton: Mapping[str, Tensor]
    teachings: tuple[Teaching, ...] = ()
    rule: Rule = "refuse"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Patch":
        """Return the patch itself: nothing changes it."""
        return self

    @property
    def config(self) -> MemoryConfig:
        """The memory."""
        return MemoryConfig.from_dict(self.description["memory"])

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the teachings."""
        return tuple(teaching.id for teaching in self.teachings)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return the rows that the tables of a model with this patch have, all others being zero.

        Returns:
            Slots, int64 [R] and ascending, and values [R, V].
        """
        if self.config.match != "nearest":
            return combine(self.teachings, self.rule)
        # A row is [query | radius | values].
        maps = (t for name, t in self.skeleton.items() if name.endswith("query.proj.weight"))
        return combine(self.teachings, self.rule, next(maps).shape[0] + 1)

    def conflicts(self) -> list[Conflict]:
        """Return the rows that several teachings wrote, which `rule` has settled, pair by pair."""
        parts = [(t.id, t.slots[mask]) for t, mask in current_rows(self.teachings)]
        pairs = [(one, two) for n, two in enumerate(parts) for one in parts[:n]]
        found = [Conflict(a, b, some[torch.isin(some, more)]) for (a, some), (b, more) in pairs]
        return [conflict for conflict in found if len(conflict.slots)]

    def select(
        self, ids: Collection[str], facts: str | Collection[str] | Collection[int] | None = None
    ) -> Selection:
        """Find what a revert would take out.

        Args:
            ids: Of teachings.
            facts: Text that is part of the prompt or answer of facts, in any case of letters, or
                several of these, or indices of facts of the one teaching. None: all that they
                wrote.

        Raises:
            UserError: A teaching or fact is not there, a teaching that stays has trained rows of
                it further, or other facts hang on all rows of a fact.
        """
        for name in ids:
            if name not in self.ids:
                hint = did_you_mean(name, self.ids) if self.ids else "it has none"
                raise UserError(f"there is no teaching {name!r} here. hint: {hint}")
        chosen = [teaching for teaching in self.teachings if teaching.id in ids]
        later = [t for t in self.teachings if t.id not in ids and set(t.based_on) & set(ids)]
        empty = torch.empty(0, dtype=torch.int64)
        if facts is None:
            if later:
                name = later[0].id
                raise UserError(
                    f"{_count(later[0].slots)} of teaching {name} were trained further from rows "
                    f"of {', '.join(ids)}, and mean nothing without. hint: revert {name} too"
                )
            rows = torch.cat([empty, *(t.slots for t in chosen)]).unique()
            stay = [fact for t in self.teachings if t.id not in ids for fact in t.facts]
            return Selection(tuple(ids), None, rows, empty, _readers(stay, rows))
        picked = _pick(chosen, facts)
        gone, kept = [empty], [empty]
        stay = [fact for t in self.teachings if t.id not in ids for fact in t.facts]
        for teaching in chosen:
            mine = [fact.rows for n, fact in enumerate(teaching.facts) if n in picked[teaching.id]]
            left = [fact for n, fact in enumerate(teaching.facts) if n not in picked[teaching.id]]
            stay += left
            others = [fact.rows for fact in left]
            others += [t.slots for t in self.teachings if teaching.id in t.based_on]
            rows = torch.cat([empty, *mine]).unique()
            stays = torch.isin(rows, torch.cat([empty, *others]))
            gone.append(rows[~stays])
            kept.append(rows[stays])
            _check_alone([teaching.facts[n] for n in picked[teaching.id]], left, gone[-1])
        rows = torch.cat(gone).unique()
        return Selection(tuple(ids), picked, rows, torch.cat(kept).unique(), _readers(stay, rows))

    def without(self, selection: Selection) -> "Patch":
        """Return the patch without what `select` has found."""
        facts = selection.facts
        left = [
            t
            if t.id not in selection.teachings
            else t.without(selection.rows, facts[t.id])
            if facts is not None
            else None
            for t in self.teachings
        ]
        changed = replace(self, teachings=tuple(t for t in left if t is not None))
        # Without a conflict there is nothing left to settle, and any rule may settle the next one.
        return changed if changed.conflicts() else replace(changed, rule="refuse")

    def save(self, folder: str | Path) -> None:
        """Write the patch. Files of an earlier one are replaced.

        Args:
            folder: Made if it is missing.
        """
        tensors = {name: tensor.contiguous() for name, tensor in self.skeleton.items()}
        for number, teaching in enumerate(self.teachings):
            tensors |= {f"{_TEACHINGS}.{number}.{k}": t for k, t in teaching.tensors().items()}
        description = {
            **self.description,
            "skeleton": self._digest(),
            "rule": self.rule,
            _TEACHINGS: [{**t.describe(), "digest": t.digest()} for t in self.teachings],
        }
        write_memory(Path(folder), description, tensors)

    @classmethod
    def load(cls, folder: str | Path) -> "Patch":
        """Read what `save` or `save_memory` wrote.

        Args:
            folder: With memory.json and memory.safetensors.

        Raises:
            FileNotFoundError: A file is missing.
            UserError: A file is damaged, the two do not belong together, or the memory's values did
                not start at zero.
        """
        path = Path(folder) / DESCRIPTION
        description = read_description(path)
        tensors = read_weights(Path(folder))
        entries, rule = description.pop(_TEACHINGS, None), description.pop("rule", None)
        digest = description.pop("skeleton", None)
        if entries is None:
            raise UserError(
                f"{folder} is no patch but a memory with whole tables. hint: load_memory takes it; "
                "patches are of memory whose values start at zero, MemoryConfig(value_init_std=0)"
            )
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path} is damaged: {_TEACHINGS} must be a list of objects")
        if rule not in get_args(Rule):
            raise UserError(f"{path}: rule must be one of {get_args(Rule)}, got {rule!r}")
        teachings = []
        for number, entry in enumerate(entries):
            prefix, expected = f"{_TEACHINGS}.{number}.", entry.pop("digest", None)
            own = {name: t for name, t in tensors.items() if name.startswith(prefix)}
            tensors = {name: t for name, t in tensors.items() if name not in own}
            where = f"{folder}: teaching {number}"
            try:
                teaching = Teaching.restore(
                    entry, {name.removeprefix(prefix): tensor for name, tensor in own.items()}
                )
            except UserError as error:
                raise UserError(f"{where} is damaged: {error}") from error
            if teaching.digest() != expected:
                raise UserError(
                    f"{where}, {teaching.id}, is not as it was written. hint: copy the folder again"
                )
            teachings.append(teaching)
        patch = cls(
            description=description, skeleton=tensors, teachings=tuple(teachings), rule=rule
        )
        patch._check(folder, digest)
        return patch

    def _digest(self) -> str:
        """Return a digest of what is not a teaching."""
        return digest_of(json.dumps(self.description, sort_keys=True), self.skeleton)

    def _check(self, folder: str | Path, digest: str | None) -> None:
        """Check what concerns the parts together."""
        if self._digest() != digest:
            raise UserError(
                f"{folder}: description or skeleton is not as it was written, or tensors are "
                "missing or surplus. hint: copy the folder again"
            )
        config = self.config
        tables = 1 if config.share_values else len(config.layers)
        for teaching in self.teachings:
            if len(teaching.slots) and teaching.slots[-1] >= tables * config.num_slots:
                raise UserError(
                    f"{folder}: slots must be below {tables * config.num_slots}, teaching "
                    f"{teaching.id} has {int(teaching.slots[-1])}"
                )
        if len({teaching.values.shape[1] for teaching in self.teachings}) > 1:
            raise UserError(f"{folder}: the values of all teachings must be of one width")
        if len(set(self.ids)) < len(self.ids):
            raise UserError(f"{folder}: a teaching is there twice")
        if self.rule == "refuse" and (found := self.conflicts()):
            raise UserError(f"{folder}: no rule settles {listed(found)}")


def _check_alone(facts: Sequence[Fact], stay: Sequence[Fact], gone: Tensor) -> None:
    """Refuse to take out facts of which no row would go."""
    for fact in facts:
        others = [one.prompt for one in stay if torch.isin(one.rows, fact.rows).any()]
        if others and not torch.isin(fact.rows, gone).any():
            raise UserError(
                f"{fact.prompt!r} cannot be taken out alone: others hang on all of its rows too, "
                f"such as {others[0]!r}. hint: take out these too"
            )


def _pick(
    teachings: Sequence[Teaching], facts: str | Collection[str] | Collection[int]
) -> dict[str, tuple[int, ...]]:
    """Return the indices of the facts of each teaching."""
    places = [(teaching, n) for teaching in teachings for n in range(len(teaching.facts))]
    if not places:
        raise UserError("no teaching here says what rows its facts hang on. hint: revert all of it")
    given = [facts] if isinstance(facts, str) else list(facts)
    texts = [one for one in given if isinstance(one, str)]
    picked: list[int] = []
    if texts:
        if len(texts) < len(given):
            raise UserError("facts must be texts or indices, got both")
        said = [f"{t.facts[n].prompt}\n{t.facts[n].answer}".casefold() for t, n in places]
        for text in texts:
            found_in = [place for place, fact in enumerate(said) if text.casefold() in fact]
            if not found_in or not text:
                raise UserError(
                    f"no prompt or answer of {len(places)} facts has {text!r} in it. hint: "
                    "memory-layers patch show PATCH --facts lists them"
                )
            picked += found_in
    else:
        if len(teachings) > 1:
            raise UserError(
                f"indices of facts are those of one teaching, got {len(teachings)}. "
                "hint: name one of them"
            )
        picked = [index(one) for one in given if not isinstance(one, str)]
        beyond = [n for n in picked if not 0 <= n < len(places)]
        if beyond:
            raise UserError(f"facts must be below {len(places)}, their number, got {beyond}")
    found: dict[str, tuple[int, ...]] = {teaching.id: () for teaching in teachings}
    for place in sorted(set(picked)):
        teaching, number = places[place]
        found[teaching.id] += (number,)
    return found


def _readers(facts: Sequence[Fact], rows: Tensor) -> tuple[str, ...]:
    """Return the prompts of facts with which some rows are read."""
    found = [fact.prompt for fact in facts if torch.isin(fact.reads, rows).any()]
    return tuple(dict.fromkeys(found))


def listed(conflicts: Sequence[Conflict]) -> str:
    """Say which teachings wrote the same rows."""
    return "; ".join(
        f"{c.first} and {c.second} both wrote {_count(c.slots)}: "
        f"{', '.join(map(str, c.slots[:5].tolist()))}{', …' if len(c.slots) > 5 else ''}"
        for c in conflicts
    )


def _count(slots: Tensor) -> str:
    return f"{len(slots)} row{'s' * (len(slots) != 1)}"
