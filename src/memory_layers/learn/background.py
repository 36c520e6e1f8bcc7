"""Text that has nothing to do with what is taught: the base's own, Python's, or users'."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from memory_layers.common.checks import check_whole
from memory_layers.common.errors import UserError
from memory_layers.common.files import cache_folder, replacing
from memory_layers.common.progress import Report, counted
from memory_layers.common.tensors import save_tensors
from memory_layers.data.prose import help_text
from memory_layers.data.text import iter_text
from memory_layers.data.tokenizer import vocabulary_size
from memory_layers.evaluate.positions import longest_text
from memory_layers.learn.sources.encode import Encoder
from memory_layers.learn.turns import frame_of_turns
from memory_layers.models import base_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Of what is sampled from.
TOP_K = 200
# Rows that are written side by side.
ROWS = 96
# Tokens of a row of text that the model did not write.
LENGTH = 256
# Characters of users' text that are looked at, for each token that is taken.
ENOUGH = 100


def own_text(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tokens: int = 10_000,
    *,
    length: int = 140,
    seed: int = 0,
    progress: Report | None = None,
) -> Tensor:
    """Let a base write text, sampled from all that it would write.

    One half begins as texts begin. The other begins as a turn of the user, if the tokenizer has a
    chat template. What was written once is kept in the user's cache folder, for this base.

    Args:
        model: A base. Memory that it has must be silent.
        tokenizer: Of the base, a fast one.
        tokens: About how many to write, beginnings included.
        length: L, of a row, or as many as the model can read.
        seed: Another one brings another text.
        progress: Called with the number of tokens of a row that are written.

    Returns:
        [n, L] int64 token ids. Of the rows of even and of odd numbers one half begins either way.

    Raises:
        UserError: An argument is too small.
    """
    length = min(length, longest_text(model))
    check_whole("tokens", tokens, 1)
    check_whole("length", length, 2)
    rows = max(2, round(tokens / length))
    openings = _openings(tokenizer, length)
    name = f"{base_digest(model)}-{seed}-{rows}x{length}x{len(openings)}.safetensors"
    path = cache_folder() / "own-text" / name
    with contextlib.suppress(FileNotFoundError, SafetensorError, KeyError):
        found = load_file(path)["ids"]
        if found.shape == (rows, length):
            return found.long()
    # In pairs, so that every other row has both.
    starts = [openings[n // 2 % len(openings)] for n in range(rows)]
    steps = [(low, t) for low in range(0, rows, ROWS) for t in range(length - 1)]
    done = iter(counted(steps, len(steps), "the base writes text", progress))
    size = vocabulary_size(tokenizer)
    parts = [
        _write(model, size, starts[low : low + ROWS], length, seed + 7919 * low, done)
        for low in range(0, rows, ROWS)
    ]
    # Ends the progress.
    next(done, None)
    ids = torch.cat(parts)
    # Without a cache the text is written again the next time.
    with contextlib.suppress(OSError), replacing(path) as (part,):
        save_tensors({"ids": ids.int()}, part)
    return ids


def own_questions(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: int = 200,
    *,
    length: int = 48,
    seed: int = 0,
    progress: Report | None = None,
) -> Tensor:
    """Let a base write short texts and what its users ask, up to where the assistant begins.

    Names, and words that questions begin with, stand at the beginning of a text more often than in
    what `own_text` writes.

    Args:
        model: As for `own_text`.
        tokenizer: As for `own_text`.
        rows: About how many to write.
        length: Of a row, without what begins an answer.
        seed: As for `own_text`.
        progress: As for `own_text`.

    Returns:
        [n, L] int64 token ids, as `own_text` has them.
    """
    ids = own_text(model, tokenizer, rows * length, length=length, seed=seed, progress=progress)
    frame = frame_of_turns(tokenizer)
    behind = torch.tensor(frame.asked_last if frame else [], dtype=torch.int64)
    return torch.cat([ids, behind.expand(len(ids), -1)], 1)


@torch.no_grad()
def _write(
    model: Any,  # noqa: ANN401  (PreTrainedModel's forward takes anything)
    vocab_size: int,
    starts: Sequence[Sequence[int]],
    length: int,
    seed: int,
    done: Iterable[object],
) -> Tensor:
    """Continue rows up to a length: [len(starts), length] int64."""
    was_training = model.training
    model.eval()
    random = torch.Generator().manual_seed(seed)
    # Rows follow their beginnings as far as these go, so that all are of one length.
    ids = torch.full((len(starts), length), -1)
    for n, start in enumerate(starts):
        ids[n, : len(start)] = torch.tensor(start)
    cache = None
    for t, _ in zip(range(length - 1), done, strict=False):
        out = model(
            input_ids=ids[:, t : t + 1].to(model.device), past_key_values=cache, use_cache=True
        )
        cache = out.past_key_values
        logits = out.logits[:, -1, :vocab_size].float().cpu()
        best, which = logits.topk(min(TOP_K, logits.shape[-1]), -1)
        drawn = torch.multinomial(best.softmax(-1), 1, generator=random)
        drawn = which.gather(1, drawn)[:, 0]
        ids[:, t + 1] = torch.where(ids[:, t + 1] < 0, drawn, ids[:, t + 1])
    model.train(was_training)
    return ids


def _openings(tokenizer: "PreTrainedTokenizerBase", length: int) -> list[list[int]]:
    """Return how texts begin, and turns of a user."""
    openings = [beginning(tokenizer)]
    if (frame := frame_of_turns(tokenizer)) and frame.opening:
        # At least half of a row is the base's own.
        openings.append(frame.opening[-(length // 2) :])
    return openings


def beginning(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens that a text begins with where nothing stands before it."""
    if begin := Encoder(tokenizer).begin:
        return begin
    # What separates texts in training. An instruct model may have another token as eos.
    known = tokenizer.get_vocab()
    for name in ("<|endoftext|>", "<|end_of_text|>", tokenizer.bos_token, tokenizer.eos_token):
        if name in known:
            return [known[name]]
    raise UserError("the tokenizer has no eos_token, expected one. hint: tokenizer.eos_token = ...")


def packaged_text(
    tokenizer: "PreTrainedTokenizerBase", tokens: int = 4_000, *, length: int = LENGTH
) -> Tensor:
    """Return prose of Python's documentation, which comes with Python, in tokens.

    Args:
        tokenizer: A fast one.
        tokens: About how many, spread over all of it.
        length: L, of a row.

    Returns:
        [n, L] int64 token ids.
    """
    return _spread(_cut(help_text(), tokenizer, length), tokens)


def users_text(
    paths: Sequence[str | Path],
    tokenizer: "PreTrainedTokenizerBase",
    tokens: int = 20_000,
    *,
    length: int = LENGTH,
) -> Tensor:
    """Return the text of files in tokens.

    Args:
        paths: .txt files, .jsonl files with the field `text`, or folders of such files.
        tokenizer: A fast one.
        tokens: About how many, spread over all of it, or over its beginning if it is large.
        length: L, of a row.

    Returns:
        [n, L] int64 token ids.

    Raises:
        UserError: A file cannot be read, or all of them have less text than two rows.
    """
    documents, room = [], ENOUGH * tokens
    for document in (document for path in paths for document in iter_text(Path(path))):
        documents.append(document[:room])
        room -= len(document)
        if room <= 0:
            break
    rows = _cut(documents, tokenizer, length)
    # One is what the memory is silent in, the other one shows what that is worth.
    if len(rows) < 2:
        raise UserError(
            f"{', '.join(map(str, paths))}: too short for a background text, expected at least "
            f"{2 * length} tokens. hint: give more text"
        )
    return _spread(rows, tokens)


def _cut(documents: Iterable[str], tokenizer: "PreTrainedTokenizerBase", length: int) -> Tensor:
    """Return documents, one after the other, as rows that begin as texts do: [n, length] int64."""
    encoder = Encoder(tokenizer)
    stream: list[int] = []
    for ids in encoder.tokens(list(documents)):
        stream += [*ids, encoder.eos]
    own = length - len(encoder.begin)
    rows = torch.tensor(stream[: len(stream) // own * own], dtype=torch.int64).view(-1, own)
    begin = torch.tensor(encoder.begin, dtype=torch.int64).expand(len(rows), -1)
    return torch.cat([begin, rows], 1)


def _spread(rows: Tensor, tokens: int) -> Tensor:
    """Return so many of the rows, spread evenly over them."""
    count = min(len(rows), max(2, round(tokens / rows.shape[1])))
    return rows[torch.arange(count) * len(rows) // count]
