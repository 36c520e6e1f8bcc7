"""Every parameter of a model, and how ranks share it, from the model on the meta device."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from memory_layers.layers.walk import find_tables, memory_layers_of
from memory_layers.models import backbone_of, build_model
from memory_layers.models.classes import family_of
from memory_layers.parallel.apply import fsdp_axis
from memory_layers.plan.job import Job


@dataclass(frozen=True)
class Parameter:
    """A parameter of a model.

    Attributes:
        name: As in the model.
        shape: Whole.
        block: Index of the block it is in, None for embeddings, final norm, head and a shared
            value table.
        is_value: A value table.
        in_memory: A dense parameter of a memory layer.
        is_matrix: The weight of a linear map: autocast makes a bf16 copy of it.
        split: Axis that a tensor group splits, None: each of its ranks has it whole.
    """

    name: str
    shape: tuple[int, ...]
    block: int | None
    is_value: bool
    in_memory: bool
    is_matrix: bool
    split: int | None

    @property
    def numel(self) -> int:
        """Numbers of the whole parameter."""
        return math.prod(self.shape)

    def local_shape(self, tensor: int) -> tuple[int, ...]:
        """Return the shape on a rank of a tensor group of so many ranks."""
        if self.split is None:
            return self.shape
        axis = self.split
        return (*self.shape[:axis], self.shape[axis] // tensor, *self.shape[axis + 1 :])

    def shard_numel(self, tensor: int, shard: int) -> int:
        """Return the numbers of the first rank's share. FSDP2 pads that of the others to it."""
        shape = self.local_shape(tensor)
        axis = 0 if tensor > 1 and self.split is not None else fsdp_axis(shape, shard)
        return -(-shape[axis] // shard) * (math.prod(shape) // shape[axis])


def parameters_of(job: Job) -> list[Parameter]:
    """Build the model of a job on the meta device and list its parameters."""
    with torch.device("meta"):
        model = build_model(job.run.model.to_preset(), job.memory, vocab_size=job.vocab)
    blocks = {
        id(parameter): index
        for index, block in enumerate(family_of(model).blocks_of(backbone_of(model)))
        for parameter in block.parameters()
    }
    values = _ids(find_tables(model).values())
    in_memory = _ids(memory_layers_of(model))
    matrices = _ids(module for module in model.modules() if isinstance(module, torch.nn.Linear))
    axes = {"colwise": 0, "rowwise": 1}
    plan = job.shape.base_model_tp_plan or {}
    splits = {path.split(".")[-1]: axes.get(style) for path, style in plan.items()}
    if not job.shape.tie_word_embeddings:
        splits |= {"embed_tokens": 0, "lm_head": 0}
    return [
        Parameter(
            name,
            tuple(parameter.shape),
            blocks.get(id(parameter)),
            is_value=id(parameter) in values,
            in_memory=id(parameter) in in_memory - values,
            is_matrix=id(parameter) in matrices,
            split=None if id(parameter) in in_memory else splits.get(name.split(".")[-2]),
        )
        for name, parameter in model.named_parameters()
    ]


def _ids(modules: Iterable[torch.nn.Module]) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters.

    Attributes:
        total: All.
        dense: All but value tables.
        memory_dense: Queries, sub-keys and gates of memory layers, part of `dense`.
        sub_keys: Sub-keys, part of `memory_dense`.
        values: Value tables.
        used_per_token: Dense ones and the J rows that each memory layer reads.
    """

    total: int
    dense: int
    memory_dense: int
    sub_keys: int
    values: int
    used_per_token: int


def count(job: Job, parameters: Iterable[Parameter]) -> Counts:
    """Count the parameters of a model."""
    listed = list(parameters)
    values = sum(p.numel for p in listed if p.is_value)
    dense = sum(p.numel for p in listed if not p.is_value)
    memory = job.memory
    read = 0 if memory is None else len(memory.layers) * memory.reads * job.sizes.value_dim
    return Counts(
        total=dense + values,
        dense=dense,
        memory_dense=sum(p.numel for p in listed if p.in_memory),
        sub_keys=sum(p.numel for p in listed if p.name.endswith("keys.sub_keys")),
        values=values,
        used_per_token=dense + read,
    )


@dataclass(frozen=True)
class Unit:
    """Parameters that FSDP2 gathers together: a block, or the root.

    Attributes:
        numel: Of a tensor rank, gathered.
        shard: Numbers of a rank's share: what it sends, holds and steps.
        matrices: Numbers that autocast copies to bf16.
    """

    numel: int
    shard: int
    matrices: int


def units_of(job: Job, parameters: Iterable[Parameter]) -> tuple[Unit, list[Unit]]:
    """Return the root and the blocks of a job, as FSDP2 groups them."""
    by_place: dict[int | None, list[Parameter]] = {None: []}
    by_place |= {index: [] for index in range(job.shape.num_hidden_layers)}
    for parameter in parameters:
        if not parameter.is_value:
            by_place[parameter.block].append(parameter)
    units = {place: _unit(job, listed) for place, listed in by_place.items()}
    return units[None], [units[index] for index in range(job.shape.num_hidden_layers)]


def _unit(job: Job, parameters: list[Parameter]) -> Unit:
    tensor, shard = job.layout.tensor, job.layout.shard
    local = {p: math.prod(p.local_shape(tensor)) for p in parameters}
    return Unit(
        numel=sum(local.values()),
        shard=sum(p.shard_numel(tensor, shard) for p in parameters),
        matrices=sum(numel for p, numel in local.items() if p.is_matrix),
    )
