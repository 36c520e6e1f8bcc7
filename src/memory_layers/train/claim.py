"""Whose a folder of a run is: the run that saved something there, with its settings and its data.

config.json holds the settings, data.json what the data was made of.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.files import write_json
from memory_layers.config import MemoryConfig
from memory_layers.train.config import RunConfig
from memory_layers.train.folders import has_saved

SETTINGS, DATA = "config.json", "data.json"
# How a run is computed, watched and called, not what: this may change when it goes on.
_FREE = (
    "name", "parallel", "data.cache_dir", "train.device", "train.gradient_checkpointing",
    "train.log_every", "train.checkpoint_every", "train.keep_checkpoints",
)  # fmt: skip
# Where sources lie: what counts is their content, which data.json has.
_PLACES = ("data.facts", "data.text", "data.templates", "data.tokenizer")


def check_folder(
    out: Path,
    config: RunConfig,
    sources: Mapping[str, str] | None = None,
    *,
    longer: bool = False,
) -> int:
    """Refuse a folder that holds another run, and change nothing.

    A run that has saved nothing holds no folder.

    Args:
        out: Folder of the run, which need not be there yet.
        config: The run.
        sources: Those of its `PreparedData`. None: not known yet.
        longer: Accept a run that differs in nothing but fewer train.steps.

    Returns:
        The steps that the run in the folder was to take, those of `config` if there is none.

    Raises:
        UserError: Another configuration has run there, or one on other data. What differs is named.
    """
    if not has_saved(out):
        return config.train.steps
    old, before = read_object(out / SETTINGS), read_object(out / DATA)
    planned = config.train.steps
    if old is not None:
        old, new = _upgraded(old), _values(config)
        steps = _in(old, "train", "steps")
        if longer and isinstance(steps, int) and steps < planned:
            planned = new["train"]["steps"] = steps
        free = _FREE if before is None else (*_FREE, *_PLACES)
        if differing := _differences(old, new, free):
            raise UserError(
                f"{out} holds a run with another configuration: {'; '.join(differing)}. "
                "hint: choose another --out, or delete the folder"
            )
    if before is not None and sources is not None and dict(sources) != before:
        raise UserError(
            f"{out} holds a run on other data: {'; '.join(_changes(before, sources))}. "
            "hint: bring the data back to go on, or choose another --out, or delete the folder"
        )
    return planned


def claim_folder(
    out: Path, config: RunConfig, sources: Mapping[str, str], *, longer: bool = False
) -> list[str]:
    """Make the folder of a run, or check that the run in it is this one.

    In a process group, rank 0 alone calls this.

    Args:
        out: Folder of the run.
        config: The run.
        sources: Those of its `PreparedData`.
        longer: As for `check_folder`. The folder then holds the longer run.

    Returns:
        What is to be told: a run that is given up, records that were lost.

    Raises:
        UserError: As check_folder.
    """
    check_folder(out, config, sources, longer=longer)
    old, before = read_object(out / SETTINGS), read_object(out / DATA)
    told = []
    if has_saved(out):
        lost = [name for name, found in ((SETTINGS, old), (DATA, before)) if found is None]
        if lost:
            told.append(
                f"{out}: {' and '.join(lost)} cannot be read or {'is' if len(lost) == 1 else 'are'}"
                " not there, and now written by what was given: that it is the same is not checked"
            )
    elif old is not None and _differences(_upgraded(old), _values(config), _FREE):
        told.append(f"{out}: a run of other settings there had saved nothing, and is given up")
    if before != sources:
        write_json(out / DATA, sources)
    if old != (new := _values(config)):
        write_json(out / SETTINGS, new)
    return told


def read_object(path: Path) -> dict[str, Any] | None:
    """Return what a record in JSON holds. None: it is not there, or damaged, as without power.

    Raises:
        UserError: It cannot be read.
    """
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}. hint: remove it, or choose another --out"
        ) from error
    return values if isinstance(values, dict) and values else None


def _upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a run as this version has them, from what an earlier one has saved."""
    memory, optim = values.get("memory"), values.get("optim")
    if not isinstance(memory, dict | None) or not isinstance(optim, dict):
        return dict(values)
    memory = dict(memory or {})
    before = {name: memory.pop(name) for name in MemoryConfig.removed if name in memory}
    dtype = before.get("value_dtype", "model")
    optim = {
        "value_dtype": "float32" if dtype == "model" else dtype,
        "train_keys": before.get("train_keys", True),
        **optim,
    }
    return {**values, "memory": memory or None, "optim": optim}


def _values(config: RunConfig) -> dict[str, Any]:
    values = json.loads(json.dumps(asdict(config)))
    # What is left out of a config may mean something else in another version of this package.
    values["optim"]["value_lr"] = config.optim.peak_value_lr
    return values


def _in(values: Any, *names: str) -> Any:  # noqa: ANN401
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _differences(old: Any, new: Any, free: tuple[str, ...], where: str = "") -> list[str]:  # noqa: ANN401
    if old == new or where in free:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*new, *(name for name in old if name not in new)]
        return [
            line
            for name in names
            for line in _differences(
                old.get(name), new.get(name), free, f"{where}.{name}".lstrip(".")
            )
        ]
    return [f"{where} was {_shown(old)}, is {_shown(new)}"]


def _changes(before: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    lines = []
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if None in (old, new):
            lines.append(f"{name} {'is new' if old is None else 'is not there'}")
        # Digests tell nobody anything.
        elif len(str(old)) == len(str(new)) == 64:
            lines.append(f"{name} has other content")
        else:
            lines.append(f"{name} was {_shown(old)}, is {_shown(new)}")
    return lines


def _shown(value: Any) -> str:  # noqa: ANN401
    return text if len(text := repr(value)) <= 80 else f"{text[:77]}..."
