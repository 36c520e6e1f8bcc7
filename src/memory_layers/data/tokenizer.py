"""A byte-level BPE trained on the data, or any Hugging Face tokenizer folder."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from memory_layers.common.errors import UserError
from memory_layers.common.packages import needs
from memory_layers.common.untrusted import (
    MALFORMED,
    check_inside,
    check_named_files,
    code_of,
    code_refused,
    read_settings,
)
from memory_layers.data.tokenizer_checks import BACKEND, CONFIG, MARKS, check_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = "<|endoftext|>"
PAD = "<|pad|>"
# Bytes of a word, and characters of a text, that a tokenizer is trained on at once.
LONGEST_WORD, SLICE = 256, 1_000_000


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerBase":
    """Train a byte-level BPE: any text can be encoded, and decoding gives it back.

    What has no break for long is taken in parts of LONGEST_WORD bytes, since the time that a word
    takes grows with the square of its length.

    Args:
        texts: The training text.
        vocab_size: Most tokens, the 256 bytes and two special tokens included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = pre_tokenizers.FixedLength(length=LONGEST_WORD)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, parts])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = words
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def slices(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts in parts that a tokenizer learns from one at a time, however long a text is."""
    for text in texts:
        for start in range(0, len(text), SLICE):
            yield text[start : start + SLICE]


def load_tokenizer(
    folder: Path | str, *, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """Load a tokenizer folder, or the tokenizer of a name on the hub.

    Args:
        folder: A path is a folder, a string is a name.
        trust_remote_code: Run code that lies in the folder. Nobody is asked.

    Raises:
        UserError: The folder holds no fast tokenizer, one that is damaged, that needs code which is
            not trusted, or one without an end-of-text token.
    """
    from transformers import AutoTokenizer

    # Transformers takes a name for a folder where there is one.
    if Path(folder).is_dir():
        check_inside(Path(folder), trusted=trust_remote_code)
    settings = read_settings(folder, CONFIG)
    check_named_files(settings, str(folder))
    check_named_files(read_settings(folder, MARKS), str(folder), replaced=False)
    try:
        with _typed_errors():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                folder,
                local_files_only=isinstance(folder, Path),
                trust_remote_code=trust_remote_code,
            )
            # Some of what is wrong shows only here.
            used = {*tokenizer("a")["input_ids"]}
            repr(tokenizer.all_special_ids)
    # What is wrong in its files ends transformers with errors of many kinds.
    except (*MALFORMED, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise code_refused(str(folder), code_of(settings)) from error
        _refuse_damaged(folder, error)
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: the tokenizer must be a fast one (tokenizer.json)")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no eos_token. hint: set one and save again")
    check_tokenizer(tokenizer, used, read_settings(folder, BACKEND), str(folder))
    return tokenizer


def write_chat(
    tokenizer: Any,  # noqa: ANN401
    turns: Sequence[Mapping[str, str]],
    **options: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Write turns as the chat template of a tokenizer does.

    Args:
        tokenizer: With a chat template.
        turns: Each with `role` and `content`.
        **options: Of apply_chat_template.

    Raises:
        UserError: The template refuses the turns, or fails.
        ImportError: Jinja is not installed.
    """
    needs("jinja2")
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(turns), **options)
    # A template is a program that came with the folder, and fails as programs do.
    except (*MALFORMED, TemplateError) as error:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} refuses these turns "
            f"of {', '.join(turn['role'] for turn in turns)}: {error}. hint: correct their order, "
            "or look at chat_template.jinja"
        ) from error


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the number of embeddings that a model needs: one more than the largest id.

    Ids may have holes, so that this is more than the number of tokens.
    """
    return max(tokenizer.get_vocab().values()) + 1


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write a tokenizer into a folder.

    Raises:
        OSError: The disk is full or cannot be written.
    """

    def unwritten(reason: str) -> OSError:
        return OSError(f"{folder} cannot be written: {reason}. hint: free disk space")

    with _typed_errors(unwritten):
        tokenizer.save_pretrained(folder)


@contextmanager
def _typed_errors(typed: Callable[[str], Exception] = ValueError) -> Generator[None]:
    """Give a type to what tokenizers raises: Exception itself, and none of its classes."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise typed(str(error)) from error


def _refuse_damaged(folder: Path | str, error: Exception) -> NoReturn:
    """Say of a tokenizer that cannot be loaded which file is wrong."""
    from tokenizers import Tokenizer

    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    reason = lines[0].rstrip(":. ") if lines else type(error).__name__
    hint = f"hint: it needs {BACKEND} and {CONFIG}"
    where = f"{folder} holds no tokenizer that transformers can load"
    if isinstance(folder, Path) and (folder / BACKEND).is_file():
        try:
            with _typed_errors():
                Tokenizer.from_file(str(folder / BACKEND))
        except ValueError as broken:
            raise UserError(
                f"{folder / BACKEND} is no tokenizer: {broken}. hint: copy the file again"
            ) from broken
        hint = f"hint: {BACKEND} can be read, look at {CONFIG} and what else is beside it"
    raise UserError(f"{where}: {reason}. {hint}") from error
