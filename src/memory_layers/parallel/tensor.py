"""Tensor parallel: which matrices of a model are split, and how a memory layer joins in.

Attention and feed-forward blocks follow the plan that transformers has for the family. A memory
layer is not split: each rank of the tensor group takes a share of the tokens.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from transformers import PreTrainedConfig, PreTrainedModel

from memory_layers.common.errors import UserError
from memory_layers.layers import MemoryBeside, MemoryLayer
from memory_layers.layers.walk import find_layers
from memory_layers.parallel.collectives import Group, start_gather, start_sum, wait


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
        most = math.gcd(*sizes.values())
        fits = [number for number in range(1, most + 1) if most % number == 0]
        raise UserError(
            f"parallel.tensor = {ranks} must divide {', '.join(wrong)}. hint: one of {fits}"
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
            share_tokens(module, mesh)


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


def share_tokens(layer: MemoryLayer, mesh: DeviceMesh) -> None:
    """Let each rank of the tensor group take a share of a memory layer's tokens.

    Its dense parameters are whole on each rank, and their gradients the sum of the shares:
    `reduce_shared_gradients` adds them up.

    Args:
        layer: Of a block that the group has split.
        mesh: One axis, the tensor group.
    """
    group = Group.of(mesh.get_group())
    whole = layer.forward

    def forward(x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])  # [T, D]
        missing = -len(tokens) % group.size
        share = _TakeShare.apply(nn.functional.pad(tokens, (0, 0, 0, missing)), group)
        return _JoinShares.apply(whole(share), group)[: len(tokens)].view(x.shape)

    # Not a hook: it would not see the shape that the tokens had.
    object.__setattr__(layer, "forward", forward)


def reduce_shared_gradients(model: nn.Module, mesh: DeviceMesh) -> None:
    """Add up the gradients of memory layers, whose tokens a tensor group has shared.

    Args:
        model: After the last backward pass of a step.
        mesh: One axis, the tensor group.
    """
    group = Group.of(mesh.get_group())
    for layer in find_layers(model).values():
        tables = {id(layer.values.weight)}
        for parameter in layer.parameters():
            if parameter.grad is not None and id(parameter) not in tables:
                grad: Any = parameter.grad
                local = grad.to_local() if hasattr(grad, "to_local") else grad
                local.copy_(wait(start_sum(local, group)))


class _TakeShare(torch.autograd.Function):
    """Rows that are the same on all ranks → the share of this rank. Gradients are joined."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:  # noqa: ANN401
        ctx.group = group
        return x.chunk(group.size)[group.rank].contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_share: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return wait(start_gather(d_share, ctx.group)), None


class _JoinShares(torch.autograd.Function):
    """The share of each rank → all rows on each. A rank takes the gradient of its own rows."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, group: Group) -> Tensor:  # noqa: ANN401
        ctx.group = group
        return wait(start_gather(share, group))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_rows: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return d_rows.chunk(ctx.group.size)[ctx.group.rank], None


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
