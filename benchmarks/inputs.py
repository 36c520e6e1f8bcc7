"""What is measured, a request with its sizes, and on which inputs: drawn, or a model's own."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from memory_layers.common.errors import UserError
from memory_layers.common.text import did_you_mean
from memory_layers.config import MemoryConfig
from memory_layers.ops.dispatch import Impl
from memory_layers.ops.huge_pages import advise_huge_pages

Distribution = Literal["uniform", "zipf", "recorded"]
DTYPES = MappingProxyType({"float32": torch.float32, "bfloat16": torch.bfloat16})
BOTH = "both"
ZIPF_EXPONENT = 1.0
SEED = 0
# Rows of random numbers, repeated to fill a table: drawing 2**30 numbers takes longer than a run.
RANDOM_ROWS = 2**12
VALUE_STD = 0.02
# Enough statements for the reads of any run on a CPU: about half a million tokens.
RELATIONS = ("airport_iata", "airport_icao", "airport_timezone", "airport_country")
SUBJECTS = 2000
LENGTH, SEQUENCES = 128, 8

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
        "huge-pages": _READ,
        "embedding-bag": ("dtype",),
    }
)
# Suites that find their slots themselves take no others.
READS = ("read", "write", "step", "huge-pages")
TWO_DTYPES = ("find", "read", "embedding-bag")
OF_THE_MODEL = ("slots", "value_dim", "heads", "top_k")


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
        try:
            changes[name] = text if name == "dtype" else int(text)
        except ValueError as error:
            raise UserError(f"size {name} must be a whole number, got {text!r}") from error
    default = Sizes(
        dtype=BOTH if op in ("find", "read") else "float32",
        sub_keys=256 if op == "train" else Sizes.sub_keys,
    )
    sizes = replace(default, **changes)
    if op not in TWO_DTYPES and sizes.dtype == BOTH:
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
        squared = name == "slots" and "sub_keys" in USED[op]
        reason = ": it has sub_keys * sub_keys slots" if squared else ""
        raise UserError(
            f"size {name} has no effect on `{op}`{reason}. hint: `{op}` uses {', '.join(USED[op])}"
        )
    raise UserError(f"there is no size {name!r}. hint: {did_you_mean(name, USED[op])}")


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
        if self.slots != "uniform" and self.op not in READS:
            raise UserError(
                f"--slots has no effect on `{self.op}`, which finds its own slots. hint: --slots "
                f"is for {', '.join(READS)}"
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


@dataclass(frozen=True)
class Reads:
    """Which rows the tokens of a step read.

    Attributes:
        slots: [T, J] int64.
        weights: [T, J] fp32.
        num_rows: N.
        width: V.
        distribution: Of the slots, for the result file.
    """

    slots: Tensor
    weights: Tensor
    num_rows: int
    width: int
    distribution: dict[str, object]

    @property
    def distinct(self) -> int:
        """R."""
        return int(self.slots.unique().numel())

    @property
    def factor_bytes(self) -> int:
        """Bytes of slots and weights."""
        return self.slots.nbytes + self.weights.nbytes

    @property
    def facts(self) -> dict[str, object]:
        """What of these reads explains a time."""
        return {"distinct_rows": self.distinct, "distribution": self.distribution}


def make_reads(request: Request) -> Reads:
    """Draw the reads that a request asks for, or record them from its model."""
    sizes = request.sizes
    if request.slots == "recorded" and request.model is not None:
        return record_reads(request.model, sizes.tokens, request.device)
    generator = torch.Generator().manual_seed(SEED)
    shape = (sizes.tokens, sizes.reads)
    distribution: dict[str, object] = {"name": request.slots, "seed": SEED}
    if request.slots == "zipf":
        slots = _zipf(sizes.slots, shape, generator)
        distribution |= {"exponent": ZIPF_EXPONENT, "permuted": True}
    else:
        slots = torch.randint(sizes.slots, shape, generator=generator)
    # As a layer weighs them: a softmax over the K reads of a head.
    scores = torch.randn(sizes.tokens, sizes.heads, sizes.top_k, generator=generator)
    weights = scores.softmax(dim=-1).flatten(1)
    device = request.device
    return Reads(slots.to(device), weights.to(device), sizes.slots, sizes.value_dim, distribution)


def _zipf(num_rows: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw ranks with probability ~ rank ** -exponent, and scatter the ranks over the table."""
    share = torch.arange(1, num_rows + 1, dtype=torch.float64).pow(-ZIPF_EXPONENT).cumsum(0)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64) * share[-1]
    ranks = torch.searchsorted(share, drawn).clamp(max=num_rows - 1)
    return torch.randperm(num_rows, generator=generator)[ranks]


def make_table(num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Fill an [N, V] table with normal numbers, in huge pages as ValueTable's."""
    generator = torch.Generator().manual_seed(SEED)
    block = torch.randn(min(num_rows, RANDOM_ROWS), width, generator=generator) * VALUE_STD
    table = torch.empty(num_rows, width, dtype=dtype, device=device)
    advise_huge_pages(table)
    block = block.to(device=device, dtype=dtype)
    for low in range(0, num_rows, len(block)):
        table[low : low + len(block)] = block[: num_rows - low]
    return table


def make_vectors(tokens: int, width: int, device: torch.device) -> Tensor:
    """Draw one fp32 vector of length about 1 for each token: x, or the gradient of a read."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return (torch.randn(tokens, width, generator=generator) / math.sqrt(width)).to(device)


def model_sizes(folder: Path, sizes: Sizes, given: Sequence[str] = ()) -> Sizes:
    """Return sizes in which those of the table and of its reads are a model's.

    Args:
        folder: Of the model, as `train` wrote it.
        sizes: The others.
        given: The pairs that `parse_sizes` read.

    Raises:
        UserError: There is no model with memory in this folder, or a pair sets a size of it.
    """
    for name in OF_THE_MODEL:
        if any(pair.startswith(f"{name}=") for pair in given):
            raise UserError(
                f"size {name} has no effect with --slots recorded: it is the model's. hint: leave "
                "it out, tokens and dtype can be set"
            )
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is no model folder: it has no config.json. hint: give the folder that "
            "training wrote, runs/NAME/model"
        )
    config = json.loads(path.read_text("utf-8"))
    if not config.get("memory"):
        raise UserError(f"{folder} has no memory layers. hint: a model trained with `memory:`")
    memory = MemoryConfig.from_dict(config["memory"])
    return replace(
        sizes,
        slots=memory.num_slots,
        value_dim=memory.resolved(config["hidden_size"]).value_dim,
        heads=memory.heads,
        top_k=memory.top_k,
    )


def record_reads(folder: Path, tokens: int, device: torch.device) -> Reads:
    """Run a model over built-in facts and keep what its first value table was asked for.

    Layers that share the table are recorded one after the other, as a training step reads it.

    Args:
        folder: Of the model, as `train` wrote it.
        tokens: Reads to keep.
        device: Where to put them.

    Raises:
        UserError: There is too little text.
    """
    from memory_layers.data.config import DataConfig
    from memory_layers.data.facts import build_corpus
    from memory_layers.data.prepare import read_facts
    from memory_layers.evaluate.trained import load_trained
    from memory_layers.layers.walk import memory_layers_of

    model, tokenizer = load_trained(folder)
    table = memory_layers_of(model)[0].values
    calls: list[tuple[Tensor, Tensor]] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        calls.append((inputs[0].detach().clone(), inputs[1].detach().clone()))

    table.register_forward_pre_hook(keep)
    facts = read_facts(DataConfig(relations=RELATIONS, max_subjects=SUBJECTS, seed=SEED))
    ids = [
        i
        for text in build_corpus(facts).documents
        for i in (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    ]
    length = min(LENGTH, model.config.max_position_embeddings)
    with torch.no_grad():
        for batch in torch.tensor(ids).split(length * SEQUENCES):
            if sum(len(slots) for slots, _ in calls) >= tokens or len(batch) < length * SEQUENCES:
                break
            model(input_ids=batch.view(SEQUENCES, length), use_cache=False)
    slots, weights = (torch.cat(parts) for parts in zip(*calls, strict=True))
    if len(slots) < tokens:
        raise UserError(f"the built-in facts gave {len(slots)} reads, {tokens} were asked for")
    name = {"name": "recorded", "model": str(folder), "text": "statements of built-in facts"}
    num_rows, width = table.weight.shape
    return Reads(
        slots[:tokens].to(device), weights[:tokens].float().to(device), num_rows, width, name
    )
