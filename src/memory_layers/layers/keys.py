"""Step 2: query → scores and slots. Owns the sub-keys, calls ops.find. Next: values.py."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from memory_layers.ops.find import product_key_topk
from memory_layers.ops.read import gather_dot


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
        self._kept = KeptKeys()
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
            sub_keys = self._kept.of(sub_keys) if self._may_keep() else normalize(sub_keys)
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

    def train(self, mode: bool = True) -> Self:
        """As any module. Training lets go of what was kept for text."""
        if mode:
            self._kept = KeptKeys()
        return super().train(mode)

    def _may_keep(self) -> bool:
        keys = self.sub_keys
        return (
            not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
            and keys.device.type == "cpu"
            and type(keys) is nn.Parameter
            and keys.is_contiguous()
            and not keys.is_inference()
        )


def normalize(vectors: Tensor) -> Tensor:
    """[..., C] → the same with a root mean square of 1 over C."""
    return F.rms_norm(vectors, vectors.shape[-1:], eps=1e-6)


class KeptKeys:
    """Normalised sub-keys, kept while a model writes text on a CPU.

    Normalising them takes longer there than finding slots for one token. They are normalised anew
    when the sub-keys change, as autograd counts changes, or lie in another place in memory. A
    change through `.data` is not counted: it shows where it concerns one of some numbers spread
    over all keys. Who changes others that way between two texts calls `train()`, then `eval()`.
    """

    SAMPLE = 64

    def __init__(self) -> None:
        self._kept: tuple[tuple[int, int], Tensor, Tensor, Tensor] | None = None

    def of(self, sub_keys: Tensor) -> Tensor:
        """[H, 2, M, C] → the same, normalised."""
        seen = (sub_keys._version, sub_keys.data_ptr())  # noqa: SLF001
        # Read and written as a whole: other threads may generate with the same model.
        kept = self._kept
        if kept is None or kept[0] != seen or not torch.equal(kept[1], kept[2]):
            # An odd step, so that not all samples are from one column.
            some = sub_keys.flatten()[:: sub_keys.numel() // self.SAMPLE | 1]
            kept = self._kept = (seen, some, some.clone(), normalize(sub_keys))
        return kept[3]

    def __reduce__(self) -> tuple[type["KeptKeys"], tuple[()]]:
        """Copies and files do without: their sub-keys are others."""
        return KeptKeys, ()


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
