"""What is checked of a folder that somebody else may have made before it is loaded.

Its files lie in it, and none of them is run unless that is asked for.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from pickle import PickleError
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.text_files import read_json

# Fields that earlier versions of transformers wrote, in the place of which it looks in the folder.
_REPLACED = ("tokenizer_file", "special_tokens_map_file", "added_tokens_file", "name_or_path")
# What malformed files, and programs in them, end other libraries with.
MALFORMED = (
    ArithmeticError, AssertionError, AttributeError, LookupError, OSError, PickleError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
# Folders inside a model folder that are read too.
_INSIDE = ("additional_chat_templates", "memory_patch")
# What loaders read, of models, tokenizers, facts and texts.
_READ = {
    ".bin", ".csv", ".jinja", ".json", ".jsonl", ".model", ".parquet", ".py", ".safetensors",
    ".tiktoken", ".tsv", ".txt", ".yaml",
}  # fmt: skip


def check_inside(folder: Path, *, trusted: bool = False) -> None:
    """Refuse a folder of which a file that loaders read lies elsewhere.

    Links of the cache of the Hugging Face hub lead to its own `blobs`, and are taken.

    Args:
        folder: Of a model, a tokenizer or a memory. It may be a link itself.
        trusted: Take links that lead out.

    Raises:
        UserError: A file is a link that leads out, or a pipe or device, or an index names a file
            with weights that is not in the folder.
    """
    base = folder.resolve()
    caches = [parent.parent for parent in base.parents if parent.name == "snapshots"]
    roots = [base, *(cache / "blobs" for cache in caches)]
    for path in _entries(base):
        # Not resolve, which raises where a link leads to itself.
        target = Path(os.path.realpath(path))
        if path.is_symlink() and not any(target.is_relative_to(root) for root in roots):
            if trusted:
                continue
            raise UserError(
                f"{path} is a link that leads out of its folder, to {target}. hint: where "
                f"that is meant, copy it with what its links lead to: cp -rL {folder} COPY. A "
                "model you trust: --trust-remote-code True"
            )
        check_ends(path)
    for path in sorted(base.glob("*.index.json")):
        places = read_mapping(path).get("weight_map")
        names = set(places.values()) if isinstance(places, dict) else {places}
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError(
                    f"{path}: weight_map must name files of its folder, got {name!r}. hint: the "
                    "folder is not what save_pretrained wrote, copy it again"
                )


def check_ends(path: Path) -> None:
    """Refuse a pipe or a device, of which reading may never end.

    Raises:
        UserError: It is one, or a link to one.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is a pipe or device, expected a file. hint: remove it")


def _entries(folder: Path) -> Iterator[Path]:
    """Yield what loaders read of a folder, and links to folders of which they read something."""
    for path in sorted(folder.iterdir()):
        if path.name in _INSIDE and path.is_dir():
            yield from [path] if path.is_symlink() else _entries(path)
        elif path.suffix.lower() in _READ and not path.name.startswith("."):
            yield path


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON file of a folder that somebody else may have made.

    Raises:
        UserError: It is no JSON object in UTF-8.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} must hold a JSON object, got {type(content).__name__}. "
            "hint: copy the file again"
        )
    return content


def read_settings(model: Path | str, name: str) -> dict[str, Any]:
    """Read a JSON file of a folder, or of a name on the Hugging Face hub. Empty: it has none.

    Raises:
        UserError: It is no JSON object in UTF-8.
    """
    from transformers.utils import cached_file

    try:
        path = cached_file(
            str(model),
            name,
            local_files_only=isinstance(model, Path),
            _raise_exceptions_for_missing_entries=False,
        )
    except OSError:
        # Who loads it says what cannot be reached.
        return {}
    return {} if path is None else read_mapping(Path(path))


def check_named_files(settings: dict[str, Any], where: str, *, replaced: bool = True) -> None:
    """Refuse a tokenizer whose configuration names a file that is elsewhere on this machine.

    Some classes read it in the place of what lies in the folder. A path of the author's machine
    that does not exist here is left alone.

    Args:
        settings: Of tokenizer_config.json.
        where: The folder, or the name on the hub.
        replaced: Transformers looks in the folder for what these name, and not where they say.

    Raises:
        UserError: It does.
    """
    for field, value in settings.items():
        if (replaced and field in _REPLACED) or not (
            field in ("vocab", "merges", "init_inputs")
            or field.endswith(("_file", "_files", "_path", "_dir"))
        ):
            continue
        for name in value if isinstance(value, list) else [value]:
            # A longer text is no path, and the system would refuse to look for it.
            if not isinstance(name, str) or len(name) > 4096:
                continue
            found = Path(name)
            if field == "fast_tokenizer_files":
                is_elsewhere = found.name != name
            else:
                is_elsewhere = os.path.exists(found) and not found.resolve().is_relative_to(
                    Path(where).resolve()
                )
            if is_elsewhere:
                raise UserError(
                    f"{where}: {field} of tokenizer_config.json names a file that is not in the "
                    f"folder, {name}. hint: take it out of tokenizer_config.json"
                )


def code_of(settings: dict[str, Any]) -> list[str]:
    """Return the files whose code a configuration of transformers can ask to be run.

    Args:
        settings: Of config.json or tokenizer_config.json.
    """
    named = settings.get("auto_map")
    places: list[Any] = list(named.values()) if isinstance(named, dict) else [named]
    flat = [one for place in places for one in (place if isinstance(place, list) else [place])]
    # As "module.Class", or "owner/repository--module.Class" of the hub.
    return sorted({f"{one.rpartition('.')[0]}.py" for one in flat if isinstance(one, str)})


def code_refused(name: str, files: list[str]) -> UserError:
    """Return the error for a folder that cannot be loaded without code which it brings.

    Args:
        name: The folder, or the name on the hub.
        files: That would be run.
    """
    shown = ", ".join(files) or "code of its own"
    return UserError(
        f"{name} cannot be loaded without running code that it brings: {shown}. hint: read it, and "
        "if you trust it, --trust-remote-code True, or trust_remote_code=True in Python. Data is "
        "prepared with tokenizers without code alone"
    )
