"""WRITE in Triton against the reference: on a GPU, or under the interpreter without one.

Gradients are small whole numbers, whose sums are exact in fp32 in any order: what differs from the
reference is the rounding of a handful of operations. The interpreter is slow: sizes are small.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from memory_layers.ops._triton.rows import CHUNK, MAX_BLOCK_V, TILE
from memory_layers.ops.write import (
    RowGradient,
    RowState,
    group_by_row,
    row_norm,
    row_step_,
    row_sums,
)
from memory_layers.ops.write import triton as kernels
from memory_layers.ops.write.entries import pack_entries, sort_entries

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N, V = 10, 20
STEPS = ("adamw", "adamw-row", "adamw-no-momentum", "adamw-ahead", "sgd")
gpu_only = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


def gradient_of(
    slots: Tensor, width: int = V, dtype: torch.dtype = torch.float32, scale: float = 0.5
) -> RowGradient:
    """A gradient with exact sums for these [T, J] slots."""
    weights = torch.randint(-2, 3, slots.shape).to(dtype) / 2
    vectors = torch.randint(-4, 5, (slots.shape[0], width)).to(dtype)
    tensors = (slots.to(DEVICE), weights.to(DEVICE), vectors.to(DEVICE))
    return group_by_row(*tensors).scaled(scale)


def even_slots(tokens: int = 6, reads: int = 3) -> Tensor:
    """Slots that leave odd rows untouched, and read one row from every token."""
    slots = torch.randint(N // 2, (tokens, reads)) * 2
    slots[:, 0] = 4
    return slots


def tensors_of(
    kind: str, dtype: torch.dtype, *, decay: bool, master: bool, width: int = V
) -> dict[str, Tensor]:
    table = torch.randn(N, width).to(DEVICE, dtype)
    tensors = {"table": table}
    if kind in ("adamw", "adamw-row", "adamw-ahead"):
        tensors["exp_avg"] = torch.randn(N, width).to(DEVICE) / 8
    if kind != "sgd":
        columns = 1 if kind.endswith("-row") else width
        tensors["exp_avg_sq"] = (torch.rand(N, columns) + 0.5).to(DEVICE)
    if kind == "adamw-ahead":
        tensors["last_step"] = torch.arange(N, dtype=torch.int32).remainder(7).to(DEVICE)
        tensors["last_lr"] = torch.rand(N).to(DEVICE) / 16
        for never in ("exp_avg", "exp_avg_sq", "last_lr"):
            tensors[never][tensors["last_step"] == 0] = 0
    if decay:
        tensors["decayed"] = -torch.rand(N, dtype=torch.float64).to(DEVICE)
    if master:
        tensors["master"] = table.float() + 2.0**-12
    return tensors


def step(
    kind: str, tensors: dict[str, Tensor], gradient: RowGradient, impl: str, seed: int | None = None
) -> None:
    kept = ("exp_avg", "exp_avg_sq", "decayed", "master", "last_step", "last_lr")
    state = RowState(step=7, decay_total=-1.25, **{n: tensors[n] for n in kept if n in tensors})
    if kind == "sgd":
        row_step_(tensors["table"], state, gradient, "sgd", lr=0.25, seed=seed, impl=impl)
    else:
        row_step_(
            tensors["table"], state, gradient,
            lr=0.01, betas=(0.8, 0.9), eps=1e-6, seed=seed, impl=impl,
        )  # fmt: skip


def sgd(table: Tensor, gradient: RowGradient, **options: object) -> None:
    row_step_(table, RowState(), gradient, "sgd", **options)


def check_step(
    kind: str,
    tensors: dict[str, Tensor],
    gradient: RowGradient,
    seed: int | None = None,
) -> None:
    """Take a step in both implementations, compare all tensors, and look at the odd rows."""
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    step(kind, expected, gradient, "reference", seed)
    step(kind, tensors, gradient, "triton", seed)
    for name, tensor in tensors.items():
        assert torch.equal(tensor[1::2], before[name][1::2]), f"{name} of an untouched row"
        assert not torch.equal(tensor, before[name])
        one_step = torch.finfo(tensor.dtype).eps if name == "table" else 0
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6 + one_step, atol=1e-6)
    if tensors["table"].dtype != torch.float32:
        # A number between two of the table's may fall to either, hardly ever.
        differ = (tensors["table"] != expected["table"]).float().mean()
        assert differ <= 0.02, "rounding is not that of the reference"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", STEPS)
def test_step(kind: str, dtype: torch.dtype) -> None:
    # Every kind and every type with decay and without, in turn.
    decay = (STEPS.index(kind) + (dtype == torch.bfloat16)) % 2 == 0
    tensors = tensors_of(kind, dtype, decay=decay, master=False)
    check_step(kind, tensors, gradient_of(even_slots(), dtype=dtype))


@pytest.mark.parametrize("kind", STEPS)
def test_master_is_stepped_and_rounded_to_the_table(kind: str) -> None:
    tensors = tensors_of(kind, torch.bfloat16, decay=True, master=True)
    check_step(kind, tensors, gradient_of(even_slots()))
    assert torch.equal(tensors["table"][4], tensors["master"][4].bfloat16())


@pytest.mark.parametrize(
    ("kind", "seed"), [*(("sgd", s) for s in (0, 1, 2**31 - 1, 2**32 + 7)), ("adamw", 2**32 + 7)]
)
def test_stochastic_rounding_draws_the_bits_of_the_reference(kind: str, seed: int) -> None:
    tensors = tensors_of(kind, torch.bfloat16, decay=False, master=False)
    # The update of SGD is exact here, so that not one number may differ.
    gradient = gradient_of(even_slots(), scale=2.0**-9)
    expected = tensors["table"].clone()
    if kind == "sgd":
        sgd(expected, gradient, lr=0.25, seed=seed, impl="reference")
        sgd(tensors["table"], gradient, lr=0.25, seed=seed, impl="triton")
        assert torch.equal(tensors["table"], expected)
    else:
        check_step(kind, tensors, gradient, seed)


@pytest.mark.parametrize("seed", [None, 5])
def test_nan_and_infinity_survive_rounding(seed: int | None) -> None:
    values = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0]], device=DEVICE)
    one = torch.ones(1, 1, device=DEVICE)
    gradient = group_by_row(torch.zeros(1, 1, dtype=torch.int64, device=DEVICE), one, -values)
    table = torch.zeros(1, 4, dtype=torch.bfloat16, device=DEVICE)
    sgd(table, gradient, lr=1.0, seed=seed, impl="triton")
    torch.testing.assert_close(table, values.bfloat16(), rtol=0, atol=0, equal_nan=True)


def row_cases() -> Iterator[object]:
    """Lists of entries, each for one way in which rows meet tiles and chunks."""
    yield pytest.param(torch.zeros(1, 1), id="one-entry")
    yield pytest.param(torch.arange(TILE + 1)[:, None] // 2, id="row-over-two-tiles")
    yield pytest.param(torch.full((CHUNK, 1), 3), id="one-chunk-exactly")
    yield pytest.param(torch.full((2 * CHUNK + 40, 1), 3), id="one-row-of-two-chunks-and-more")
    parts = [torch.zeros(CHUNK - 3), torch.full((CHUNK + 3,), 1), torch.full((CHUNK,), 2)]
    yield pytest.param(torch.cat(parts)[:, None], id="rows-that-end-with-a-chunk")
    parts = [torch.arange(5), torch.full((3 * CHUNK,), 7), torch.arange(8, 10)]
    yield pytest.param(torch.cat(parts)[:, None], id="chunks-within-a-row")


@pytest.mark.parametrize("slots", row_cases())
def test_sums_and_norm(slots: Tensor) -> None:
    gradient = gradient_of(slots.long(), width=3)
    rows, sums = row_sums(gradient, impl="triton")
    expected_rows, expected = row_sums(gradient, impl="reference")
    assert torch.equal(rows, expected_rows)
    assert torch.equal(sums, expected)
    norm = row_norm(gradient, impl="triton")
    assert (norm.shape, norm.dtype) == ((), torch.float32)
    torch.testing.assert_close(norm, expected.norm(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_reads_of_different_width(dtype: torch.dtype) -> None:
    parts = [gradient_of(even_slots(t, j), dtype=dtype) for t, j in ((3, 1), (2, 4), (4, 3))]
    gradient = parts[0].joined(parts[1]).joined(parts[2])
    (rows, sums), expected = row_sums(gradient, impl="triton"), row_sums(gradient, impl="reference")
    assert torch.equal(rows, expected[0])
    assert torch.equal(sums, expected[1])
    check_step("adamw", tensors_of("adamw", dtype, decay=False, master=False), gradient)


@pytest.mark.parametrize("kind", ["adamw", "adamw-row"])
def test_rows_wider_than_a_block(kind: str) -> None:
    width = MAX_BLOCK_V + 5
    tensors = tensors_of(kind, torch.bfloat16, decay=True, master=False, width=width)
    gradient = gradient_of(even_slots(2), width)
    check_step(kind, tensors, gradient)
    expected = row_norm(gradient, impl="reference")
    torch.testing.assert_close(row_norm(gradient, impl="triton"), expected, rtol=1e-6, atol=0)


def test_rows_outside_the_table_are_not_written() -> None:
    """On a GPU nothing checks them: that would make the host wait."""
    slots = torch.tensor([[-1, 2], [N, 2], [-5, 2]], device=DEVICE)
    entries = sort_entries(pack_entries(slots))
    weights, vectors = torch.ones(3, 2, device=DEVICE), torch.ones(3, V, device=DEVICE)
    padded = torch.zeros(N + 2, V, device=DEVICE)
    table = padded[1:-1]
    factors = ([entries], [weights], [vectors], torch.ones((), device=DEVICE))
    kernels.row_step_(table, RowState(), factors, lr=1.0, betas=(0, 0), eps=0, seed=None)
    assert padded[3].any()
    padded[3] = 0
    assert not padded.any()
    assert kernels.row_norm(factors).isfinite()


def test_no_entry_changes_nothing() -> None:
    gradient = gradient_of(torch.zeros(0, 3).long())
    table = torch.ones(N, V, device=DEVICE)
    sgd(table, gradient, lr=1.0, impl="triton")
    assert torch.equal(table, torch.ones_like(table))
    assert row_norm(gradient, impl="triton") == 0
    rows, sums = row_sums(gradient, impl="triton")
    assert (rows.shape, sums.shape) == ((0,), (0, V))


def test_a_rank_without_columns_keeps_the_numbers_of_rows() -> None:
    tensors = tensors_of("adamw-ahead", torch.float32, decay=True, master=False, width=0)
    step("adamw-ahead", tensors, gradient_of(torch.tensor([[2, 4]]), 0), "triton")
    assert (tensors["last_step"] == 7).nonzero()[:, 0].tolist() == [2, 4]
    assert tensors["decayed"][[2, 4]].tolist() == [-1.25, -1.25]


def test_every_seed_is_passed_as_one_type() -> None:
    """A number that needs 64 bits would compile the kernel again."""
    for seed in (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32 + 7, 2**63 - 1):
        passed = kernels.as_int32(seed)
        assert -(2**31) <= passed < 2**31
        assert passed % 2**32 == seed % 2**32


@gpu_only
def test_a_step_does_not_wait_and_compiles_once() -> None:
    tensors = tensors_of("adamw", torch.bfloat16, decay=True, master=False)
    gradient = gradient_of(even_slots())
    step("adamw", tensors, gradient, "triton", 1)
    compiled = kernels.row_step_kernel.device_caches[torch.cuda.current_device()][0]
    before = len(compiled)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for seed in (2, 16, 2**40):
            scaled = gradient.scaled(1 / (row_norm(gradient) + 1))
            row_step_(
                tensors["table"],
                RowState(tensors["exp_avg"], tensors["exp_avg_sq"], seed, tensors["decayed"], -2.0),
                scaled,
                lr=1.0 / seed,
                seed=seed,
            )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(compiled) == before


@gpu_only
def test_a_step_is_the_same_every_time() -> None:
    slots = torch.randint(N, (5000, 16))
    gradient = group_by_row(
        slots.to(DEVICE), torch.randn(5000, 16).to(DEVICE), torch.randn(5000, V).to(DEVICE)
    )
    start = tensors_of("adamw", torch.bfloat16, decay=True, master=False)
    results = []
    for _ in range(5):
        tensors = {name: tensor.clone() for name, tensor in start.items()}
        step("adamw", tensors, gradient, "triton", 3)
        results.append((*tensors.values(), row_norm(gradient)))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))
