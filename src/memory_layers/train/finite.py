"""What a checkpoint is to hold must be finite: a run cannot go on from anything else."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from memory_layers.common.tensors import count_not_finite


def count_in_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Count the numbers of weights and optimizer state that are NaN or infinite.

    Args:
        model: Of a sharded one, the share of this rank is counted.
        optimizer: Likewise.
    """
    tensors = [*model.state_dict().values()]
    tensors += [v for state in optimizer.state.values() for v in state.values()]
    return sum(
        count_not_finite(tensor.to_local() if isinstance(tensor, DTensor) else tensor)
        for tensor in tensors
        if isinstance(tensor, Tensor)
    )
