"""FactoredGradient: the gradient of a table as a tensor that holds its factors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from memory_layers.layers.pending import PendingReads, by_row
from memory_layers.ops.write import RowGradient, row_norm, row_sums

aten = torch.ops.aten


class FactoredGradient(Tensor):
    """The gradient [N, V] of a table, kept as the slots, weights and vectors of its reads.

    autograd treats it as any gradient: it adds up those of several reads and backward passes in
    `weight.grad`, and `zero_grad` of a model or an optimizer forgets it. MemoryAdamW steps the
    touched rows from its factors. `linalg.vector_norm` and scaling, and with them
    `clip_grad_norm_`, work on the factors. Every other function gets `to_dense()`.

    Where the table has replicas, looking at its numbers is a collective operation, as for a
    DTensor: all ranks must do it.

    Attributes:
        reads: What it holds. Views share it.

    Args:
        reads: Of a table.
        like: The weight of that table, or another gradient of it.
    """

    reads: PendingReads
    # Functions of torch see it where they are dispatched to a device, below.
    __torch_function__ = (  # ty: ignore[incompatible-method-override]
        torch._C._disabled_torch_function_impl  # noqa: SLF001
    )

    @staticmethod
    def __new__(cls: type, reads: PendingReads, like: Tensor) -> "FactoredGradient":
        """Make a tensor of the shape and type of the weight, without its memory."""
        return Tensor._make_wrapper_subclass(  # noqa: SLF001
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=like.device
        )

    def __init__(self, reads: PendingReads, like: Tensor) -> None:
        del like
        self.reads = reads

    def __repr__(self) -> str:  # ty: ignore[incompatible-method-override]
        """Show the sizes: numbers would have to be multiplied out."""
        return f"FactoredGradient(shape={tuple(self.shape)}, reads={len(self.reads)})"

    def to_dense(self) -> Tensor:  # ty: ignore[incompatible-method-override]
        """Return the same gradient as an ordinary tensor [N, V]."""
        dense = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        gradient = self.reads.row_gradient()
        if gradient is not None:
            rows, sums = row_sums(gradient)
            dense[rows] = sums.to(self.dtype)
        return dense

    def to_sparse(self) -> Tensor:  # ty: ignore[incompatible-method-override]
        """Return the same gradient as a coalesced sparse COO tensor."""
        gradient = self.reads.row_gradient()
        if gradient is None:
            rows = torch.empty(0, dtype=torch.int64, device=self.device)
            sums = torch.empty(0, self.shape[1], dtype=self.dtype, device=self.device)
        else:
            rows, sums = row_sums(gradient)
        return torch.sparse_coo_tensor(
            rows[None], sums.to(self.dtype), self.shape, is_coalesced=True, check_invariants=False
        )

    @classmethod
    def __torch_dispatch__(  # ty: ignore[incompatible-method-override]
        cls,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run a function on the factors if there is a way, else on the dense gradient."""
        del types
        kwargs = kwargs or {}
        on_factors = _ON_FACTORS.get(func)
        if on_factors is not None and isinstance(args[0], cls):
            result = on_factors(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func in _ONE_BY_ONE:
            for tensor in args[0]:
                _ONE_BY_ONE[func](tensor, *args[1:])
            return None
        _refuse_changes(func, args, kwargs)
        args, kwargs = tree_map_only(cls, cls.to_dense, (args, kwargs))
        return _read_only(func, func(*args, **kwargs))


class DensePart(Tensor):
    """What a view of a FactoredGradient shows: a part of its dense copy, to be looked at alone.

    A change of it would be lost, and is refused.

    Args:
        dense: The part.
    """

    dense: Tensor
    __torch_function__ = (  # ty: ignore[incompatible-method-override]
        torch._C._disabled_torch_function_impl  # noqa: SLF001
    )

    @staticmethod
    def __new__(cls: type, dense: Tensor) -> "DensePart":
        """Make a tensor of the shape of the part."""
        return Tensor._make_wrapper_subclass(  # noqa: SLF001
            cls, dense.shape, strides=dense.stride(), dtype=dense.dtype, device=dense.device
        )

    def __init__(self, dense: Tensor) -> None:
        self.dense = dense

    def __repr__(self) -> str:  # ty: ignore[incompatible-method-override]
        """Show the numbers."""
        return repr(self.dense)

    # What torch refuses where a tensor has no memory of its own.
    def __format__(self, format_spec: str) -> str:
        """Show the numbers, or one of them in a form."""
        return format(self.dense, format_spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return an ordinary tensor."""
        return self.dense.clone()

    def __reduce_ex__(self, proto: Any) -> Any:  # noqa: ANN401
        """Pickle as an ordinary tensor, of the part alone."""
        return self.dense.clone().__reduce_ex__(proto)

    def __dlpack__(self, **options: Any) -> Any:  # noqa: ANN401
        """Share the numbers with another library."""
        return self.dense.__dlpack__(**options)

    def numpy(self, *, force: bool = False) -> Any:  # noqa: ANN401
        """Return the numbers as an array."""
        return self.dense.numpy(force=force)

    def tolist(self) -> Any:  # noqa: ANN401
        """Return the numbers in lists."""
        return self.dense.tolist()

    @classmethod
    def __torch_dispatch__(  # ty: ignore[incompatible-method-override]
        cls,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run a function on the part."""
        del types
        _refuse_changes(func, args, kwargs or {})
        args, kwargs = tree_map_only(cls, lambda part: part.dense, (args, kwargs or {}))
        return _read_only(func, func(*args, **kwargs))


def _read_only(func: Any, result: Any) -> Any:  # noqa: ANN401
    return tree_map_only(Tensor, DensePart, result) if func.is_view else result


def _refuse_changes(func: Any, args: tuple, kwargs: dict[str, Any]) -> None:  # noqa: ANN401
    """Refuse what would change a dense copy in place of the gradient."""
    name = func._schema.name.removeprefix("aten::")  # noqa: SLF001
    if name.startswith("_amp_"):
        raise RuntimeError(
            "loss scaling does not reach the gradient of a value table. hint: train in bf16, "
            "without a GradScaler"
        )
    if func.namespace in ("c10d", "_c10d_functional", "_c10d_functional_autograd"):
        raise RuntimeError(
            f"{name} would exchange a gradient of the table's size, and not change it. hint: leave "
            "the tables out, memory_layers.integrations.trainer.sync_tables(model) adds up theirs"
        )
    if "out" in kwargs:
        # The one use that is known: the buckets of DistributedDataParallel.
        raise RuntimeError(
            "DistributedDataParallel would send a gradient of the table's size. hint: "
            "memory_layers.integrations.trainer.sync_tables(model) before it wraps the model, for "
            "transformers' Trainer callbacks=[MemoryCallback()]"
        )
    # A fused optimizer writes to gradients only to unscale them.
    changes = [] if name.startswith("_fused_") else [
        argument.name
        for argument, given in zip(func._schema.arguments, args, strict=False)  # noqa: SLF001
        if argument.is_write and _holds_factors(given)
    ]  # fmt: skip
    if changes:
        raise RuntimeError(
            f"{name} cannot change the gradient of a value table that MemoryAdamW steps. hint: "
            "weight.grad = weight.grad.to_dense() first"
        )


def _holds_factors(given: object) -> bool:
    parts = given if isinstance(given, (list, tuple)) else (given,)
    return any(isinstance(part, (FactoredGradient, DensePart)) for part in parts)


def _view(gradient: FactoredGradient, *_: object, **__: object) -> FactoredGradient:
    return FactoredGradient(gradient.reads, gradient)


def _clone(gradient: FactoredGradient, **_: object) -> FactoredGradient:
    return FactoredGradient(gradient.reads.copy(), gradient)


def _empty_like(gradient: FactoredGradient, size: Any, *_: object, **__: object) -> Any:  # noqa: ANN401
    if tuple(size) != tuple(gradient.shape):
        return NotImplemented
    empty = gradient.reads.copy()
    empty.clear()
    return FactoredGradient(empty, gradient)


def _copy_(gradient: FactoredGradient, source: Tensor, *_: object) -> Any:  # noqa: ANN401
    if source.shape != gradient.shape:
        return NotImplemented
    if isinstance(source, FactoredGradient):
        gradient.reads.become(source.reads)
    else:
        gradient.reads.clear()
        gradient.reads.join(by_row(source))
    return gradient


def _add_(gradient: FactoredGradient, other: Any, *, alpha: float = 1) -> Any:  # noqa: ANN401
    if alpha != 1 or not isinstance(other, Tensor) or other.shape != gradient.shape:
        return NotImplemented
    gradient.reads.join(_by_row(other))
    return gradient


def _by_row(gradient: Tensor) -> RowGradient | None:
    factored = isinstance(gradient, FactoredGradient)
    return gradient.reads.local_gradient() if factored else by_row(gradient)


def _add(gradient: FactoredGradient, other: Any, *, alpha: float = 1) -> Any:  # noqa: ANN401
    if not isinstance(other, FactoredGradient):
        return NotImplemented
    return _add_(_clone(gradient), other, alpha=alpha)


def _mul_(gradient: FactoredGradient, factor: Any) -> Any:  # noqa: ANN401
    if isinstance(factor, Tensor) and factor.dim():
        return NotImplemented
    gradient.reads.scale(factor)
    return gradient


def _div_(gradient: FactoredGradient, divisor: Any) -> Any:  # noqa: ANN401
    return _mul_(gradient, 1 / divisor)


def _zero_(gradient: FactoredGradient) -> FactoredGradient:
    gradient.reads.clear()
    return gradient


def _norm(gradient: FactoredGradient, *given: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    if kwargs or (given and given[0] not in (2, None)) or len(given) > 1:
        return NotImplemented
    reads = gradient.reads.row_gradient()
    return torch.zeros((), device=gradient.device) if reads is None else row_norm(reads)


_ON_FACTORS: dict[Any, Callable[..., Any]] = {
    aten.detach.default: _view,
    aten.alias.default: _view,
    aten.clone.default: _clone,
    aten.new_empty_strided.default: _empty_like,
    aten.copy_.default: _copy_,
    aten.add.Tensor: _add,
    aten.add_.Tensor: _add_,
    aten.mul_.Tensor: _mul_,
    aten.div_.Tensor: _div_,
    aten.zero_.default: _zero_,
    aten.linalg_vector_norm.default: _norm,
}

_ONE_BY_ONE: dict[Any, Callable[..., Any]] = {
    aten._foreach_mul_.Tensor: Tensor.mul_,
    aten._foreach_zero_.default: Tensor.zero_,
}
