"""Step 4: read and hidden → output. One class for each gate of MemoryConfig."""

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from memory_layers.config import MemoryConfig


class SiluGate(nn.Module):
    """output = W2 (read * silu(W1 x)), the "swilu" of Memory+ (arXiv 2412.09764 eq. 2).

    Args:
        model_dim: D.
        value_dim: V.
        zero_init: Start with a map, and so an output, of exactly zero.
    """

    def __init__(self, model_dim: int, value_dim: int, *, zero_init: bool) -> None:
        super().__init__()
        self.zero_init = zero_init
        self.hidden = nn.Linear(model_dim, value_dim)
        self.out = nn.Linear(value_dim, model_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both weights with standard deviation width ** -0.5, and zero the biases."""
        nn.init.normal_(self.hidden.weight, std=self.hidden.in_features**-0.5)
        nn.init.zeros_(self.hidden.bias)
        _reset_output(self.out, zero_init=self.zero_init)

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        """[T, V] and [T, D] → [T, D]."""
        return self.out(read.to(x.dtype) * F.silu(self.hidden(x)))


class SigmoidGate(nn.Module):
    """output = sigmoid(w . x) * read: one number a token (arXiv 2412.09764 section 2.1).

    The read passes through a linear map first where V is not D or the map must start at zero.

    Args:
        model_dim: D.
        value_dim: V.
        zero_init: Start with a map, and so an output, of exactly zero.
    """

    def __init__(self, model_dim: int, value_dim: int, *, zero_init: bool) -> None:
        super().__init__()
        self.scalar = nn.Linear(model_dim, 1)
        self.out = PlainOutput(model_dim, value_dim, zero_init=zero_init)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight with standard deviation D ** -0.5, and zero the bias."""
        nn.init.normal_(self.scalar.weight, std=self.scalar.in_features**-0.5)
        nn.init.zeros_(self.scalar.bias)
        self.out.reset_parameters()

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        """[T, V] and [T, D] → [T, D]."""
        return self.scalar(x).sigmoid() * self.out(read, x)


class PlainOutput(nn.Module):
    """output = read (PKM), or a linear map of it where V is not D or the map must start at zero.

    Args:
        model_dim: D.
        value_dim: V.
        zero_init: Start with a map, and so an output, of exactly zero.
    """

    def __init__(self, model_dim: int, value_dim: int, *, zero_init: bool) -> None:
        super().__init__()
        self.zero_init = zero_init
        needs_map = zero_init or value_dim != model_dim
        self.out = nn.Linear(value_dim, model_dim) if needs_map else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight with standard deviation V ** -0.5, and zero the bias."""
        if self.out is not None:
            _reset_output(self.out, zero_init=self.zero_init)

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        """[T, V] and [T, D] → [T, D]."""
        read = read.to(x.dtype)
        return read if self.out is None else self.out(read)


def build_gate(config: MemoryConfig, model_dim: int) -> nn.Module:
    """Build the fourth step of a layer of width D."""
    classes = {"silu": SiluGate, "sigmoid": SigmoidGate, "none": PlainOutput}
    value_dim = config.resolved(model_dim).value_dim
    return classes[config.gate](model_dim, value_dim, zero_init=config.starts_with_zero_map)


def _reset_output(out: nn.Linear, *, zero_init: bool) -> None:
    nn.init.normal_(out.weight, std=0.0 if zero_init else out.in_features**-0.5)
    nn.init.zeros_(out.bias)
