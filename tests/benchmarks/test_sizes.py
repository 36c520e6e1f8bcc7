"""Sizes and requests: what is read, and what is refused with a hint."""

from pathlib import Path

import pytest
import torch

from benchmarks.request import Request, Sizes, parse_sizes
from memory_layers.common.errors import UserError


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
