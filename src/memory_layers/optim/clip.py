"""Clipping of dense gradients, also where they are distributed over several meshes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from memory_layers.optim.groups import by_mesh


def clip_dense_(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to a norm, in place, and return the norm before, 0-dim.

    Args:
        parameters: Plain or distributed. Those without gradient are left out.
        max_norm: Largest norm of all gradients together.
    """
    norms, meshes = [], by_mesh([p for p in parameters if p.grad is not None])
    for same in meshes:
        norm = get_total_norm([p.grad for p in same if p.grad is not None])
        norms.append(_whole(norm))
    if not norms:
        return torch.zeros(())
    total = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for same in meshes:
        clip_grads_with_norm_(same, max_norm, total)
    return total


def _whole(norm: Tensor) -> Tensor:
    full_tensor = getattr(norm, "full_tensor", None)
    return norm if full_tensor is None else full_tensor()
