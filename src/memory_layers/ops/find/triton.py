"""FIND on a GPU in Triton: the scores of the halves never reach memory.

Three steps, all exact:

1. A program multiplies a block of tokens with all sub-keys of one half, twice. The first product
   keeps one maximum for each of BLOCK_M groups of sub-keys (m modulo BLOCK_M): the k-th largest of
   them is a bound that at least k scores reach, and few more do (on random scores 44 for k = 32,
   whatever M is). Multiplying again costs less than sorting M scores.
2. The second product writes the scores that reach the bound to a list of the token, which stays
   in the L2 cache. A list that may overflow is cut back to its best k, and the bound rises to the
   k-th. At the end each list is cut back to its best k, sorted.
3. A second kernel merges the two halves: the pair of ranks (i, j) can be among the best k only if
   (i + 1) * (j + 1) <= k.

fp32 products are made of three tf32 products each (tf32x3):
errors of a few fp32 roundings. Only the bound of step 1 comes from plain tf32. If it turns out too
high for a token, which its list tells, the second product is repeated without it.

The host never waits, results do not depend on chance, k is at most impl.TRITON_MAX_K.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from memory_layers.ops.find.triton_gradient import query_gradient_kernel, sub_key_gradient_kernel
from memory_layers.ops.find.triton_select import best_sub_keys_kernel, merge_halves_kernel
from memory_layers.ops.impl import TRITON_MAX_K
from memory_layers.ops.triton_rows import COMPILE, on_device_of

# Share of the largest maximum by which the bound is lowered where it comes from tf32 products,
# whose errors are about 2**-12 of it.
MARGIN = 2.0**-8
# Programs per multiprocessor: one sorts while another multiplies.
PROGRAMS_PER_PROCESSOR = 2
# Vectors that a program of a gradient has in flight.
VECTORS = 16
# Programs that sum the gradients of sub-keys: with fewer sub-keys, several share one. Their
# partial sums take at most the memory of as many vectors in fp32.
GRADIENT_PROGRAMS = 2**15
INTERPRETED_SPLITS = 1
# Programs where there is no GPU: few, so that each has several blocks of tokens.
INTERPRETED_PROGRAMS = 3


def _log2(number: int) -> int:
    """Return the exponent of the smallest power of two that is not below a number."""
    return (number - 1).bit_length()


def best_sub_keys_constants(
    tokens: int, heads: int, width: int, k: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Choose the blocks of best_sub_keys_kernel: at most 8192 scores at a time, in 8 warps."""
    log_k = max(_log2(k), 1)
    log_m = max(log_k + 1, 6)
    block_t = 2 ** min(max(_log2(tokens), 4), 13 - log_m)
    size = 4 if dtype == torch.float32 else 2
    block_c = 2 ** max(_log2(width), 4)
    if block_t * block_c * size > 2**16:
        block_c = 128 // size
    warps = 8 if block_t << log_m == 8192 else 4
    return {
        "HEADS": heads, "C": width, "K": k, "LOG_K": log_k,
        "BLOCK_T": block_t, "LOG_M": log_m, "BLOCK_C": block_c,
        "ROWS": min(block_t, 256 * warps >> log_m), "LOG_ROOM": log_m + 1,
        "DTYPE": {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(dtype, tl.float32),
        "COARSE": "tf32", "FINE": "tf32x3",
        "num_warps": warps, "num_stages": 2, **COMPILE,
    }  # fmt: skip


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
    bounds = scores.new_empty(rows)
    best = slots.new_empty(heads, 2, tokens, k)
    margin = MARGIN if dtype == torch.float32 else 0.0
    merge = merge_halves_constants(heads, k)
    with on_device_of(query):
        best_sub_keys_kernel[(programs,)](
            query, sub_keys, lists, counts, bounds, best, tokens, num_sub_keys, tiles, margin,
            **constants,
        )  # fmt: skip
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
        # Where sub-keys are few, each is shared out, so that a popular one is no bottleneck.
        splits = max(GRADIENT_PROGRAMS // num_rows, 1) if query.is_cuda else INTERPRETED_SPLITS
        partials = d_scores.new_empty(splits, *sub_keys.shape, dtype=torch.float32)
        sub_key_gradient_kernel[(num_rows * splits,)](
            order, starts, d_scores, query, partials, num_rows, splits,
            K=k, BLOCK_E=VECTORS, **blocks,
        )  # fmt: skip
    return d_query, partials.sum(0).to(sub_keys.dtype)
