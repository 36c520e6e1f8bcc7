"""From a checkpoint to a Hugging Face model folder, without the model in memory.

The dense tensors are one safetensors file. Each value table is one of its own, to which its blocks
of rows are copied one after the other.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

import memory_layers.models  # noqa: F401  (registers memory models)
from memory_layers.common.checksums import write_checksums
from memory_layers.common.errors import UserError
from memory_layers.common.files import new_folder
from memory_layers.train.checkpoint import (
    damaged,
    not_written,
    read_metadata,
    read_state,
    read_tensors,
)
from memory_layers.train.folders import STATE_FILE, check_replaceable, find_checkpoint
from memory_layers.train.state import SavedTensor, model_tensors, saved_tensors, whole_name

_MODEL = "model."
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


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
    read_state(folder)
    metadata = read_metadata(folder)
    saved = {
        name.removeprefix(_MODEL): tensor
        for name, tensor in saved_tensors(metadata).items()
        if name.startswith(_MODEL)
    }
    skeleton = _skeleton(folder)
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
                name: next(_read(folder, tensor, metadata))
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
                _write_table(files[-1], name, table, _read(folder, table, metadata), report)
            if tables:
                _write_index(part, files, saved)
            write_checksums(part, part.glob("model*.safetensors"))
            own = (".metadata", STATE_FILE, "config.json", "generation_config.json")
            for file in folder.iterdir():
                if file.suffix != ".distcp" and file.name not in own:
                    copy = shutil.copytree if file.is_dir() else shutil.copyfile
                    copy(file, part / file.name)
    # torch reports a failed write of its zip file as RuntimeError.
    except (OSError, SafetensorError, RuntimeError) as error:
        raise not_written(out, error) from error


def _read(folder: Path, saved: SavedTensor, metadata: Metadata) -> Iterator[Tensor]:
    """Yield the blocks of a tensor. One that is in one piece is one block."""
    for block, shape in saved.blocks.items():
        tensor = torch.empty(shape, dtype=saved.dtype)
        read_tensors(folder, {block: tensor}, metadata)
        yield tensor


def _skeleton(folder: Path) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    except (OSError, ValueError, TypeError) as error:
        raise damaged(folder, folder / "config.json", error) from error
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _check_shapes(
    folder: Path, skeleton: PreTrainedModel, saved: Mapping[str, SavedTensor]
) -> None:
    whole = model_tensors(skeleton, block_bytes=2**62)
    shapes = {whole_name(name).removeprefix(_MODEL): (*t.shape,) for name, t in whole.items()}
    wrong = sorted(
        name
        for name in shapes.keys() | saved.keys()
        if name not in saved or shapes.get(name) != saved[name].shape
    )
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} tensors are missing, surplus or of another shape than "
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
