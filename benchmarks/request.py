"""What is to be measured: a suite's sizes, slots, device and implementation."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from benchmarks.sizes import Sizes
from memory_layers.common.errors import UserError
from memory_layers.ops.impl import Impl

Distribution = Literal["uniform", "zipf", "recorded"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One benchmark.

    Attributes:
        op: Name of the suite.
        sizes: Its sizes.
        slots: Which slots are read.
        model: Folder of the model whose reads are recorded.
        device: Where it runs.
        impl: Implementation of find and read.
    """

    op: str
    sizes: Sizes
    slots: Distribution = "uniform"
    model: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    impl: Impl = "auto"

    def __post_init__(self) -> None:
        """Refuse what would have no effect, and what this machine does not have."""
        if self.impl != "auto" and self.op not in ("find", "read"):
            raise UserError(
                f"--impl has no effect on `{self.op}`, which takes what the layers take. "
                "hint: --impl is for find and read"
            )
        if self.slots != "uniform" and self.op not in ("read", "write", "step"):
            raise UserError(
                f"--slots has no effect on `{self.op}`, which finds its own slots. hint: --slots "
                "is for read, write and step"
            )
        if self.slots == "recorded" and self.model is None:
            raise UserError(
                "--slots recorded needs --model, the folder of a trained model. hint: "
                "memory-layers train tiny, then --model runs/tiny/model"
            )
        if self.slots != "recorded" and self.model is not None:
            raise UserError(
                f"--model has no effect with --slots {self.slots}. hint: --slots recorded"
            )
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "--device cuda needs an NVIDIA GPU, and torch sees none. hint: --device cpu"
            )
