"""DataConfig: what a run is trained on and asked about."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memory_layers.common.checks import MOST_WORDS, check_path, check_seed
from memory_layers.common.paths import expand

MOST_EXPOSURES = 10**6
BUILTIN = "builtin"
SHORT = "short"
SHORT_TEMPLATES = Path(__file__).with_name("short_templates.yaml")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where training text and questions come from.

    Attributes:
        facts: "builtin" for the real facts of installed packages, or a folder with facts.jsonl
            and templates.yaml. None: no facts.
        text: Files or folders of running text, .txt or .jsonl with a `text` field. "builtin" for
            the prose in the documentation of the installed Python. A line `<|endoftext|>` of a .txt
            file begins another document.
        text_heldout: Share of the running text kept out of training, to measure the loss on it.
        relations: Relations to use of the built-in facts. Empty: all that are real, not invented.
            Users' facts are used whole.
        templates: A file such as templates.yaml with wordings for the built-in facts, or "short"
            for short ones that come with the package. None: their own, four a fact.
        max_subjects: Subjects to keep of each built-in source. None: all, a million facts. Users'
            facts are used whole.
        exposures: How often a fact is stated in an epoch: each subject takes one of these numbers,
            as many subjects each, so that a number named more often is given to more of them. 0:
            such facts are in no document, and what is answered there is guessed. Beyond the number
            of wordings they repeat, and so does the question of a shown subject. Empty: once in
            each wording.
        loss_on: Tokens of a fact's documents that are predicted: "all", or "answers" for those of
            the answer and the one after it. Running text is predicted whole.
        shown_fraction: Share of the subjects whose facts also appear as questions.
        tokenizer: Folder of a Hugging Face tokenizer. None: train a byte-level BPE on the data.
        vocab_size: Size of the tokenizer to train.
        cache_dir: Where prepared data is kept. None: memory-layers in the user's cache folder.
        seed: Decides which subjects are kept and which people are invented, how often they are
            stated and which are shown as questions.
    """

    facts: str | None = BUILTIN
    text: tuple[str, ...] = ()
    text_heldout: float = 0.02
    relations: tuple[str, ...] = ()
    templates: str | None = None
    max_subjects: int | None = None
    exposures: tuple[int, ...] = ()
    loss_on: Literal["all", "answers"] = "all"
    shown_fraction: float = 0.5
    tokenizer: str | None = None
    vocab_size: int = 2048
    cache_dir: str | None = None
    seed: int = 0

    @property
    def templates_file(self) -> Path | None:
        """The file that `templates` stands for."""
        if self.templates == SHORT:
            return SHORT_TEMPLATES
        return None if self.templates is None else Path(self.templates)

    def __post_init__(self) -> None:
        """Refuse combinations in which a field would have no effect or no data is left."""
        for name in ("facts", "templates", "tokenizer", "cache_dir"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, expand(path))
                check_path(f"data.{name}", getattr(self, name))
        object.__setattr__(self, "text", tuple(map(expand, self.text)))
        for n, source in enumerate(self.text):
            check_path(f"data.text[{n}]", source)
        check_seed("data.seed", self.seed)
        if self.facts is None and not self.text:
            raise ValueError("data.facts and data.text are both empty. hint: facts: builtin")
        if not 0 < self.shown_fraction < 1:
            raise ValueError(
                f"data.shown_fraction must lie between 0 and 1, got {self.shown_fraction}"
            )
        if not 0 <= self.text_heldout < 1:
            raise ValueError(f"data.text_heldout must lie in [0, 1), got {self.text_heldout}")
        if self.tokenizer is None and not 300 <= self.vocab_size <= MOST_WORDS:
            raise ValueError(
                f"data.vocab_size must be at least 300 (256 bytes and room) and at most "
                f"{MOST_WORDS}, got {self.vocab_size}"
            )
        if self.max_subjects is not None and self.max_subjects < 2:
            raise ValueError(f"data.max_subjects must be at least 2, got {self.max_subjects}")
        if any(isinstance(n, bool) or not 0 <= n <= MOST_EXPOSURES for n in self.exposures):
            raise ValueError(
                f"data.exposures must be whole numbers >= 0, at most {MOST_EXPOSURES}, got "
                f"{self.exposures}"
            )
        if self.exposures and not any(self.exposures):
            raise ValueError(
                f"data.exposures must have a number above 0, got {self.exposures}: no fact would "
                "be stated. hint: [0, 1, 2, 4, 8, 16, 32, 64]"
            )
        for name, default in (("exposures", ()), ("loss_on", "all")):
            if self.facts is None and getattr(self, name) != default:
                raise ValueError(
                    f"data.{name} has no effect without data.facts. hint: leave it out"
                )
        if self.templates is not None and self.facts != BUILTIN:
            raise ValueError(
                "data.templates is for the built-in facts, got data.facts = "
                f"{self.facts!r}. hint: put templates.yaml into the folder of the facts"
            )
        for name in ("facts", "tokenizer"):
            folder = getattr(self, name)
            if folder not in (None, BUILTIN) and not Path(folder).is_dir():
                raise ValueError(
                    f"data.{name} must be a folder, {folder!r} is none. hint: check the path"
                )
