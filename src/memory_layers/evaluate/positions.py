"""How many tokens a model can read: what it makes of more means nothing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memory_layers.common.errors import UserError
from memory_layers.data.encode import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def longest_text(model: "PreTrainedModel") -> int:
    """Return how many tokens a model can read. Where it does not say: 2^20."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    return getattr(text, "max_position_embeddings", None) or 2**20


def check_lengths(
    model: "PreTrainedModel", texts: Sequence[str], rows: Sequence[Sequence[int]], extra: int = 0
) -> None:
    """Refuse texts that are longer than a model can read.

    GPT-2 ends in an error of its embeddings there, and others go on with what they never learned.

    Args:
        model: A causal language model.
        texts: What the rows are of, for the error.
        rows: Token ids of each.
        extra: Tokens that are to be added to each.

    Raises:
        UserError: Names the first, its tokens and those that the model can read.
    """
    most = longest_text(model)
    for text, row in zip(texts, rows, strict=True):
        if len(row) + extra > most:
            more = f", and {extra} are to be added" if extra else ""
            raise UserError(
                f"the text {text[:60]!r} has {len(row):,} tokens{more}, and the model reads at "
                f"most {most:,}. hint: shorten it{' or add fewer' if extra else ''}"
            )


def check_texts(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]
) -> None:
    """Refuse texts of which a model cannot read the last token and the end after it.

    Raises:
        UserError: As check_lengths.
    """
    # No token is less than a byte: most texts need not be encoded.
    long = [text for text in texts if len(text.encode()) >= longest_text(model)]
    if long:
        check_lengths(model, long, [text.ids for text in encode_texts(tokenizer, long)], 1)
