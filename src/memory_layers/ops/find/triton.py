"""FIND on a GPU in Triton: the scores of the halves never reach memory.

Three steps:

1. lower_bounds_kernel multiplies tokens with sub-keys and keeps one maximum for each of 2 k or
   more groups of sub-keys. The k-th largest maximum is a bound that at least k scores reach, and
   few more do: on random scores 43 for k = 32, whatever M is.
2. best_sub_keys_kernel multiplies again, which costs less than sorting M scores, and appends what
   reaches the bound to a list of the token, in memory small enough for the L2 cache. At the end it
   sorts the list. Where equal scores or an unlucky order leave a list too long, or rounding leaves
   it too short, redo_sub_keys_kernel does the same without a bound, cutting lists that fill up.
3. merge_halves_kernel merges the two halves: the pair of ranks (i, j) can be among the best k only
   if (i + 1) * (j + 1) <= k.

Step 2 multiplies fp32 as three tf32 products (tf32x3), to within a few fp32 roundings; NaN counts
as the largest score. Only the bounds of step 1 come from plain tf32.

The host never waits, results do not depend on chance, k is at most dispatch.TRITON_MAX_K.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from memory_layers.ops._triton.rows import COMPILE, on_device_of, round_to
from memory_layers.ops.dispatch import TRITON_MAX_K
from memory_layers.ops.find.triton_select import (
    best_sub_keys_kernel,
    lower_bounds_kernel,
    merge_halves_kernel,
    redo_sub_keys_kernel,
)

# Share of the largest maximum by which a bound from tf32 products is lowered: several times their
# largest error on random inputs. Only speed depends on it.
MARGIN = 2.0**-8
# The same where products are exact: the two kernels may round their sums differently.
EXACT_MARGIN = 2.0**-16
# Programs of best_sub_keys_kernel per multiprocessor: one sorts while another multiplies.
PROGRAMS_PER_PROCESSOR = 2
# Programs where there is no GPU: few, so that each has several blocks of tokens.
INTERPRETED_PROGRAMS = 3
# Vectors that a program of a gradient has in flight.
VECTORS = 16
# Programs that sum the gradients of sub-keys: with fewer sub-keys, several share one. Their
# partial sums take at most the memory of as many vectors in fp32.
GRADIENT_PROGRAMS = 2**15


@triton.jit
def query_gradient_kernel(
    d_scores_ptr, slots_ptr, sub_keys_ptr, d_query_ptr, reads_ptr, num_sub_keys, reads,
    HEADS: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
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
    order_ptr, starts_ptr, d_scores_ptr, query_ptr, partials_ptr, num_rows, splits,
    K: tl.constexpr, C: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
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


def _log2(number: int) -> int:
    """Return the exponent of the smallest power of two that is not below a number."""
    return (number - 1).bit_length()


def _product_constants(
    heads: int, width: int, k: int, dtype: torch.dtype, block_t: int, resident_bytes: int
) -> dict[str, Any]:
    """Choose what kernels that multiply share: a block of tokens stays on chip where it fits."""
    size = 4 if dtype == torch.float32 else 2
    block_c = 2 ** max(_log2(width), 4)
    if block_t < 64 or block_t * block_c * size > resident_bytes:
        block_c = 128 // size
    return {
        "HEADS": heads, "C": width, "K": k, "LOG_K": max(_log2(k), 1),
        "BLOCK_T": block_t, "BLOCK_C": block_c,
        "DTYPE": {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(dtype, tl.float32),
        "num_stages": 2, **COMPILE,
    }  # fmt: skip


def lower_bounds_constants(
    tokens: int, heads: int, width: int, k: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Choose the blocks of lower_bounds_kernel: at most 8192 scores in the registers of 8 warps."""
    log_m = max(_log2(k) + 1, 6)
    block_t = 2 ** min(max(_log2(tokens), 4), 13 - log_m)
    return {
        **_product_constants(heads, width, k, dtype, block_t, 2**16),
        "LOG_M": log_m, "PRECISION": "tf32", "num_warps": 8 if block_t << log_m == 8192 else 4,
    }  # fmt: skip


def best_sub_keys_constants(
    tokens: int, heads: int, width: int, k: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Choose the blocks of best_sub_keys_kernel: at most 4096 scores in the registers of 4 warps.

    With 4 warps of up to 255 registers, two programs fit a multiprocessor.
    """
    block_t = 2 ** min(max(_log2(tokens), 4), 6)
    log_room = max(_log2(k) + 1, 7)
    return {
        **_product_constants(heads, width, k, dtype, block_t, 2**15),
        "LOG_M": 6, "LOG_ROOM": log_room, "ROWS": min(block_t, 2048 >> log_room),
        "PRECISION": "tf32x3", "num_warps": 4,
    }  # fmt: skip


def redo_sub_keys_constants(
    tokens: int, heads: int, width: int, k: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Choose the blocks of redo_sub_keys_kernel: it sorts while it multiplies, so it needs room.

    BLOCK_T and LOG_ROOM are those of best_sub_keys_kernel, whose lists it uses.
    """
    constants = best_sub_keys_constants(tokens, heads, width, k, dtype)
    small = _product_constants(heads, width, k, dtype, constants["BLOCK_T"], 0)
    return {**constants, **small, "num_warps": 8}


def merge_halves_constants(heads: int, k: int) -> dict[str, Any]:
    """Choose the blocks of merge_halves_kernel: 2048 pairs in the registers of 4 warps."""
    log_k = max(_log2(k), 1)
    log_pairs = max(_log2(sum(k // rank for rank in range(1, k + 1))), log_k)
    return {
        "HEADS": heads, "K": k, "LOG_K": log_k, "LOG_PAIRS": log_pairs,
        "ROWS": max(2048 >> log_pairs, 1), "num_warps": 4, **COMPILE,
    }  # fmt: skip


def gradient_blocks(width: int) -> dict[str, Any]:
    """Choose blocks for the gradients: 16 vectors in flight, 16 bytes a thread in bf16."""
    block_c = 2 ** min(max(_log2(width), 4), 9)
    return {
        "C": width, "BLOCK_C": block_c, "num_warps": 4 if block_c > 128 else 2, **COMPILE,
    }  # fmt: skip


def _num_programs(tensor: Tensor) -> int:
    if not tensor.is_cuda:
        return INTERPRETED_PROGRAMS
    processors = torch.cuda.get_device_properties(tensor.device).multi_processor_count
    return processors * PROGRAMS_PER_PROCESSOR


def _num_splits(num_rows: int, tensor: Tensor) -> int:
    """Return how many programs share a sub-key: several where few, so that none is overloaded."""
    return max(GRADIENT_PROGRAMS // num_rows, 1) if tensor.is_cuda else 1


def product_key_topk(query: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Best k of each half, then the best k of the pairs that can still be among the best k."""
    if k > TRITON_MAX_K:
        raise ValueError(
            f'impl="triton" needs k <= {TRITON_MAX_K}, got {k}. hint: pass impl="reference"'
        )
    tokens, heads, _, width = query.shape
    num_sub_keys = sub_keys.shape[2]
    query, sub_keys = query.contiguous(), sub_keys.contiguous()
    scores = query.new_empty(tokens, heads, k, dtype=torch.float32)
    slots = query.new_empty(tokens, heads, k, dtype=torch.int64)
    if not scores.numel():
        return scores, slots
    # Triton's interpreter takes the bits of bf16 for integers in tl.dot.
    same = query.dtype == sub_keys.dtype and query.is_cuda
    dtype = query.dtype if same else torch.float32
    constants = best_sub_keys_constants(tokens, heads, width, k, dtype)
    tiles = triton.cdiv(tokens, constants["BLOCK_T"]) * heads * 2
    programs = min(_num_programs(query), tiles)
    rows = programs * constants["BLOCK_T"]
    lists = slots.new_empty(rows, 2 ** constants["LOG_ROOM"])
    counts = slots.new_empty(rows, dtype=torch.int32)
    bounds = scores.new_empty(heads, 2, tokens)
    best = slots.new_empty(heads, 2, tokens, k)
    redo = slots.new_empty(heads, 2, tokens, dtype=torch.int8)
    sizes = (tokens, num_sub_keys, tiles)
    # Where every score fits the lists, they need no bound.
    has_bounds = num_sub_keys > lists.shape[1]
    with on_device_of(query):
        if has_bounds:
            blocks = lower_bounds_constants(tokens, heads, width, k, dtype)
            margin = MARGIN if dtype == torch.float32 else EXACT_MARGIN
            lower_bounds_kernel[(triton.cdiv(tokens, blocks["BLOCK_T"]) * heads * 2,)](
                query, sub_keys, bounds, tokens, num_sub_keys, margin, **blocks
            )
        best_sub_keys_kernel[(programs,)](
            query, sub_keys, bounds, lists, counts, best, redo, *sizes,
            HAS_BOUNDS=has_bounds, **constants,
        )  # fmt: skip
        if has_bounds:
            redo_sub_keys_kernel[(programs,)](
                query, sub_keys, lists, counts, scores.new_empty(rows), best, redo, *sizes,
                **redo_sub_keys_constants(tokens, heads, width, k, dtype),
            )  # fmt: skip
        merge = merge_halves_constants(heads, k)
        merge_halves_kernel[(triton.cdiv(tokens * heads, merge["ROWS"]),)](
            best, scores, slots, tokens, num_sub_keys, **merge
        )
    return scores, slots


def product_key_topk_backward(
    d_scores: Tensor, slots: Tensor, query: Tensor, sub_keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Each selected score passes its gradient to one sub-key of each half, and to the query.

    The gradient of the sub-keys is summed in the order of the sorted reads, without atomics: the
    same inputs give the same bits.
    """
    tokens, heads, k = slots.shape
    num_rows, width = heads * 2 * sub_keys.shape[2], query.shape[3]
    d_query = query.new_empty(query.shape)
    if not d_query.numel():
        return d_query, torch.zeros_like(sub_keys).contiguous()
    d_scores, slots, query = d_scores.contiguous(), slots.contiguous(), query.contiguous()
    blocks = gradient_blocks(width)
    reads = slots.new_empty(tokens, heads, 2, k, dtype=torch.int32)
    with on_device_of(query):
        query_gradient_kernel[(tokens * heads * 2,)](
            d_scores, slots, sub_keys.contiguous(), d_query, reads, sub_keys.shape[2], k,
            HEADS=heads, BLOCK_K=VECTORS, **blocks,
        )  # fmt: skip
        # A radix sort takes half as many passes over 16 bits.
        narrow = torch.int16 if num_rows < 2**15 else torch.int32
        rows, order = reads.flatten().to(narrow).sort(stable=True)
        bounds = torch.arange(num_rows + 1, dtype=narrow, device=rows.device)
        starts = torch.searchsorted(rows, bounds)
        splits = _num_splits(num_rows, query)
        partials = d_scores.new_empty(splits, *sub_keys.shape, dtype=torch.float32)
        sub_key_gradient_kernel[(num_rows * splits,)](
            order, starts, d_scores, query, partials, num_rows, splits,
            K=k, BLOCK_E=VECTORS, **blocks,
        )  # fmt: skip
    return d_query, partials.sum(0).to(sub_keys.dtype)
