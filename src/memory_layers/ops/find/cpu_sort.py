"""Sorting of LANES short lists at once, for FIND on the CPU.

A list is a column of an array [room, LANES], a candidate one number: its score in the upper half,
its index in the lower, read as fp64, which orders such numbers by score. The upper half is raised
by one step of fp64's exponent: a denormal might be taken for zero. A sorting network exchanges
whole rows of the array, so that LANES lists are sorted without a branch.
"""

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
# One step of fp64's exponent in the upper half of a number.
_RAISE = 0x00100000
# Scores looked at together.
MASK_BITS = 64


@cache
def network(room: int, wanted: tuple[int, ...]) -> np.ndarray:
    """Return the exchanges that sort `room` rows, as far as the wanted rows need it.

    Batcher's odd-even merge sort (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M).

    Args:
        room: Rows, a power of two.
        wanted: Rows of the result that matter, the largest numbers first.

    Returns:
        [exchanges, 2] int64, pairs of rows. The larger number goes to the first.
    """
    pairs = []
    p = room // 2
    while p >= 1:
        q, r, d = room // 2, 0, p
        while True:
            pairs += [(i, i + d) for i in range(room - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    live, kept = set(wanted), []
    for pair in reversed(pairs):
        if live & set(pair):
            live |= set(pair)
            kept.append(pair)
    return np.array(kept[::-1], np.int64).reshape(-1, 2)


@intrinsic
def exchange(_context, lists, upper, lower):  # noqa: ANN001, ANN201
    """Put the larger number of each column into row `upper`, the smaller into row `lower`."""
    number, letter = (
        (ir.DoubleType(), "f64") if lists.dtype == types.float64 else (ir.FloatType(), "f32")
    )
    lanes = ir.VectorType(number, LANES)

    def codegen(context, builder, sig, args):  # noqa: ANN001, ANN202
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        places = [
            builder.bitcast(
                builder.gep(data, [builder.mul(row, ir.IntType(64)(LANES))]), lanes.as_pointer()
            )
            for row in args[1:]
        ]
        numbers = [builder.load(place, align=4) for place in places]
        kind = ir.FunctionType(lanes, [lanes, lanes])
        # A compare and a select would become a masked store, which is slow on some processors.
        for place, name in zip(places, ("maxnum", "minnum"), strict=True):
            choose = cgutils.get_or_insert_function(
                builder.module, kind, f"llvm.{name}.v{LANES}{letter}"
            )
            builder.store(builder.call(choose, numbers, fastmath=("nnan",)), place, align=4)
        return context.get_dummy_value()

    return types.void(lists, types.intp, types.intp), codegen


@intrinsic
def group_maxima(_context, scores, maxima):  # noqa: ANN001, ANN201
    """Set maxima[g] to the largest of scores[g], scores[g + groups], ... that is not NaN.

    Args:
        scores: [M] fp32, at least as many as there are groups.
        maxima: [groups] fp32, a multiple of LANES.
    """

    def codegen(context, builder, sig, args):  # noqa: ANN001, ANN202
        vector, size = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)
        arrays = [
            context.make_array(kind)(context, builder, arg)
            for kind, arg in zip(sig.args, args, strict=True)
        ]
        count, groups = (builder.extract_value(array.shape, 0) for array in arrays)
        end = builder.add(builder.sub(count, groups), size(1))
        lowest = ir.Constant(vector, [float("-inf")] * LANES)
        best = cgutils.alloca_once(builder, vector)
        columns = cgutils.for_range_slice(builder, size(0), groups, size(LANES), size)
        with columns as (column, _):
            builder.store(lowest, best)
            rows = cgutils.for_range_slice(builder, size(0), end, groups, size)
            with rows as (row, _):
                place = builder.gep(arrays[0].data, [builder.add(row, column)])
                found = builder.load(builder.bitcast(place, vector.as_pointer()), align=4)
                before = builder.load(best)
                larger = builder.fcmp_ordered(">", found, before)
                builder.store(builder.select(larger, found, before), best)
            place = builder.bitcast(builder.gep(arrays[1].data, [column]), vector.as_pointer())
            builder.store(builder.load(best), place, align=4)
        return context.get_dummy_value()

    return types.void(scores, maxima), codegen


@cache
def staircase(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each rank i < k, how many ranks j can matter, and the last j of k pairs.

    The pair (i, j) has (i + 1) * (j + 1) - 1 pairs that are at least as good, so it can be among
    the best k only if (i + 1) * (j + 1) <= k. And k pairs are at least as good as the pair (i, j)
    where (i + 1) * (j + 1) >= k.
    """
    ranks = np.arange(1, k + 1)
    return k // ranks, -(-k // ranks) - 1


@intrinsic
def not_below(_context, scores, first, bound):  # noqa: ANN001, ANN201
    """Return a bit for each of MASK_BITS scores from `first` on: it reaches the bound or is NaN."""

    def codegen(context, builder, sig, args):  # noqa: ANN001, ANN202
        vector = ir.VectorType(ir.FloatType(), MASK_BITS)
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), vector.as_pointer())
        undefined = ir.Constant(vector, ir.Undefined)
        one = builder.insert_element(undefined, args[2], ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), MASK_BITS), [0] * MASK_BITS)
        bounds = builder.shuffle_vector(one, undefined, zeros)
        reached = builder.fcmp_unordered(">=", builder.load(place, align=4), bounds)
        return builder.bitcast(reached, ir.IntType(MASK_BITS))

    return types.uint64(scores, types.intp, types.float32), codegen


@intrinsic
def lowest_bit(_context, mask):  # noqa: ANN001, ANN201
    """Return the place of the lowest bit that is set."""

    def codegen(_context, builder, _sig, args):  # noqa: ANN001, ANN202
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(types.uint64), codegen


@intrinsic
def pack(_context, score, index):  # noqa: ANN001, ANN201
    """Put a score and an index below 2^32 into one number. NaN is above all, as for torch.topk."""

    def codegen(_context, builder, _sig, args):  # noqa: ANN001, ANN202
        word, double_word = ir.IntType(32), ir.IntType(64)
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        bits = builder.select(is_nan, word(0x7FC00000), builder.bitcast(args[0], word))
        raised = builder.add(bits, word(_RAISE))
        upper = builder.shl(builder.zext(raised, double_word), double_word(32))
        return builder.bitcast(builder.or_(upper, args[1]), ir.DoubleType())

    return types.float64(types.float32, types.int64), codegen


def _unpack(result: types.Type, take: Any) -> Any:  # noqa: ANN401
    @intrinsic
    def unpack(_context, packed):  # noqa: ANN001, ANN202
        def codegen(_context, builder, _sig, args):  # noqa: ANN001, ANN202
            return take(builder, builder.bitcast(args[0], ir.IntType(64)))

        return result(types.float64), codegen

    return unpack


score_of = _unpack(
    types.float32,
    lambda builder, bits: builder.bitcast(
        builder.sub(
            builder.trunc(builder.lshr(bits, ir.IntType(64)(32)), ir.IntType(32)),
            ir.IntType(32)(_RAISE),
        ),
        ir.FloatType(),
    ),
)
index_of = _unpack(
    types.int64, lambda builder, bits: builder.and_(bits, ir.IntType(64)(0xFFFFFFFF))
)
