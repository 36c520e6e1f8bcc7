"""What a rank has after `parallelize`, and the largest tensor that it made on the way."""

from typing import Any

import torch.distributed as dist
from same_cases import SEED, tiny_model, whole_weights
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memory_layers.parallel.apply import parallelize
from memory_layers.parallel.config import ParallelConfig
from memory_layers.parallel.mesh import make_meshes


class Largest(TorchDispatchMode):
    """Watches the elements of the largest tensor that is not on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                self.numel = max(self.numel, local.untyped_storage().nbytes() // 4)
        return result


def initial_weights(cases: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Tensor]]:
    """Whole weights of a new model for each layout and fields of tiny_model."""
    weights = []
    for layout, model_fields in cases:
        config = ParallelConfig(**layout)
        meshes = make_meshes(config.resolve(dist.get_world_size()), "cpu")
        model = tiny_model(**model_fields)
        weights.append(whole_weights(parallelize(model, meshes, config, seed=SEED)))
    return weights


def largest_tensors(layouts: list[dict[str, Any]], sub_keys: int) -> list[tuple[int, int]]:
    """Elements of the largest tensor while a model is made, and of this rank's columns."""
    found = []
    for layout in layouts:
        config = ParallelConfig(**layout)
        meshes = make_meshes(config.resolve(dist.get_world_size()), "cpu")
        model = tiny_model(sub_keys=sub_keys)
        with Largest() as largest:
            parallelize(model, meshes, config, seed=SEED)
        found.append((largest.numel, model.base_model.memory_table.weight.numel()))
    return found
