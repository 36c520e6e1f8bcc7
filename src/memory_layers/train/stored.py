"""A checkpoint on disk, looked at before it is used: what it holds, and that it is whole.

What is damaged is refused, and so is what leads out of its folder. Next: checkpoint.py, which loads
it into a model, and export.py.
"""

import os
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

from memory_layers.common import untrusted
from memory_layers.common.checksums import CHECKSUMS, DamageError, check_files
from memory_layers.common.errors import UserError
from memory_layers.common.text_files import read_json
from memory_layers.train.dcp_metadata import parse_metadata
from memory_layers.train.folders import STATE_FILE
from memory_layers.train.slices import Checksum, FiniteLoadPlanner, sums_of_slices

METADATA_FILE = ".metadata"
# Of the checksums in *.distcp. Not in every checkpoint of a format.
SLICES_FILE = "slices.json"
# The first has no checksums.
FORMATS = (2, 3)

# What reading a damaged file of torch or pickle raises.
MALFORMED = (
    *untrusted.MALFORMED, EOFError, ImportError, MemoryError, dcp.api.CheckpointException,
)  # fmt: skip


class DamagedCheckpointError(OSError):
    """A checkpoint is not what was written. Says which file, and what to do."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint that was found whole, but for its tensors: those are looked at when read.

    Attributes:
        folder: Where it is.
        step: Steps done.
        counters: What the loop goes on from.
        rng: State of torch's random generator.
        block_bytes: Most bytes of a block of rows of a table.
        tables: Numbers of the state of each table.
        metadata: What tensors it has, and where.
        files: Names of the files that are what was written. None: it has no checksums.
    """

    folder: Path
    step: int
    counters: dict[str, Any]
    rng: Tensor
    block_bytes: int
    tables: dict[str, dict[str, int | float]]
    metadata: Metadata
    files: frozenset[str] | None


def open_checkpoint(folder: Path) -> StoredCheckpoint:
    """Read what a checkpoint holds beside the tensors, and check that all of it is there.

    Raises:
        UserError: It is of another version of this package, or has a link out of its folder.
        DamagedCheckpointError: It is damaged.
    """
    if (folder / "trainer.pt").is_file():
        raise UserError(
            f"{folder} was written by an earlier version of memory-layers, this one cannot resume "
            "from it. hint: finish the run with that version, or choose another --out. "
            f"from_pretrained({str(folder)!r}) still loads its weights"
        )
    _refuse_links(folder)
    state = _read_state(folder)
    try:
        checksums = check_files(folder)
    except DamageError as error:
        raise damaged(folder, error.path, error.reason) from error
    if checksums is None and state["format"] > min(FORMATS):
        raise damaged(folder, folder / CHECKSUMS, "it is missing")
    files = None if checksums is None else frozenset(checksums)
    values = {name: state[name] for name in _STATE}
    metadata = _read_metadata(folder)
    if files is not None and SLICES_FILE in files:
        known = read_json(folder / SLICES_FILE)
        for name, crc in sums_of_slices(folder, metadata.storage_data.values()).items():
            if not isinstance(known, dict) or known.get(name) != crc:
                raise damaged(folder, folder / name, "it is of another checkpoint, or damaged")
    return StoredCheckpoint(folder, **values, metadata=metadata, files=files)


def read_tensors(
    checkpoint: StoredCheckpoint,
    tensors: dict[str, Tensor],
    group: dist.ProcessGroup | None = None,
) -> None:
    """Load tensors in place, whatever number of ranks has written them.

    Args:
        checkpoint: Holds them.
        tensors: Tensors and DTensors by name, changed in place.
        group: All its ranks call this. None: this process is alone.

    Raises:
        DamagedCheckpointError: They are damaged, or have numbers that are not finite.
    """
    expect_one_process()
    try:
        dcp.load(
            tensors,
            storage_reader=_Reader(checkpoint),
            planner=FiniteLoadPlanner(),
            process_group=group,
            no_dist=group is None,
        )
    except MALFORMED as error:
        folder = checkpoint.folder
        names = {place.relative_path for place in checkpoint.metadata.storage_data.values()}
        file = folder / names.pop() if len(names) == 1 else folder
        diverged = any(isinstance(one, FloatingPointError) for one in failures_of(error).values())
        also = ", or the run diverged: lower optim.lr or optim.value_lr" if diverged else ""
        raise damaged(folder, file, reason_of(error), also) from error


def damaged(folder: Path, file: Path, reason: object, also: str = "") -> DamagedCheckpointError:
    """Return an error that says which file is damaged and what to do, or `also` what else."""
    return DamagedCheckpointError(
        f"{file} cannot be read: {reason}. hint: the checkpoint is damaged, delete {folder} to "
        f"resume from the one before{also}"
    )


def failures_of(error: BaseException) -> dict[int, BaseException]:
    """Return what went wrong, by rank."""
    if not isinstance(error, dcp.api.CheckpointException):
        return {0: error}
    return {rank: failure for rank, (failure, _) in error.failures.items()}


def reason_of(error: BaseException) -> str:
    """Return what went wrong, and on which rank if there are several."""
    return "; ".join(
        f"rank {rank}: " * dist.is_initialized() + (str(failure) or type(failure).__name__)
        for rank, failure in failures_of(error).items()
    )


def expect_one_process() -> None:
    """Silence DCP's warning of having no process group, also in the thread that saves."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


class _Reader(dcp.FileSystemReader):
    """Read tensors by metadata that were read and checked before, and compare checksums."""

    def __init__(self, checkpoint: StoredCheckpoint) -> None:
        super().__init__(checkpoint.folder, Checksum.registry())
        self._metadata = checkpoint.metadata

    def read_metadata(self, *_args: object, **_options: object) -> Metadata:
        return self._metadata


def _refuse_links(folder: Path) -> None:
    """Refuse what is not a file of this folder: its content would be taken for the checkpoint's."""
    inside = folder.resolve()
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        # Not resolve, which raises where a link leads to itself.
        target = Path(os.path.realpath(path))
        if stat.S_ISLNK(mode) and not target.is_relative_to(inside):
            raise UserError(
                f"{path} is a link to {target}, which is not of this checkpoint. "
                "hint: if it is meant to be, put a copy in the place of the link"
            )
        if not stat.S_ISLNK(mode) and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UserError(f"{path} is neither a file nor a folder. hint: remove it")


def _read_state(folder: Path) -> Mapping[str, Any]:
    file = folder / STATE_FILE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        number = state["format"]
    except MALFORMED as error:
        raise damaged(folder, file, str(error) or type(error).__name__) from error
    if number not in FORMATS:
        raise UserError(
            f"{folder} has checkpoint format {number!r}, this package reads "
            f"{' and '.join(map(str, FORMATS))}. "
            "hint: use the version of memory-layers that wrote it"
        )
    if wrong := [name for name, is_right in _STATE.items() if not is_right(state.get(name))]:
        raise damaged(folder, file, f"it has no {wrong[0]}, or another than is written there")
    return state


def _is_count(value: object, least: int = 0) -> bool:
    return type(value) is int and value >= least


def _is_named(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _are_numbers(value: Any) -> bool:  # noqa: ANN401
    return _is_named(value) and all(
        type(number) in (int, float) and isfinite(number) for number in value.values()
    )


_STATE = {
    "step": _is_count,
    "counters": _is_named,
    "rng": lambda value: (
        isinstance(value, Tensor)
        and value.dtype == torch.uint8
        and value.shape == torch.get_rng_state().shape
    ),
    "block_bytes": lambda value: _is_count(value, least=1),
    "tables": lambda value: _is_named(value) and all(map(_are_numbers, value.values())),
}


def _read_metadata(folder: Path) -> Metadata:
    """Read what tensors a checkpoint holds, and check that its files are there in full length."""
    file = folder / METADATA_FILE
    try:
        metadata = parse_metadata(file.read_bytes(), (Checksum.DESCRIPTOR,))
    except (OSError, ValueError) as error:
        raise damaged(folder, file, error) from error
    ends: dict[str, int] = {}
    for place in metadata.storage_data.values():
        end = place.offset + place.length
        ends[place.relative_path] = max(end, ends.get(place.relative_path, 0))
    for name, end in ends.items():
        shard = folder / name
        if not shard.is_file():
            raise damaged(folder, shard, "it is missing")
        if shard.stat().st_size < end:
            raise damaged(folder, shard, f"it has {shard.stat().st_size} of {end} bytes")
    return metadata
