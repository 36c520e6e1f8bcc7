"""The AdamW step of one row as vector code, see numba_vectors.py for why."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from memory_layers.ops.numba_vectors import (
    CACHE_LINE,
    LANES,
    load_floats,
    multiply_add,
    prefetch_pointer,
    splat,
    store_floats,
)

_INT64 = ir.IntType(64)


@intrinsic
def adamw_row(  # noqa: ANN201
    _context,  # noqa: ANN001
    row,  # noqa: ANN001
    gradient,  # noqa: ANN001
    moments,  # noqa: ANN001
    upcoming,  # noqa: ANN001
    numbers,  # noqa: ANN001
):
    """Step a row and its two moments, and ask for the arrays of the next row in between.

    Args:
        row: [V] fp32, changed in place.
        gradient: [V] fp32.
        moments: Pair of [V] fp32, first and second, changed in place.
        upcoming: Triple of [V]: the next row and its moments.
        numbers: lr / (1 - beta1^step), beta1, 1 - beta1, beta2, 1 - beta2, 1 / (1 - beta2^step),
            eps, all fp32.
    """

    def codegen(context, builder, sig, args):  # noqa: ANN001, ANN202
        def pointers(kinds: Any, values: Any) -> list[Any]:  # noqa: ANN401
            return [
                context.make_array(kind)(context, builder, value).data
                for kind, value in zip(kinds, values, strict=True)
            ]

        x, g = pointers(sig.args[:2], args[:2])
        first, second = pointers(sig.args[2], cgutils.unpack_tuple(builder, args[2]))
        following = pointers(sig.args[3], cgutils.unpack_tuple(builder, args[3]))
        scalars = cgutils.unpack_tuple(builder, args[4])
        array = context.make_array(sig.args[0])(context, builder, args[0])
        width = builder.extract_value(array.shape, 0)

        def step(column: Any, lanes: int) -> None:  # noqa: ANN401
            lr, beta1, rest1, beta2, rest2, correction, eps = (
                splat(builder, number, lanes) for number in scalars
            )
            places = [builder.gep(pointer, [column]) for pointer in (x, g, first, second)]
            value, grad, m, v = (
                load_floats(builder, place, types.float32, lanes) for place in places
            )
            m = multiply_add(builder, rest1, grad, builder.fmul(beta1, m))
            v = multiply_add(builder, builder.fmul(rest2, grad), grad, builder.fmul(beta2, v))
            kind = ir.FunctionType(v.type, [v.type])
            sqrt = cgutils.get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{lanes}f32")
            root = builder.call(sqrt, [builder.fmul(v, correction)])
            update = builder.fdiv(builder.fmul(lr, m), builder.fadd(root, eps))
            store_floats(builder, places[0], builder.fsub(value, update))
            store_floats(builder, places[2], m)
            store_floats(builder, places[3], v)

        block = CACHE_LINE // 4
        whole = builder.and_(width, _INT64(-block))
        columns = cgutils.for_range_slice(builder, _INT64(0), whole, _INT64(block), _INT64)
        with columns as (low, _):
            for pointer in following:
                place = builder.gep(pointer, [low])
                prefetch_pointer(builder, builder.bitcast(place, cgutils.voidptr_t))
            for lane in range(0, block, LANES):
                step(builder.add(low, _INT64(lane)), LANES)
        columns = cgutils.for_range_slice(builder, whole, width, _INT64(1), _INT64)
        with columns as (column, _):
            step(column, 1)
        return context.get_dummy_value()

    return types.void(row, gradient, moments, upcoming, numbers), codegen
