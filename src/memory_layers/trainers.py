"""Our optimizer for transformers' Trainer and those built on it, in one process or several.

The Trainer's data parallelism would send a gradient of the table's size. It is told to leave the
tables alone, and their replicas exchange factors before each step instead.
"""

import zlib
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from memory_layers.layers import ValueTable
from memory_layers.optim import MemoryAdamW
from memory_layers.optim.groups import find_tables
from memory_layers.parallel.collectives import Group, start_gather, wait
from memory_layers.parallel.replicas import add_replicas, add_unequal_replicas


def memory_optimizer(lr: float, **options: Any) -> tuple[type, dict[str, Any]]:  # noqa: ANN401
    """Return what Trainer takes as `optimizer_cls_and_kwargs`.

    The groups are those of MemoryAdamW: no weight decay on tables, norms and biases. The Trainer's
    learning-rate schedule applies to all of them, its `max_grad_norm` to the dense parameters.

    Args:
        lr: Learning rate of the dense parameters. The Trainer's own is not looked at.
        **options: Of MemoryAdamW, such as `value_lr`.
    """
    return _Factory, {"lr": lr, **options}


class _Factory:
    """What the Trainer calls for an optimizer that needs the model: cls()(model, **kwargs)."""

    def __call__(self, model: nn.Module, **options: Any) -> MemoryAdamW:  # noqa: ANN401
        optimizer = MemoryAdamW(model, **options)
        if dist.is_initialized() and dist.get_world_size() > 1:
            _keep_equal(model, optimizer)
        return optimizer


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
    gradient = table.pending.row_gradient()
    shapes = () if gradient is None else (*gradient.weights, *gradient.vectors)
    # Batches padded to their own longest row differ in shape from rank to rank.
    mark = zlib.crc32(str([tuple(part.shape) for part in shapes]).encode())
    marks = wait(start_gather(torch.tensor([mark], device=table.weight.device), group))
    if bool((marks == mark).all()):
        add_replicas(table.pending, len(table.weight), group)
    else:
        add_unequal_replicas(table.pending, table.weight, group)
    table.pending.scale(1 / group.size)
