"""Initial values of a model that was built on the meta device: a function of seed and names.

So they are the same on any number of ranks, and whatever part of the model a rank holds.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel


def materialize(
    model: PreTrainedModel,
    seed: int,
    device: torch.device | str = "cpu",
    modules: Sequence[tuple[str, nn.Module]] | None = None,
) -> None:
    """Give a model, or some modules of it, memory and initial values, in place.

    Args:
        model: Built under `torch.device("meta")`.
        seed: Decides all values.
        device: Where it is to be.
        modules: Names and modules, each parent before its children. None: all.
    """
    chosen = list(model.named_modules()) if modules is None else modules
    for _, module in chosen:
        module.to_empty(device=device, recurse=False)
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # Children first: a module of ours sets the values of the linear maps inside it.
        for name, module in reversed(chosen):
            torch.manual_seed(_seed_of(seed, name))
            model._init_weights(module)  # noqa: SLF001
    # Memory of its own for each module has cut what embeddings and head have in common.
    model.tie_weights()


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
