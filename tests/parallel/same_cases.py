"""Training of a tiny model in this process, and divided among ranks: what both should agree on."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from memory_layers.config import MemoryConfig
from memory_layers.layers import ValueTable
from memory_layers.models import PRESETS, build_model
from memory_layers.models.initialize import materialize
from memory_layers.optim import MemoryAdamW
from memory_layers.parallel.apply import parallelize
from memory_layers.parallel.config import ParallelConfig
from memory_layers.parallel.mesh import make_meshes
from memory_layers.parallel.tensor import reduce_shared_gradients

STEPS, ACCUMULATE = 3, 2
ROWS, LENGTH, VOCAB = 12, 12, 64
LR = 1e-2
# About the size of a clipped gradient. With a tiny one, Adam moves a weight whose gradient is
# nothing but rounding by the whole learning rate, and a wrong factor on a gradient shows nowhere.
EPS = 1e-3
# Well below the norms that the model has: every step is clipped, by a factor of its own.
CLIP, VALUE_CLIP = 0.5, 0.01
SEED = 3


@dataclass(frozen=True)
class Budget:
    """By how much a divided run may differ from one process.

    Attributes:
        loss: Of a step, relative.
        norm: Of the gradients of a step, relative.
        most: Largest difference of a weight after all steps, in learning rates.
        rms: Root mean square of these differences.
    """

    loss: float
    norm: float
    most: float
    rms: float


@dataclass(frozen=True)
class Case:
    """A layout and what is trained on it.

    Attributes:
        name: Of the case.
        layout: Fields of ParallelConfig.
        budget: What may differ.
        tied: Input and output embeddings are one matrix.
        memory: Fields of MemoryConfig.
        optim: Arguments of MemoryAdamW.
        checkpointing: Compute each block again in the backward pass, on ranks.
        autocast: Dense part in bfloat16.
    """

    name: str
    layout: dict[str, Any]
    budget: Budget
    tied: bool = True
    memory: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    checkpointing: bool = False
    autocast: bool = False


@dataclass
class Result:
    """What a run computed: losses, norms of dense and table gradients, whole weights at the end."""

    losses: list[float]
    norms: list[tuple[float, float]]
    weights: dict[str, Tensor]


def tiny_model(
    *, tied: bool = True, value_dtype: torch.dtype | None = None, **memory: Any
) -> PreTrainedModel:
    """Build, on the meta device, three blocks of which two read a memory of 64 slots."""
    sizes = {
        "layers": (1, 2), "sub_keys": 8, "heads": 2, "top_k": 4, "key_dim": 8, "value_dim": 30,
        "value_init_std": 0.5,
    }  # fmt: skip
    preset = replace(
        PRESETS["tiny"], hidden_size=32, layers=3, mlp_size=48, vocab_size=VOCAB,
        tie_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        return build_model(preset, MemoryConfig(**{**sizes, **memory}), value_dtype=value_dtype)


def run_alone(case: Case) -> Result:
    """Train in this process."""
    model = tiny_model(tied=case.tied, **case.memory)
    materialize(model, SEED)
    losses, norms = _train(case, model, 0, 1, None)
    return Result(losses, norms, whole_weights(model))


def run_rank(cases: list[Case]) -> list[Result]:
    """Train each case on the ranks of the process group."""
    results = []
    for case in cases:
        try:
            results.append(_run_rank(case))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            error.add_note(f"in case {case.name!r}")
            raise
    return results


def _run_rank(case: Case) -> Result:
    config = ParallelConfig(**case.layout)
    meshes = make_meshes(config.resolve(dist.get_world_size()), "cpu")
    model = tiny_model(tied=case.tied, **case.memory)
    parallelize(model, meshes, config, seed=SEED)
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    sizes = meshes.layout
    tensor = meshes.dense["tensor"] if sizes.tensor > 1 else None
    own, norms = _train(case, model, meshes.reader, sizes.readers, tensor)
    losses = torch.tensor(own, dtype=torch.float64)
    dist.all_reduce(losses)
    return Result((losses / sizes.tensor).tolist(), norms, whole_weights(model))


def _train(
    case: Case, model: PreTrainedModel, reader: int, readers: int, tensor: Any
) -> tuple[list[float], list[tuple[float, float]]]:
    model.train()
    optimizer = MemoryAdamW(model, lr=LR, eps=EPS, **case.optim)
    losses, norms = [], []
    for step in range(STEPS):
        total = 0.0
        for part in range(ACCUMULATE):
            generator = torch.Generator().manual_seed(ACCUMULATE * step + part)
            ids = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator)
            ids = ids.chunk(readers)[reader]
            with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
                logits = model(input_ids=ids, use_cache=False).logits
            logits, labels = logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            loss = loss / (ACCUMULATE * ROWS * (LENGTH - 1))
            loss.backward()
            total += loss.item()
        if tensor is not None:
            reduce_shared_gradients(model, tensor)
        dense_norm, value_norm = optimizer.clip_grad_norm_(CLIP, VALUE_CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        norms.append((float(dense_norm), float(value_norm)))
    return losses, norms


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return each parameter as one process would hold it. All ranks must call this."""
    tables = {m.weight: m for m in model.modules() if isinstance(m, ValueTable)}
    weights = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        if parameter in tables:
            tensor = tables[parameter].global_view(tensor)
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        weights[name] = whole.clone().float()
    return weights
