"""Whose a folder of a run is: the run that saved something there, with its settings and its data.

config.json holds the settings, data.json what the data was made of.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memory_layers.common.checksums import DamageError, check_files
from memory_layers.common.errors import UserError
from memory_layers.common.files import write_json
from memory_layers.common.untrusted import check_ends
from memory_layers.config import MemoryConfig
from memory_layers.data.prepare import PreparedData
from memory_layers.data.tokenizer import load_tokenizer
from memory_layers.train.config import RunConfig
from memory_layers.train.folders import has_saved, list_checkpoints
from memory_layers.train.stored import damaged

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
    data: PreparedData | None = None,
    *,
    longer: bool = False,
) -> int:
    """Refuse a folder that holds another run, and change nothing.

    A run that has saved nothing holds no folder.

    Args:
        out: Folder of the run, which need not be there yet.
        config: The run.
        data: What it is trained on. None: not known yet.
        longer: Accept a run that differs in nothing but fewer train.steps.

    Returns:
        The steps that the run in the folder was to take, those of `config` if there is none.

    Raises:
        UserError: Another configuration has run there, or one on other data. What differs is named.
    """
    return _look(out, config, data, longer=longer).planned


@dataclass(frozen=True)
class _Found:
    """What is in the folder of a run: its records, and the steps that it was to take."""

    saved: bool
    settings: dict[str, Any] | None
    data: dict[str, Any] | None
    planned: int


def _look(out: Path, config: RunConfig, data: PreparedData | None, *, longer: bool) -> _Found:
    """Read what is in a folder, and refuse another run: see check_folder."""
    if out.is_dir():
        for path in sorted(out.iterdir()):
            check_ends(path)
    old, before = read_object(out / SETTINGS), read_object(out / DATA)
    content, sources = _in(before, "content"), _in(before, "sources")
    if not isinstance(content, dict) or not isinstance(sources, dict):
        before = None
    planned, saved = config.train.steps, has_saved(out)
    if saved and old is not None:
        upgraded, new = _upgraded(old), _without_unused(_values(config))
        steps = _in(upgraded, "train", "steps")
        if longer and isinstance(steps, int) and steps < planned:
            planned = new["train"]["steps"] = steps
        free = _FREE if before is None else (*_FREE, *_PLACES)
        if differing := _differences(upgraded, new, free):
            raise UserError(
                f"{out} holds a run with another configuration: {'; '.join(differing)}. "
                "hint: choose another --out, or delete the folder"
            )
    changes: list[str] = []
    if saved and data is not None and before is None:
        changes = _other_tokenizer(out, data)
    elif saved and data is not None and content != data.content:
        changes = list_changes(content, data.content, sources, data.sources)
    if changes:
        raise UserError(
            f"{out} holds a run on other data: {'; '.join(changes)}. "
            "hint: bring the data back to go on, or choose another --out, or delete the folder"
        )
    return _Found(saved, old, before, planned)


def _other_tokenizer(out: Path, data: PreparedData) -> list[str]:
    """Compare what runs of earlier versions have of their data, the tokenizer in a checkpoint."""
    for folder in list_checkpoints(out)[-1:]:
        if not (folder / "tokenizer.json").is_file():
            continue
        try:
            check_files(folder)
            tokenizer = load_tokenizer(folder)
        except (DamageError, UserError) as error:
            reason = str(error).partition(". hint:")[0]
            raise damaged(folder, folder / "tokenizer.json", reason) from error
        # Not the files: versions of the tokenizers package write the same in other words.
        if tokenizer.get_vocab() != data.tokenizer.get_vocab():
            return [f"the tokenizer of {folder} is not that of {data.folder}"]
    return []


def claim_folder(
    out: Path, config: RunConfig, data: PreparedData, *, longer: bool = False
) -> list[str]:
    """Make the folder of a run, or check that the run in it is this one.

    In a process group, rank 0 alone calls this.

    Args:
        out: Folder of the run.
        config: The run.
        data: What it is trained on.
        longer: As for `check_folder`. The folder then holds the longer run.

    Returns:
        What is to be told: a run that is given up, records that were lost.

    Raises:
        UserError: As check_folder.
    """
    found = _look(out, config, data, longer=longer)
    records = {SETTINGS: found.settings, DATA: found.data}
    told = []
    if found.saved:
        lost = [name for name, record in records.items() if record is None]
        if lost:
            told.append(
                f"{out}: {' and '.join(lost)} cannot be read or {'is' if len(lost) == 1 else 'are'}"
                " not there, and now written by what was given: little of it can be checked"
            )
    elif found.settings and _differences(
        _upgraded(found.settings), _without_unused(_values(config)), _FREE
    ):
        told.append(f"{out}: a run of other settings there had saved nothing, and is given up")
    made_of = {"content": dict(data.content), "sources": dict(data.sources)}
    for name, record in {DATA: made_of, SETTINGS: _values(config)}.items():
        if records[name] != record:
            write_json(out / name, record)
    return told


def list_changes(
    content: Mapping[str, Any],
    other_content: Mapping[str, Any],
    sources: Mapping[str, Any],
    other_sources: Mapping[str, Any],
) -> list[str]:
    """Say why data differ: by their sources, or by their content where those are the same."""
    names = sorted(content.keys() | other_content.keys())
    return _changes(sources, other_sources) or [
        f"{name} has other content"
        for name in names
        if content.get(name) != other_content.get(name)
    ]


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
    memory, moe, optim = values.get("memory"), values.get("moe"), values.get("optim")
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
    moe = {"normalize_top_k": False, **moe} if isinstance(moe, dict) else moe
    return _without_unused({**values, "memory": memory or None, "moe": moe, "optim": optim})


def _without_unused(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out how tables are stepped where there are none: defaults of it may change."""
    if values["memory"] is not None:
        return values
    unused = ("value_lr", "value_state")
    return {**values, "optim": {k: v for k, v in values["optim"].items() if k not in unused}}


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


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
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
