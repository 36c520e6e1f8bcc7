"""Vector code for rows that lie far apart in memory, written in LLVM's intermediate language.

Numba's own loops over rows carry checks (do arrays overlap, is an index negative) that cost more
than the arithmetic here, and give no hold on when a cache line is asked for. A group of rows is
read side by side, line by line, while the same lines of a later group are fetched: read one after
the other, rows leave most of the memory's channels idle (docs/performance.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

CACHE_LINE = 64
# fp32 numbers of one vector. LLVM splits or joins them to what the processor has.
LANES = 8
# Rows read side by side.
GROUP = 8
# How many rows ahead the rows are that are fetched meanwhile.
AHEAD = 2 * GROUP

_BYTE = ir.IntType(8)
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_FLOAT = ir.FloatType()
_RELAXED = ("contract", "reassoc")


@dataclass(frozen=True)
class _Rows:
    """A group of table rows and the one to fetch meanwhile, inside a function being generated."""

    builder: Any
    number: types.Type
    pointers: list[Any]
    upcoming: list[Any]

    @property
    def itemsize(self) -> int:
        return self.number.bitwidth // 8

    def load(self, row: int, column: Any, lanes: int) -> Any:  # noqa: ANN401
        """Load numbers of a row as fp32."""
        offset = self.builder.mul(column, _INT64(self.itemsize))
        pointer = self.builder.gep(self.pointers[row], [offset])
        return load_floats(self.builder, pointer, self.number, lanes)

    def fetch(self, column: Any) -> None:  # noqa: ANN401
        """Ask for the cache line of this column in each row that follows."""
        offset = self.builder.mul(column, _INT64(self.itemsize))
        for row in self.upcoming:
            prefetch_pointer(self.builder, self.builder.gep(row, [offset]))

    def for_columns(self, width: Any, body: Callable[[Any, int], None]) -> None:  # noqa: ANN401
        """Call body(column, lanes) for all columns: in vectors, then the rest one by one."""
        step = CACHE_LINE // self.itemsize
        whole = self.builder.and_(width, _INT64(-step))
        columns = cgutils.for_range_slice(self.builder, _INT64(0), whole, _INT64(step), _INT64)
        with columns as (low, _):
            self.fetch(low)
            for lane in range(0, step, LANES):
                body(self.builder.add(low, _INT64(lane)), LANES)
        columns = cgutils.for_range_slice(self.builder, whole, width, _INT64(1), _INT64)
        with columns as (column, _):
            body(column, 1)


def load_floats(builder: Any, pointer: Any, number: types.Type, lanes: int) -> Any:  # noqa: ANN401
    """Load fp32 numbers, or uint16 numbers that are the bits of bf16, as fp32."""
    floats = ir.VectorType(_FLOAT, lanes)
    if number == types.float32:
        return builder.load(builder.bitcast(pointer, floats.as_pointer()), align=4)
    halves = ir.VectorType(ir.IntType(16), lanes)
    words = ir.VectorType(_INT32, lanes)
    bits = builder.load(builder.bitcast(pointer, halves.as_pointer()), align=2)
    shifted = builder.shl(builder.zext(bits, words), ir.Constant(words, [16] * lanes))
    return builder.bitcast(shifted, floats)


def store_floats(builder: Any, pointer: Any, values: Any) -> None:  # noqa: ANN401
    """Store fp32 numbers."""
    builder.store(values, builder.bitcast(pointer, values.type.as_pointer()), align=4)


def splat(builder: Any, number: Any, lanes: int) -> Any:  # noqa: ANN401
    """Put one fp32 number into all lanes."""
    undefined = ir.Constant(ir.VectorType(_FLOAT, lanes), ir.Undefined)
    first = builder.insert_element(undefined, number, _INT32(0))
    zeros = ir.Constant(ir.VectorType(_INT32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, undefined, zeros)


def multiply_add(builder: Any, a: Any, b: Any, total: Any) -> Any:  # noqa: ANN401
    """Return total + a * b, fused where the processor can."""
    return builder.fadd(total, builder.fmul(a, b, flags=_RELAXED), flags=_RELAXED)


def prefetch_pointer(builder: Any, pointer: Any) -> None:  # noqa: ANN401
    """Ask for a cache line without waiting, and without a fault if there is none."""
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _INT32, _INT32, _INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    # For reading, to be kept in all cache levels, as data.
    builder.call(function, [pointer, _INT32(0), _INT32(3), _INT32(1)])


def _arrays(context: Any, builder: Any, sig: Any, args: Any) -> list[Any]:  # noqa: ANN401
    kinds = [kind for kind in sig.args if isinstance(kind, types.Array)]
    return [
        context.make_array(kind)(context, builder, arg)
        for kind, arg in zip(kinds, args, strict=False)
    ]


def _rows(context: Any, builder: Any, sig: Any, args: Any, group: int) -> _Rows:  # noqa: ANN401
    """Look the rows of a group up: table [N, V], slots [places], from a place on."""
    table, slots = _arrays(context, builder, sig, args)[:2]
    stride = cgutils.unpack_tuple(builder, table.strides)[0]
    base = builder.bitcast(table.data, cgutils.voidptr_t)
    first, last = args[4], builder.sub(builder.extract_value(slots.shape, 0), _INT64(1))

    def row_at(place: Any) -> Any:  # noqa: ANN401
        slot = builder.load(builder.gep(slots.data, [place]))
        slot = slot if slot.type == _INT64 else builder.sext(slot, _INT64)
        return builder.gep(base, [builder.mul(slot, stride)])

    places = [builder.add(first, _INT64(q)) for q in range(group)]
    following = [builder.add(place, _INT64(AHEAD)) for place in places]
    following = [
        builder.select(builder.icmp_signed("<", place, last), place, last) for place in following
    ]
    return _Rows(
        builder, sig.args[0].dtype, [row_at(p) for p in places], [row_at(p) for p in following]
    )


def _add_rows(group: int) -> Any:  # noqa: ANN401
    @intrinsic
    def add_rows(_context, table, slots, weights, total, first):  # noqa: ANN001, ANN202
        """Add the sum of weights[e] * table[slots[e]], first <= e < first + group, to total."""

        def codegen(context, builder, sig, args):  # noqa: ANN001, ANN202
            rows = _rows(context, builder, sig, args, group)
            _, _, factors, out = _arrays(context, builder, sig, args)
            factors = [
                builder.load(builder.gep(factors.data, [builder.add(args[4], _INT64(q))]))
                for q in range(group)
            ]

            def body(column, lanes):  # noqa: ANN001, ANN202
                pointer = builder.gep(out.data, [column])
                sums = load_floats(builder, pointer, types.float32, lanes)
                for q in range(group):
                    factor = splat(builder, factors[q], lanes)
                    sums = multiply_add(builder, factor, rows.load(q, column, lanes), sums)
                store_floats(builder, pointer, sums)

            rows.for_columns(builder.extract_value(out.shape, 0), body)
            return context.get_dummy_value()

        return types.void(table, slots, weights, total, types.intp), codegen

    return add_rows


def _dot_rows(group: int) -> Any:  # noqa: ANN401
    @intrinsic
    def dot_rows(_context, table, slots, vector, dots, first):  # noqa: ANN001, ANN202
        """Set dots[e] = table[slots[e]] . vector, first <= e < first + group."""

        def codegen(context, builder, sig, args):  # noqa: ANN001, ANN202
            rows = _rows(context, builder, sig, args, group)
            _, _, vector, out = _arrays(context, builder, sig, args)
            sums = {
                lanes: [
                    cgutils.alloca_once_value(
                        builder, ir.Constant(ir.VectorType(_FLOAT, lanes), [0.0] * lanes)
                    )
                    for _ in range(group)
                ]
                for lanes in (LANES, 1)
            }
            for lanes, places in sums.items():
                for place in places:
                    builder.store(ir.Constant(ir.VectorType(_FLOAT, lanes), [0.0] * lanes), place)

            def body(column, lanes):  # noqa: ANN001, ANN202
                x = load_floats(builder, builder.gep(vector.data, [column]), types.float32, lanes)
                for q, place in enumerate(sums[lanes]):
                    total = builder.load(place)
                    row = rows.load(q, column, lanes)
                    builder.store(multiply_add(builder, x, row, total), place)

            rows.for_columns(builder.extract_value(vector.shape, 0), body)
            for q in range(group):
                dot = _FLOAT(0.0)
                for lanes, places in sums.items():
                    total = builder.load(places[q])
                    for lane in range(lanes):
                        number = builder.extract_element(total, _INT32(lane))
                        dot = builder.fadd(dot, number, flags=_RELAXED)
                place = builder.add(args[4], _INT64(q))
                builder.store(dot, builder.gep(out.data, [place]))
            return context.get_dummy_value()

        return types.void(table, slots, vector, dots, types.intp), codegen

    return dot_rows


add_group, add_one = _add_rows(GROUP), _add_rows(1)
dot_group, dot_one = _dot_rows(GROUP), _dot_rows(1)
