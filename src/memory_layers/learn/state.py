"""State of a teaching that is not finished, so that a killed one goes on where it was."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from memory_layers.common.errors import UserError
from memory_layers.common.files import remove_left, replacing
from memory_layers.common.tensors import save_tensors
from memory_layers.learn.result import Point
from memory_layers.models.teachings import digest_of

# One file, so that it is whole or not there. Numbers stand in its header.
NAME = "unfinished.safetensors"


@dataclass
class State:
    """How far a teaching is.

    Attributes:
        choices: What must be the same to go on: data, base and settings.
        slots: Digest of the slots that are trained.
        tensors: Those of `RowSteps`.
        passes: That are over.
        updates: Likewise.
        seconds: Spent so far.
        ready: Passes since all was learned.
        resting: Groups of texts that are left out of the next pass.
        curve: Learning and forgetting so far.
    """

    choices: Mapping[str, Any]
    slots: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    passes: int = 0
    updates: int = 0
    seconds: float = 0.0
    ready: int = 0
    resting: list[int] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the state, in place of an earlier one."""
        numbers = {
            "choices": self.choices,
            "slots": self.slots,
            "passes": self.passes,
            "updates": self.updates,
            "seconds": self.seconds,
            "ready": self.ready,
            "resting": self.resting,
            "curve": [asdict(point) for point in self.curve],
        }
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(numbers)
        header = {"state": text, "digest": digest_of(text, self.tensors)}
        with replacing(folder / NAME) as (part,):
            save_tensors(self.tensors, part, header)

    @classmethod
    def load(cls, folder: Path, choices: Mapping[str, Any]) -> Self | None:
        """Return the state of an unfinished teaching. None: there is none.

        Args:
            folder: Where it was saved.
            choices: Those of the teaching that is to go on.

        Raises:
            UserError: It was begun with other choices or by another version, or is damaged.
        """
        path = folder / NAME
        if not path.is_file():
            return None
        try:
            tensors = load_file(path)
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))["__metadata__"]
            numbers = json.loads(header["state"])
            # Earlier versions wrote none.
            if header.get("digest") not in (None, digest_of(header["state"], tensors)):
                raise ValueError("its digest is not what was written")
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(
                f"{path} is damaged: {error}. hint: remove it to begin again"
            ) from error
        # As they come back from a file.
        asked = json.loads(json.dumps(choices))
        try:
            before = dict(numbers.pop("choices"))
            numbers["curve"] = [Point(**point) for point in numbers["curve"]]
            state = cls(choices=choices, tensors=tensors, **numbers)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} was written by another version: {error}. hint: another --out, or remove "
                "it to begin again"
            ) from error
        others = sorted(
            name for name in asked.keys() | before.keys() if asked.get(name) != before.get(name)
        )
        if others:
            raise UserError(
                f"{folder} has an unfinished teaching with other {', '.join(others)}. "
                "hint: another --out, or the same data and settings to go on with it"
            )
        return state

    def check_slots(self, slots: str) -> None:
        """Take the slots that are planned, which are those that were trained before.

        Raises:
            UserError: They are others.
        """
        if self.slots not in ("", slots):
            raise UserError(
                "the unfinished teaching trained other rows: its base, its dtype, a file of keep, "
                "background or onto, or the library was another. hint: another --out"
            )
        self.slots = slots

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Return whether a folder has an unfinished teaching."""
        return (folder / NAME).is_file()

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove what is not needed any more."""
        (folder / NAME).unlink(missing_ok=True)
        remove_left(folder, NAME, unchanged=0)
