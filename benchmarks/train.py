"""A training step of a small language model with memory, against the same model without."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.check import check_norm
from benchmarks.inputs import SEED
from benchmarks.request import Request
from benchmarks.stepping import LR
from benchmarks.variant import Suite, Variant
from memory_layers.common.errors import UserError
from memory_layers.optim import MemoryAdamW

PRESET = "small"
LENGTH = 256
OURS, DENSE = f"{PRESET} with memory", f"{PRESET}, dense"
TOLERANCE = 1e-4


def train_suite(request: Request) -> Suite:
    """Time forward, backward and step. The memory replaces three of the six feed-forwards."""
    from memory_layers.models import PRESETS, build_model

    sizes = request.sizes
    preset = PRESETS[PRESET]
    memory = replace(
        preset.memory_plus(sizes.sub_keys), heads=sizes.heads, top_k=sizes.top_k, qk_norm=True
    )
    if sizes.tokens > LENGTH and sizes.tokens % LENGTH:
        raise UserError(
            f"size tokens must be a multiple of the sequence length {LENGTH}, got {sizes.tokens}. "
            f"hint: tokens={sizes.tokens // LENGTH * LENGTH}"
        )
    rows = max(1, sizes.tokens // LENGTH)
    length = min(sizes.tokens, LENGTH)
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(preset.vocab_size, (rows, length), generator=generator).to(request.device)
    variants = []
    for name, config in ((OURS, memory), (DENSE, None)):
        torch.manual_seed(SEED)
        model = build_model(preset, config).to(request.device)
        variants.append(_variant(name, model, ids))
    return Suite(tuple(variants), {"preset": PRESET, "sequence_length": length, "sequences": rows})


def _variant(name: str, model: torch.nn.Module, ids: Tensor) -> Variant:
    optimizer = MemoryAdamW(model, lr=LR)
    # Every dense parameter is read in both passes and stepped. What a memory adds is small here.
    numbers = sum(p.numel() for n, p in model.named_parameters() if "memory_table" not in n)
    return Variant(
        name=name,
        run=_training_step(model, optimizer, ids),
        check=_check(name, model, ids),
        checked="the logits of a sequence",
        bytes=numbers * 4 * (2 + 6),
        against=(DENSE,) if name == OURS else (),
        ours=name == OURS,
        tokens=ids.numel(),
    )


def _training_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor
) -> Callable[[], None]:
    def run() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _check(name: str, model: torch.nn.Module, ids: Tensor) -> Callable[[], None]:
    def check() -> None:
        with torch.no_grad():
            found = model(input_ids=ids[:1], use_cache=False).logits
            exact = copy.deepcopy(model).double()(input_ids=ids[:1], use_cache=False).logits
        check_norm(f"{name}, logits,", found, exact, TOLERANCE)

    return check
