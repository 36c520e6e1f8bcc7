"""Checkpoints: written in the background, whole or not at all, the newest kept, resumed exactly.

A checkpoint is a folder of torch's Distributed Checkpoint (DCP) with a few files beside it:

    .metadata, *.distcp      parameters and optimizer state, by the names of state.py
    state.pt                 step, counters, random state, numbers of the tables
    config.json, tokenizer   what it takes to make a model folder of it: export.py

It is the same for one process and for many, and loads on any number of them.
"""

import copy
import io
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memory_layers.common.errors import UserError
from memory_layers.common.files import publish, write_json
from memory_layers.optim import MemoryAdamW
from memory_layers.train.config import RunConfig, upgraded
from memory_layers.train.state import (
    BLOCK_BYTES,
    check_fit,
    make_optimizer_state,
    model_tensors,
    optimizer_tensors,
    table_numbers,
)
from memory_layers.train.storage import (
    Writer,
    not_written,
    read_metadata,
    read_plain,
    read_tensors,
    reason_of,
    start_write,
)

FORMAT = 2
STATE_FILE = "state.pt"

_NAME = re.compile(r"step-(\d{8})")
# Settings of how a run is computed, not of what: they may change when it is resumed.
_FREE = ("parallel",)


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

        tensors = {
            **model_tensors(model, self.block_bytes),
            **optimizer_tensors(model, optimizer, self.block_bytes),
        }
        self._saving = folder, start_write(tensors, Writer(part, complete), self._group)

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
        raise not_written(folder, reason_of(error)) from error

    def load_newest(
        self, model: PreTrainedModel, optimizer: MemoryAdamW
    ) -> tuple[int, dict[str, Any]] | None:
        """Load the newest checkpoint as `load_checkpoint` does. Return None if there is none."""
        found = list_checkpoints(self.out)
        return load_checkpoint(found[-1], model, optimizer, self._group) if found else None


def list_checkpoints(out: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    folder = out / "checkpoints"
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found)


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
    tensors = {
        **model_tensors(model, state["block_bytes"]),
        **optimizer_tensors(model, optimizer, state["block_bytes"]),
    }
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
    state = read_plain(folder / STATE_FILE)
    if state["format"] != FORMAT:
        raise UserError(
            f"{folder} has checkpoint format {state['format']}, this package reads {FORMAT}. "
            "hint: use the version of memory-layers that wrote it"
        )
    return state


def check_folder(out: Path, config: RunConfig, *, longer: bool = False) -> int:
    """Refuse a folder that holds another run, and change nothing.

    Args:
        out: Folder of the run, which need not be there yet.
        config: The run.
        longer: Accept a run that differs in nothing but fewer train.steps.

    Returns:
        The steps that the run in the folder was to take, those of `config` if there is none.

    Raises:
        UserError: Another configuration has run there. The differing fields are named.
    """
    path = out / "config.json"
    if not path.is_file():
        return config.train.steps
    old, new = upgraded(json.loads(path.read_text("utf-8"))), _values(config)
    planned = old["train"]["steps"]
    if longer and planned < config.train.steps:
        new["train"]["steps"] = planned
    if differing := _differences(old, new):
        raise UserError(
            f"{out} holds a run with another configuration: {'; '.join(differing)}. "
            "hint: choose another --out, or delete the folder"
        )
    return planned


def claim_folder(out: Path, config: RunConfig, *, longer: bool = False) -> None:
    """Make the folder of a run, or check that the run in it is this one.

    In a process group, rank 0 alone calls this.

    Args:
        out: Folder of the run.
        config: The run.
        longer: As for `check_folder`. The folder then holds the longer run.

    Raises:
        UserError: Another configuration has run there. The differing fields are named.
    """
    planned = check_folder(out, config, longer=longer)
    path = out / "config.json"
    if not path.is_file() or planned < config.train.steps:
        write_json(path, _values(config))


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


def _values(config: RunConfig) -> dict[str, Any]:
    values = json.loads(json.dumps(asdict(config)))
    # What is left out of a config may mean something else in another version of this package.
    values["optim"]["value_lr"] = config.optim.peak_value_lr
    return values


def _differences(old: Any, new: Any, where: str = "") -> list[str]:  # noqa: ANN401
    if old == new or where in _FREE:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*new, *(name for name in old if name not in new)]
        return [
            line
            for name in names
            for line in _differences(old.get(name), new.get(name), f"{where}.{name}".lstrip("."))
        ]
    return [f"{where} was {old!r}, is {new!r}"]
