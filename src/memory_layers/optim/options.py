"""What the options of MemoryAdamW and of its groups may be."""

from typing import Any

import torch
from torch import Tensor

from memory_layers.common.errors import UserError

CHOICES = {"value_state": ("ahead", "full", "row"), "bf16_rows": ("stochastic", "master")}


def check_options(options: dict[str, Any]) -> None:
    """Refuse numbers and choices of an optimizer or a group that cannot work."""
    for name in ("lr", "value_lr", "eps", "weight_decay", "value_weight_decay"):
        number = options.get(name)
        if number is not None and not number >= 0:
            raise ValueError(f"{name} must be >= 0, got {number}")
    for beta in options.get("betas", ()):
        if not 0 <= beta < 1:
            raise ValueError(f"betas must be >= 0 and < 1, got {options['betas']}")
    for name, choices in CHOICES.items():
        if name in options and options[name] not in choices:
            known = " or ".join(f'"{choice}"' for choice in choices)
            raise ValueError(f"{name} must be {known}, got {options[name]!r}")
    for name in ("amsgrad", "maximize", "capturable", "differentiable"):
        if options.get(name):
            raise ValueError(f"MemoryAdamW has no {name}. hint: leave it out")


def check_group(weight: Tensor, group: dict[str, Any]) -> None:
    """Refuse what a step of a table would end in."""
    if not group["lr"] * group["weight_decay"] < 1:
        raise UserError(
            "value_lr * value_weight_decay must be below 1, got "
            f"{group['lr']} * {group['weight_decay']}. hint: lower value_weight_decay"
        )
    beta1, beta2 = group["betas"]
    if weight.requires_grad and group["value_state"] == "ahead" and not beta1**2 < beta2:
        raise UserError(
            f"beta1 squared must be below beta2, got betas {group['betas']}: a row that is left "
            'alone would move without end. hint: a higher beta2, or value_state="full"'
        )
    narrow = weight.requires_grad and weight.dtype == torch.float16
    if narrow and group["bf16_rows"] == "stochastic":
        raise UserError(
            "a float16 table would lose small updates: stochastic rounding is for bfloat16. "
            'hint: bf16_rows="master", or a bfloat16 table'
        )
