"""A training step of a small language model with memory, against the same model without."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.stepped import LR
from benchmarks.checks import check_norm
from benchmarks.harness import Suite, Variant
from benchmarks.inputs import SEED
from benchmarks.request import Request
from memory_layers.common.errors import UserError
from memory_layers.layers.walk import find_tables
from memory_layers.optim import MemoryAdamW

PRESET = "small"
LENGTH = 256
OURS, DENSE = f"{PRESET} with memory", f"{PRESET}, dense"
TOLERANCE = 1e-4


def train_suite(request: Request) -> Suite:
    """Time forward, backward and step. The memory replaces three of the six feed-forwards."""
    tokens = request.sizes.tokens
    if tokens > LENGTH and tokens % LENGTH:
        raise UserError(
            f"size tokens must be a multiple of the sequence length {LENGTH}, got {tokens}. "
            f"hint: tokens={tokens // LENGTH * LENGTH}"
        )
    (ours, dense), vocab_size = build_twins(PRESET, request)
    rows, length = max(1, tokens // LENGTH), min(tokens, LENGTH)
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(vocab_size, (rows, length), generator=generator).to(request.device)
    variants = (_variant(OURS, ours, ids), _variant(DENSE, dense, ids))
    return Suite(variants, {"preset": PRESET, "sequence_length": length, "sequences": rows})


def build_twins(name: str, request: Request) -> tuple[tuple[Any, Any], int]:
    """Build a preset with memory and without.

    Args:
        name: Of the preset.
        request: Has the sizes of the memory.

    Returns:
        Both models, and the size of their vocabulary.
    """
    from memory_layers.models import PRESETS, build_model

    preset, sizes = PRESETS[name], request.sizes
    memory = replace(
        preset.memory_plus(sizes.sub_keys), heads=sizes.heads, top_k=sizes.top_k, qk_norm=True
    )
    models = []
    for config in (memory, None):
        torch.manual_seed(SEED)
        models.append(build_model(preset, config).to(request.device))
    return (models[0], models[1]), preset.vocab_size


def dense_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters that are in no value table."""
    tables = {id(table.weight) for table in find_tables(model).values()}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


def _variant(name: str, model: Any, ids: Tensor) -> Variant:  # noqa: ANN401
    return Variant(
        name=name,
        run=_training_step(model, ids),
        check=_check(name, model, ids),
        checked="the logits of a sequence",
        # Every dense parameter is read in both passes and stepped. What a memory adds is small.
        bytes=dense_parameters(model) * 4 * (2 + 6),
        against=(DENSE,) if name == OURS else (),
        ours=name == OURS,
        tokens=ids.numel(),
    )


def _training_step(model: Any, ids: Tensor) -> Callable[[], None]:  # noqa: ANN401
    optimizer = MemoryAdamW(model, lr=LR)

    def run() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _check(name: str, model: Any, ids: Tensor) -> Callable[[], None]:  # noqa: ANN401
    def check() -> None:
        with torch.no_grad():
            found = model(input_ids=ids[:1], use_cache=False).logits
            exact = copy.deepcopy(model).double()(input_ids=ids[:1], use_cache=False).logits
        check_norm(f"{name}, logits,", found, exact, TOLERANCE)

    return check
