"""Memory beside weights that stay quantised: its gradient must pass them."""

from typing import Any

import torch
from torch import Tensor, nn

from memory_layers.common.errors import UserError


def check_quantised(model: nn.Module) -> None:
    """Refuse quantised weights that no gradient passes any more.

    Raises:
        UserError: bitsandbytes has laid out 4-bit weights for inference on a CPU, as it does in
            the first forward pass, and cannot undo that.
    """
    for weight in model.parameters():
        if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
            raise UserError(
                "the model has computed before, and bitsandbytes has turned its 4-bit weights into "
                "a form for inference alone. hint: add the memory right after loading the model, "
                "or load it in 8 bits or in full precision"
            )


def stay_trainable(model: nn.Module) -> None:
    """Keep bitsandbytes from laying out 4-bit weights of a model for inference.

    Args:
        model: That has not computed yet. Changed in place.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010


def let_gradients_pass(model: nn.Module) -> None:
    """Have quantised parts of a model pass gradients on, or say that they do not.

    Args:
        model: Changed in place. What it computes stays the same.
    """
    stay_trainable(model)
    for module in model.modules():
        if any(not weight.is_floating_point() for weight in module.parameters(recurse=False)):
            module.register_forward_hook(_refuse_lost_gradient)


def _refuse_lost_gradient(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
    given = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if torch.is_grad_enabled() and given and not output.requires_grad:
        raise UserError(
            f"no gradient passes {type(module).__name__} for an input of shape "
            f"{list(given[0].shape)}: its kernel is for inference. hint: train on more tokens at a "
            "time, or load the model with other weights, such as GgufConfig(dequantize=True)"
        )
