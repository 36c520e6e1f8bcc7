"""Several processes under transformers' Trainer, or another user of DistributedDataParallel.

One process needs none of this: `optimizer_cls_and_kwargs=(MemoryAdamW, {...})` is enough. In
several, DistributedDataParallel would send a gradient of a table's size. It is told to leave the
tables alone, and their replicas exchange factors instead.
"""

from functools import partial
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from memory_layers.layers.walk import find_tables, memory_layers_of
from memory_layers.parallel.replicas import average_replicas


class MemoryCallback(TrainerCallback):
    """Train the value tables of a model in several processes: Trainer(callbacks=[...])."""

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Prepare the model, before the Trainer wraps it in DistributedDataParallel."""
        del state, control
        model = kwargs["model"]
        if args.n_gpu > 1:
            raise ValueError(
                "one process with several GPUs makes the Trainer copy the model to each, and its "
                "tables with it. hint: torchrun --nproc-per-node N, or CUDA_VISIBLE_DEVICES=0"
            )
        sync_tables(model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Refuse what has sharded the tables since then."""
        del args, state, control
        _refuse_sharded(kwargs["model"])


def sync_tables(model: nn.Module) -> None:
    """Make the value tables of all ranks equal, and keep them so.

    Call it before DistributedDataParallel or accelerate's `prepare` wraps the model. From then on a
    gradient of a table is the mean over all ranks, as that of any other parameter. Its replicas
    exchange factors when its numbers are first looked at: by `clip_grad_norm_`, or in `step`. All
    ranks must do so. In a process alone nothing happens.

    Args:
        model: The same on every rank, but for the numbers in its tables.

    Raises:
        ValueError: FSDP or DeepSpeed has sharded the model, or a layer normalises its queries over
            a batch.
    """
    _refuse_sharded(model)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    if any(layer.query.needs_one_process for layer in memory_layers_of(model)):
        raise ValueError(
            'query_norm="batch" takes its statistics on one process only. hint: query_norm="layer"'
        )
    group = dist.group.WORLD
    assert group is not None
    tables = [table for table in find_tables(model).values() if table.weight.requires_grad]
    weights = {id(table.weight) for table in tables}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in weights}
    # DistributedDataParallel reads this of the module it wraps.
    ignored = "_ddp_params_and_buffers_to_ignore"
    setattr(model, ignored, [*getattr(model, ignored, []), *names])
    for table in tables:
        with torch.no_grad():
            dist.broadcast(table.weight, 0)
        table.exchange = partial(average_replicas, group=group)


def _refuse_sharded(model: nn.Module) -> None:
    """Refuse what would fail with an error about shapes."""
    for parameter in model.parameters():
        if isinstance(parameter, DTensor) or hasattr(parameter, "ds_id"):
            raise ValueError(
                "the parameters are sharded, by FSDP or DeepSpeed, and a value table is not to be. "
                "hint: DistributedDataParallel, or `memory-layers train`, which shards it"
            )


def memory_optimizer(*_: object, **__: object) -> NoReturn:
    """Refuse the name of an earlier version, and name what replaced it.

    Raises:
        TypeError: Always.
    """
    raise TypeError(
        "memory_optimizer was removed. hint: optimizer_cls_and_kwargs=(MemoryAdamW, "
        "{'lr': ..., ...}), and in several processes callbacks=[MemoryCallback()]"
    )
