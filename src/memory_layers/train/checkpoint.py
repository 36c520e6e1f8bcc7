"""Checkpoints: written in the background, whole or not at all, the newest kept, resumed exactly.

A checkpoint is a folder of torch's Distributed Checkpoint (DCP) with a few files beside it:

    .metadata, *.distcp      parameters and optimizer state, by the names of state.py
    state.pt                 step, counters, random state, numbers of the tables
    config.json, tokenizer   what it takes to make a model folder of it: export.py
    slices.json              of the checksums that *.distcp have inside: slices.py
    checksums.json           of all of these but *.distcp

It is the same for one process and for many, and loads on any number of them. One from somebody
else can hold wrong numbers, but it runs nothing and reaches no file outside of it.
"""

import copy
import io
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memory_layers.common.checksums import write_checksums
from memory_layers.common.files import (
    json_bytes,
    make_folder,
    publish,
    remove,
    require_space,
    settle,
)
from memory_layers.data.tokenizer import save_tokenizer
from memory_layers.optim import MemoryAdamW
from memory_layers.train.folders import STATE_FILE, list_checkpoints
from memory_layers.train.slices import Checksum, FiniteSavePlanner, sums_of_slices
from memory_layers.train.state import (
    BLOCK_BYTES,
    check_fit,
    make_optimizer_state,
    model_tensors,
    optimizer_tensors,
    table_numbers,
)
from memory_layers.train.stored import (
    FORMATS,
    METADATA_FILE,
    SLICES_FILE,
    expect_one_process,
    failures_of,
    open_checkpoint,
    read_tensors,
    reason_of,
)

FORMAT = max(FORMATS)


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
                remove(left)
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
            FloatingPointError: It had numbers that are not finite.
        """
        self.wait()
        folder = self.out / "checkpoints" / f"step-{step:08d}"
        part = folder.with_name(f".{folder.name}.part")
        files: dict[str, bytes] = {}
        if self._leads:
            make_folder(folder.parent)
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

        def complete(metadata: Metadata) -> None:
            sums = sums_of_slices(part, metadata.storage_data.values())
            files[SLICES_FILE] = json_bytes(sums)
            for name, content in files.items():
                (part / name).parent.mkdir(exist_ok=True)
                (part / name).write_bytes(content)
            write_checksums(part, [part / name for name in (*files, METADATA_FILE)])
            publish(part, folder)
            for old in list_checkpoints(self.out)[: -self.keep]:
                shutil.rmtree(old)

        tensors = model_tensors(model, self.block_bytes)
        tensors |= optimizer_tensors(model, optimizer, self.block_bytes)
        expect_one_process()
        writer = _Writer(part, complete)
        future: Any = dcp.async_save(
            tensors, storage_writer=writer, process_group=self._group, async_stager=writer,
            planner=FiniteSavePlanner(),
        )  # fmt: skip
        self._saving = folder, future

    def wait(self) -> None:
        """Wait for the end of the save in the background, if there is one.

        Call it before the process group is destroyed.

        Raises:
            OSError: It failed, on this rank or another. Those written before are intact.
            FloatingPointError: It had numbers that are not finite, and is not there.
        """
        if self._saving is None:
            return
        (folder, future), self._saving = self._saving, None
        error = future.exception()
        if error is None:
            return
        if self._leads:
            shutil.rmtree(folder.with_name(f".{folder.name}.part"), ignore_errors=True)
        if any(isinstance(failure, FloatingPointError) for failure in failures_of(error).values()):
            raise FloatingPointError(
                f"the state of step {int(folder.name[-8:])} is not saved: {reason_of(error)}. "
                "Checkpoints written before are intact. hint: lower optim.lr or optim.value_lr, "
                "or set optim.value_clip_norm"
            ) from error
        raise not_written(folder, reason_of(error)) from error

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
    stored = open_checkpoint(folder)
    saved = stored.metadata.state_dict_metadata
    make_optimizer_state(model, optimizer, saved, stored.tables)
    tensors = model_tensors(model, stored.block_bytes)
    tensors |= optimizer_tensors(model, optimizer, stored.block_bytes)
    check_fit(folder, tensors, stored.metadata)
    read_tensors(stored, tensors, group)
    torch.set_rng_state(stored.rng)
    return stored.step, stored.counters


def _model_files(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Return the files of a model folder that are not weights, by name."""
    config = copy.deepcopy(model.config)
    config.dtype = str(model.dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _packed(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def not_written(folder: Path, reason: object) -> OSError:
    """Return an error that says that a folder could not be written, and what to do."""
    return OSError(
        f"could not write {folder}: {reason}. Checkpoints written before are intact. "
        "hint: free disk space and run the same command again, or choose another folder"
    )


class _Writer(dcp.FileSystemWriter):
    """Write the shards and the metadata to `part`, then call `complete` on the coordinator.

    What goes wrong there is raised on all ranks.
    """

    def __init__(self, part: Path, complete: Callable[[Metadata], None]) -> None:
        super().__init__(part, _extensions=[Checksum()])
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
        self._complete(metadata)
