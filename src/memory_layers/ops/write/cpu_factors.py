"""The factors of a gradient as Numba kernels walk them: row by row, in chunks that share no row.

A kernel gets the reads as addresses, so that several of them need not be joined, which would take
as much memory again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numba import carray
from torch import Tensor

from memory_layers.ops.numba_kernel import helper
from memory_layers.ops.numba_rows import as_array, as_float32, pointer_to
from memory_layers.ops.write.entries import PLACE_BITS, PLACE_MASK

# Entries of a chunk: enough to pay for a thread's buffers, few enough to balance the threads.
CHUNK_ENTRIES = 512
ENTRIES, WEIGHTS, VECTORS, WIDTH = range(4)
NO_ROW = np.int64(2**62)
_INT64 = np.empty(0, np.int64)
_FLOAT32 = np.empty(0, np.float32)


class Factors(NamedTuple):
    """What a kernel needs to walk the rows of a gradient.

    Attributes:
        reads: [reads, 4] int64, addresses of entries, weights and vectors, and J.
        bounds: [reads, chunks + 1] int64, the entries of each chunk. No row is in two chunks.
        lows: [chunks] int64, no row of a chunk is lower.
        like: Empty array of the vectors' type.
        scale: Factor on the gradient.
    """

    reads: np.ndarray
    bounds: np.ndarray
    lows: np.ndarray
    like: np.ndarray
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
    reads = np.empty((len(entries), 4), np.int64)
    for r, read in enumerate(zip(entries, weights, vectors, strict=True)):
        reads[r, :3] = [tensor.data_ptr() for tensor in read]
        reads[r, WIDTH] = max(1, read[1].shape[1])
    like = as_array(vectors[0][:0].flatten())
    factors = Factors(reads, *_chunks(entries), like, np.float32(float(scale)))
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
def start_of(factors, chunk):  # noqa: ANN001, ANN201
    """Return the place in each read where a chunk starts."""
    heads = np.empty(factors.bounds.shape[0], np.int64)
    for r in range(heads.shape[0]):
        heads[r] = factors.bounds[r, chunk]
    return heads


@helper
def next_row(factors, heads, chunk):  # noqa: ANN001, ANN201
    """Return the lowest row that a read of this chunk has left, NO_ROW at its end."""
    reads, bounds = factors.reads, factors.bounds
    row = NO_ROW
    for r in range(reads.shape[0]):
        end = bounds[r, chunk + 1]
        if heads[r] < end:
            entries = carray(pointer_to(reads[r, ENTRIES], _INT64), (end,))
            row = min(row, entries[heads[r]] >> PLACE_BITS)
    return row


@helper
def sum_row(row, factors, heads, chunk, total):  # noqa: ANN001, ANN201
    """Set total to scale * the sum of weights[t, j] * vectors[t] of a row, and move past it."""
    reads, bounds, _, like, scale = factors
    is_first = True
    for r in range(reads.shape[0]):
        end = bounds[r, chunk + 1]
        entries = carray(pointer_to(reads[r, ENTRIES], _INT64), (end,))
        head = heads[r]
        while head < end and entries[head] >> PLACE_BITS == row:
            place = entries[head] & PLACE_MASK
            weight = scale * carray(pointer_to(reads[r, WEIGHTS], _FLOAT32), (place + 1,))[place]
            start = place // reads[r, WIDTH] * total.shape[0]
            address = reads[r, VECTORS] + start * like.itemsize
            vector = carray(pointer_to(address, like), (total.shape[0],))
            if is_first:
                for v in range(total.shape[0]):
                    total[v] = weight * as_float32(vector[v])
            else:
                for v in range(total.shape[0]):
                    total[v] += weight * as_float32(vector[v])
            is_first = False
            head += 1
        heads[r] = head
