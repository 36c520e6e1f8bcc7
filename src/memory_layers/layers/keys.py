"""Step 2: query → scores and slots. Owns the sub-keys, calls ops.find. Next: read.py."""

from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from memory_layers.common.errors import UserError
from memory_layers.config import MemoryConfig
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
    """

    def __init__(
        self, heads: int, sub_keys: int, half_dim: int, top_k: int, *, qk_norm: bool
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.bound = (2 * half_dim) ** -0.5
        self.sub_keys = nn.Parameter(torch.empty(heads, 2, sub_keys, half_dim))
        self.gain = nn.Parameter(torch.empty(heads, 2, half_dim)) if qk_norm else None
        # Normalised sub-keys, and the sub-keys that they are of at that time.
        self._normalized: tuple[Tensor, Tensor, int | None] | None = None
        # A subclass overrides it and draws parameters too that it has not made yet.
        ProductKeys.reset_parameters(self)

    def reset_parameters(self) -> None:
        """Draw all keys from U(-b, b), b = 1 / sqrt(2 C), and set the gain to 1 / sqrt(C).

        With this gain the score of a half has unit variance at the start.
        """
        nn.init.uniform_(self.sub_keys, -self.bound, self.bound)
        if self.gain is not None:
            nn.init.constant_(self.gain, self.sub_keys.shape[-1] ** -0.5)

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """[T, H, 2, C] → scores and slots, both [T, H, K].

        In training, slots drawn at random may follow the K selected ones. The score of a sink,
        which is no slot, comes last.
        """
        sub_keys = self.sub_keys
        if self.gain is not None:
            query = normalize(query) * self.gain
            fused = self._fused()
            sub_keys = normalize(sub_keys) if fused is None else fused
        return self.select(query, sub_keys)

    def select(self, query: Tensor, sub_keys: Tensor) -> tuple[Tensor, Tensor]:
        """Find the best slots for queries and sub-keys that are normalised where they are to be."""
        return product_key_topk(query, sub_keys, self.top_k)

    def fuse(self) -> None:
        """Normalise the sub-keys once, for passes without gradients, until something undoes it."""
        sub_keys = self.sub_keys
        # Offloaded weights are on the meta device until each pass brings others.
        if self.gain is not None and not sub_keys.is_meta:
            self._normalized = normalize(sub_keys.detach()), sub_keys, _version(sub_keys)

    def _fused(self) -> Tensor | None:
        # A compiled pass would see the version as it was when it was compiled.
        if self._normalized is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        normalized, sub_keys, version = self._normalized
        unchanged = sub_keys is self.sub_keys and version == _version(sub_keys)
        return normalized if unchanged else None

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


class RandomSlots(ProductKeys):
    """In training, slots drawn for each token and head join the selected ones.

    Args:
        *sizes: As for ProductKeys.
        qk_norm: As for ProductKeys.
        random_slots: Number of slots drawn.
    """

    def __init__(self, *sizes: int, qk_norm: bool, random_slots: int) -> None:
        super().__init__(*sizes, qk_norm=qk_norm)
        self.random_slots = random_slots

    def select(self, query: Tensor, sub_keys: Tensor) -> tuple[Tensor, Tensor]:
        """Let the drawn slots and their scores follow the selected ones."""
        scores, slots = super().select(query, sub_keys)
        if not (self.training and self.random_slots):
            return scores, slots
        shape = (*slots.shape[:2], self.random_slots)
        drawn = torch.randint(sub_keys.shape[2] ** 2, shape, device=slots.device)
        scores = torch.cat([scores, score_slots(query, sub_keys, drawn)], -1)
        return scores, torch.cat([slots, drawn], -1)


class SinkKeys(RandomSlots):
    """One more key for each head, which every token selects beside the others.

    Args:
        *sizes: As for ProductKeys.
        qk_norm: As for ProductKeys.
        random_slots: As for RandomSlots, 0 for none.
    """

    def __init__(self, *sizes: int, qk_norm: bool, random_slots: int) -> None:
        super().__init__(*sizes, qk_norm=qk_norm, random_slots=random_slots)
        self.sink_key = nn.Parameter(torch.empty_like(self.sub_keys[:, :, 0]))
        self._draw_sink()

    def reset_parameters(self) -> None:
        """Draw the sink's key as all keys."""
        super().reset_parameters()
        self._draw_sink()

    def select(self, query: Tensor, sub_keys: Tensor) -> tuple[Tensor, Tensor]:
        """Let the score of the sink follow all others."""
        scores, slots = super().select(query, sub_keys)
        sink_key = self.sink_key if self.gain is None else normalize(self.sink_key)
        on_sink = (query.to(scores.dtype) * sink_key.to(scores.dtype)).sum((-2, -1))
        return torch.cat([scores, on_sink[..., None]], -1), slots

    def _draw_sink(self) -> None:
        nn.init.uniform_(self.sink_key, -self.bound, self.bound)


def build_keys(config: MemoryConfig, model_dim: int) -> ProductKeys:
    """Build the second step of a layer of width D."""
    half_dim = config.resolved(model_dim).key_dim // 2
    sizes = (config.heads, config.sub_keys, half_dim, config.top_k)
    if config.random_slots or config.sink_slot:
        keys = SinkKeys if config.sink_slot else RandomSlots
        return keys(*sizes, qk_norm=config.qk_norm, random_slots=config.random_slots)
    return ProductKeys(*sizes, qk_norm=config.qk_norm)


def fuse_for_inference(model: ModelT) -> ModelT:
    """Normalise the sub-keys of all memory layers once instead of in every pass, in place.

    For text, one token at a time: there, normalising takes about as long as finding the slots. The
    outputs are the same to the bit. Passes that record gradients, and compiled ones, normalise as
    before, and so do layers whose weights are offloaded.

    `model.train()`, `load_state_dict` and `to` undo it, and so does a change of the sub-keys that
    torch counts, such as a step of an optimizer. Copies and saved files are not fused. A change
    through `.data` is not noticed: call this again after it.

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


def _version(tensor: Tensor) -> int | None:
    """Return how often torch has changed a tensor in place. It does not count in inference mode."""
    return None if tensor.is_inference() else tensor._version  # noqa: SLF001


def normalize(vectors: Tensor) -> Tensor:
    """[..., C] → the same with a root mean square of 1 over C."""
    return F.rms_norm(vectors, vectors.shape[-1:], eps=1e-6)


def score_slots(query: Tensor, sub_keys: Tensor, slots: Tensor) -> Tensor:
    """Score given slots as product_key_topk scores those that it selects, with gradients.

    Args:
        query: [T, H, 2, C].
        sub_keys: [H, 2, M, C].
        slots: [T, H, any number] in [0, M * M).

    Returns:
        As `slots`, fp32 (fp64 if an input is).
    """
    heads, _, count, _ = sub_keys.shape
    halves = torch.stack([slots // count, slots % count], 2)  # [T, H, 2, ...]
    first = torch.arange(2 * heads, device=slots.device).view(heads, 2, 1) * count
    # All sub-keys as one table, each half of a head with rows of its own: no copy for each token.
    rows = (halves + first).flatten(0, 2)  # [T * H * 2, ...]
    dots = gather_dot(sub_keys.flatten(0, 2), rows, query.flatten(0, 2))
    return dots.view_as(halves).sum(2)
