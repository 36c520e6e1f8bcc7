"""Memory beside blocks, switched off for a while, and whether it says anything."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memory_layers.layers import MemoryBeside, WrittenTable
from memory_layers.layers.walk import memory_layers_of
from memory_layers.learn.skeleton import speaks_at


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


def may_speak(model: PreTrainedModel, texts: Sequence[Tensor]) -> list[bool]:
    """Tell in which texts memory may say something, at the cost of the blocks up to the look-up.

    What the model makes of the others is to the bit what its base makes of them.

    Args:
        model: With memory beside its blocks.
        texts: Token ids of any lengths.
    """
    layers = memory_layers_of(model)
    if len(layers) > 1 or not isinstance(layers[0].values, WrittenTable):
        return [True] * len(texts)
    return [bool(spoken.any()) for spoken in speaks_at(model, texts)]


def _beside(model: nn.Module) -> list[nn.Module]:
    """Return what adds to the blocks of a model."""
    beside: list[nn.Module] = [
        module.memory for module in model.modules() if isinstance(module, MemoryBeside)
    ]
    if not beside or not set(memory_layers_of(model)) <= set(beside):
        raise ValueError("the model must have memory beside its blocks, and none in their place")
    return beside
