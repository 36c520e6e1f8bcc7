"""Step 2: query → scores and slots. Owns the sub-keys, calls ops.find. Next: values.py."""

from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from memory_layers.common.errors import UserError
from memory_layers.ops.find import product_key_topk
from memory_layers.ops.read import gather_dot

ModelT = TypeVar("ModelT", bound=nn.Module)


class ProductKeys(nn.Module):
    """Score the sub-keys of both halves and select the best slots.

    With `qk_norm`, half-queries and sub-keys are RMS-normalised over C and the products scaled by
    a learned gain for each head, half and channel (arXiv 2412.09764 section 2.1, after Chameleon).

    Args:
        heads: H.
        sub_keys: M.
        half_dim: C.
        top_k: K.
        qk_norm: Normalise queries and sub-keys.
        random_slots: r, slots drawn in training beside the selected ones.
        sink: Have a key for each head that every token selects, beside the others.
    """

    def __init__(
        self,
        heads: int,
        sub_keys: int,
        half_dim: int,
        top_k: int,
        *,
        qk_norm: bool,
        random_slots: int = 0,
        sink: bool = False,
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.random_slots = random_slots
        self.sub_keys = nn.Parameter(torch.empty(heads, 2, sub_keys, half_dim))
        self.gain = nn.Parameter(torch.empty(heads, 2, half_dim)) if qk_norm else None
        self.sink_key = nn.Parameter(torch.empty(heads, 2, half_dim)) if sink else None
        self._normalized: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all keys from U(-b, b), b = 1 / sqrt(2 C), and set the gain to 1 / sqrt(C).

        With this gain the score of a half has unit variance at the start.
        """
        half_dim = self.sub_keys.shape[-1]
        bound = (2 * half_dim) ** -0.5
        nn.init.uniform_(self.sub_keys, -bound, bound)
        if self.gain is not None:
            nn.init.constant_(self.gain, half_dim**-0.5)
        if self.sink_key is not None:
            nn.init.uniform_(self.sink_key, -bound, bound)

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """[T, H, 2, C] → scores and slots, both [T, H, K].

        In training r drawn slots follow the K selected ones. The score of the sink, which is no
        slot, comes last.
        """
        sub_keys, sink_key = self.sub_keys, self.sink_key
        if self.gain is not None:
            query = normalize(query) * self.gain
            fused = None if torch.is_grad_enabled() else self._normalized
            sub_keys = normalize(sub_keys) if fused is None else fused
            sink_key = None if sink_key is None else normalize(sink_key)
        scores, slots = product_key_topk(query, sub_keys, self.top_k)
        if self.random_slots and self.training:
            shape = (*slots.shape[:2], self.random_slots)
            drawn = torch.randint(sub_keys.shape[2] ** 2, shape, device=slots.device)
            scores = torch.cat([scores, score_slots(query, sub_keys, drawn)], -1)
            slots = torch.cat([slots, drawn], -1)
        if sink_key is not None:
            on_sink = (query.to(scores.dtype) * sink_key.to(scores.dtype)).sum((-2, -1))
            scores = torch.cat([scores, on_sink[..., None]], -1)
        return scores, slots

    def fuse(self) -> None:
        """Normalise the sub-keys once, for passes without gradients, until something undoes it."""
        if self.gain is not None:
            self._normalized = normalize(self.sub_keys.detach())

    def train(self, mode: bool = True) -> Self:
        """As for any module. Training undoes `fuse`."""
        if mode:
            self._normalized = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Another device or type.
        self._normalized = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self._normalized = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files are not fused: their sub-keys may change on their own."""
        return {**self.__dict__, "_normalized": None}


def fuse_for_inference(model: ModelT) -> ModelT:
    """Normalise the sub-keys of all memory layers once instead of in every pass, in place.

    For text, one token at a time: there, normalising takes about as long as finding the slots. The
    outputs are the same to the bit. Passes that record gradients normalise as before.

    `model.train()`, `load_state_dict` and `to` undo it, and copies and saved files are not fused.
    Nothing else notices that sub-keys have changed: call this again after editing them.

    Args:
        model: In eval mode. Without memory layers, or with `qk_norm=False`, nothing changes.

    Returns:
        The model.

    Raises:
        UserError: The model is in training mode.
    """
    if model.training:
        raise UserError("the model is in training mode, got fuse_for_inference. hint: model.eval()")
    for module in model.modules():
        if isinstance(module, ProductKeys):
            module.fuse()
    return model


def normalize(vectors: Tensor) -> Tensor:
    """[..., C] → the same with a root mean square of 1 over C."""
    return F.rms_norm(vectors, vectors.shape[-1:], eps=1e-6)


def score_slots(query: Tensor, sub_keys: Tensor, slots: Tensor) -> Tensor:
    """Score given slots as product_key_topk scores those that it selects, with gradients.

    Args:
        query: [T, H, 2, C].
        sub_keys: [H, 2, M, C].
        slots: [T, H, r] in [0, M * M).

    Returns:
        [T, H, r], fp32 (fp64 if an input is).
    """
    heads, _, count, _ = sub_keys.shape
    halves = torch.stack([slots // count, slots % count], 2)  # [T, H, 2, r]
    first = torch.arange(2 * heads, device=slots.device).view(heads, 2, 1) * count
    # All sub-keys as one table, each half of a head with rows of its own: no copy for each token.
    rows = (halves + first).flatten(0, 2)  # [T * H * 2, r]
    dots = gather_dot(sub_keys.flatten(0, 2), rows, query.flatten(0, 2))
    return dots.view_as(halves).sum(2)
