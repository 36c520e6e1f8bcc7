"""Products of frozen weights in bfloat16, for processors that multiply it faster than float32."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from memory_layers.layers.walk import memory_layers_of
from memory_layers.models.classes import backbone_of, family_of

# Of the free memory: what the copies may take.
SHARE = 0.3


def in_bfloat16(model: PreTrainedModel) -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which blocks multiply in bfloat16, as `torch.autocast` would.

    Only blocks behind the one that looks up, so that the memory speaks at the same tokens. Inputs
    and outputs stay float32, and so does all but the products: attention in bfloat16 is slow on
    CPUs. Without a processor that gains by it, or without room, it is a context that does nothing.

    Args:
        model: With memory, whose base is frozen and will not be changed.
    """
    if model.device.type != "cpu" or not is_faster():
        return nullcontext
    blocks = list(family_of(model).blocks_of(backbone_of(model)))
    memories = memory_layers_of(model)
    first = next(
        n for n, block in enumerate(blocks) if any(module in memories for module in block.modules())
    )
    within = {module for memory in memories for module in memory.modules()}
    linears = [
        module
        for block in blocks[first + 1 :]
        for module in block.modules()
        if type(module) is nn.Linear and module not in within
        # Whatever else has put its own in this place.
        and "forward" not in vars(module)
        and module.weight.dtype == torch.float32 and not module.weight.requires_grad
    ]  # fmt: skip
    if sum(2 * m.weight.numel() for m in linears) > SHARE * psutil.virtual_memory().available:
        return nullcontext
    halves = [m.weight.detach().bfloat16() for m in linears]

    @contextmanager
    def context() -> Generator[None]:
        try:
            for module, half in zip(linears, halves, strict=True):
                module.forward = partial(_product, half, module.bias)
            yield
        finally:
            for module in linears:
                vars(module).pop("forward", None)

    return context


def is_faster() -> bool:
    """Tell whether the processor has instructions for products of bfloat16."""
    cpu = torch.cpu
    return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()  # noqa: SLF001


def _product(weight: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
    y = F.linear(input.to(weight.dtype), weight).to(input.dtype)
    return y if bias is None else y + bias
