"""Memory beside blocks, switched off for a while, and whether it says anything."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from memory_layers.layers import MemoryBeside
from memory_layers.layers.walk import memory_layers_of


@contextmanager
def silenced(model: nn.Module) -> Generator[None]:
    """Let memory add zero inside a `with` block: the model is its base, to the bit."""
    handles = [
        memory.register_forward_hook(lambda _m, _x, read: torch.zeros_like(read))
        for memory in _beside(model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def speech(model: nn.Module) -> Generator[Callable[[], Tensor]]:
    """Note for which tokens memory says something inside a `with` block, of one pass.

    Yields:
        Returns, after the pass, where any of the blocks got anything but zero: bool [b, L].
    """
    said: list[Tensor] = []
    handles = [
        memory.register_forward_hook(lambda _m, _x, read: said.append((read != 0).any(-1).cpu()))
        for memory in _beside(model)
    ]
    try:
        yield lambda: torch.stack(said).any(0)
    finally:
        for handle in handles:
            handle.remove()


def _beside(model: nn.Module) -> list[nn.Module]:
    """Return what adds to the blocks of a model."""
    beside: list[nn.Module] = [
        module.memory for module in model.modules() if isinstance(module, MemoryBeside)
    ]
    if not beside or not set(memory_layers_of(model)) <= set(beside):
        raise ValueError("the model must have memory beside its blocks, and none in their place")
    return beside
