"""Checkpoints: written whole or not at all, the newest kept, resumed bit for bit.

A checkpoint is a Hugging Face model folder with the tokenizer, and trainer.pt beside it.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memory_layers.optim import MemoryAdamW
from memory_layers.train.config import ConfigError, RunConfig

_NAME = re.compile(r"step-(\d{8})")


class CheckpointError(OSError):
    """A checkpoint that could not be written. Those written before are intact."""


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model folder that appears, or replaces an older one, only when complete.

    Args:
        model: With or without memory.
        tokenizer: Saved beside it.
        folder: The final place.

    Raises:
        CheckpointError: The disk is full or cannot be written.
    """
    _write(folder, _bytes_of(model.state_dict()), lambda part: _save(model, tokenizer, part))


def save_checkpoint(
    out: Path,
    step: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: MemoryAdamW,
    counters: dict[str, Any],
    keep: int,
) -> Path:
    """Write OUT/checkpoints/step-NNNNNNNN and remove the oldest beyond `keep`.

    Args:
        out: Folder of the run.
        step: Steps done.
        model: With or without memory.
        tokenizer: Saved beside it.
        optimizer: Its state is saved.
        counters: Numbers and tensors that the loop goes on from.
        keep: Checkpoints to keep.

    Raises:
        CheckpointError: The disk is full or cannot be written.
    """
    folder = out / "checkpoints" / f"step-{step:08d}"
    state = {
        "step": step,
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "counters": counters,
    }

    def save(part: Path) -> None:
        _save(model, tokenizer, part)
        torch.save(state, part / "trainer.pt")

    size = _bytes_of(model.state_dict()) + sum(
        _bytes_of(values) for values in state["optimizer"]["state"].values()
    )
    _write(folder, size, save)
    for old in list_checkpoints(out)[:-keep]:
        shutil.rmtree(old)
    return folder


def list_checkpoints(out: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    folder = out / "checkpoints"
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found)


def load_checkpoint(
    folder: Path, model: PreTrainedModel, optimizer: MemoryAdamW
) -> tuple[int, dict[str, Any]]:
    """Load weights, optimizer and random state, and return the steps done and the counters.

    Args:
        folder: A checkpoint.
        model: A model of the same configuration, changed in place.
        optimizer: Built on this model, changed in place.
    """
    loaded = type(model).from_pretrained(folder).state_dict()
    model.load_state_dict(loaded, strict=True)
    state = torch.load(folder / "trainer.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return state["step"], state["counters"]


def claim_folder(out: Path, config: RunConfig) -> None:
    """Make the folder of a run, or check that the run in it is this one.

    Raises:
        ConfigError: Another configuration has run there. The differing fields are named.
    """
    path = out / "config.json"
    values = json.loads(json.dumps(asdict(config)))
    if path.is_file():
        differing = _differences(json.loads(path.read_text("utf-8")), values)
        if differing:
            raise ConfigError(
                f"{out} holds a run with another configuration: {'; '.join(differing)}. "
                "hint: choose another --out, or delete the folder"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    os.replace(part, path)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: Path) -> None:
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)


def _write(folder: Path, size: int, save: Any) -> None:  # noqa: ANN401
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}.part-*"):
            shutil.rmtree(left)
        if shutil.disk_usage(folder.parent).free < size:
            raise OSError(errno.ENOSPC, f"{size / 2**20:.0f} MiB needed")
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=folder.parent))
        try:
            save(part)
            for file in part.iterdir():
                _sync(file)
            _swap(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    # torch reports a failed write of its zip file as RuntimeError.
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"could not write {folder}: {error}. Checkpoints written before are intact. "
            "hint: free disk space and run the same command again"
        ) from error


def _swap(part: Path, folder: Path) -> None:
    part.chmod(0o755)
    if not folder.exists():
        os.replace(part, folder)
        return
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old)


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _bytes_of(values: dict[str, Any]) -> int:
    tensors = {v.data_ptr(): v.nbytes for v in values.values() if isinstance(v, torch.Tensor)}
    return sum(tensors.values())


def _differences(old: Any, new: Any, where: str = "") -> list[str]:  # noqa: ANN401
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*new, *(name for name in old if name not in new)]
        return [
            line
            for name in names
            for line in _differences(old.get(name), new.get(name), f"{where}.{name}".lstrip("."))
        ]
    return [] if old == new else [f"{where} was {old!r}, is {new!r}"]
