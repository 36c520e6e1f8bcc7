"""`shard_memory` and `parallelize`: divide a finished model among the ranks of a run.

Layers know nothing of ranks: tables are replaced by sharded ones, matrices become DTensors.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from memory_layers.layers.walk import find_tables, memory_layers_of
from memory_layers.models import backbone_of
from memory_layers.models.classes import family_of
from memory_layers.models.initialize import materialize
from memory_layers.parallel.config import ParallelConfig
from memory_layers.parallel.mesh import Meshes
from memory_layers.parallel.table import ShardedValueTable
from memory_layers.parallel.tensor import check_divisible, split_block, split_ends


def shard_memory(
    model: nn.Module, mesh: DeviceMesh, weights_dtype: torch.dtype | None = None
) -> nn.Module:
    """Shard every value table of a model by width over the memory group, in place.

    Args:
        model: A finished model, on the meta device or the same on every rank.
        mesh: Axes replicas and memory: `make_meshes(...).table`. A mesh of one axis is one memory
            group of all its ranks.
        weights_dtype: Type in which the weights of a read travel. None: as they are.

    Raises:
        ValueError: A table leaves sparse gradients, there are more ranks than columns, or
            queries are normalised over a batch.
    """
    for layer in memory_layers_of(model):
        if layer.query.needs_one_process:
            raise ValueError(
                'query_norm "batch" works on one process: each rank would normalise by the '
                'statistics of its own tokens. hint: query_norm: "layer", or "none"'
            )
    for name, table in find_tables(model).items():
        model.set_submodule(name, ShardedValueTable(table, mesh, weights_dtype))
    return model


def parallelize(
    model: PreTrainedModel,
    meshes: Meshes,
    config: ParallelConfig,
    *,
    seed: int | None,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """Divide a model among ranks, in place, part by part.

    Value tables are sharded by width over the memory group, matrices over the tensor group, and the
    remaining dense parameters by FSDP2. A rank never holds more than its share and one block, or
    the embeddings.

    Args:
        model: Built on the meta device.
        meshes: Of the run.
        config: As `meshes.layout` was made from.
        seed: Decides the initial values. None leaves them uninitialised, for tracing.
        device: Of this rank.

    Raises:
        ValueError: Sizes of the model that the tensor group cannot share, or queries are
            normalised over a batch.
    """
    tensor = meshes.dense["tensor"] if meshes.layout.tensor > 1 else None
    if tensor is not None:
        check_divisible(model.config, meshes.layout.tensor)
    shard_memory(model, meshes.table, getattr(torch, config.weights_dtype))
    family = family_of(model)
    names = {module: name for name, module in model.named_modules()}
    blocks = list(family.blocks_of(backbone_of(model)))
    for block in blocks:
        _fill(model, list(block.named_modules(prefix=names[block])), seed, device)
        if tensor is not None:
            split_block(model.config, block, family.mlp, tensor)
        _shard(block, meshes)
    within = {module for block in blocks for module in block.modules()}
    rest = [(name, module) for module, name in names.items() if module not in within]
    _fill(model, rest, seed, device)
    if tensor is not None:
        split_ends(model, tensor)
    _shard(model, meshes)
    return model


def reshard(model: nn.Module) -> None:
    """Free what FSDP2 gathered for a forward pass without a backward pass.

    Until then the parameters of the outermost module are whole, and not those of the optimizer.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _fill(
    model: PreTrainedModel,
    modules: list[tuple[str, nn.Module]],
    seed: int | None,
    device: torch.device | str,
) -> None:
    if seed is not None:
        materialize(model, seed, device, modules)
        return
    # Not to_empty, which exchanges tensors in a way that torch's fake tensors do not allow.
    for _, module in modules:
        for name, own in module.named_parameters(recurse=False):
            fresh = nn.Parameter(torch.empty_like(own, device=device), own.requires_grad)
            module.register_parameter(name, fresh)
        for name, own in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(own, device=device))
    model.tie_weights()


def fsdp_axis(shape: Sequence[int], ranks: int) -> int:
    """Return the axis along which FSDP2 cuts a parameter: the first that needs no padding.

    Without one, the first axis, padded. Sub-keys [H, 2, M, C] have few heads and many sub-keys.

    Args:
        shape: Of the parameter.
        ranks: That share it.
    """
    return next((axis for axis, size in enumerate(shape) if size % ranks == 0), 0)


def _shard(module: nn.Module, meshes: Meshes) -> None:
    tables = {table.weight for table in find_tables(module).values()}
    ranks = meshes.layout.shard

    def placement(parameter: nn.Parameter) -> Shard | None:
        # FSDP2 cuts what a tensor group has cut already along its first axis only.
        whole = not isinstance(parameter, DTensor)
        return Shard(fsdp_axis(parameter.shape, ranks)) if whole else None

    fully_shard(module, mesh=meshes.fsdp, ignored_params=tables, shard_placement_fn=placement)
    assert isinstance(module, FSDPModule)
    # The loss of a rank is its share of the mean over all tokens: gradients are added up.
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
