"""Tensor parallel: which matrices of a model are split, and what memory layers do meanwhile.

Attention and feed-forward blocks follow the plan that transformers has for the family. A memory
layer is not split: each rank of the tensor group takes a share of the tokens.
"""

import math

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from transformers import PreTrainedConfig, PreTrainedModel

from memory_layers.common.errors import UserError
from memory_layers.layers import MemoryBeside, MemoryLayer
from memory_layers.layers.walk import memory_layers_of
from memory_layers.parallel.config import divisors


def check_divisible(config: PreTrainedConfig, ranks: int) -> None:
    """Refuse a model that a tensor group cannot share.

    Raises:
        ValueError: Heads or widths are not multiples of the ranks. Sizes that work are named.
    """
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    # Not every family has all of them: what cannot be shared is refused with its plan.
    sizes = {name: size for name in names if (size := getattr(config, name, None)) is not None}
    if not config.tie_word_embeddings:
        sizes["vocab_size"] = config.vocab_size
    wrong = [f"{name} = {size}" for name, size in sizes.items() if size % ranks]
    if wrong:
        raise UserError(
            f"parallel.tensor = {ranks} must divide {', '.join(wrong)}. "
            f"hint: one of {divisors(math.gcd(*sizes.values()))}"
        )


def split_block(config: PreTrainedConfig, block: nn.Module, mlp: str, mesh: DeviceMesh) -> None:
    """Split the matrices of a block over the tensor group, in place.

    Args:
        config: Of the model.
        block: One block, materialised alike on all ranks of the group.
        mlp: Name of its feed-forward part.
        mesh: One axis, the tensor group.
    """
    feed_forward = getattr(block, mlp)
    plan = {}
    for path, style in _plan_of(config).items():
        if path.split(".")[0] != mlp:
            plan[path] = style
        elif isinstance(feed_forward, MemoryBeside):
            plan[f"{mlp}.{path}"] = style
        elif not isinstance(feed_forward, MemoryLayer):
            plan[path] = style
    parallelize_module(block, mesh, plan, src_data_rank=None)
    for module in block.modules():
        if isinstance(module, MemoryLayer):
            _share_tokens(module, mesh)


def split_ends(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Split embeddings and head by vocabulary, in place, unless they are one matrix."""
    if model.config.tie_word_embeddings:
        return
    ends: dict[nn.Module, ParallelStyle] = {
        model.get_input_embeddings(): RowwiseParallel(input_layouts=Replicate()),
        model.get_output_embeddings(): ColwiseParallel(output_layouts=Replicate()),
    }
    for module, style in ends.items():
        parallelize_module(module, mesh, style, src_data_rank=None)


def _share_tokens(layer: MemoryLayer, mesh: DeviceMesh) -> None:
    """Let each rank of the tensor group take a share of a memory layer's tokens.

    Its dense parameters are whole on each rank: `reduce_shared_gradients` adds up their gradients.
    """
    whole = layer.forward

    def forward(x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])  # [T, D]
        missing = -len(tokens) % mesh.size()
        padded = nn.functional.pad(tokens, (0, 0, 0, missing))
        own = _redistribute(padded, mesh, Replicate(), Shard(0))
        joined = _redistribute(whole(own), mesh, Shard(0), Replicate())
        return joined[: len(tokens)].view(x.shape)

    # Not a hook: it would not see the shape that the tokens had.
    object.__setattr__(layer, "forward", forward)


def reduce_shared_gradients(model: nn.Module, mesh: DeviceMesh) -> None:
    """Add up the gradients of memory layers, whose tokens a tensor group has shared.

    Args:
        model: After the last backward pass of a step.
        mesh: One axis, the tensor group.
    """
    for layer in memory_layers_of(model):
        tables = {id(table.weight) for table in layer.tables}
        for parameter in layer.parameters():
            grad = parameter.grad
            if grad is not None and id(parameter) not in tables:
                local = grad.to_local() if isinstance(grad, DTensor) else grad
                dist.all_reduce(local, group=mesh.get_group())


def _redistribute(local: Tensor, mesh: DeviceMesh, given: Placement, asked: Placement) -> Tensor:
    """Gather or share tokens [T, D]. Gradients go the way back."""
    tokens = DTensor.from_local(local, mesh, [given], run_check=False)
    return tokens.redistribute(placements=[asked]).to_local()


def _plan_of(config: PreTrainedConfig) -> dict[str, ParallelStyle]:
    styles = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    found = config.base_model_tp_plan or {}
    unknown = sorted({style for style in found.values() if style not in styles})
    if unknown or not found:
        raise ValueError(
            f"models of type {config.model_type!r} cannot be split over a tensor group yet "
            f"(their plan has {unknown or 'nothing'}). hint: parallel.tensor: 1"
        )
    return {path.split("*.", 1)[1]: styles[style]() for path, style in found.items()}
