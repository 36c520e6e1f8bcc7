"""What is measured: a suite, its sizes, which slots are read, the device and the implementation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch

from memory_layers.common.errors import UserError
from memory_layers.common.text import did_you_mean
from memory_layers.ops.dispatch import Impl

Distribution = Literal["uniform", "zipf", "recorded"]
DTYPES = MappingProxyType({"float32": torch.float32, "bfloat16": torch.bfloat16})
BOTH = "both"

_READ = ("tokens", "slots", "value_dim", "heads", "top_k", "dtype")
# The sizes that each suite uses.
USED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "find": ("tokens", "value_dim", "heads", "top_k", "sub_keys", "dtype"),
        "read": _READ,
        "write": _READ,
        "step": _READ,
        "layer": ("tokens", "value_dim", "heads", "top_k", "sub_keys"),
        "train": ("tokens", "heads", "top_k", "sub_keys"),
        "generate": ("heads", "top_k", "sub_keys"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of one run. Defaults: one layer of a small model on two cores.

    Attributes:
        tokens: T.
        slots: N, rows of the table. FIND and whole layers have sub_keys * sub_keys of them.
        value_dim: V. Half a query has C = V / 4 numbers, a layer has D = V.
        heads: H.
        top_k: K.
        sub_keys: M.
        dtype: Of the table, or of queries and keys: "float32", "bfloat16", or "both", which find
            and read time one beside the other.
    """

    tokens: int = 2048
    slots: int = 2**20
    value_dim: int = 512
    heads: int = 4
    top_k: int = 32
    sub_keys: int = 1024
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuse sizes that no suite can run."""
        for name, value in asdict(self).items():
            if name != "dtype" and value < 1:
                raise UserError(f"size {name} must be >= 1, got {value}")
        if self.dtype not in (*DTYPES, BOTH):
            raise UserError(
                f"size dtype must be one of {', '.join((*DTYPES, BOTH))}, got {self.dtype}"
            )

    @property
    def reads(self) -> int:
        """J, rows that a token reads."""
        return self.heads * self.top_k

    @property
    def half_dim(self) -> int:
        """C."""
        return self.value_dim // 4

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types to time, one beside the other."""
        return tuple(DTYPES) if self.dtype == BOTH else (self.dtype,)

    def used_by(self, op: str) -> dict[str, int | str]:
        """Return the sizes that a suite depends on, for its result file."""
        return {name: getattr(self, name) for name in USED[op]}


def parse_sizes(op: str, pairs: Sequence[str]) -> Sizes:
    """Read `name=value` pairs over the defaults of a suite.

    Args:
        op: Name of the suite.
        pairs: Such as "tokens=2048".

    Raises:
        UserError: A pair is malformed, names no size, or one that this suite does not use.
    """
    changes: dict[str, int | str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--sizes expects name=value, got {pair!r}. hint: tokens=2048")
        _check_name(op, name)
        if name in changes:
            raise UserError(f"--sizes sets {name} twice")
        changes[name] = text if name == "dtype" else _whole_number(name, text)
    default = Sizes(
        dtype=BOTH if op in ("find", "read") else "float32",
        sub_keys=256 if op == "train" else Sizes.sub_keys,
    )
    sizes = replace(default, **changes)
    if op in ("write", "step") and sizes.dtype == BOTH:
        raise UserError(f"size dtype of `{op}` must be one of {', '.join(DTYPES)}, got {BOTH}")
    if op in ("find", "layer") and sizes.value_dim % 4:
        raise UserError(
            "size value_dim must be divisible by 4, half a query has value_dim / 4 numbers, got "
            f"{sizes.value_dim}. hint: value_dim={-(-sizes.value_dim // 4) * 4}"
        )
    if "sub_keys" in USED[op] and sizes.top_k > sizes.sub_keys:
        raise UserError(
            f"size top_k must be at most sub_keys = {sizes.sub_keys}, got {sizes.top_k}"
        )
    return sizes


def _check_name(op: str, name: str) -> None:
    if name in USED[op]:
        return
    if name in asdict(Sizes()):
        reason = ": it has sub_keys * sub_keys slots" if name == "slots" else ""
        raise UserError(
            f"size {name} has no effect on `{op}`{reason}. hint: `{op}` uses {', '.join(USED[op])}"
        )
    raise UserError(f"there is no size {name!r}. hint: {did_you_mean(name, USED[op])}")


def _whole_number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"size {name} must be a whole number, got {text!r}") from error


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
        as_on_gpu: Run on a CPU what is run on a GPU, under Triton's interpreter: a rehearsal.
    """

    op: str
    sizes: Sizes
    slots: Distribution = "uniform"
    model: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    impl: Impl = "auto"
    as_on_gpu: bool = False

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
