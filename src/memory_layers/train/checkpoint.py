"""Checkpoints: written in the background, whole or not at all, the newest kept, resumed exactly.

A checkpoint is a folder of torch's Distributed Checkpoint (DCP) with a few files beside it:

    .metadata, *.distcp      parameters and optimizer state, by the names of state.py
    state.pt                 step, counters, random state, numbers of the tables
    config.json, tokenizer   what it takes to make a model folder of it: export.py

It is the same for one process and for many, and loads on any number of them.
"""

import copy
import io
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memory_layers.common.errors import UserError
from memory_layers.common.files import publish, require_space, settle
from memory_layers.optim import MemoryAdamW
from memory_layers.train.folders import STATE_FILE, list_checkpoints
from memory_layers.train.state import (
    BLOCK_BYTES,
    check_fit,
    make_optimizer_state,
    model_tensors,
    optimizer_tensors,
    table_numbers,
)

FORMAT = 2

# What reading a damaged file of torch or pickle raises.
_DAMAGED = (
    OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError,
    ImportError, AssertionError, pickle.UnpicklingError, dcp.api.CheckpointException,
)  # fmt: skip


class Checkpoints:
    """The checkpoints of a run: OUT/checkpoints/step-NNNNNNNN.

    With a process group, all ranks make one and call `save`, `wait` and `load_newest` together,
    and `out` lies on a file system that all of them see. Rank 0 makes, renames and removes.

    `save` copies all that this rank holds (parameters and optimizer state, of DTensors the local
    share) to CPU memory before it returns, and holds the copy until it is written: on a CPU, that
    is the memory of the training state a second time. Writing needs little beside it.

    Args:
        out: Folder of the run.
        keep: Checkpoints to keep.
        block_bytes: Most bytes of a block of rows of a table.
    """

    def __init__(self, out: Path, keep: int, *, block_bytes: int = BLOCK_BYTES) -> None:
        self.out, self.keep, self.block_bytes = out, keep, block_bytes
        self._group = None
        self._saving: tuple[Path, Future] | None = None
        self._model_files: dict[str, bytes] | None = None
        distributed = dist.is_available() and dist.is_initialized()
        self._leads = not distributed or dist.get_rank() == 0
        if self._leads:
            for older in (out / "checkpoints").glob(".step-*.old"):
                settle(older.with_name(older.name[1:].removesuffix(".old")))
            for left in (out / "checkpoints").glob(".step-*"):
                shutil.rmtree(left)
        if distributed:
            # A group of its own: the background must not come between the exchanges of a step.
            self._group = dist.new_group(backend="gloo")
            dist.barrier(self._group)

    def save(
        self,
        step: int,
        model: PreTrainedModel,
        optimizer: MemoryAdamW,
        counters: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """Begin to write a checkpoint, after the end of the one before.

        When this returns, model and optimizer may change again.

        Args:
            step: Steps done.
            model: With or without memory, sharded or not.
            optimizer: Its state is saved.
            counters: Numbers, lists and tensors that the loop goes on from. Those of rank 0 count.
            tokenizer: Saved beside the model.

        Raises:
            OSError: The save before this one failed.
        """
        self.wait()
        folder = self.out / "checkpoints" / f"step-{step:08d}"
        part = folder.with_name(f".{folder.name}.part")
        files: dict[str, bytes] = {}
        if self._leads:
            if self._model_files is None:
                self._model_files = _model_files(model, tokenizer)
            state = {
                "format": FORMAT,
                "step": step,
                "counters": dict(counters),
                "rng": torch.get_rng_state(),
                "block_bytes": self.block_bytes,
                "tables": table_numbers(model, optimizer),
            }
            files = {**self._model_files, STATE_FILE: _packed(state)}

        def complete() -> None:
            for name, content in files.items():
                (part / name).parent.mkdir(exist_ok=True)
                (part / name).write_bytes(content)
            publish(part, folder)
            for old in list_checkpoints(self.out)[: -self.keep]:
                shutil.rmtree(old)

        tensors = model_tensors(model, self.block_bytes)
        tensors |= optimizer_tensors(model, optimizer, self.block_bytes)
        _expect_one_process()
        writer = _Writer(part, complete)
        future: Any = dcp.async_save(
            tensors, storage_writer=writer, process_group=self._group, async_stager=writer
        )
        self._saving = folder, future

    def wait(self) -> None:
        """Wait for the end of the save in the background, if there is one.

        Call it before the process group is destroyed.

        Raises:
            OSError: It failed, on this rank or another. Those written before are intact.
        """
        if self._saving is None:
            return
        (folder, future), self._saving = self._saving, None
        error = future.exception()
        if error is None:
            return
        if self._leads:
            shutil.rmtree(folder.with_name(f".{folder.name}.part"), ignore_errors=True)
        raise not_written(folder, _reason_of(error)) from error

    def load_newest(
        self, model: PreTrainedModel, optimizer: MemoryAdamW
    ) -> tuple[int, dict[str, Any]] | None:
        """Load the newest checkpoint as `load_checkpoint` does. Return None if there is none."""
        found = list_checkpoints(self.out)
        return load_checkpoint(found[-1], model, optimizer, self._group) if found else None


def load_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    optimizer: MemoryAdamW,
    group: dist.ProcessGroup | None = None,
) -> tuple[int, dict[str, Any]]:
    """Load weights, optimizer and random state, and return the steps done and the counters.

    Args:
        folder: A checkpoint, saved on any number of ranks.
        model: A model of the same configuration, changed in place. Sharded or not.
        optimizer: Built on this model, changed in place.
        group: All its ranks call this. None: this process is alone.

    Raises:
        UserError: Tensors are missing, surplus, or of another shape or type, or the checkpoint is
            of another version of this package.
        OSError: The checkpoint is damaged.
    """
    state = read_state(folder)
    metadata = read_metadata(folder)
    make_optimizer_state(model, optimizer, metadata.state_dict_metadata, state["tables"])
    tensors = model_tensors(model, state["block_bytes"])
    tensors |= optimizer_tensors(model, optimizer, state["block_bytes"])
    check_fit(folder, tensors, metadata)
    read_tensors(folder, tensors, metadata, group)
    torch.set_rng_state(state["rng"])
    return state["step"], state["counters"]


def read_state(folder: Path) -> Mapping[str, Any]:
    """Read what a checkpoint holds beside the tensors of model and optimizer.

    Raises:
        UserError: It is of another version of this package.
        OSError: It is damaged.
    """
    if (folder / "trainer.pt").is_file():
        raise UserError(
            f"{folder} was written by an earlier version of memory-layers, this one cannot resume "
            "from it. hint: finish the run with that version, or choose another --out. "
            f"from_pretrained({str(folder)!r}) still loads its weights"
        )
    file = folder / STATE_FILE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise damaged(folder, file, error) from error
    if state["format"] != FORMAT:
        raise UserError(
            f"{folder} has checkpoint format {state['format']}, this package reads {FORMAT}. "
            "hint: use the version of memory-layers that wrote it"
        )
    return state


def _model_files(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Return the files of a model folder that are not weights, by name."""
    config = copy.deepcopy(model.config)
    config.dtype = str(model.dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _packed(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def read_metadata(folder: Path) -> Metadata:
    """Read what a checkpoint holds, and check that its files are there in full length.

    Raises:
        OSError: It is damaged. Says which file.
    """
    try:
        metadata = dcp.FileSystemReader(folder).read_metadata()
        stored = list(metadata.storage_data.values())
    except _DAMAGED as error:
        raise damaged(folder, folder / ".metadata", error) from error
    ends: dict[str, int] = {}
    for info in stored:
        end = info.offset + info.length
        ends[info.relative_path] = max(end, ends.get(info.relative_path, 0))
    for name, end in ends.items():
        file = folder / name
        if not file.is_file():
            raise damaged(folder, file, "it is missing")
        if file.stat().st_size < end:
            raise damaged(folder, file, f"it has {file.stat().st_size} of {end} bytes")
    return metadata


def read_tensors(
    folder: Path,
    tensors: dict[str, Tensor],
    metadata: Metadata,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Load tensors in place, whatever number of ranks has written them.

    Args:
        folder: A checkpoint.
        tensors: Tensors and DTensors by name, changed in place.
        metadata: What `read_metadata` returned.
        group: All its ranks call this. None: this process is alone.

    Raises:
        OSError: The checkpoint is damaged.
    """
    _expect_one_process()
    try:
        dcp.load(
            tensors,
            storage_reader=_Reader(folder, metadata),
            # Nothing is nested here, and a DTensor is one entry.
            planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=group,
            no_dist=group is None,
        )
    except _DAMAGED as error:
        raise damaged(folder, folder, _reason_of(error)) from error


def damaged(folder: Path, file: Path, reason: object) -> OSError:
    """Return an error that says which file is damaged and what to do."""
    return OSError(
        f"{file} cannot be read: {reason}. hint: the checkpoint is damaged, delete {folder} to "
        "resume from the one before"
    )


def not_written(folder: Path, reason: object) -> OSError:
    """Return an error that says that a folder could not be written, and what to do."""
    return OSError(
        f"could not write {folder}: {reason}. Checkpoints written before are intact. "
        "hint: free disk space and run the same command again"
    )


def _reason_of(error: BaseException) -> str:
    """Return what went wrong, and on which rank if there are several."""
    if not isinstance(error, dcp.api.CheckpointException):
        return str(error) or type(error).__name__
    return "; ".join(
        f"rank {rank}: " * dist.is_initialized() + (str(failure) or type(failure).__name__)
        for rank, (failure, _) in error.failures.items()
    )


def _expect_one_process() -> None:
    """Silence DCP's warning of having no process group, also in the thread that saves."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


class _Reader(dcp.FileSystemReader):
    """Read what a checkpoint holds once, and not again for each block of a table."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *_args: object, **_options: object) -> Metadata:
        return self._metadata


class _Writer(dcp.FileSystemWriter):
    """Write the shards and the metadata to `part`, then call `complete` on the coordinator.

    What goes wrong there is raised on all ranks.
    """

    def __init__(self, part: Path, complete: Callable[[], None]) -> None:
        super().__init__(part)
        self._complete = complete

    def stage(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copy all of it at once: torch's own copy is wrong for ranks with uneven shares."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state_dict.items()}

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Check that there is room. Runs on the coordinator, which knows what all ranks write."""
        require_space(
            Path(self.path), sum(i.tensor_storage_size() or 0 for p in plans for i in p.items)
        )
        return super().prepare_global_plan(plans)

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """Write the metadata. Runs on the coordinator, when all ranks have written."""
        super().finish(metadata, results)
        self._complete()
