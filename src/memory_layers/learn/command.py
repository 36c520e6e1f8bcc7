"""Teach a pretrained model from files, or take facts out of what it learned, as a command."""

import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagConversionOff, FlagCreatePairsOff, Positional, arg

from memory_layers.common.checks import check_seed
from memory_layers.common.errors import UserError
from memory_layers.common.packages import quiet_transformers
from memory_layers.common.paths import IS_PATH
from memory_layers.common.text import show
from memory_layers.common.untrusted import read_settings
from memory_layers.evaluate.trained import (
    DESCRIPTION,
    check_model,
    check_patch_out,
    load_trained,
    taken_out,
)
from memory_layers.learn.display import Display

if TYPE_CHECKING:
    from memory_layers.learn.result import LearnResult
    from memory_layers.learn.sources import Look


@dataclass(frozen=True, kw_only=True)
class Learn:
    """Teach a pretrained model new facts, in memory beside it, and keep what it knew.

    The base stays as it is. OUT gets the rows of memory that were written, a patch, and the report.
    Ctrl-C ends the teaching and keeps what was learned. A killed one goes on by the same command.

    Example: memory-layers learn smollm2 my_facts --out taught

    Example: memory-layers learn my_model questions.jsonl notes.txt --weights 1 0.5 --out taught

    Example: memory-layers learn smollm2 more.csv --onto taught --out taught_more

    Example: memory-layers learn smollm2 --onto taught --forget Ilulissat --out taught_less
    """

    model: Positional[Annotated[str, arg(metavar="MODEL"), IS_PATH]]
    """Folder of a model with its tokenizer, a name of the Hugging Face hub, or smollm2."""
    data: Positional[Annotated[tuple[str, ...], arg(metavar="DATA..."), IS_PATH]] = ()
    """Folders of facts.jsonl and templates.yaml, or files: JSON lines, CSV, Parquet or text."""
    out: Path | None = None
    """Folder of the patch. A teaching that was killed there goes on."""
    weights: tuple[float, ...] = ()
    """How often the rows of each DATA are shown in a pass. Default: once."""
    minutes: float = 15.0
    """Most minutes. It ends earlier when it has learned."""
    passes: int | None = None
    """Most passes through the data. Default: 40."""
    seed: int = 0
    """Of the memory and of the order of the data."""
    lr: float | None = None
    """Learning rate of the rows. Default: the one that was measured to be good."""
    max_length: int = 512
    """Most tokens of a text. Longer ones are cut."""
    background: tuple[Path, ...] = ()
    """Files of text to leave alone, of the kind that the model is used for. Beside them stands
    what the model writes itself."""
    keep: tuple[Path, ...] = ()
    """Files of prompts and completions to leave alone. Those about subjects of facts are
    trained on too. Which of them the model answers, and still does at the end, is reported."""
    chat: FlagCreatePairsOff[bool] = False
    """Word facts as turns of a conversation too. Default: if the tokenizer has a chat template."""
    no_chat: FlagCreatePairsOff[bool] = False
    """Do not."""
    shown_fraction: float = 1.0
    """Share of the subjects of facts whose questions are trained on. The others show whether
    questions are answered from statements alone."""
    wordings: int = 4
    """Prompts to train on for each question, as a prompt or in a chat. Where you give fewer, some
    words of yours are left out, each time others: so other words bring the answer too. 1: none."""
    known: Literal["skip", "train"] = "skip"
    """What to do with facts that the model knows already. They are listed."""
    onto: Path | None = None
    """An earlier patch of the same base, to go on from."""
    forget: tuple[str, ...] = ()
    """Without DATA: take facts with these texts in their prompt or answer out of --onto."""
    author: str = ""
    """Who teaches, for the record in the patch."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type that the base computes in. Default: float32 on a CPU, on a GPU that of its weights."""
    trust_remote_code: FlagConversionOff[bool] = False
    """Run code that lies in the model folder. Read it first."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Look at the data, and stop before the model is loaded."""

    def __call__(self) -> str | int:
        """Teach, and show the data, the progress and the report.

        Returns:
            The exit code, or what is to be shown.

        Raises:
            UserError: An argument or the data is wrong, or OUT holds something else.
            ImportError: A package that is needed is not installed.
            OSError: The disk is full or cannot be written.
        """
        _check(self)
        check_model(self.model)
        if self.forget:
            return self._take_out()
        quiet_transformers()
        if self.dry_run:
            return str(self._look())
        from memory_layers.learn.report import text_report

        with Display(self.minutes) as display:
            result = self._learn(display)
        show(f"\n{text_report(result)}\nreport: {Path(result.out) / 'report.html'}")
        if result.stopped != "interrupted":
            return 0
        sys.stderr.write(
            "interrupted: what was learned is kept. hint: to go on, the same with "
            f"--onto {result.out} and another --out\n"
        )
        return 130

    @property
    def _chat(self) -> bool | None:
        return True if self.chat else False if self.no_chat else None

    def _learn(self, progress: Display) -> "LearnResult":
        import torch

        from memory_layers.learn.teach import learn

        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("passes", "lr", "onto")
            if getattr(self, name) is not None
        }
        if self.dtype is not None:
            given["dtype"] = getattr(torch, self.dtype)
        return learn(
            self.model,
            list(self.data),
            out=self.out,
            weights=self.weights,
            minutes=self.minutes,
            seed=self.seed,
            max_length=self.max_length,
            background=self.background,
            keep=self.keep,
            chat=self._chat,
            shown_fraction=self.shown_fraction,
            wordings=self.wordings,
            known=self.known,
            author=self.author,
            trust_remote_code=self.trust_remote_code,
            progress=progress,
            **given,
        )

    def _look(self) -> "Look":
        """Read the data, which needs no more of the model than its tokenizer."""
        from memory_layers.data.tokenizer import load_tokenizer
        from memory_layers.learn.lesson import HAS_MEMORY
        from memory_layers.learn.sources import read_data
        from memory_layers.models import resolve_model

        model = resolve_model(self.model)
        if read_settings(model, "config.json").get("memory"):
            raise UserError(HAS_MEMORY)
        tokenizer = load_tokenizer(model, trust_remote_code=self.trust_remote_code)
        with Display(self.minutes) as display:
            return read_data(
                list(self.data),
                tokenizer,
                max_length=self.max_length,
                weights=self.weights,
                shown_fraction=self.shown_fraction,
                chat=self._chat,
                wordings=self.wordings,
                seed=self.seed,
                progress=display.work,
            ).look

    def _take_out(self) -> str:
        """Revert the rows of facts, and write the patch that remains."""
        quiet_transformers()
        from memory_layers.learn.report import save_patch
        from memory_layers.models import patch_of, revert_patch

        model, _ = load_trained(
            self.model, memory=self.onto, trust_remote_code=self.trust_remote_code
        )
        patch = patch_of(model)
        found = revert_patch(model, patch.ids, self.forget)
        assert self.out is not None
        count = len(found.rows)
        lines = [f"forgotten: {count:,} row{'s' * (count != 1)}", *taken_out(patch, found)]
        return "\n".join([*lines, *save_patch(patch_of(model), self.out)])


def _check(asked: Learn) -> None:
    """Refuse what cannot be meant, before anything heavy is loaded."""
    if asked.out is None and not asked.dry_run:
        raise UserError("--out is missing, expected a folder for the patch. hint: --out taught")
    if asked.onto is not None and not (asked.onto / DESCRIPTION).is_file():
        raise UserError(
            f"--onto {asked.onto} is no patch: it has no {DESCRIPTION}. hint: a folder that "
            "`learn` wrote"
        )
    if asked.forget:
        _check_forget(asked)
        return
    if not asked.data:
        raise UserError(
            "DATA is missing, expected files or folders to learn from. hint: memory-layers learn "
            "smollm2 my_facts --out taught"
        )
    if asked.out is not None and asked.out.exists() and not asked.out.is_dir():
        raise UserError(f"--out {asked.out} is a file, expected a folder. hint: name another")
    if asked.chat and asked.no_chat:
        raise UserError("--chat and --no-chat exclude one another. hint: give one of them")
    check_seed("--seed", asked.seed)
    for name, value in (("minutes", asked.minutes), ("lr", asked.lr)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} must be a finite number > 0, got {value}")
    for name, count in (("passes", asked.passes), ("wordings", asked.wordings)):
        if count is not None and count < 1:
            raise UserError(f"--{name} must be >= 1, got {count}")
    named = [*asked.data, *asked.background, *asked.keep]
    for path in named:
        if not Path(path).exists():
            raise UserError(
                f"{path}: there is no such file, expected a file or a folder of facts, got "
                "nothing. hint: check the path"
            )


def _check_forget(asked: Learn) -> None:
    if asked.data:
        raise UserError(
            "--forget takes no DATA. hint: forget first, and learn the data --onto what remains"
        )
    if asked.onto is None or asked.out is None:
        raise UserError("--forget needs --onto, the patch to take facts out of, and --out")
    for field in fields(Learn):
        own = field.name in ("model", "data", "out", "onto", "forget", "trust_remote_code")
        if not own and getattr(asked, field.name) != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            raise UserError(f"{flag} has no effect with --forget. hint: leave it out")
    check_patch_out(asked.out, asked.onto)
