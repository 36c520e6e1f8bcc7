"""Packed tokens on disk, and the batch of a step as a pure function of (seed, step, rank).

Documents are shuffled in each epoch and packed whole into rows of L tokens: only documents longer
than a row are cut. A resumed run computes the same batches, so there is nothing to save.
"""

import json
import tokenize
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memory_layers.common.errors import UserError

IGNORE = -100

_DTYPES = ("uint16", "uint32")


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents.

    Attributes:
        input_ids: [B, L] int64.
        position_ids: [B, L] int64, counted from 0 in each document: a document attends to itself.
        labels: [B, L] int64, IGNORE at padding, at the first token of each document and at other
            tokens that are not to be predicted.
        targets: Number of labels that count.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    targets: int


@dataclass(frozen=True)
class Document:
    """Token ids of a document, and which of them are to be predicted.

    Attributes:
        ids: Token ids.
        predicted: First token that is predicted, and the end. None: all.
    """

    ids: Sequence[int]
    predicted: tuple[int, int] | None = None


def answer_tokens(
    text: str, offsets: Sequence[tuple[int, int]], start: int, end: int
) -> tuple[int, int]:
    """Return the token span of an answer, the token that ends it included.

    Training predicts these tokens, and recall asks for them.

    The space before an answer is a part of it, also where it is a token of its own: so it counts
    for lm-evaluation-harness.

    Args:
        text: The whole text.
        offsets: Characters of each token of the text: start and end.
        start: Where the answer begins, in characters.
        end: Where it ends.
    """
    first = len(text[:start].rstrip())
    inside = [n for n, (low, high) in enumerate(offsets) if low < end and high > first]
    return inside[0], inside[-1] + 2


def write_tokens(folder: Path, documents: Iterable[Document], vocab_size: int) -> None:
    """Write documents as one packed file (tokens.bin) and an index (tokens.json, *.npy).

    Args:
        folder: An existing folder.
        documents: Read once.
        vocab_size: Decides between 16 and 32 bits a token.
    """
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    starts, predicted, most = array("q", [0]), array("q"), -1
    with (folder / "tokens.bin").open("wb") as file:
        for document in documents:
            first, end = document.predicted or (0, len(document.ids))
            predicted.extend((starts[-1] + first, starts[-1] + end))
            ids = np.asarray(document.ids, dtype)
            file.write(ids.tobytes())
            starts.append(starts[-1] + len(ids))
            most = max(most, int(ids.max()) if len(ids) else -1)
    np.save(folder / "starts.npy", np.asarray(starts, np.int64))
    # Places in tokens.bin.
    np.save(folder / "predicted.npy", np.asarray(predicted, np.int64).reshape(-1, 2))
    info = {"dtype": np.dtype(dtype).name, "documents": len(starts) - 1, "tokens": starts[-1]}
    info["most"] = most
    (folder / "tokens.json").write_text(json.dumps(info), "utf-8")


def read_pieces(folder: Path, length: int) -> list[Tensor]:
    """Return all documents of a folder that write_tokens filled, cut to at most `length` tokens.

    Args:
        folder: Where the tokens are.
        length: L.

    Raises:
        UserError: They are damaged.
    """
    tokens, first, count, _ = _open(folder, length)
    return [
        torch.from_numpy(tokens[start : start + size].astype(np.int64))
        for start, size in zip(first, count, strict=True)
    ]


class TokenStream:
    """Batches of packed rows from a folder that write_tokens filled.

    Args:
        folder: Where the tokens are. They are memory-mapped, not read.
        length: L, tokens in a row.
        seed: Decides the order of documents.
        pad_id: Token that fills the end of a row.

    Raises:
        UserError: They are damaged, or there is no document of two tokens.
    """

    def __init__(self, folder: Path, length: int, seed: int, pad_id: int) -> None:
        self._tokens, self._first, self._count, self._predicted = _open(folder, length)
        if not len(self._count):
            raise damaged(folder, "it has no document of two tokens, there is nothing to predict")
        self.length = length
        self.seed = seed
        self.pad_id = pad_id
        self._row_counts: list[int] = []
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def batch(self, step: int, batch_size: int, *, rank: int = 0, ranks: int = 1) -> Batch:
        """Return the rows of one rank in one step: always the same for the same arguments.

        Args:
            step: Counted from 0.
            batch_size: B, rows for this rank.
            rank: Which of the `ranks` that share the rows of a step.
            ranks: G.
        """
        input_ids = np.full((batch_size, self.length), self.pad_id, np.int64)
        positions = np.zeros((batch_size, self.length), np.int64)
        labels = np.full((batch_size, self.length), IGNORE, np.int64)
        first = (step * ranks + rank) * batch_size
        for b in range(batch_size):
            at = 0
            for piece in self._pieces(first + b):
                start, count = self._first[piece], self._count[piece]
                tokens = self._tokens[start : start + count]
                input_ids[b, at : at + count] = tokens
                # Nothing stands before the first token that could predict it.
                low = max(int(self._predicted[piece, 0] - start), 1)
                high = min(int(self._predicted[piece, 1] - start), count)
                if low < high:
                    labels[b, at + low : at + high] = tokens[low:high]
                positions[b, at : at + count] = np.arange(count)
                at += count
            positions[b, at:] = np.arange(self.length - at)
        return Batch(
            torch.from_numpy(input_ids),
            torch.from_numpy(positions),
            torch.from_numpy(labels),
            int((labels != IGNORE).sum()),
        )

    def epoch_of(self, step: int, batch_size: int, *, ranks: int = 1) -> float:
        """Return how many times the data has been seen before a step."""
        epoch, row = self._locate(step * batch_size * ranks)
        return epoch + row / self._row_counts[epoch]

    def _pieces(self, row: int) -> np.ndarray:
        epoch, row = self._locate(row)
        order, bounds = self._plan(epoch)
        return order[bounds[row] : bounds[row + 1]]

    def _locate(self, row: int) -> tuple[int, int]:
        """Return the epoch of a row counted over all epochs, and its number in that epoch."""
        epoch = 0
        while True:
            if epoch == len(self._row_counts):
                self._row_counts.append(len(self._plan(epoch)[1]) - 1)
            if row < self._row_counts[epoch]:
                return epoch, row
            row -= self._row_counts[epoch]
            epoch += 1

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the order of pieces in an epoch and where each row begins in it."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self._count))
            ends = np.cumsum(self._count[order])
            bounds = [0]
            while bounds[-1] < len(order):
                used = ends[bounds[-1] - 1] if bounds[-1] else 0
                bounds.append(int(np.searchsorted(ends, used + self.length, side="right")))
            self._epoch = (epoch, order, np.array(bounds))
        return self._epoch[1], self._epoch[2]


def most_token(folder: Path, *, scan: bool) -> int:
    """Return the greatest token id of a folder that write_tokens filled, -1 if it is empty.

    Args:
        folder: Where the tokens are.
        scan: Read them all, and do not believe what tokens.json says.

    Raises:
        UserError: The folder is damaged.
    """
    if not scan:
        try:
            return int(json.loads((folder / "tokens.json").read_text("utf-8"))["most"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise damaged(folder, error) from error
    tokens, *_ = _read(folder)
    return int(tokens.max()) if len(tokens) else -1


def damaged(folder: Path, reason: object) -> UserError:
    """Return an error that says which prepared data are damaged, and what to do."""
    return UserError(
        f"{folder} is no data that was prepared to train on: {reason}. "
        "hint: delete the folder, and the next run prepares the data again"
    )


def _open(folder: Path, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the mapped tokens, start and size of the pieces, and what is predicted of each."""
    tokens, starts, predicted = _read(folder)
    first, count, document = _cut(starts, length)
    return tokens, first, count, predicted[document]


def _read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mapped tokens, where documents begin, and what is predicted of each."""
    try:
        info = json.loads((folder / "tokens.json").read_text("utf-8"))
        dtype, documents, size = (info[name] for name in ("dtype", "documents", "tokens"))
        if dtype not in _DTYPES or type(documents) is not int or type(size) is not int:
            raise ValueError(f"tokens.json says {info}")
        starts = _read_array(folder / "starts.npy", (documents + 1,))
        predicted = _read_array(folder / "predicted.npy", (documents, 2))
        if starts[0] != 0 or starts[-1] != size or (np.diff(starts) < 0).any():
            raise ValueError("starts.npy does not divide tokens.bin into documents")
        low, high = predicted.T
        if not ((starts[:-1] <= low) & (low <= high) & (high <= starts[1:])).all():
            raise ValueError("predicted.npy names tokens of other documents")
        file, expected = folder / "tokens.bin", size * np.dtype(dtype).itemsize
        if file.stat().st_size != expected:
            raise ValueError(f"{file.name} has {file.stat().st_size} of {expected} bytes")
        # An empty file cannot be mapped.
        tokens = np.memmap(file, dtype, "r") if size else np.empty(0, dtype)
    except (
        OSError, ValueError, TypeError, KeyError, EOFError, RecursionError, SyntaxError,
        tokenize.TokenError, MemoryError,
    ) as error:  # fmt: skip
        raise damaged(folder, error) from error
    return tokens, starts, predicted


def _read_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return the int64 numbers of a file. Mapped first, so that no more is taken than there is."""
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(mapped, np.ndarray) or mapped.dtype != np.int64 or mapped.shape != shape:
        found = getattr(mapped, "shape", None), getattr(mapped, "dtype", None)
        raise ValueError(f"{path.name} is {found}, expected {shape} of int64")
    return np.array(mapped)


def _cut(starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, size and document of the pieces.

    Pieces are whole documents, long ones cut every `length` tokens.
    """
    sizes = np.diff(starts)
    pieces = -(-sizes // length)
    document = np.repeat(np.arange(len(sizes)), pieces)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = starts[document] + nth * length
    count = np.minimum(length, starts[document + 1] - first)
    # A lone first token has no context and no label.
    whole = count > 1
    return first[whole], count[whole], document[whole]
