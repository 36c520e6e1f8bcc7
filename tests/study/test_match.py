"""Variants that are made to cost the same, counted again on models that hold numbers."""

from pathlib import Path

import pytest
import yaml

from memory_layers.models import build_model
from memory_layers.study.config import CompareConfig, load_compare
from memory_layers.study.flops import forward_flops
from memory_layers.study.match import Matched, match_variants
from memory_layers.train.config import RunConfig

VOCAB = 300
MODEL = {"hidden_size": 32, "layers": 2, "heads": 2, "mlp_size": 80}
MEMORY = {"layers": [1], "sub_keys": 16, "heads": 2, "top_k": 4, "key_dim": 8}


def load(folder: Path, variants: dict, **fields: object) -> CompareConfig:
    path = folder / "compare.yaml"
    values = {
        "name": "x",
        "model": MODEL,
        "memory": MEMORY,
        "train": {"batch_size": 2, "seq_len": 16, "steps": 5},
        "variants": variants,
        **fields,
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return load_compare(path)


def matched(folder: Path, variants: dict, **fields: object) -> Matched:
    config = load(folder, variants, **fields)
    return match_variants(config, dict.fromkeys(variants, VOCAB))


def flops(run: RunConfig) -> float:
    model = build_model(run.model.to_preset(), run.memory, run.moe, vocab_size=VOCAB)
    return forward_flops(model, 16, 2)


def parameters(run: RunConfig) -> int:
    model = build_model(run.model.to_preset(), run.memory, run.moe, vocab_size=VOCAB)
    return sum(parameter.numel() for parameter in model.parameters())


def test_nothing_is_changed_unasked(tmp_path: Path) -> None:
    config = load(tmp_path, {"dense": "dense", "plus": "memory_plus"})
    result = match_variants(config, {"dense": VOCAB, "plus": VOCAB})
    assert result.variants == config.variants()
    assert result.record == {
        "tokens": 5 * 2 * 16,
        **dict.fromkeys(("flops", "parameters", "seconds")),
    }


def test_tokens_are_those_of_variants_that_all_set_them(tmp_path: Path) -> None:
    own = {name: {"kind": name, "train": {"steps": 7}} for name in ("dense", "memory_plus")}
    assert matched(tmp_path, own).record["tokens"] == 7 * 2 * 16


def test_flops_are_those_of_the_dense_model(tmp_path: Path) -> None:
    kinds = ["dense", "memory_plus", "moe_expert_choice", "moe_fine"]
    variants = {**{kind: kind for kind in kinds}, "dense_2x": {"kind": "dense", "times": 2}}
    result = matched(tmp_path, variants, match="flops")
    runs, record = result.variants, result.record["flops"]
    assert runs["dense"].model.mlp_size == 80
    assert record["target"] == flops(runs["dense"])
    assert record["off"].keys() == variants.keys()
    for name in runs:
        # To the nearest width: one column of eight experts is 8 * 3 * 2 * 32 FLOPs in each block.
        step = 3 * 2 * 32 * 2 * (8 if name == "moe_fine" else 1)
        assert abs(record["off"][name]) <= 0.75 * step / record["target"]
    for name, times in {"dense_2x": 2, "moe_fine": 1}.items():
        assert record["off"][name] == flops(runs[name]) / (times * record["target"]) - 1
    assert runs["memory_plus"].memory.sub_keys == 16
    assert runs["moe_fine"].moe.experts == 64
    wide = runs["dense_2x"].model
    assert wide.hidden_size > 32
    assert wide.hidden_size % 4 == 0
    assert wide.mlp_size / wide.hidden_size == pytest.approx(80 / 32, rel=0.1)


def test_parameters_are_the_nearest_to_those_of_memory_plus(tmp_path: Path) -> None:
    kinds = ["dense", "memory", "memory_plus", "peer", "moe_expert_choice", "moe_fine"]
    variants = {kind: kind for kind in kinds}
    variants["moe_expert_choice"] = {"kind": "moe_expert_choice", "moe": {"expert_size": 7}}
    variants["moe_fine"] = {"kind": "moe_fine", "moe": {"expert_size": 1, "top_k": 2}}
    result = matched(tmp_path, variants, match="parameters")
    runs, record = result.variants, result.record["parameters"]
    assert runs["memory_plus"].memory.sub_keys == 16
    assert record["target"] == parameters(runs["memory_plus"])
    # A dense model has nothing that could be set, and is not expected to be equal.
    assert record["off"].keys() == variants.keys() - {"dense"}
    for name, off in record["off"].items():
        assert off == parameters(runs[name]) / record["target"] - 1
    assert abs(record["off"]["memory"]) < 0.05
    assert abs(record["off"]["peer"]) < 0.05
    # One more expert of width 1 in two blocks is 2 * 4 * 32.
    assert abs(record["off"]["moe_fine"]) <= 128 / record["target"]
    # The fewest that reach it: one less would not.
    assert 0 <= record["off"]["moe_expert_choice"] < 2 * (3 * 32 * 7 + 32) / record["target"]


def test_both_are_reached_together(tmp_path: Path) -> None:
    """Sub-keys change the FLOPs of FIND, and widths the parameters."""
    variants = {"dense": "dense", "plus": "memory_plus", "memory": "memory", "fixed": "fixed_slots"}
    variants["memory"] = {"kind": "memory", "memory": {"layers": [0], "value_dim": 8}}
    result = matched(tmp_path, variants, match=["parameters", "flops"])
    runs = result.variants
    assert runs["memory"].memory.sub_keys > 16
    assert runs["fixed"].memory.sub_keys == runs["plus"].memory.sub_keys == 16
    assert runs["fixed"].model == runs["plus"].model
    assert all(abs(off) < 0.005 for off in result.record["flops"]["off"].values())
    off = flops(runs["memory"]) / flops(runs["dense"]) - 1
    assert result.record["flops"]["off"]["memory"] == off
    assert abs(result.record["parameters"]["off"]["memory"]) < 0.01


def test_what_cannot_be_reached_is_reported(tmp_path: Path) -> None:
    """No feed-forward block is left, and one slot is one slot."""
    memory = {**MEMORY, "layers": [0, 1]}
    variants = {"dense": "dense", "plus": "memory_plus", "one": "one_slot"}
    result = matched(tmp_path, variants, match=["flops", "parameters"], memory=memory)
    runs = result.variants
    assert runs["plus"].model.mlp_size == runs["one"].model.mlp_size == 80
    assert runs["one"].memory.sub_keys == 1
    flops_off, total_off = (result.record[name]["off"] for name in ("flops", "parameters"))
    assert flops_off["plus"] == flops(runs["plus"]) / flops(runs["dense"]) - 1 < -0.05
    assert total_off["one"] == parameters(runs["one"]) / parameters(runs["plus"]) - 1 < -0.05


def test_a_named_reference_is_not_changed(tmp_path: Path) -> None:
    beside = {"kind": "memory_beside", "memory": {"sub_keys": 20}}
    variants = {"dense": "dense", "plus": "memory_plus", "beside": beside}
    names = {"flops": "plus", "parameters": "beside"}
    result = matched(tmp_path, variants, match=["flops", "parameters"], reference=names)
    runs = result.variants
    assert runs["plus"].model.mlp_size == 80
    assert runs["dense"].model.mlp_size != 80
    assert runs["beside"].memory.sub_keys == 20
    assert runs["plus"].memory.sub_keys > 17
    assert result.record["flops"]["off"]["plus"] == 0
    assert result.record["parameters"]["off"]["beside"] == 0


def test_a_variant_can_say_what_it_is_matched_by(tmp_path: Path) -> None:
    fine, coarse = {"kind": "moe_fine", "match": ["flops"]}, {"kind": "moe_coarse", "match": []}
    variants = {"dense": "dense", "plus": "memory_plus", "peer": "peer", "fine": fine}
    total = {"kind": "moe_expert_choice", "match": ["parameters"], "moe": {"expert_size": 7}}
    variants |= {"coarse": coarse, "total": total}
    result = matched(tmp_path, variants, match=["flops", "parameters"])
    runs, record = result.variants, result.record
    # As many experts as the kind has, narrower by what the router costs, and all of both as it is.
    assert runs["fine"].moe.experts == 64
    assert 1 <= runs["fine"].moe.expert_size < 10
    assert runs["coarse"] == load(tmp_path, {"coarse": "moe_coarse"}).variants()["coarse"]
    # The width that it was given, and the fewest experts that reach the total.
    assert runs["total"].moe.expert_size == 7
    assert (
        0 <= record["parameters"]["off"]["total"] < 2 * (3 * 32 * 7 + 32) / parameters(runs["plus"])
    )
    assert record["flops"]["off"].keys() == {"dense", "plus", "peer", "fine"}
    assert record["parameters"]["off"].keys() == {"plus", "peer", "total"}
    references = {name: record[name]["reference"] for name in ("flops", "parameters")}
    assert references == {"flops": "dense", "parameters": "plus"}
    # Nothing is matched in all, one variant is.
    alone = matched(tmp_path, {"dense": "dense", "plus": "memory_plus", "fine": fine})
    assert alone.variants["plus"].model == alone.variants["dense"].model
    assert alone.variants["fine"] == runs["fine"]
    assert alone.record["flops"]["off"].keys() == {"dense", "fine"}


def test_experts_cannot_grow_beyond_what_their_router_costs(tmp_path: Path) -> None:
    """At equal FLOPs many narrow experts hold less than fewer wide ones."""
    memory = {**MEMORY, "sub_keys": 120}
    variants = {"dense": "dense", "plus": "memory_plus", "fine": "moe_fine"}
    result = matched(tmp_path, variants, match=["flops", "parameters"], memory=memory)
    moe = result.variants["fine"].moe
    most = parameters(result.variants["fine"])
    assert (
        result.record["parameters"]["off"]["fine"]
        == most / parameters(result.variants["plus"]) - 1
        < -0.1
    )
    assert abs(result.record["flops"]["off"]["fine"]) < 0.05
    other = {"kind": "moe_fine", "moe": {"experts": 2 * moe.experts}}
    held = matched(tmp_path, {"dense": "dense", "fine": other}, match="flops")
    assert parameters(held.variants["fine"]) < most
