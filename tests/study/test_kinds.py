"""What each kind makes of a base run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import MixtralConfig, OlmoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from memory_layers.config import MemoryConfig, MoeConfig
from memory_layers.layers.experts import TokenChoice
from memory_layers.models import PRESETS
from memory_layers.study.config import load_compare
from memory_layers.study.kinds import KINDS, kind_of
from memory_layers.train.config import RunConfig

MEMORY = {"layers": [1, 2, 4], "sub_keys": 16, "heads": 2, "top_k": 4, "key_dim": 512}
PLUS = MemoryConfig(**MEMORY)
PLAIN = replace(PLUS, layers=(2,), gate="none", key_dim=256)


def variants(folder: Path, variants: dict, **base: object) -> dict[str, RunConfig]:
    path = folder / "compare.yaml"
    values = {"name": "x", "model": {"layers": 6}, "memory": MEMORY, **base, "variants": variants}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    config = load_compare(path)
    runs = config.variants()
    assert config.kinds() == {name: kind_of(run) for name, run in runs.items()}
    return runs


def test_kinds_derive_from_the_memory_of_the_base(tmp_path: Path) -> None:
    runs = variants(tmp_path, {kind: kind for kind in KINDS})
    assert {name: run.memory for name, run in runs.items()} == {
        "dense": None,
        "memory": PLAIN,
        "memory_plus": PLUS,
        "peer": replace(PLAIN, sub_keys=12, readout="experts"),
        "moe_expert_choice": None,
        "moe_fine": None,
        "moe_coarse": None,
        "memory_beside": replace(PLUS, layers=tuple(range(6)), placement="beside"),
        "one_slot": replace(PLUS, sub_keys=1, top_k=1),
        "fixed_slots": PLUS,
    }
    moes = {name: run.moe for name, run in runs.items() if run.moe is not None}
    assert moes == {
        "moe_expert_choice": MoeConfig(routing="expert_choice", experts=8),
        "moe_fine": MoeConfig(routing="token_choice", experts=64, top_k=8),
        "moe_coarse": MoeConfig(
            routing="token_choice", experts=8, top_k=2, expert_size=172, normalize_top_k=True
        ),
    }
    assert {name: run.optim.train_keys for name, run in runs.items()} == {
        kind: kind != "fixed_slots" for kind in KINDS
    }
    # Of the same base otherwise.
    parts = {
        (run.model, run.data, replace(run.optim, train_keys=True), run.train)
        for run in runs.values()
    }
    assert len(parts) == 1


def test_without_a_memory_the_preset_has_one(tmp_path: Path) -> None:
    names = {"plus": "memory_plus", "memory": "memory", "peer": "peer"}
    runs = variants(tmp_path, names, memory=None, model={"preset": "1.3b"})
    preset = PRESETS["1.3b"]
    assert runs["plus"].memory == preset.memory_plus()
    assert runs["memory"].memory == preset.memory()
    assert runs["peer"].memory == preset.peer()


def test_a_kind_can_be_changed(tmp_path: Path) -> None:
    runs = variants(
        tmp_path,
        {
            "many": {"kind": "memory_plus", "memory": {"top_k": 8}, "optim": {"value_lr": 0.1}},
            "deep": {"kind": "memory_beside", "model": {"layers": 8}},
            "few": {"kind": "moe_fine", "moe": {"experts": 4, "top_k": 2, "layers": [0]}},
            "plain": {"kind": "dense", "optim": {"lr": 0.5}},
            "wide": {"kind": "moe_coarse", "model": {"mlp_size": 96}},
        },
    )
    assert runs["wide"].moe.expert_size == 96
    assert runs["many"].memory == replace(PLUS, top_k=8)
    assert runs["many"].optim.value_lr == 0.1
    assert runs["deep"].memory.layers == tuple(range(8))
    assert runs["few"].moe == MoeConfig(routing="token_choice", experts=4, top_k=2, layers=(0,))
    assert (runs["plain"].memory, runs["plain"].optim.lr) == (None, 0.5)


def test_changes_without_a_kind_are_named_after_what_they_make(tmp_path: Path) -> None:
    entries = {
        "as_is": {},
        "none": {"memory": None},
        "ungated": {"memory": {"gate": "none"}},
        "linear": {"memory": {"readout": "linear_experts"}},
        "moe": {"memory": None, "moe": {"routing": "expert_choice", "experts": 2}},
        "narrow": {"memory": None, "moe": {"routing": "token_choice", "experts": 8}},
        "best": {"memory": None, "moe": {"routing": "token_choice", "experts": 8, "top_k": 1}},
    }
    runs = variants(tmp_path, entries)
    assert [kind_of(run) for run in runs.values()] == [
        "memory_plus", "dense", "memory", "peer", "moe_expert_choice", "moe_fine", "moe_coarse"
    ]  # fmt: skip


@pytest.mark.parametrize("sub_keys", [4, 5])
def test_experts_are_no_fewer_than_a_head_reads(tmp_path: Path, sub_keys: int) -> None:
    runs = variants(tmp_path, {"peer": "peer"}, memory={**MEMORY, "sub_keys": sub_keys})
    assert runs["peer"].memory.sub_keys == 4


def test_mixtures_as_they_are_usual(tmp_path: Path) -> None:
    """The blocks of OLMoE and Mixtral, of the sizes of OLMoE-1B-7B: count and outputs."""
    model = {"hidden_size": 2048, "heads": 16, "layers": 16, "mlp_size": 8192}
    runs = variants(tmp_path, {"fine": "moe_fine", "coarse": "moe_coarse"}, model=model)
    fine = {"intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8}
    coarse = {"intermediate_size": 8192, "num_local_experts": 8, "num_experts_per_tok": 2}
    for run, config, kind in (
        (runs["fine"], OlmoeConfig(**fine), OlmoeSparseMoeBlock),
        (runs["coarse"], MixtralConfig(hidden_size=2048, **coarse), MixtralSparseMoeBlock),
    ):
        with torch.device("meta"):
            ours, theirs = TokenChoice(run.moe, 2048, 8192), kind(config)
        count = sum(parameter.numel() for parameter in theirs.parameters())
        assert sum(parameter.numel() for parameter in ours.parameters()) == count
        # The same in small.
        config.hidden_size, config.intermediate_size = 16, config.intermediate_size // 512
        moe = replace(run.moe, expert_size=config.intermediate_size)
        ours, theirs = TokenChoice(moe, 16, 16, 0.5).eval(), kind(config).eval()
        own = ours.experts
        with torch.no_grad():
            theirs.gate.weight.copy_(ours.router.weight)
            theirs.experts.gate_up_proj.copy_(torch.cat([own.gate, own.up], dim=2).mT)
            theirs.experts.down_proj.copy_(own.down.mT)
            x = torch.randn(1, 9, 16)
            torch.testing.assert_close(ours(x), theirs(x))
