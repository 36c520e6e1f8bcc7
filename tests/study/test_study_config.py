"""What a comparison file says: variants over a base, seeds, and fields that have no effect."""

from dataclasses import replace
from pathlib import Path

import pytest

from memory_layers import MemoryConfig
from memory_layers.study.config import CompareConfig, check_seeds, load_compare
from memory_layers.train.config import ConfigError

BASE = """
name: x
model: {hidden_size: 16, heads: 2}
optim: {lr: 1e-2}
"""
VARIANTS = """
variants:
  dense:
  memory:
    model: {hidden_size: 32}
    memory: {layers: [1], sub_keys: 8, top_k: 4}
    optim: {value_lr: 0.1}
"""


def load(folder: Path, text: str) -> CompareConfig:
    path = folder / "compare.yaml"
    path.write_text(text)
    return load_compare(path)


def test_variants_change_the_base(tmp_path: Path) -> None:
    config = load(tmp_path, BASE + VARIANTS + "seeds: [3, 1]")
    variants = config.variants()
    assert list(variants) == ["dense", "memory"]
    assert variants["dense"] == replace(config.base, name="dense")
    memory = variants["memory"]
    assert (memory.model.hidden_size, memory.model.heads) == (32, 2)
    assert (memory.optim.lr, memory.optim.value_lr) == (0.01, 0.1)
    assert memory.memory == MemoryConfig(layers=(1,), sub_keys=8, top_k=4)
    jobs = config.jobs()
    assert list(jobs) == ["dense-seed3", "dense-seed1", "memory-seed3", "memory-seed1"]
    variant, seed, run = jobs["memory-seed1"]
    assert (variant, seed, run.train.seed) == ("memory", 1, 1)
    assert replace(run, train=replace(run.train, seed=0)) == memory


def test_memory_of_the_base_can_be_changed_and_left_out(tmp_path: Path) -> None:
    text = BASE + "memory: {layers: [1], sub_keys: 8, top_k: 4}\nvariants: {a: {memory: {top_k: 2}}"
    variants = load(tmp_path, text + ", b: {memory: null}}").variants()
    assert variants["a"].memory == MemoryConfig(layers=(1,), sub_keys=8, top_k=2)
    assert variants["b"].memory is None
    assert load(tmp_path, BASE + "variants: {a: {}}").seeds == (0,)


def test_flags_without_effect_are_refused(tmp_path: Path) -> None:
    config = load(tmp_path, BASE + VARIANTS)
    base = config.base
    with pytest.raises(ConfigError, match=r"--optim\.value_lr has no effect: variant 'memory'"):
        config.with_base(replace(base, optim=replace(base.optim, value_lr=0.3)))
    with pytest.raises(ConfigError, match=r"--train\.seed has no effect.*use --seeds"):
        config.with_base(replace(base, train=replace(base.train, seed=1)))
    longer = config.with_base(replace(base, train=replace(base.train, steps=7)))
    assert {run.train.steps for run in longer.variants().values()} == {7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE, "needs `variants:`, names and what each changes"),
        (BASE + "variants: []", "needs `variants:`"),
        (BASE + "variants: {a: 3}", "variants.a must be a mapping, got 3"),
        (BASE + "variants: {a b: {}}", "'a b' must be letters, digits, - and _"),
        (BASE + "variants: {1: {}}", "1 must be letters"),
        (BASE + "variants: {../x: {}}", "'../x' must be letters"),
        (BASE + "variants: {a: {modle: {}}}", "variants.a: unknown field 'modle'"),
        (BASE + "variants: {a: {model: {heads: 3}}}", "must be divisible by 2 * heads = 6"),
        (BASE + "variants: {a: {train: {seed: 3}}}", "variants.a.train.seed has no effect"),
        (BASE + "train: {seed: 3}" + VARIANTS, "train.seed has no effect. hint: use `seeds:`"),
        (BASE + VARIANTS + "seeds: 3", "seeds must be different whole numbers >= 0, got 3"),
        ("model: {}" + VARIANTS, "needs `name:`"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "seeds", [[], [0, 0], [-1], [1.0], [True], ["1"], [[1]], [{}], None, 1, "12", {"a": 1}]
)
def test_bad_seeds(seeds: object) -> None:
    with pytest.raises(ConfigError, match="--seeds must be different whole numbers >= 0"):
        check_seeds(seeds, "--seeds")


def test_good_seeds() -> None:
    check_seeds([3, 0, 10**9], "seeds")
    check_seeds((1,), "seeds")
