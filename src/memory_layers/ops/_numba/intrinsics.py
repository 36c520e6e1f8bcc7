"""The inner loops of plain.py as vector code, written in LLVM's intermediate language.

Numba's own loops over rows carry checks (do arrays overlap, is an index negative) that cost more
than the arithmetic here, and give no hold on when a cache line is asked for. A group of rows is
read side by side while a later group is fetched: read one after the other, rows leave most of the
memory's channels idle (docs/performance.md).

No other file builds LLVM instructions. Where this Numba does not compile them, plain.py runs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from memory_layers.ops._numba.compile import helper, keep_on_disk
from memory_layers.ops._numba.plain import LANES, MASK_BITS
from memory_layers.ops._numba.rows import as_array

_CACHE_LINE = 64
# Rows read side by side, and how many rows ahead those are that are fetched meanwhile.
_GROUP = 8
_AHEAD = 2 * _GROUP

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_RELAXED = ("contract", "reassoc")


def _for_columns(
    builder: Any, width: Any, step: int, fetch: Callable, body: Callable[[Any, int], None]
) -> None:
    """Call body(column, lanes) for all columns: in vectors, then the rest one by one."""
    whole = builder.and_(width, _INT64(-step))
    columns = cgutils.for_range_slice(builder, _INT64(0), whole, _INT64(step), _INT64)
    with columns as (low, _):
        fetch(low)
        for lane in range(0, step, LANES):
            body(builder.add(low, _INT64(lane)), LANES)
    columns = cgutils.for_range_slice(builder, whole, width, _INT64(1), _INT64)
    with columns as (column, _):
        body(column, 1)


def _load(builder: Any, pointer: Any, lanes: int, number: types.Type = types.float32) -> Any:
    """Load fp32 numbers, or uint16 numbers that are the bits of bf16, as fp32."""
    floats = ir.VectorType(_FLOAT, lanes)
    if number == types.float32:
        return builder.load(builder.bitcast(pointer, floats.as_pointer()), align=4)
    halves, words = ir.VectorType(ir.IntType(16), lanes), ir.VectorType(_INT32, lanes)
    bits = builder.load(builder.bitcast(pointer, halves.as_pointer()), align=2)
    shifted = builder.shl(builder.zext(bits, words), ir.Constant(words, [16] * lanes))
    return builder.bitcast(shifted, floats)


def _store(builder: Any, pointer: Any, values: Any) -> None:
    builder.store(values, builder.bitcast(pointer, values.type.as_pointer()), align=4)


def _splat(builder: Any, number: Any, lanes: int) -> Any:
    """Put one fp32 number into all lanes."""
    undefined = ir.Constant(ir.VectorType(_FLOAT, lanes), ir.Undefined)
    first = builder.insert_element(undefined, number, _INT32(0))
    zeros = ir.Constant(ir.VectorType(_INT32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, undefined, zeros)


def _multiply_add(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """Return total + a * b, fused where the processor can."""
    return builder.fadd(total, builder.fmul(a, b, flags=_RELAXED), flags=_RELAXED)


def _call(
    builder: Any, name: str, arguments: Sequence[Any], result: Any = None, **options: Any
) -> Any:
    """Call a function of LLVM. Its result is of the type of the first argument, or as given."""
    kind = ir.FunctionType(result or arguments[0].type, [value.type for value in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, arguments, **options)


def _prefetch(builder: Any, pointer: Any) -> None:
    """Ask for a cache line without waiting, and without a fault if there is none."""
    # For reading, to be kept in all cache levels, as data.
    arguments = [pointer, _INT32(0), _INT32(3), _INT32(1)]
    _call(builder, "llvm.prefetch.p0i8", arguments, ir.VoidType())


def _arrays(context: Any, builder: Any, kinds: Any, values: Any) -> list[Any]:
    return [
        context.make_array(kind)(context, builder, value)
        for kind, value in zip(kinds, values, strict=True)
    ]


def _length(builder: Any, array: Any) -> Any:
    return builder.extract_value(array.shape, 0)


def _rows(builder: Any, number: Any, table: Any, slots: Any, first: Any, group: int) -> Any:
    """Look a group of rows up: table [N, V], slots [places], from place `first` on.

    Returns:
        load(q, column, lanes): Code that loads numbers of row q of the group as fp32.
        for_columns(width, body): Code of body(column, lanes) for all columns, which fetches them
            of the rows that follow.
    """
    itemsize = number.bitwidth // 8
    stride = cgutils.unpack_tuple(builder, table.strides)[0]
    base = builder.bitcast(table.data, cgutils.voidptr_t)
    last = builder.sub(_length(builder, slots), _INT64(1))

    def row_at(place: Any) -> Any:
        slot = builder.load(builder.gep(slots.data, [place]))
        slot = slot if slot.type == _INT64 else builder.sext(slot, _INT64)
        return builder.gep(base, [builder.mul(slot, stride)])

    places = [builder.add(first, _INT64(q)) for q in range(group)]
    following = [builder.add(place, _INT64(_AHEAD)) for place in places]
    following = [
        builder.select(builder.icmp_signed("<", place, last), place, last) for place in following
    ]
    rows, upcoming = [row_at(p) for p in places], [row_at(p) for p in following]

    def load(q: int, column: Any, lanes: int) -> Any:
        offset = builder.mul(column, _INT64(itemsize))
        return _load(builder, builder.gep(rows[q], [offset]), lanes, number)

    def fetch(low: Any) -> None:
        offset = builder.mul(low, _INT64(itemsize))
        for row in upcoming:
            _prefetch(builder, builder.gep(row, [offset]))

    def for_columns(width: Any, body: Callable[[Any, int], None]) -> None:
        _for_columns(builder, width, _CACHE_LINE // itemsize, fetch, body)

    return load, for_columns


def _add(group: int) -> Any:
    @intrinsic
    def add(_context, table, slots, weights, total, first):
        def codegen(context, builder, sig, args):
            rows, places, factors, out = _arrays(context, builder, sig.args[:4], args[:4])
            load, for_columns = _rows(builder, sig.args[0].dtype, rows, places, args[4], group)
            factors = [
                builder.load(builder.gep(factors.data, [builder.add(args[4], _INT64(q))]))
                for q in range(group)
            ]

            def body(column, lanes):
                pointer = builder.gep(out.data, [column])
                sums = _load(builder, pointer, lanes)
                for q in range(group):
                    factor = _splat(builder, factors[q], lanes)
                    sums = _multiply_add(builder, factor, load(q, column, lanes), sums)
                _store(builder, pointer, sums)

            for_columns(_length(builder, out), body)
            return context.get_dummy_value()

        return types.void(table, slots, weights, total, types.intp), codegen

    return add


def _dot(group: int) -> Any:
    @intrinsic
    def dot(_context, table, slots, vector, dots, first):
        def codegen(context, builder, sig, args):
            rows, places, vector, out = _arrays(context, builder, sig.args[:4], args[:4])
            load, for_columns = _rows(builder, sig.args[0].dtype, rows, places, args[4], group)
            zeros = {n: ir.Constant(ir.VectorType(_FLOAT, n), [0.0] * n) for n in (LANES, 1)}
            sums = {
                lanes: [cgutils.alloca_once_value(builder, zero) for _ in range(group)]
                for lanes, zero in zeros.items()
            }
            for lanes, totals in sums.items():
                for total in totals:
                    builder.store(zeros[lanes], total)

            def body(column, lanes):
                x = _load(builder, builder.gep(vector.data, [column]), lanes)
                for q, total in enumerate(sums[lanes]):
                    before = builder.load(total)
                    row = load(q, column, lanes)
                    builder.store(_multiply_add(builder, x, row, before), total)

            for_columns(_length(builder, vector), body)
            for q in range(group):
                dot = _FLOAT(0.0)
                for lanes, totals in sums.items():
                    total = builder.load(totals[q])
                    for lane in range(lanes):
                        number = builder.extract_element(total, _INT32(lane))
                        dot = builder.fadd(dot, number, flags=_RELAXED)
                place = builder.add(args[4], _INT64(q))
                builder.store(dot, builder.gep(out.data, [place]))
            return context.get_dummy_value()

        return types.void(table, slots, vector, dots, types.intp), codegen

    return dot


_add_group, _add_one = _add(_GROUP), _add(1)
_dot_group, _dot_one = _dot(_GROUP), _dot(1)


@helper
def add_rows(table, slots, weights, total, first, end):
    """Add weighted rows: see plain.py."""
    grouped = end - (end - first) % _GROUP
    for e in range(first, grouped, _GROUP):
        _add_group(table, slots, weights, total, e)
    for e in range(grouped, end):
        _add_one(table, slots, weights, total, e)


@helper
def dot_rows(table, slots, vector, dots, first, end):
    """Multiply rows with a vector: see plain.py."""
    grouped = end - (end - first) % _GROUP
    for e in range(first, grouped, _GROUP):
        _dot_group(table, slots, vector, dots, e)
    for e in range(grouped, end):
        _dot_one(table, slots, vector, dots, e)


@intrinsic
def adamw_row(_context, row, gradient, moments, upcoming, numbers):
    """Step a row, and fetch the next one meanwhile: see plain.py."""

    def codegen(context, builder, sig, args):
        def pointers(kinds: Any, values: Any) -> list[Any]:
            return [array.data for array in _arrays(context, builder, kinds, values)]

        x, g = pointers(sig.args[:2], args[:2])
        first, second = pointers(sig.args[2], cgutils.unpack_tuple(builder, args[2]))
        following = pointers(sig.args[3], cgutils.unpack_tuple(builder, args[3]))
        scalars = cgutils.unpack_tuple(builder, args[4])

        def fetch(low: Any) -> None:
            for pointer in following:
                place = builder.gep(pointer, [low])
                _prefetch(builder, builder.bitcast(place, cgutils.voidptr_t))

        def step(column: Any, lanes: int) -> None:
            lr, beta1, rest1, beta2, rest2, correction, eps = (
                _splat(builder, number, lanes) for number in scalars
            )
            places = [builder.gep(pointer, [column]) for pointer in (x, g, first, second)]
            value, grad, m, v = (_load(builder, place, lanes) for place in places)
            m = _multiply_add(builder, rest1, grad, builder.fmul(beta1, m))
            v = _multiply_add(builder, builder.fmul(rest2, grad), grad, builder.fmul(beta2, v))
            root = _call(builder, f"llvm.sqrt.v{lanes}f32", [builder.fmul(v, correction)])
            update = builder.fdiv(builder.fmul(lr, m), builder.fadd(root, eps))
            _store(builder, places[0], builder.fsub(value, update))
            _store(builder, places[2], m)
            _store(builder, places[3], v)

        (array,) = _arrays(context, builder, sig.args[:1], args[:1])
        _for_columns(builder, _length(builder, array), _CACHE_LINE // 4, fetch, step)
        return context.get_dummy_value()

    return types.void(row, gradient, moments, upcoming, numbers), codegen


@intrinsic
def exchange(_context, lists, upper, lower):
    """Order two rows of lists: see plain.py."""
    is_double = lists.dtype == types.float64
    lanes = ir.VectorType(_DOUBLE if is_double else _FLOAT, LANES)

    def codegen(context, builder, sig, args):
        data = _arrays(context, builder, sig.args[:1], args[:1])[0].data
        places = [
            builder.bitcast(
                builder.gep(data, [builder.mul(row, _INT64(LANES))]), lanes.as_pointer()
            )
            for row in args[1:]
        ]
        numbers = [builder.load(place, align=4) for place in places]
        # A compare and a select would become a masked store, which is slow on some processors.
        for place, name in zip(places, ("maxnum", "minnum"), strict=True):
            function = f"llvm.{name}.v{LANES}{'f64' if is_double else 'f32'}"
            chosen = _call(builder, function, numbers, fastmath=("nnan",))
            builder.store(chosen, place, align=4)
        return context.get_dummy_value()

    return types.void(lists, types.intp, types.intp), codegen


@intrinsic
def group_maxima(_context, scores, maxima):
    """Find the largest score of each group: see plain.py."""

    def codegen(context, builder, sig, args):
        vector = ir.VectorType(_FLOAT, LANES)
        arrays = _arrays(context, builder, sig.args, args)
        count, groups = (_length(builder, array) for array in arrays)
        end = builder.add(builder.sub(count, groups), _INT64(1))
        lowest = ir.Constant(vector, [float("-inf")] * LANES)
        best = cgutils.alloca_once(builder, vector)
        columns = cgutils.for_range_slice(builder, _INT64(0), groups, _INT64(LANES), _INT64)
        with columns as (column, _):
            builder.store(lowest, best)
            rows = cgutils.for_range_slice(builder, _INT64(0), end, groups, _INT64)
            with rows as (row, _):
                place = builder.gep(arrays[0].data, [builder.add(row, column)])
                found, before = _load(builder, place, LANES), builder.load(best)
                larger = builder.fcmp_ordered(">", found, before)
                builder.store(builder.select(larger, found, before), best)
            _store(builder, builder.gep(arrays[1].data, [column]), builder.load(best))
        return context.get_dummy_value()

    return types.void(scores, maxima), codegen


@intrinsic
def not_below(_context, scores, first, bound):
    """Compare MASK_BITS scores with a bound: see plain.py."""

    def codegen(context, builder, sig, args):
        data = _arrays(context, builder, sig.args[:1], args[:1])[0].data
        found = _load(builder, builder.gep(data, [args[1]]), MASK_BITS)
        bounds = _splat(builder, args[2], MASK_BITS)
        return builder.bitcast(builder.fcmp_unordered(">=", found, bounds), ir.IntType(MASK_BITS))

    return types.uint64(scores, types.intp, types.float32), codegen


@intrinsic
def lowest_bit(_context, mask):
    """Return the place of the lowest bit that is set."""

    def codegen(_context, builder, _sig, args):
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(types.uint64), codegen


@intrinsic
def _pointer_to(_context, address, start, like):
    """Turn the address of numbers of a type into a pointer to one of them."""

    def codegen(context, builder, sig, args):
        offset = builder.mul(args[1], _INT64(like.bitwidth // 8))
        return builder.inttoptr(
            builder.add(args[0], offset), context.get_value_type(sig.return_type)
        )

    return types.CPointer(like)(types.int64, types.int64, like), codegen


def parts(tensors: Sequence[Tensor]) -> tuple[np.generic, list[int]]:
    """Return a number of the type, and the addresses: see plain.py. Nothing is copied."""
    return as_array(tensors[0]).dtype.type(0), [tensor.data_ptr() for tensor in tensors]


@helper
def part(like, place, start, length):
    """Return numbers of a tensor: see plain.py."""
    return carray(_pointer_to(place, start, like), (length,))


def compile_all() -> None:
    """Compile every function here, or load what was compiled, and run it.

    Raises:
        Exception: Of many kinds: this version of Numba or of llvmlite is not one that this file is
            written for.
    """
    probe = njit(_probe)
    keep_on_disk(probe, "intrinsics")
    wide, narrow = np.ones((2, 32), np.float32), np.ones((2, 32), np.uint16)
    row = torch.ones(32)
    like, (place,) = parts([row])
    probe(wide, narrow, np.zeros(9, np.int64), np.zeros((2, LANES)), like, place)


def _probe(wide, narrow, slots, lists, like, place):
    row, dots = part(like, place, 0, 32), np.zeros(slots.shape[0], np.float32)
    add_rows(wide, slots, dots, row, 0, slots.shape[0])
    add_rows(narrow, slots, dots, row, 0, slots.shape[0])
    dot_rows(wide, slots, row, dots, 0, slots.shape[0])
    dot_rows(narrow, slots, row, dots, 0, slots.shape[0])
    one = np.float32(1)
    numbers = (one, one, one, one, one, one, one)
    adamw_row(row, wide[1], (wide[0], wide[0]), (wide[0], wide[1], wide[1]), numbers)
    exchange(lists, 0, 1)
    exchange(wide[:, :LANES].copy(), 0, 1)
    group_maxima(row, dots[:LANES])
    return lowest_bit(not_below(wide.reshape(-1), 0, one))
