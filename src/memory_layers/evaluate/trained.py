"""Load a model for use: the folder of a trained one or any pretrained one, and a memory onto it."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagConversionOff, Positional, arg

from memory_layers.common.errors import UserError, is_out_of_memory, placed
from memory_layers.common.files import is_left
from memory_layers.common.packages import PACKAGED, needs
from memory_layers.common.paths import IS_PATH, may_be_on_hub
from memory_layers.common.untrusted import (
    MALFORMED,
    check_inside,
    code_of,
    code_refused,
    read_settings,
)
from memory_layers.data.lines import shorten

if TYPE_CHECKING:
    from memory_layers.models import Patch
    from memory_layers.models.patches import Selection

# As save_memory writes it.
DESCRIPTION = "memory.json"
# As PEFT writes it.
ADAPTER = "adapter_config.json"
# Settings of generating that nearly every model has and that cannot be wrong here.
_PLAIN_SETTINGS = frozenset(
    {"_from_model_config", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id"}
)


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """What each command takes that loads a model."""

    model: Positional[Annotated[str, arg(metavar="MODEL"), IS_PATH]]
    """Folder of a model with its tokenizer, a name of the Hugging Face hub, or smollm2."""
    memory: Path | None = None
    """Folder of a memory that was taught on MODEL."""
    trust_remote_code: FlagConversionOff[bool] = False
    """Run code that lies in the model folder: for models whose memory has a `target_module`. Read
    it first. Links that lead out of the folder are followed then. In `eval` also what task files
    name, and let them read what is outside of their folder."""


def load_trained(
    model: str | Path,
    *,
    memory: Path | None = None,
    trust_remote_code: bool = False,
    dtype: Any = "auto",  # noqa: ANN401
) -> tuple[Any, Any]:
    """Load a model, whole, and its tokenizer.

    Args:
        model: A folder, such as the `model` folder of a run, or a name that resolve_model knows.
        memory: Folder of a memory that was taught on the model, to put onto it.
        trust_remote_code: Run code that lies in the folder, which loads a model of a family that
            this package does not know. Nobody is asked.
        dtype: torch.dtype to load it in. "auto": that of the folder.

    Returns:
        The model, in eval mode, whose `generate` ends at the end-of-text token of the tokenizer
        too, and the tokenizer.

    Raises:
        UserError: There is no such model, it needs code that is not trusted, tensors are missing or
            of other shapes, the tokenizer has tokens that the model has not, or the memory is that
            of another base.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from memory_layers.data.tokenizer import load_tokenizer
    from memory_layers.models import resolve_model
    from memory_layers.models.classes import MemoryModelMixin
    from memory_layers.models.intact import check_checksums, check_folder, check_numbers

    check_model(model, memory)
    found = resolve_model(model)
    local = isinstance(found, Path)
    if local:
        check_inside(Path(found), trusted=trust_remote_code)
    settings = read_settings(found, "config.json")
    if not trust_remote_code and (kernels := _kernels(settings)):
        raise code_refused(str(model), kernels)
    try:
        if local:
            check_folder(Path(found), trust_remote_code=trust_remote_code)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            found,
            local_files_only=local,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
        )
    except UserError as error:
        raise placed(error, found) from error
    # What is wrong in its files ends transformers with errors of many kinds.
    except (*MALFORMED, SafetensorError, StrictDataclassError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise code_refused(str(model), code_of(settings)) from error
        reason = " ".join(str(error).split())
        if isinstance(error, LookupError | ArithmeticError | RecursionError):
            reason = f"{type(error).__name__}: {reason}"
        raise UserError(
            f"{model} cannot be loaded: {reason}. hint: look at its config.json and "
            "generation_config.json, or copy the folder again"
        ) from error
    base, report = loaded
    # transformers would continue with random weights.
    for problem in ("missing", "mismatched", "unexpected"):
        if names := sorted(map(str, report[f"{problem}_keys"])):
            raise UserError(
                f"{model}: {len(names)} {problem} tensors, such as {names[0]}. "
                "hint: the folder is not what save_pretrained wrote, copy it again"
            )
    # A model with memory has been looked at when it was loaded.
    if not isinstance(base, MemoryModelMixin):
        check_numbers(base, Path(found), is_whole=check_checksums(Path(found)))
    tokenizer = load_tokenizer(found, trust_remote_code=trust_remote_code)
    _check_vocabulary(base, tokenizer, str(model))
    _check_generation(base.eval(), tokenizer, str(model))
    return complete(base, tokenizer, memory), tokenizer


def _kernels(settings: dict[str, Any]) -> list[str]:
    """Return the kernels that a configuration names, whose code comes from the hub."""
    named = (settings.get(f"{start}attn_implementation") for start in ("", "_"))
    return sorted({name for name in named if isinstance(name, str) and "/" in name})


def _check_generation(model: Any, tokenizer: Any, name: str) -> None:  # noqa: ANN401
    """Refuse what a generation_config.json asks for and cannot be done, or only by code of the hub.

    What is generated are token ids, whatever it says.
    """
    import torch
    from transformers.generation import GenerationMode

    # A class that cannot generate has none.
    if (settings := getattr(model, "generation_config", None)) is None:
        return
    asked = settings.get_generation_mode()
    if asked not in (
        GenerationMode.GREEDY_SEARCH,
        GenerationMode.SAMPLE,
        GenerationMode.BEAM_SEARCH,
        GenerationMode.BEAM_SAMPLE,
        GenerationMode.ASSISTED_GENERATION,
    ):
        raise UserError(
            f"{name}: generation_config.json asks for {asked.value.replace('_', ' ')}, which needs "
            "code of the hub. hint: take it out of that file"
        )
    settings.return_dict_in_generate = False
    # bitsandbytes lays out 4-bit weights for inference on the device that computes first.
    if settings.to_diff_dict().keys() <= _PLAIN_SETTINGS or getattr(model, "is_quantized", False):
        return
    for sampling in ({"do_sample": False}, {"do_sample": True, "temperature": 1.0}):
        first = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        try:
            # It is on the CPU yet. Without a list all GPUs of the machine would be started.
            with torch.random.fork_rng(devices=[]):
                model.generate(first, max_new_tokens=1, tokenizer=tokenizer, **sampling)
        except MALFORMED as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{name} does not generate: {' '.join(str(error).split())}. hint: look at its "
                "generation_config.json"
            ) from error


def _check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:  # noqa: ANN401
    """Refuse a tokenizer with tokens for text that the model has no embeddings of.

    Some families have marks, for images and the like, that their text models lack.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    marks = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    marks -= {tokenizer.eos_token_id, *tokenizer("a")["input_ids"]}
    beyond = [
        token for token, number in tokenizer.get_vocab().items()
        if number >= rows and number not in marks
    ]  # fmt: skip
    if beyond:
        raise UserError(
            f"{name}: the tokenizer has {len(beyond):,} tokens, such as {beyond[0]!r}, beyond the "
            f"{rows:,} embeddings of the model. hint: take the tokenizer that belongs to the model"
        )


def complete(model: Any, tokenizer: Any, memory: Path | None) -> Any:  # noqa: ANN401
    """Put a memory onto its base, if there is one, and let answers end, in place.

    Args:
        model: The base.
        tokenizer: Its tokenizer, whose end-of-text token ends what the model generates, beside
            those that the model names itself.
        memory: Folder of the memory. None: there is none.

    Raises:
        UserError: The memory is that of another base, or damaged.
    """
    from memory_layers.models import load_memory

    if memory is not None:
        load_memory(model, memory)
    if (settings := getattr(model, "generation_config", None)) is None:
        return model
    ends = settings.eos_token_id
    ends = ends if isinstance(ends, list) else [ends] if ends is not None else []
    if tokenizer.eos_token_id not in ends:
        settings.eos_token_id = [tokenizer.eos_token_id, *ends]
    return model


def check_model(model: str | Path, memory: Path | None = None) -> None:
    """Refuse what is no model, or no memory, before anything heavy is loaded.

    Args:
        model: As for load_trained.
        memory: As for load_trained.

    Raises:
        UserError: A folder is that of a run, or of something else, or neither a folder nor the hub
            has the model.
    """
    # A folder of such a name is ./smollm2, as for resolve_model.
    if isinstance(model, str) and model in PACKAGED:
        needs(PACKAGED[model], "gguf")
    elif (folder := Path(model).expanduser()).is_dir():
        _check_folder(folder)
    else:
        _check_name(str(model))
    if memory is not None and not (memory / DESCRIPTION).is_file():
        inside = memory / "memory"
        found = (inside / DESCRIPTION).is_file()
        hint = f"did you mean {inside}?" if found else "give the folder that save_memory wrote"
        raise UserError(f"--memory {memory} is no memory: it has no {DESCRIPTION}. hint: {hint}")


def check_patch_out(out: Path, onto: Path | None = None) -> None:
    """Refuse to write a patch where something else is.

    Args:
        out: Missing, empty but for what a killed process left, or a patch, which is replaced.
        onto: The one patch that may be replaced. None: any.

    Raises:
        UserError: `out` is something else.
    """
    if not out.exists() or (out.is_dir() and all(is_left(path.name) for path in out.iterdir())):
        return
    if not (out / DESCRIPTION).is_file():
        raise UserError(f"--out {out} exists and is not a patch. hint: choose another folder")
    if onto is not None and not out.samefile(onto):
        raise UserError(
            f"--out {out} has another patch, expected none, or that of --onto {onto}. "
            "hint: choose another folder"
        )


def taken_out(patch: "Patch", selection: "Selection") -> list[str]:
    """Say, for people, what a revert has found of single facts.

    Args:
        patch: As it was before.
        selection: What goes.
    """
    import torch

    lines = [
        f"  {fact.prompt} {shorten(fact.answer)[1:-1]}"
        for teaching in patch.teachings
        for fact in (teaching.facts[n] for n in (selection.facts or {}).get(teaching.id, ()))
    ]
    if count := len(selection.kept):
        lines.append(f"kept: {count:,} row{'s' * (count > 1)} that others hang on too")
        on: dict[bool, list[str]] = {True: [], False: []}
        for teaching in patch.teachings:
            numbers = (selection.facts or {}).get(teaching.id, ())
            for n, fact in enumerate(teaching.facts):
                if torch.isin(fact.rows, selection.kept).any():
                    on[n in numbers].append(fact.prompt)
        lines.append(
            f"may still be answered with these: {_some(on[True])}. hint: take out what hangs on "
            f"them too, and teach it again: {_some(on[False])}"
        )
    if selection.readers:
        lines.append(f"may be answered otherwise now: {_some(selection.readers)}")
    return lines


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _check_folder(folder: Path) -> None:
    # The folder of a run has a config.json too, of another kind.
    if (folder / "model").is_dir():
        raise UserError(f"{folder} is no model folder. hint: did you mean {folder / 'model'}?")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is no model folder: it has no config.json. "
            "hint: give the folder that training wrote, runs/NAME/model"
        )
    # Transformers would put it onto the model where PEFT is installed, and else pass over it.
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"{folder} has an adapter of PEFT beside the model, {ADAPTER}. hint: load both in "
            "Python, and save what merge_and_unload() returns"
        )


def _check_name(name: str) -> None:
    # Before the hub is asked, which takes long where there is no network.
    if close := get_close_matches(name, PACKAGED, n=1):
        raise UserError(f"{name} is no model folder. hint: did you mean {close[0]}?")
    if not may_be_on_hub(name):
        found = "it is a file" if Path(name).is_file() else "it does not exist"
        raise UserError(
            f"{name} is no model folder: {found}. hint: the folder that training wrote, "
            "runs/NAME/model"
        )
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(name, "config.json")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} is no model folder, and the Hugging Face hub, or its cache, gives no such "
            "model. hint: the folder that training wrote, runs/NAME/model"
        ) from error
