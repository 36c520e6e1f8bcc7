"""Our optimizer for transformers' Trainer and those built on it, in one process or several.

The Trainer's data parallelism would send a gradient of the table's size. It is told to leave the
tables alone, and their replicas exchange factors before each step instead.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from memory_layers.layers import MemoryLayer, ValueTable
from memory_layers.optim import MemoryAdamW
from memory_layers.optim.groups import find_tables
from memory_layers.parallel.collectives import Group, start_gather, wait
from memory_layers.parallel.replicas import (
    add_padded_replicas,
    add_replicas,
    add_unequal_replicas,
)


def memory_optimizer(lr: float, **options: Any) -> tuple[type, dict[str, Any]]:  # noqa: ANN401
    """Return what Trainer takes as `optimizer_cls_and_kwargs`.

    The groups are those of MemoryAdamW: no weight decay on tables, norms and biases. The Trainer's
    learning-rate schedule applies to all of them, its `max_grad_norm` to the dense parameters.

    Args:
        lr: Learning rate of the dense parameters.
        **options: Of MemoryAdamW, such as `value_lr` and `weight_decay`, 0.1 by default. The
            Trainer's own settings of an optimizer are not looked at.
    """
    return _Factory, {"lr": lr, **options}


class _Factory:
    """What the Trainer calls for an optimizer that needs the model: cls()(model, **kwargs)."""

    def __call__(self, model: nn.Module, **options: Any) -> MemoryAdamW:  # noqa: ANN401
        _refuse_other_engines(model)
        optimizer = MemoryAdamW(model, **options)
        if dist.is_initialized() and dist.get_world_size() > 1:
            _keep_equal(model, optimizer)
        return optimizer


def _refuse_other_engines(model: nn.Module) -> None:
    """Refuse what would train in silence, and wrongly, or fail with an error about shapes."""
    parameters = list(model.parameters())
    if any(
        isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in parameters
    ):
        raise ValueError(
            "the parameters are sharded, by FSDP or DeepSpeed, and a value table is not to be. "
            "hint: DistributedDataParallel, or `memory-layers train`, which shards it"
        )
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    if alone and parameters[0].is_cuda and torch.cuda.device_count() > 1:
        raise ValueError(
            "one process with several GPUs makes the Trainer copy the model to each, and reads of "
            "the copies are lost. hint: torchrun --nproc-per-node N, or CUDA_VISIBLE_DEVICES=0"
        )
    layers = [module for module in model.modules() if isinstance(module, MemoryLayer)]
    if not alone and any(layer.query.batch_norm is not None for layer in layers):
        raise ValueError(
            'query_norm="batch" takes its statistics on one process only. hint: query_norm="layer"'
        )


def _keep_equal(model: nn.Module, optimizer: MemoryAdamW) -> None:
    """Make the tables of all ranks equal, and keep them so."""
    tables = [table for table in find_tables(model) if table.grad_mode == "factored"]
    ours = {id(table.weight) for table in tables}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in ours]
    # DistributedDataParallel reads this of the module it wraps.
    setattr(model, "_ddp_params_and_buffers_to_ignore", names)  # noqa: B010  (no parameter)
    with torch.no_grad():
        for table in tables:
            dist.broadcast(table.weight, 0)
    assert dist.group.WORLD is not None
    group = Group.of(dist.group.WORLD)

    def exchange(*_: object) -> None:
        for table in tables:
            _average(table, group)

    optimizer.register_step_pre_hook(exchange)


def _average(table: ValueTable, group: Group) -> None:
    """Give each rank the mean of all gradients, as data parallelism does for dense parameters."""
    if table.pending.is_scaled:
        raise RuntimeError(
            "clip_grad_norm_ of this optimizer would clip what one rank has read. hint: clip the "
            "dense parameters, torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)"
        )
    gradient = table.pending.row_gradient()
    parts = () if gradient is None else (*gradient.weights, *gradient.vectors)
    # Batches padded to their own longest row differ in tokens from rank to rank. Where a rank has
    # read nothing, or folded its reads, more differs.
    marks = [_mark(parts, first) for first in (0, 1)]
    own = torch.tensor([marks], device=table.weight.device)
    same = (wait(start_gather(own, group)) == own).all(0).tolist()
    if same[0]:
        add_replicas(table.pending, len(table.weight), group)
    elif same[1]:
        add_padded_replicas(table.pending, len(table.weight), group)
    else:
        add_unequal_replicas(table.pending, table.weight, group)
    table.pending.scale(1 / group.size)


def _mark(parts: Sequence[Tensor], first: int) -> int:
    """Return a number that says which shapes there are, from their dimension `first` on."""
    return zlib.crc32(str([tuple(part.shape[first:]) for part in parts]).encode())
