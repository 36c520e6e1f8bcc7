"""A byte-level BPE trained on the data, or any Hugging Face tokenizer folder."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_layers.common.errors import UserError

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


def load_tokenizer(folder: Path | str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer folder, or the tokenizer of a name on the hub.

    Args:
        folder: A path is a folder, a string is a name.

    Raises:
        UserError: The folder holds no fast tokenizer, or one without an end-of-text token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=isinstance(folder, Path)
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(":. ")
        raise UserError(
            f"{folder} holds no tokenizer that transformers can load: {reason}. "
            "hint: it needs tokenizer.json and tokenizer_config.json"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: the tokenizer must be a fast one (tokenizer.json)")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no eos_token. hint: set one and save again")
    return tokenizer
