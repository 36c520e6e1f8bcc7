"""The factors of a gradient as Numba kernels walk them: row by row, in chunks that share no row.

A kernel gets the reads as addresses, so that several of them need not be joined, which would take
as much memory again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memory_layers.ops._numba.compile import helper, inner_loops
from memory_layers.ops._numba.rows import as_float32
from memory_layers.ops.write.entries import PLACE_BITS, PLACE_MASK

# Entries of a chunk: enough to pay for a thread's buffers, few enough to balance the threads.
CHUNK_ENTRIES = 512
ENTRIES, WEIGHTS, VECTORS, WIDTH = range(4)
NO_ROW = np.int64(2**62)

loops = inner_loops()


class Factors(NamedTuple):
    """What a kernel needs to walk the rows of a gradient.

    Attributes:
        entries, weights, vectors: Those of all reads, for loops.part.
        reads: [reads, 4] int64, the places of entries, weights and vectors there, and J.
        bounds: [reads, chunks + 1] int64, the entries of each chunk. No row is in two chunks.
        lows: [chunks] int64, no row of a chunk is lower.
        scale: Factor on the gradient.
    """

    entries: np.ndarray | np.generic
    weights: np.ndarray | np.generic
    vectors: np.ndarray | np.generic
    reads: np.ndarray
    bounds: np.ndarray
    lows: np.ndarray
    scale: np.float32


def prepare(
    entries: Sequence[Tensor], weights: Sequence[Tensor], vectors: Sequence[Tensor], scale: Tensor
) -> tuple[Factors, list[Tensor]]:
    """Return the factors for a kernel, and the tensors that must live until it has run."""
    weights = [read.float().contiguous() for read in weights]
    dtype = vectors[0].dtype
    if any(read.dtype != dtype for read in vectors):
        dtype = torch.float32
    vectors = [read.to(dtype).contiguous() for read in vectors]
    arrays, places = zip(*map(loops.parts, (entries, weights, vectors)), strict=True)
    widths = [max(1, read.shape[1]) for read in weights]
    reads = np.array([*places, widths]).T.copy()
    factors = Factors(*arrays, reads, *_chunks(entries), np.float32(float(scale)))
    return factors, [*entries, *weights, *vectors]


def _chunks(entries: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    arrays = [read.numpy() for read in entries]
    longest = max(arrays, key=len)
    lows = np.unique(np.append(0, longest[CHUNK_ENTRIES::CHUNK_ENTRIES] >> PLACE_BITS))
    bounds = np.empty((len(arrays), len(lows) + 1), np.int64)
    for r, array in enumerate(arrays):
        bounds[r] = np.append(np.searchsorted(array, lows << PLACE_BITS), len(array))
    return bounds, lows


@helper
def start_of(factors, chunk):
    """Return the place in each read where a chunk starts."""
    heads = np.empty(factors.bounds.shape[0], np.int64)
    for r in range(heads.shape[0]):
        heads[r] = factors.bounds[r, chunk]
    return heads


@helper
def next_row(factors, heads, chunk):
    """Return the lowest row that a read of this chunk has left, NO_ROW at its end."""
    entries, _, _, reads, bounds, _, _ = factors
    row = NO_ROW
    for r in range(reads.shape[0]):
        if heads[r] < bounds[r, chunk + 1]:
            entry = loops.part(entries, reads[r, ENTRIES], heads[r], 1)[0]
            row = min(row, entry >> PLACE_BITS)
    return row


@helper
def sum_row(row, factors, heads, chunk, total):
    """Set total to scale * the sum of weights[t, j] * vectors[t] of a row, and move past it."""
    entries, weights, vectors, reads, bounds, _, scale = factors
    is_first = True
    for r in range(reads.shape[0]):
        end = bounds[r, chunk + 1]
        entry = loops.part(entries, reads[r, ENTRIES], 0, end)
        head = heads[r]
        while head < end and entry[head] >> PLACE_BITS == row:
            place = entry[head] & PLACE_MASK
            weight = scale * loops.part(weights, reads[r, WEIGHTS], place, 1)[0]
            start = place // reads[r, WIDTH] * total.shape[0]
            vector = loops.part(vectors, reads[r, VECTORS], start, total.shape[0])
            if is_first:
                for v in range(total.shape[0]):
                    total[v] = weight * as_float32(vector[v])
            else:
                for v in range(total.shape[0]):
                    total[v] += weight * as_float32(vector[v])
            is_first = False
            head += 1
        heads[r] = head
