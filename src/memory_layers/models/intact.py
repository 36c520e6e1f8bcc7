"""What is checked of saved weights: files are what was written, numbers are numbers.

Next: memory_files.py, the files of a memory without its base.
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from memory_layers.common.checksums import CHECKSUMS, DamageError, check_files
from memory_layers.common.errors import UserError
from memory_layers.common.tensors import count_not_finite
from memory_layers.common.untrusted import read_mapping

_CONFIGS = ("config.json", "generation_config.json")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Types of safetensors that are no floating-point numbers begin so.
_NO_FLOATS = ("I", "U", "BOOL")

# Type and shape of tensors, by name.
Header = Mapping[str, tuple[str, tuple[int, ...]]]


def check_folder(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Refuse a model folder with files that are damaged or do not fit each other.

    Reads all but the numbers: the configurations, and the headers of the weights.

    Args:
        folder: Of a model, in the format of transformers.
        trust_remote_code: Run code that lies in the folder.

    Raises:
        UserError: A file is missing, cut off or malformed, or config.json is of a model that is
            larger than its weights by far.
    """
    for path in (folder / name for name in _CONFIGS):
        for name, value in (read_mapping(path) if path.exists() else {}).items():
            ids = value if isinstance(value, list) else [] if value is None else [value]
            if name in _TOKENS and not all(type(number) is int for number in ids):
                raise UserError(
                    f"{path}: {name} must be the number of a token, or a list of these, got "
                    f"{value!r:.80}. hint: copy the folder again"
                )
    files = _weight_files(folder)
    headers = {path: read_header(path) for path in files}
    found = {name: shape for header in headers.values() for name, (_, shape) in header.items()}
    config: Any = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code
    )
    # Where weights are packed, their numbers do not tell.
    if not files or getattr(config, "quantization_config", None) is not None:
        return
    place = folder / _CONFIGS[0]
    blocks = getattr(config.get_text_config(), "num_hidden_layers", None)
    # To build it would take forever, or all memory. What else does not fit, transformers reports.
    if blocks is not None and blocks > len(found):
        raise UserError(
            f"{place} is of {blocks:,} blocks, and the weights beside it are {len(found):,} "
            "tensors. hint: copy the folder again"
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    wanted, numbers = sum(p.numel() for p in model.parameters()), sum(map(prod, found.values()))
    if wanted > 2 * numbers + 2**20:
        raise UserError(
            f"{place} is of a model of {wanted:,} parameters, and the weights beside it are "
            f"{numbers:,} numbers. hint: copy the folder again"
        )


def check_checksums(folder: Path) -> bool:
    """Refuse weights that are not what was written. Return whether the folder has checksums.

    Args:
        folder: Of a model. A name of the hub has none.

    Raises:
        UserError: A file has another checksum than was written with it.
    """
    try:
        return check_files(folder) is not None
    except DamageError as error:
        raise UserError(
            f"{error}. hint: copy the folder again; if another program has changed it on purpose, "
            f"remove {folder / CHECKSUMS}"
        ) from error


def check_numbers(model: PreTrainedModel, folder: Path, *, is_whole: bool) -> None:
    """Refuse a loaded model whose weights are not numbers.

    Args:
        model: What is offloaded to a disk is not looked at.
        folder: Where it was loaded from, or a name of the hub.
        is_whole: Its checksums are right, and who wrote them has looked at the numbers.

    Raises:
        UserError: A file holds whole numbers for a weight that has none, or a weight is NaN or
            infinite.
    """
    quantised = getattr(model, "is_quantized", False)
    tensors = dict(model.named_parameters()) if quantised else model.state_dict()
    places: dict[str, Path] = {}
    for path in _weight_files(folder) if folder.is_dir() and not quantised else ():
        # A name without and with the prefix that the backbone has is the same weight.
        prefix = f"{model.base_model_prefix}."
        for name, (kind, _) in read_header(path).items():
            names = (name, name.removeprefix(prefix), prefix + name)
            own = next((n for n in names if n in tensors), None)
            if own is None:
                continue
            places[own] = path
            if tensors[own].is_floating_point() and kind.startswith(_NO_FLOATS):
                raise UserError(
                    f"{path}: {name} must be of floating-point numbers, got {kind}. "
                    "hint: copy the folder again"
                )
    # Of parameters alone: a mask among the buffers may be infinite.
    for name, tensor in () if is_whole else model.named_parameters():
        check_finite({name: tensor}, str(places.get(name, folder)))


def read_header(path: Path) -> Header:
    """Return which tensors a safetensors file has.

    Raises:
        UserError: It is missing, cut off, or another kind of file.
    """
    try:
        with safe_open(path, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {n: (part.get_dtype(), (*part.get_shape(),)) for n, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is missing, damaged or cut off: {error}. hint: copy it again"
        ) from error


def check_shapes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors that are not those of a memory.

    Args:
        found: As read.
        wanted: As they must be.
        where: What has them, for errors.

    Raises:
        UserError: One is missing, surplus, of another shape, or of whole numbers where there are
            none, or the other way round.
    """
    for name in sorted(found.keys() | wanted.keys()):
        shapes = [list(of[name].shape) if name in of else None for of in (wanted, found)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{name} must have shape {shapes[0]}, got {shapes[1]}: {where}")
        if found[name].is_floating_point() != wanted[name].is_floating_point():
            raise UserError(
                f"{name} must be of type {wanted[name].dtype}, got {found[name].dtype}: {where}"
            )


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors with numbers that are NaN or infinite.

    Raises:
        UserError: Names the first.
    """
    for name, tensor in tensors.items():
        if count_not_finite(tensor):
            raise UserError(
                f"{where}: {name} has numbers that are not finite. hint: a file is damaged, or the "
                "training had diverged; take an earlier one"
            )


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers takes weights from. None: they are of another format."""
    if (folder / _WEIGHTS).exists() or not (folder / _INDEX).exists():
        return [folder / _WEIGHTS] if (folder / _WEIGHTS).exists() else []
    places = read_mapping(folder / _INDEX).get("weight_map")
    given = [*places.values()] if isinstance(places, dict) else []
    names = {name for name in given if isinstance(name, str) and Path(name).name == name}
    if not given or not all(isinstance(name, str) and name in names for name in given):
        raise UserError(
            f"{folder / _INDEX}: weight_map must give each tensor a file of this folder, got "
            f"{json.dumps(places)[:80]}. hint: copy the folder again"
        )
    return [folder / name for name in sorted(names)]
