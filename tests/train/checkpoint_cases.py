"""Small trained models for the tests of checkpoints, whole or divided among ranks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny_models import tiny_llama, tiny_memory
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from memory_layers.models import add_memory
from memory_layers.models.initialize import materialize
from memory_layers.optim import MemoryAdamW
from memory_layers.parallel import ParallelConfig, make_meshes
from memory_layers.parallel.apply import parallelize
from memory_layers.train.checkpoint import Checkpoints
from memory_layers.train.state import model_tensors, optimizer_tensors, table_numbers

# 36 slots of width 5 make several blocks, the last of them smaller.
BLOCK_BYTES = 320


@dataclass(frozen=True)
class Case:
    """What decides which state a table has, and how four ranks save it."""

    memory: dict[str, Any]
    optim: dict[str, Any]
    parallel: dict[str, int]


CASES = {
    "ahead": Case({"value_dim": 5}, {}, {}),
    "full": Case({"value_dim": 5}, {"value_state": "full"}, {}),
    "row": Case({"value_dim": 5, "share_values": False}, {"value_state": "row"}, {}),
    # Of four ranks, the last has no column.
    "master": Case(
        {"value_dim": 5, "value_dtype": torch.bfloat16},
        {"bf16_rows": "master", "value_weight_decay": 0.1},
        {},
    ),
    # Four ranks load one column each, as wide as state of one number a row.
    "narrow": Case(
        {"value_dim": 4},
        {"value_state": "row", "value_weight_decay": 0.1},
        {"replicate": 2, "memory": 2},
    ),
}
ON_RANKS = ("master", "narrow")


def tokenizer() -> PreTrainedTokenizerFast:
    """One that knows a single word."""
    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="a")


def build(
    case: Case, parallel: ParallelConfig | None = None, seed: int = 0
) -> tuple[PreTrainedModel, MemoryAdamW]:
    """An untrained model, divided among the ranks of the process group if `parallel` is given."""
    with torch.device("meta"):
        plain = tiny_llama()
        # As few tensors as can be: it is their number that takes time.
        blocks = plain.config.num_hidden_layers = 1 if case.memory.get("share_values", True) else 2
        del plain.model.layers[blocks:]
        fields = dict(case.memory)
        value_dtype = fields.pop("value_dtype", None)
        memory = tiny_memory(layers=range(blocks), key_dim=8, **fields)
        model = add_memory(plain, memory, value_dtype=value_dtype)
    if parallel is None:
        materialize(model, seed)
    else:
        meshes = make_meshes(parallel.resolve(dist.get_world_size()), "cpu")
        parallelize(model, meshes, parallel, seed=seed)
    return model, MemoryAdamW(model, 0.01, 0.02, **case.optim)


def step(model: nn.Module, optimizer: MemoryAdamW, number: int) -> float:
    """One step on eight random tokens, other ones on each rank."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    tokens = torch.Generator().manual_seed(100 * number + rank)
    ids = torch.randint(0, 40, (1, 8), generator=tokens)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def trained(
    case: Case, parallel: ParallelConfig | None = None, seed: int = 0
) -> tuple[PreTrainedModel, MemoryAdamW]:
    """A model after two steps."""
    model, optimizer = build(case, parallel, seed)
    for number in range(2):
        step(model, optimizer, number)
    return model, optimizer


def snapshot(model: nn.Module, optimizer: MemoryAdamW) -> dict[str, Any]:
    """Copies of all tensors in full, and the numbers of the tables. All ranks call this."""
    values: dict[str, Any] = {
        f"numbers.{name}": numbers for name, numbers in table_numbers(model, optimizer).items()
    }
    one_block = 2**30
    tensors = model_tensors(model, one_block) | optimizer_tensors(model, optimizer, one_block)
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        values[name.split("/")[0]] = full.detach().clone()
    return values


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Two snapshots are equal bit for bit."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert actual[name].dtype == value.dtype, name
            assert torch.equal(actual[name], value), name
        else:
            assert actual[name] == value, name


def save(folder: Path, case: Case, parallel: ParallelConfig | None = None) -> None:
    """Train, save in `folder` while training goes on, and beside it what was saved."""
    model, optimizer = trained(case, parallel)
    checkpoints = Checkpoints(folder, 1, block_bytes=BLOCK_BYTES)
    checkpoints.save(2, model, optimizer, {"tokens": 16}, tokenizer())
    expected = snapshot(model, optimizer)
    step(model, optimizer, 2)
    checkpoints.wait()
    if parallel is None or dist.get_rank() == 0:
        torch.save(expected, folder / "expected.pt")


def save_on_ranks(folder: Path) -> None:
    """Save in FOLDER/CASE on each rank of the process group."""
    for name in ON_RANKS:
        parallel = CASES[name].parallel if dist.get_world_size() == 4 else {}
        save(folder / name, CASES[name], ParallelConfig(**parallel))


def load_on_ranks(folders: list[Path]) -> None:
    """Load what was saved in each FOLDER/CASE on any number of ranks, and compare."""
    for folder in folders:
        for name in ON_RANKS:
            model, optimizer = build(CASES[name], ParallelConfig(), seed=1)
            loaded = Checkpoints(folder / name, 1).load_newest(model, optimizer)
            assert loaded == (2, {"tokens": 16})
            expected = torch.load(folder / name / "expected.pt", weights_only=True)
            assert_same(snapshot(model, optimizer), expected)


def load_alone(folder: Path, case: Case) -> None:
    """Load what was saved in `folder` without a process group, and compare."""
    model, optimizer = build(case, seed=1)
    assert Checkpoints(folder, 1).load_newest(model, optimizer) == (2, {"tokens": 16})
    expected = torch.load(folder / "expected.pt", weights_only=True)
    assert_same(snapshot(model, optimizer), expected)
    for parameter, tensor in model.named_parameters():
        assert torch.equal(tensor, expected[f"model.{parameter}"]), parameter
    step(model, optimizer, 3)
