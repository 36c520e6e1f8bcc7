"""Kernels of the gradients of FIND in Triton: no atomics, sums in a fixed order."""

import triton
import triton.language as tl

from memory_layers.ops.triton_rows import round_to


@triton.jit
def query_gradient_kernel(
    d_scores_ptr,
    slots_ptr,
    sub_keys_ptr,
    d_query_ptr,
    reads_ptr,
    num_sub_keys,
    reads,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the gradient of half a query of one token and head, and which sub-keys it read."""
    row = tl.program_id(0).to(tl.int64)  # (t * HEADS + h) * 2 + p
    rows = HEADS * 2 * num_sub_keys
    for start in range(0, C, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        total = tl.zeros((BLOCK_C,), tl.float32)
        for low in range(0, reads, BLOCK_K):
            n = low + tl.arange(0, BLOCK_K)
            place = row // 2 * reads + n
            slots = tl.load(slots_ptr + place, n < reads, other=-1)
            weights = tl.load(d_scores_ptr + place, n < reads, other=0).to(tl.float32)
            m = tl.where(row % 2 == 0, slots // num_sub_keys, slots % num_sub_keys)
            inside = (slots >= 0) & (m < num_sub_keys)
            read = tl.where(inside, row % (2 * HEADS) * num_sub_keys + m, rows)
            tl.store(reads_ptr + row * reads + n, read.to(tl.int32), n < reads)
            keys = tl.load(
                sub_keys_ptr + read[:, None] * C + columns[None, :],
                inside[:, None] & (columns < C)[None, :],
                other=0,
            )
            total += tl.sum(weights[:, None] * keys.to(tl.float32), 0)
        rounded = round_to(total, d_query_ptr.dtype.element_ty)
        tl.store(d_query_ptr + row * C + columns, rounded, columns < C)


@triton.jit
def sub_key_gradient_kernel(
    order_ptr,
    starts_ptr,
    d_scores_ptr,
    query_ptr,
    partials_ptr,
    num_rows,
    splits,
    K: tl.constexpr,
    C: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum one part of the reads of one sub-key, in their sorted order: [splits, rows, C] fp32."""
    row = (tl.program_id(0) // splits).to(tl.int64)  # h, p, m: neighbours read the same queries
    split = tl.program_id(0) % splits
    start = tl.load(starts_ptr + row)
    end = tl.load(starts_ptr + row + 1)
    part = tl.cdiv(end - start, splits)
    first = start + split * part
    end = tl.minimum(first + part, end)
    for low_c in range(0, C, BLOCK_C):
        columns = low_c + tl.arange(0, BLOCK_C)
        total = tl.zeros((BLOCK_C,), tl.float32)
        for low in range(first, end, BLOCK_E):
            e = low + tl.arange(0, BLOCK_E)
            place = tl.load(order_ptr + e, e < end, other=0)  # in [T, H, 2, K]
            half = place // K
            weights = tl.load(d_scores_ptr + half // 2 * K + place % K, e < end, other=0)
            query = tl.load(
                query_ptr + half[:, None] * C + columns[None, :],
                (e < end)[:, None] & (columns < C)[None, :],
                other=0,
            )
            total += tl.sum(weights.to(tl.float32)[:, None] * query.to(tl.float32), 0)
        out = (split * num_rows + row) * C + columns
        tl.store(partials_ptr + out, total, columns < C)
