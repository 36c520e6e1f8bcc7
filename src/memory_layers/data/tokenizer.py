"""A byte-level BPE trained on the data, or any Hugging Face tokenizer folder."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from memory_layers.common.errors import UserError
from memory_layers.common.packages import needs
from memory_layers.common.untrusted import (
    check_inside,
    check_named_files,
    code_of,
    code_refused,
    read_settings,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = "<|endoftext|>"
PAD = "<|pad|>"
BACKEND, CONFIG = "tokenizer.json", "tokenizer_config.json"
# Ids without a token, beside as many as there are tokens: some families reserve a few thousand.
MOST_HOLES = 100_000
# Letters. Those in use have some ten thousand.
LONGEST_TEMPLATE = 1_000_000


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerBase":
    """Train a byte-level BPE: any text can be encoded, and decoding gives it back.

    Args:
        texts: The training text.
        vocab_size: Most tokens, the 256 bytes and two special tokens included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


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

    if isinstance(folder, Path) and folder.is_dir():
        check_inside(folder)
    settings = read_settings(folder, CONFIG)
    check_named_files(settings, str(folder))
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder,
            local_files_only=isinstance(folder, Path),
            trust_remote_code=trust_remote_code,
        )
        # Some of what is wrong shows only here.
        used = {*tokenizer("a")["input_ids"]}
    # What is wrong in its files ends transformers with errors of many kinds, and tokenizers raises
    # no class below Exception.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise code_refused(str(folder), code_of(settings)) from error
        _refuse_damaged(folder, error)
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: the tokenizer must be a fast one (tokenizer.json)")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no eos_token. hint: set one and save again")
    _check_ids(tokenizer, folder, used, read_settings(folder, BACKEND).get("added_tokens", []))
    _check_template(tokenizer, folder)
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
    try:
        return tokenizer.apply_chat_template(list(turns), **options)
    # A template is a program that came with the folder, and fails as any program does.
    except Exception as error:
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


def _refuse_damaged(folder: Path | str, error: Exception) -> NoReturn:
    """Say of a tokenizer that cannot be loaded which file is wrong."""
    from tokenizers import Tokenizer

    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    reason = lines[0].rstrip(":. ") if lines else type(error).__name__
    hint = f"hint: it needs {BACKEND} and {CONFIG}"
    where = f"{folder} holds no tokenizer that transformers can load"
    if isinstance(folder, Path) and (folder / BACKEND).is_file():
        try:
            Tokenizer.from_file(str(folder / BACKEND))
        except Exception as broken:
            raise UserError(
                f"{folder / BACKEND} is no tokenizer: {broken}. hint: copy the file again"
            ) from broken
        hint = f"hint: {BACKEND} can be read, look at {CONFIG} and what else is beside it"
    raise UserError(f"{where}: {reason}. {hint}") from error


def _check_ids(tokenizer: Any, folder: Path | str, used: set[int], added: Any) -> None:  # noqa: ANN401
    """Refuse ids that are not what the files say, or that no model can have."""
    from tokenizers.models import WordLevel, WordPiece

    ids = tokenizer.get_vocab()
    tokens = {number: token for token, number in ids.items()}
    if len(tokens) < len(ids):
        token, number = next((t, n) for t, n in ids.items() if tokens[n] != t)
        raise UserError(
            f"{folder}: the tokens {token!r} and {tokens[number]!r} have both the id {number}. "
            f"hint: copy {BACKEND} again"
        )
    special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    if tokens.keys() <= special and not used:
        raise UserError(
            f"{folder}: the tokenizer has {len(tokens)} special tokens and no others, so that "
            f"texts have no tokens. hint: copy {BACKEND} again"
        )
    # Added tokens are not in it: only the model's own can stand for unknown words.
    own = tokenizer.backend_tokenizer.model
    if isinstance(own, WordLevel | WordPiece) and own.token_to_id(own.unk_token) is None:
        raise UserError(
            f"{folder}: the token of unknown words, {own.unk_token!r}, is not in the vocabulary. "
            f"hint: add it to the vocabulary of {BACKEND}"
        )
    if vocabulary_size(tokenizer) > 2 * len(tokens) + MOST_HOLES:
        raise UserError(
            f"{folder}: ids of tokens reach {vocabulary_size(tokenizer) - 1:,}, expected less "
            f"than {2 * len(tokens) + MOST_HOLES:,}, as there are {len(tokens):,} tokens. hint: "
            f"copy {BACKEND} again"
        )
    for entry in added:
        # An id that another token has, or beyond the next one, is exchanged when it is read.
        if (found := ids.get(entry["content"])) != entry["id"]:
            raise UserError(
                f"{folder}: {BACKEND} gives the token {entry['content']!r} the id {entry['id']}, "
                f"which becomes {found}: another token has it, or ids before it are missing. "
                "hint: save the tokenizer again with the ids that the model was trained with"
            )
    if unknown := used - tokens.keys():
        raise UserError(
            f"{folder}: the tokenizer gives texts the id {min(unknown)}, which no token has. "
            f"hint: look at post_processor in {BACKEND}"
        )


def _check_template(tokenizer: Any, folder: Path | str) -> None:  # noqa: ANN401
    """Refuse a chat template that could not be used, whatever is said."""
    given = tokenizer.chat_template
    templates = given if isinstance(given, dict) else {"chat_template": given}
    for name, template in templates.items():
        problem = ""
        if not isinstance(template, str | None):
            problem = f"must be text, got {type(template).__name__}"
        elif template is not None and len(template) > LONGEST_TEMPLATE:
            problem = f"has {len(template):,} letters, expected {LONGEST_TEMPLATE:,} at most"
        if problem:
            raise UserError(
                f"{folder}: the chat template {name!r} {problem}. hint: look at "
                f"chat_template.jinja and {CONFIG}"
            )
