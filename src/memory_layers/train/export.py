"""From a checkpoint to a Hugging Face model folder, without the model in memory.

The dense tensors are one safetensors file. Each value table is one of its own, to which its blocks
of rows are copied one after the other.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

import memory_layers.models  # noqa: F401  (registers memory models)
from memory_layers.common.checksums import write_checksums
from memory_layers.common.errors import UserError
from memory_layers.common.files import new_folder
from memory_layers.train.checkpoint import not_written
from memory_layers.train.folders import check_replaceable, find_checkpoint
from memory_layers.train.state import SavedTensor, model_tensors, saved_tensors, whole_name
from memory_layers.train.stored import (
    MALFORMED,
    METADATA_FILE,
    DamagedCheckpointError,
    StoredCheckpoint,
    damaged,
    open_checkpoint,
    read_tensors,
)

_MODEL = "model."
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
# What transformers writes for a tokenizer that is a fast one, as all that are trained with are.
_TOKENIZER = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|(merges|vocab)\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model|chat_template\.jinja"
    r"|additional_chat_templates/[\w-]+\.jinja"
)
_NEEDED = ("tokenizer.json", "tokenizer_config.json")


def export_checkpoint(
    checkpoint: Path, out: Path, *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write the model of a checkpoint as a model folder, the tokenizer beside it.

    Holds the dense parameters and a block of a table or two in memory. Needs no process group,
    whatever number of ranks wrote the checkpoint. `out` appears, or replaces an older model
    folder, only when complete.

    Args:
        checkpoint: OUT/checkpoints/step-NNNNNNNN, or the folder of a run for its newest one.
        out: The model folder, for from_pretrained.
        progress: Called with the bytes written so far and those of the whole model.

    Raises:
        UserError: `checkpoint` is neither, its tensors are not those of its config.json, or
            `out` exists and is not a model folder.
        OSError: The checkpoint is damaged, or `out` cannot be written.
    """
    folder = find_checkpoint(checkpoint)
    check_replaceable(out)
    stored = open_checkpoint(folder)
    try:
        tensors = saved_tensors(stored.metadata)
    except ValueError as error:
        raise damaged(folder, folder / METADATA_FILE, error) from error
    saved = {
        name.removeprefix(_MODEL): tensor
        for name, tensor in tensors.items()
        if name.startswith(_MODEL)
    }
    tokenizer = _tokenizer_files(stored)
    skeleton = _skeleton(folder, len(saved))
    _check_shapes(folder, skeleton, saved)
    tables = {name: tensor for name, tensor in saved.items() if tensor.in_rows}
    size = sum(tensor.nbytes for tensor in saved.values())
    done = 0

    def report(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, size)

    try:
        with new_folder(out, size) as part:
            dense = {
                name: next(_read(stored, tensor))
                for name, tensor in saved.items()
                if name not in tables
            }
            # One file, whatever its size. Also writes the configuration and the code to load it.
            skeleton.save_pretrained(part, state_dict=dict(dense), max_shard_size=2**62)
            files = [part / "model.safetensors"]
            report(sum(tensor.nbytes for tensor in dense.values()))
            dense.clear()
            for number, (name, table) in enumerate(tables.items()):
                files.append(part / f"table-{number}.part")
                _write_table(files[-1], name, table, _read(stored, table), report)
            if tables:
                _write_index(part, files, saved)
            write_checksums(part, part.glob("model*.safetensors"))
            for name in tokenizer:
                (part / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(folder / name, part / name)
    except DamagedCheckpointError:
        raise
    # torch reports a failed write of its zip file as RuntimeError.
    except (OSError, SafetensorError, RuntimeError) as error:
        raise not_written(out, error) from error


def _read(stored: StoredCheckpoint, saved: SavedTensor) -> Iterator[Tensor]:
    """Yield the blocks of a tensor. One that is in one piece is one block."""
    for block, shape in saved.blocks.items():
        tensor = torch.empty(shape, dtype=saved.dtype)
        read_tensors(stored, {block: tensor})
        yield tensor


def _tokenizer_files(stored: StoredCheckpoint) -> list[str]:
    """Return the names of the files of the tokenizer, and of nothing else that may be there."""
    folder = stored.folder
    paths = [path for path in folder.rglob("*") if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    names = [name for name in sorted(found) if _TOKENIZER.fullmatch(name)]
    if stored.files is not None:
        names = [name for name in names if name in stored.files]
    # Without checksums, nothing else tells a file of ours from another one that was linked to it.
    elif linked := [name for name in names if found[name].stat().st_nlink > 1]:
        raise UserError(
            f"{folder / linked[0]} is the same file as another one elsewhere. "
            "hint: if it is meant to be, put a copy in its place"
        )
    if missing := [name for name in _NEEDED if name not in names]:
        raise damaged(folder, folder / missing[0], "it is missing")
    for name in _NEEDED if stored.files is None else ():
        try:
            json.loads((folder / name).read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise damaged(folder, folder / name, error) from error
    return names


def _skeleton(folder: Path, tensors: int) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # Each has a tensor: a model of more would take long to make.
        if config.get_text_config().num_hidden_layers > tensors:
            raise ValueError(f"it has more layers than the checkpoint has tensors, {tensors}")
        # A model that was trained here needs no code of others, and is not quantised.
        for name in ("auto_map", "quantization_config"):
            vars(config).pop(name, None)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=config.dtype, trust_remote_code=False
            )
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(
                folder, local_files_only=True
            )
    except (*MALFORMED, StrictDataclassError) as error:
        raise damaged(folder, folder / "config.json", error) from error
    return model


def _check_shapes(
    folder: Path, skeleton: PreTrainedModel, saved: Mapping[str, SavedTensor]
) -> None:
    whole = model_tensors(skeleton, block_bytes=2**62)
    shapes = {
        whole_name(name).removeprefix(_MODEL): ((*t.shape,), t.is_floating_point())
        for name, t in whole.items()
    }
    found = {name: (tensor.shape, tensor.dtype in _DTYPES) for name, tensor in saved.items()}
    wrong = sorted(
        name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)
    )
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} tensors are missing, surplus or of another shape or type than "
            f"config.json says, such as {wrong[0]}. hint: copy the checkpoint again"
        )


def _write_table(
    path: Path,
    name: str,
    table: SavedTensor,
    blocks: Iterable[Tensor],
    report: Callable[[int], None],
) -> None:
    entry = {
        "dtype": _DTYPES[table.dtype],
        "shape": table.shape,
        "data_offsets": [0, table.nbytes],
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, name: entry}).encode()
    # 8 bytes say the length of the header. The rows begin on a cache line.
    header += b" " * (-(8 + len(header)) % 64)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for rows in blocks:
            file.write(memoryview(rows.flatten().view(torch.uint8).numpy()))
            report(rows.nbytes)


def _write_index(part: Path, files: list[Path], tensors: Mapping[str, SavedTensor]) -> None:
    """Give the files the names that transformers expects, and say what is in which."""
    places: dict[str, str] = {}
    for number, file in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        with safe_open(file, "pt") as opened:
            places |= dict.fromkeys(opened.keys(), name)
        file.rename(part / name)
    index = {
        "metadata": {
            "total_parameters": sum(prod(tensor.shape) for tensor in tensors.values()),
            "total_size": sum(tensor.nbytes for tensor in tensors.values()),
        },
        "weight_map": places,
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (part / "model.safetensors.index.json").write_text(text, "utf-8")
