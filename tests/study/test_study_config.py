"""What a comparison file says: variants over a base, seeds, and fields that have no effect."""

from dataclasses import replace
from pathlib import Path

import pytest

from memory_layers import MemoryConfig
from memory_layers.common.errors import UserError
from memory_layers.study.config import CompareConfig, check_seeds, load_compare

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
    assert list(jobs) == ["dense-seed3", "memory-seed3", "dense-seed1", "memory-seed1"]
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
    with pytest.raises(UserError, match=r"--optim\.value_lr has no effect: variant 'memory'"):
        config.with_base(replace(base, optim=replace(base.optim, value_lr=0.3)))
    with pytest.raises(UserError, match=r"--train\.seed has no effect.*use --seeds"):
        config.with_base(replace(base, train=replace(base.train, seed=1)))
    longer = config.with_base(replace(base, train=replace(base.train, steps=7)))
    assert {run.train.steps for run in longer.variants().values()} == {7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE, "needs `variants:`, names and what each changes"),
        (BASE + "variants: []", "needs `variants:`"),
        (BASE + "variants: {a: 3}", "variants.a must be a mapping or the name of a kind, got 3"),
        (BASE + "variants: {a b: {}}", "'a b' must be letters, digits, - and _"),
        (BASE + "variants: {1: {}}", "a name is not a string"),
        (BASE + "variants: {../x: {}}", "'../x' must be letters"),
        (BASE + "variants: {a: {modle: {}}}", "variants.a: unknown field 'modle'"),
        (BASE + "variants: {a: {model: {heads: 3}}}", "must be divisible by 2 * heads = 6"),
        (BASE + "variants: {a: {train: {seed: 3}}}", "variants.a.train.seed has no effect"),
        (BASE + "train: {seed: 3}" + VARIANTS, "train.seed has no effect. hint: use `seeds:`"),
        (BASE + VARIANTS + "seeds: 3", "seeds must be different whole numbers >= 0, got 3"),
        ("model: {}" + VARIANTS, "needs `name:`"),
        (
            BASE + "variants: {a: {}, b: {train: {steps: 7}}}",
            "variants must be trained on the same",
        ),
        (
            BASE + "variants: {a: dens}",
            "variants.a: unknown kind 'dens'. hint: did you mean 'dense'",
        ),
        (BASE + "variants: {a: {kind: rnn}}", "unknown kind 'rnn'. hint: one of dense, memory, "),
        (BASE + "variants: {a: {kind: [dense]}}", "unknown kind ['dense']"),
        (BASE + "variants: {a: {kind: dense, memory: {top_k: 2}}}", "memory has no effect on kind"),
        (BASE + "variants: {a: {kind: memory, moe: {experts: 2}}}", "moe has no effect on kind"),
        (BASE + "variants: {a: {kind: memory, memory: null}}", "for a model without, use kind"),
        (BASE + "variants: {a: {kind: dense, optim: {value_lr: 1}}}", "has no value table"),
        (
            BASE + "variants: {a: {kind: one_slot, memory: {sub_keys: 2}}}",
            "is what kind 'one_slot'",
        ),
        (
            BASE + "variants: {a: {kind: memory_plus, model: {layers: 2}}}",
            "memory.layers must be below model.layers",
        ),
        (BASE + "moe: {routing: expert_choice, experts: 2}\nvariants: {a: dense}", "moe has no ef"),
        (BASE + "match: params" + VARIANTS, "unknown measure 'params'. hint: did you mean 'param"),
        (
            BASE + "match: {flops: 1}" + VARIANTS,
            "match must be a list of flops, parameters, seconds, got",
        ),
        (
            BASE + "match: flops\nvariants: {a: memory}",
            "match: flops needs a dense variant to equal",
        ),
        (BASE + "match: parameters\nvariants: {a: dense}", "needs a variant with memory to equal"),
        (BASE + "match: seconds\nvariants: {a: dense}", "needs a variant with memory to equal"),
        (BASE + "match: seconds\nreference: {seconds: memori}" + VARIANTS, "did you mean 'memory'"),
        (
            BASE + "match: seconds\nvariants: {a: memory, b: {train: {steps: 3}}}",
            "variants.b.train.steps has no effect: match: seconds sets it",
        ),
        (
            BASE + "match: seconds\n"
            "variants: {a: memory, b: {match: [], train: {steps: 3}}, c: {match: []}}",
            "variants must be trained on the same number of tokens",
        ),
        (
            BASE + "variants: {a: {match: flop}}",
            "variants.a.match: unknown measure 'flop'. hint: di",
        ),
        (
            BASE + "variants: {a: {match: 1}}",
            "variants.a.match must be a list of flops, parameters",
        ),
        (BASE + "variants: {a: {kind: moe_fine, match: flops}}", "needs a dense variant to equal"),
        (
            BASE + "match: flops\nvariants: {a: dense, b: {kind: dense, times: 2, match: []}}",
            "variants.b.times has no effect. hint: match: [flops]",
        ),
        (
            BASE + "variants: {a: memory, b: {kind: dense, match: parameters}}",
            "variants.b.match: kind 'dense' has nothing to set to reach parameters",
        ),
        (BASE + "reference: {flops: dense}" + VARIANTS, "reference.flops has no effect: match is"),
        (BASE + "match: flops\nreference: {flops: dens}" + VARIANTS, "did you mean 'dense'?"),
        (BASE + "match: flops\nreference: dense" + VARIANTS, "must name a variant for a measure"),
        (
            BASE + "variants: {a: {kind: dense, times: 2}}",
            "times has no effect. hint: match: [flops]",
        ),
        (BASE + "variants: {a: {kind: dense, times: 0.5}}", "times must be a number >= 1, got 0.5"),
        (BASE + "variants: {a: {kind: dense, times: '2'}}", "times must be a number >= 1, got '2'"),
        (BASE + "variants: {a: {times: 2}}", "times needs a kind. hint: kind: dense"),
        (BASE + "variants: {a: {kind: moe_fine, times: 2}}", "times is for dense models, got kind"),
        (
            BASE + "match: flops\nvariants: {a: dense, b: {kind: dense, model: {mlp_size: 9}}}",
            "variants.b.model.mlp_size has no effect: match: flops sets it",
        ),
        (
            BASE + "match: flops\n"
            "variants: {a: dense, b: {kind: dense, times: 2, model: {hidden_size: 64}}}",
            "variants.b.model.hidden_size has no effect: `times:` sets it",
        ),
        (
            BASE + "match: parameters\nmemory: {layers: [1], sub_keys: 8, top_k: 4}\n"
            "variants: {a: memory_plus, b: {kind: peer, memory: {sub_keys: 9}}}",
            "variants.b.memory.sub_keys has no effect: match: parameters sets it",
        ),
        (
            BASE + "match: flops\nreference: {flops: b}\n"
            "variants: {a: dense, b: {kind: dense, times: 2}}",
            "reference.flops: 'b' has `times:` itself",
        ),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "seeds", [[], [0, 0], [-1], [1.0], [True], ["1"], [[1]], [{}], None, 1, "12", {"a": 1}]
)
def test_bad_seeds(seeds: object) -> None:
    with pytest.raises(UserError, match="--seeds must be different whole numbers >= 0"):
        check_seeds(seeds, "--seeds")


def test_good_seeds() -> None:
    check_seeds([3, 0, 10**9], "seeds")
    check_seeds((1,), "seeds")
