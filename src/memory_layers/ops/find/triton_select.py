"""Kernels of FIND in Triton: bounds, best sub-keys of each half, best pairs. See triton.py."""

import triton
import triton.language as tl

from memory_layers.ops.find.triton_sort import (
    EMPTY,
    entry_from,
    entry_label,
    entry_of,
    entry_score,
    largest,
    rank_of,
    score_of,
    sortable,
)


@triton.jit
def _load_rows(rows_ptr, places, inside, columns, C: tl.constexpr, DTYPE: tl.constexpr):
    mask = inside[:, None] & (columns < C)[None, :]
    return tl.load(rows_ptr + places[:, None] + columns[None, :], mask, other=0).to(DTYPE)


@triton.jit
def _block_scores(
    query, query_ptr, query_places, has_token, keys_ptr, m, num_sub_keys, C: tl.constexpr,
    BLOCK_C: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Multiply a block of tokens with a block of sub-keys: [BLOCK_T, BLOCK_M] fp32.

    `query` is the block of tokens where C fits one block, else it is read again part by part.
    """
    key_places = m.to(tl.int64) * C
    if C <= BLOCK_C:
        keys = _load_rows(keys_ptr, key_places, m < num_sub_keys, tl.arange(0, BLOCK_C), C, DTYPE)
        scores = tl.dot(query, keys.T, input_precision=PRECISION)
    else:
        scores = tl.zeros((has_token.shape[0], m.shape[0]), tl.float32)
        for c in range(0, C, BLOCK_C):
            columns = c + tl.arange(0, BLOCK_C)
            part = _load_rows(query_ptr, query_places, has_token, columns, C, DTYPE)
            keys = _load_rows(keys_ptr, key_places, m < num_sub_keys, columns, C, DTYPE)
            scores = tl.dot(part, keys.T, scores, input_precision=PRECISION)
    return scores


@triton.jit
def lower_bounds_kernel(
    query_ptr, sub_keys_ptr, bounds_ptr, tokens, num_sub_keys, margin, HEADS: tl.constexpr,
    C: tl.constexpr, K: tl.constexpr, LOG_K: tl.constexpr, BLOCK_T: tl.constexpr,
    LOG_M: tl.constexpr, BLOCK_C: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write for each token a number that, but for rounding, K scores reach: [H, 2, T]."""
    BLOCK_M: tl.constexpr = 2**LOG_M
    blocks = tl.cdiv(tokens, BLOCK_T)
    # Programs that run at the same time read the same sub-keys.
    half = (tl.program_id(0) // blocks).to(tl.int64)
    t = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    has_token = t < tokens
    places = (t * (2 * HEADS) + half) * C
    query = _load_rows(
        query_ptr, places, has_token & (C <= BLOCK_C), tl.arange(0, BLOCK_C), C, DTYPE
    )
    maxima = tl.full((BLOCK_T, BLOCK_M), float("-inf"), tl.float32)
    for low in range(0, num_sub_keys, BLOCK_M):
        m = low + tl.arange(0, BLOCK_M)
        scores = _block_scores(
            query, query_ptr, places, has_token, sub_keys_ptr + half * num_sub_keys * C, m,
            num_sub_keys, C, BLOCK_C, DTYPE, PRECISION,
        )  # fmt: skip
        scores = tl.where((m < num_sub_keys)[None, :], scores, float("-inf"))
        maxima = tl.maximum(maxima, scores)  # leaves NaN out
    ranked = largest(rank_of(maxima), LOG_K, LOG_M - LOG_K)
    is_kth = (tl.arange(0, 2**LOG_K) == K - 1)[None, :]
    bound = score_of(tl.max(tl.where(is_kth, ranked, -(2**31)), 1))
    bound -= margin * tl.maximum(score_of(tl.max(ranked, 1)), tl.abs(bound))
    tl.store(bounds_ptr + half * tokens + t, bound, has_token)


@triton.jit
def _append(scores, m, limit, bound, lists_ptr, count, LOG_ROOM: tl.constexpr):
    """Append the scores that reach the bound to the lists, as far as there is room.

    Returns:
        How many have reached it: more than 2**LOG_ROOM when some found no room.
    """
    # NaN is not below the bound: it enters.
    enters = (m[None, :] < limit[:, None]) & ~(scores < bound[:, None])
    end = count[:, None] + tl.cumsum(enters.to(tl.int32), 1)
    lists = tl.arange(0, scores.shape[0]) << LOG_ROOM
    tl.store(
        lists_ptr + (lists - 1)[:, None] + end,
        entry_of(scores, m[None, :]),
        enters & (end <= 1 << LOG_ROOM),
    )
    return count + tl.sum(enters.to(tl.int32), 1)


@triton.jit
def _best_of_lists(
    lists_ptr, count, ROWS: tl.constexpr, LOG_SIZE: tl.constexpr, LOG_ROOM: tl.constexpr,
    LOG_K: tl.constexpr,
):  # fmt: skip
    """Sort the first 2**LOG_SIZE places of ROWS lists: [ROWS, 2**LOG_K] in sortable form."""
    places = tl.arange(0, 2**LOG_SIZE)[None, :]
    held = places < count[:, None]
    found = tl.load(lists_ptr + (tl.arange(0, ROWS) << LOG_ROOM)[:, None] + places, held, other=0)
    return largest(tl.where(held, sortable(found), EMPTY), LOG_K, LOG_SIZE - LOG_K)


@triton.jit
def best_sub_keys_kernel(
    query_ptr, sub_keys_ptr, bounds_ptr, lists_ptr, counts_ptr, best_ptr, redo_ptr, tokens,
    num_sub_keys, num_tiles, HAS_BOUNDS: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr,
    K: tl.constexpr, LOG_K: tl.constexpr, BLOCK_T: tl.constexpr, LOG_M: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, LOG_ROOM: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the best K sub-keys of each token for one half of one head: [H, 2, T, K] entries.

    And mark in [H, 2, T] the tokens whose bound turned out too high or too low for the list.
    """
    BLOCK_M: tl.constexpr = 2**LOG_M
    here = tl.program_id(0).to(tl.int64) * BLOCK_T
    lists_ptr += here << LOG_ROOM
    counts_ptr += here
    ranks = tl.arange(0, 2**LOG_K)[None, :]
    blocks = tl.cdiv(tokens, BLOCK_T)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        half = (tile // blocks).to(tl.int64)
        first = (tile % blocks).to(tl.int64) * BLOCK_T
        t = first + tl.arange(0, BLOCK_T)
        has_token = t < tokens
        places = (t * (2 * HEADS) + half) * C
        query = _load_rows(
            query_ptr, places, has_token & (C <= BLOCK_C), tl.arange(0, BLOCK_C), C, DTYPE
        )
        if HAS_BOUNDS:
            bound = tl.load(bounds_ptr + half * tokens + t, has_token, other=0)
        else:
            bound = tl.full((BLOCK_T,), float("-inf"), tl.float32)
        limit = tl.where(has_token, num_sub_keys, 0)
        count = tl.zeros((BLOCK_T,), tl.int32)
        for low in range(0, num_sub_keys, BLOCK_M):
            m = low + tl.arange(0, BLOCK_M)
            scores = _block_scores(
                query, query_ptr, places, has_token, sub_keys_ptr + half * num_sub_keys * C,
                m, num_sub_keys, C, BLOCK_C, DTYPE, PRECISION,
            )  # fmt: skip
            count = _append(scores, m, limit, bound, lists_ptr, count, LOG_ROOM)
        tl.store(counts_ptr + tl.arange(0, BLOCK_T), count)
        redo = (count < K) | (count > 2**LOG_ROOM)
        tl.store(redo_ptr + half * tokens + t, redo.to(tl.int8), has_token)
        tl.debug_barrier()  # all lists are written
        for start in range(0, BLOCK_T, ROWS):
            rows = start + tl.arange(0, ROWS)
            held = tl.load(counts_ptr + rows)
            lists = lists_ptr + (start << LOG_ROOM)
            if tl.max(held) <= 2 ** (LOG_ROOM - 1):  # as a rule
                best = _best_of_lists(lists, held, ROWS, LOG_ROOM - 1, LOG_ROOM, LOG_K)
            else:
                best = _best_of_lists(lists, held, ROWS, LOG_ROOM, LOG_ROOM, LOG_K)
            out = (half * tokens + first + rows)[:, None] * K + ranks
            inside = (first + rows < tokens)[:, None] & (ranks < K)
            tl.store(best_ptr + out, entry_from(best), inside)
        tl.debug_barrier()  # before the next block of tokens uses the lists


@triton.jit
def redo_sub_keys_kernel(
    query_ptr, sub_keys_ptr, lists_ptr, counts_ptr, list_bounds_ptr, best_ptr, redo_ptr, tokens,
    num_sub_keys, num_tiles, HEADS: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
    LOG_K: tl.constexpr, BLOCK_T: tl.constexpr, LOG_M: tl.constexpr, BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr, LOG_ROOM: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the best K sub-keys of the marked tokens: a list that fills up is cut to its best K.

    Its bound then lies above the K-th. So a score that equals the K-th no longer enters, else many
    equal scores would fill the lists over and over.
    """
    BLOCK_M: tl.constexpr = 2**LOG_M
    here = tl.program_id(0).to(tl.int64) * BLOCK_T
    lists_ptr += here << LOG_ROOM
    counts_ptr += here
    list_bounds_ptr += here
    local = tl.arange(0, BLOCK_T)
    ranks = tl.arange(0, 2**LOG_K)[None, :]
    blocks = tl.cdiv(tokens, BLOCK_T)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        half = (tile // blocks).to(tl.int64)
        t = (tile % blocks).to(tl.int64) * BLOCK_T + local
        marked = tl.load(redo_ptr + half * tokens + t, t < tokens, other=0) != 0
        # Where no token is marked, as a rule, nothing is multiplied.
        until = tl.where(tl.max(marked.to(tl.int32)) > 0, num_sub_keys, 0)
        places = (t * (2 * HEADS) + half) * C
        query = _load_rows(
            query_ptr, places, marked & (C <= BLOCK_C), tl.arange(0, BLOCK_C), C, DTYPE
        )
        limit = tl.where(marked, num_sub_keys, 0)
        bound = tl.full((BLOCK_T,), float("-inf"), tl.float32)
        count = tl.zeros((BLOCK_T,), tl.int32)
        for low in range(0, until, BLOCK_M):
            m = low + tl.arange(0, BLOCK_M)
            scores = _block_scores(
                query, query_ptr, places, marked, sub_keys_ptr + half * num_sub_keys * C,
                m, num_sub_keys, C, BLOCK_C, DTYPE, PRECISION,
            )  # fmt: skip
            count = _append(scores, m, limit, bound, lists_ptr, count, LOG_ROOM)
            if (tl.max(count) > 2**LOG_ROOM - BLOCK_M) | (low + BLOCK_M >= until):
                tl.store(counts_ptr + local, count)
                tl.store(list_bounds_ptr + local, bound)
                tl.debug_barrier()
                for start in range(0, BLOCK_T, ROWS):
                    rows = start + tl.arange(0, ROWS)
                    held = tl.load(counts_ptr + rows)
                    lists = lists_ptr + (start << LOG_ROOM)
                    best = _best_of_lists(lists, held, ROWS, LOG_ROOM, LOG_ROOM, LOG_K)
                    kth = tl.max(tl.where(ranks == K - 1, best, EMPTY), 1)
                    tl.debug_barrier()  # all have read
                    kept = lists + (tl.arange(0, ROWS) << LOG_ROOM)[:, None] + ranks
                    tl.store(kept, entry_from(best), ranks < K)
                    above = score_of((kth >> 32).to(tl.int32) + 1)
                    tl.store(list_bounds_ptr + rows, above, kth != EMPTY)
                tl.debug_barrier()  # all have written
                bound = tl.load(list_bounds_ptr + local)
                count = tl.minimum(count, K)
        inside = marked[:, None] & (ranks < K)
        best = tl.load(lists_ptr + (local << LOG_ROOM)[:, None] + ranks, inside, other=0)
        tl.store(best_ptr + (half * tokens + t)[:, None] * K + ranks, best, inside)
        tl.debug_barrier()  # before the next block of tokens uses the lists


@triton.jit
def merge_halves_kernel(
    best_ptr, scores_ptr, slots_ptr, tokens, num_sub_keys, HEADS: tl.constexpr, K: tl.constexpr,
    LOG_K: tl.constexpr, LOG_PAIRS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write the best K of the pairs of ranks (i, j) with (i + 1) * (j + 1) <= K."""
    PAIRS: tl.constexpr = 2**LOG_PAIRS
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    t = row // HEADS
    first_ptr = best_ptr + ((row % HEADS) * 2 * tokens + t)[:, None] * K
    second_ptr = first_ptr + tokens.to(tl.int64) * K
    # Pair n is (i, j) when the i ranks before it have n - j pairs.
    n = tl.arange(0, PAIRS)
    i = tl.zeros((PAIRS,), tl.int32)
    before = tl.zeros((PAIRS,), tl.int32)
    end = 0
    for rank in range(1, K + 1):
        end += K // rank
        i += (n >= end).to(tl.int32)
        before += tl.where(n >= end, K // rank, 0)
    inside = (t < tokens)[:, None] & (n < end)[None, :]
    j = n - before
    first = tl.load(first_ptr + i[None, :], inside, other=0)
    second = tl.load(second_ptr + j[None, :], inside, other=0)
    pairs = entry_of(entry_score(first) + entry_score(second), (i * K + j)[None, :])
    pairs = tl.where(inside, sortable(pairs), EMPTY)
    best = entry_from(largest(pairs, LOG_K, LOG_PAIRS - LOG_K))

    places = tl.arange(0, 2**LOG_K)
    inside = (t < tokens)[:, None] & (places < K)[None, :]
    pair = tl.where(inside, entry_label(best), 0)
    first = entry_label(tl.load(first_ptr + pair // K, inside, other=0))
    second = entry_label(tl.load(second_ptr + pair % K, inside, other=0))
    out = row[:, None] * K + places[None, :]
    tl.store(scores_ptr + out, entry_score(best), inside)
    tl.store(slots_ptr + out, first.to(tl.int64) * num_sub_keys + second, inside)
