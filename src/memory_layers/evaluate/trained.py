"""Load the folder of a trained model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagConversionOff, Positional, arg

from memory_layers.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """What each command takes that loads a model."""

    model: Positional[Annotated[Path, arg(metavar="MODEL")]]
    """Folder of a model with its tokenizer, such as runs/NAME/model."""
    trust_remote_code: FlagConversionOff[bool] = False
    """Run code that lies in the model folder: for models whose memory has a `target_module`."""


def load_trained(folder: Path, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load a model that `train` wrote, whole, and its tokenizer.

    Args:
        folder: Its `model` folder.
        trust_remote_code: Run code that lies in the folder, which loads a model of a family that
            this package does not know.

    Raises:
        UserError: The folder holds no such model, or tensors are missing or of other shapes.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    import memory_layers.models  # noqa: F401  (registers memory models)
    from memory_layers.data.tokenizer import load_tokenizer

    check_folder(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded: {error}") from error
    model, report = loaded
    # transformers would continue with random weights.
    for problem in ("missing", "mismatched", "unexpected"):
        if names := sorted(map(str, report[f"{problem}_keys"])):
            raise UserError(
                f"{folder}: {len(names)} {problem} tensors, such as {names[0]}. "
                "hint: the folder is not what save_pretrained wrote, copy it again"
            )
    return model.eval(), load_tokenizer(folder)


def check_folder(folder: Path) -> None:
    """Refuse what is not the folder of a model.

    Raises:
        UserError: It is the folder of a run, or of something else.
    """
    # The folder of a run has a config.json too, of another kind.
    if (folder / "model").is_dir():
        raise UserError(f"{folder} is no model folder. hint: did you mean {folder / 'model'}?")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is no model folder: it has no config.json. "
            "hint: give the folder that training wrote, runs/NAME/model"
        )
