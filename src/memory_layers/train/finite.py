"""What a checkpoint is to hold must be finite: a run cannot go on from anything else."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

# Numbers that are looked at together: the result takes a byte for each.
_AT_A_TIME = 2**24


@torch.no_grad()
def count_not_finite(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Count the numbers of weights and optimizer state that are NaN or infinite.

    Args:
        model: Of a sharded one, the share of this rank is counted.
        optimizer: Likewise.
    """
    tensors = [*model.state_dict().values()]
    tensors += [v for state in optimizer.state.values() for v in state.values()]
    return sum(_count(tensor) for tensor in tensors if isinstance(tensor, Tensor))


def _count(tensor: Tensor) -> int:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if not local.is_floating_point():
        return 0
    parts = local.reshape(-1).split(_AT_A_TIME)
    return sum(part.numel() - int(part.isfinite().sum()) for part in parts)
