"""Requests are refused with a hint; distributions are what they are called; tables are filled."""

from pathlib import Path

import pytest
import torch

from benchmarks.inputs import Request, Sizes, make_reads, make_table, parse_sizes
from memory_layers.common.errors import UserError

CPU = torch.device("cpu")
SIZES = Sizes(tokens=500, slots=1000, value_dim=8, heads=4, top_k=8)


def test_uniform_and_zipf_slots() -> None:
    uniform = make_reads(Request(op="read", sizes=SIZES))
    zipf = make_reads(Request(op="read", sizes=SIZES, slots="zipf"))
    for reads in (uniform, zipf):
        assert reads.slots.shape == reads.weights.shape == (500, 32)
        assert 0 <= int(reads.slots.min()) <= int(reads.slots.max()) < 1000
        torch.testing.assert_close(reads.weights.sum(1), torch.full((500,), 4.0))
        assert reads.distinct == len(set(reads.slots.flatten().tolist()))
    counts = zipf.slots.flatten().bincount(minlength=1000).sort(descending=True).values.double()
    # The first rank has 1 / (1 + 1/2 + ... + 1/1000) = 13.4 % of the reads, twice the second's.
    assert 0.11 < float(counts[0] / counts.sum()) < 0.16
    assert 1.6 < float(counts[0] / counts[1]) < 2.5
    assert int(uniform.slots.flatten().bincount(minlength=1000).max()) < 40
    # Permuted: the most read slots are not the first ones.
    assert int(zipf.slots.flatten().bincount().argmax()) != 0
    assert zipf.distribution["exponent"] == 1.0


def test_the_same_request_makes_the_same_inputs() -> None:
    first, second = (make_reads(Request(op="read", sizes=SIZES)) for _ in range(2))
    assert torch.equal(first.slots, second.slots)
    assert torch.equal(first.weights, second.weights)


def test_tables_are_filled_to_the_last_row() -> None:
    table = make_table(2**12 + 5, 3, torch.bfloat16, CPU)
    assert table.dtype == torch.bfloat16
    assert (table != 0).any(dim=1).all()
    assert 0.015 < float(table.float().std()) < 0.025


def test_pairs_change_the_defaults() -> None:
    sizes = parse_sizes("read", ("tokens=7", "dtype=bfloat16"))
    assert (sizes.tokens, sizes.dtype, sizes.slots) == (7, "bfloat16", 2**20)
    assert parse_sizes("find", ()).dtypes == ("float32", "bfloat16")
    assert sizes.reads == 128


@pytest.mark.parametrize(
    ("op", "pair", "message"),
    [
        ("read", "tokns=3", "did you mean 'tokens'?"),
        ("read", "zzz=3", "one of tokens"),
        ("read", "tokens", "expects name=value, got 'tokens'"),
        ("read", "tokens=many", "tokens must be a whole number, got 'many'"),
        ("read", "tokens=0", "tokens must be >= 1, got 0"),
        ("read", "dtype=fp32", "dtype must be one of float32, bfloat16, both, got fp32"),
        ("read", "sub_keys=8", "sub_keys has no effect on `read`"),
        ("layer", "slots=64", "slots has no effect on `layer`: it has sub_keys * sub_keys slots"),
        ("write", "dtype=both", "dtype of `write` must be one of float32, bfloat16"),
        ("find", "value_dim=30", "hint: value_dim=32"),
        ("find", "sub_keys=8", "top_k must be at most sub_keys = 8, got 32"),
    ],
)
def test_wrong_sizes_are_named(op: str, pair: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_sizes(op, (pair,))
    assert message in str(error.value)


def test_a_size_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="sets tokens twice"):
        parse_sizes("read", ("tokens=1", "tokens=2"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"op": "write", "impl": "reference"}, "--impl has no effect on `write`"),
        ({"op": "find", "slots": "zipf"}, "--slots has no effect on `find`"),
        ({"op": "read", "slots": "recorded"}, "needs --model"),
        ({"op": "read", "model": Path("x")}, "--model has no effect with --slots uniform"),
    ],
)
def test_settings_without_effect_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        Request(**{"sizes": Sizes(), **changes})
    assert message in str(error.value)


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch sees none\. hint: --device cpu"):
        Request(op="read", sizes=Sizes(), device=torch.device("cuda"))
