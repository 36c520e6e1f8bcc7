"""Memory saved without its base comes back onto that base to the bit, and onto no other."""

import copy
import json
from pathlib import Path

import pytest
import torch
from tiny_families import FAMILY_NAMES, IDS, tiny_model
from tiny_models import tiny_memory
from transformers import PreTrainedModel

from memory_layers import MemoryAdamW
from memory_layers.models import (
    add_memory,
    backbone_of,
    freeze_all_but_memory,
    load_memory,
    memory_layers_of,
    save_memory,
)


def taught(name: str, **memory: object) -> PreTrainedModel:
    """A base with memory that alone has learned for two steps."""
    config = tiny_memory(**{"placement": "beside", **memory})
    model = freeze_all_but_memory(add_memory(tiny_model(name), config))
    optimizer = MemoryAdamW(model, lr=1e-2)
    model.train()
    for _ in range(2):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def same(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    theirs = second.state_dict()
    return first.state_dict().keys() == theirs.keys() and all(
        value.dtype == theirs[key].dtype and torch.equal(value, theirs[key])
        for key, value in first.state_dict().items()
    )


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_round_trip_on_every_family(name: str, tmp_path: Path) -> None:
    model = taught(name)
    save_memory(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory.json", "memory.safetensors"]
    base = tiny_model(name)
    loaded = load_memory(base, tmp_path)
    assert loaded is base
    assert same(loaded, model)
    moved = {key.replace(".mlp.mlp.", ".mlp."): t for key, t in loaded.state_dict().items()}
    for key, value in tiny_model(name).state_dict().items():
        assert torch.equal(value, moved[key]), key


@pytest.mark.parametrize(
    "memory",
    [
        {"placement": "replace"},
        {"share_values": False},
        {"query_norm": "batch", "sink_slot": True},
        {"random_slots": 2},
        {"readout": "experts"},
    ],
    ids=str,
)
def test_round_trip_of_every_kind(memory: dict[str, object], tmp_path: Path) -> None:
    model = taught("llama", **memory)
    save_memory(model, tmp_path)
    loaded = load_memory(tiny_model("llama"), tmp_path)
    assert same(loaded, model)
    # The base is in eval mode, and so is its new memory: no slot is drawn, no statistic moves.
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert same(loaded, model)
    assert all(module.training for module in taught("llama").train().modules())


def test_onto_a_backbone_another_type_and_a_model_that_has_it(tmp_path: Path) -> None:
    model = taught("llama")
    save_memory(model, tmp_path)
    assert same(load_memory(backbone_of(tiny_model("llama")), tmp_path), backbone_of(model))
    half = load_memory(tiny_model("llama", torch.bfloat16), tmp_path)
    table = model.model.memory_table.weight
    assert torch.equal(half.model.memory_table.weight, table.bfloat16())
    other = add_memory(tiny_model("llama"), tiny_memory(placement="beside"))
    assert same(load_memory(other, tmp_path), model)


def test_freezing_leaves_memory_alone() -> None:
    model = taught("gpt2")
    plain = {key for key, _ in tiny_model("gpt2").named_parameters()}
    for key, parameter in model.named_parameters():
        is_base = key in plain or ".mlp.mlp." in key
        assert parameter.requires_grad != is_base, key
    before = tiny_model("gpt2").state_dict()
    for key in plain & model.state_dict().keys():
        assert torch.equal(model.state_dict()[key], before[key]), key


def test_folders_of_before(tmp_path: Path) -> None:
    config = tiny_memory(placement="beside")
    model = add_memory(tiny_model("llama"), config, value_dtype=torch.bfloat16)
    save_memory(model, tmp_path)
    path = tmp_path / "memory.json"
    values = json.loads(path.read_text("utf-8"))
    values["mlp"] = values.pop("target_module")
    values["memory"] |= {"value_dtype": "bfloat16", "train_keys": False}
    del values["value_dtype"]
    path.write_text(json.dumps(values), "utf-8")
    with pytest.warns(UserWarning, match=r"train_keys=False .*freeze_keys\(model\)"):
        loaded = load_memory(tiny_model("llama"), tmp_path)
    assert same(loaded, model)


def test_the_digests_of_earlier_versions(tmp_path: Path) -> None:

    def base(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        model = tiny_model("llama", dtype)
        with torch.no_grad():
            for weight in model.parameters():
                places = torch.arange(weight.numel()).view_as(weight)
                weight.copy_((places * 37 % 101 - 50) / 64)
        return model

    model = add_memory(base(), tiny_memory(placement="beside"))
    save_memory(model, tmp_path)
    path = tmp_path / "memory.json"
    values = json.loads(path.read_text("utf-8"))
    before = json.loads(Path(__file__).with_name("digests_of_before.json").read_text("utf-8"))
    assert values["base"].keys() == before["base"].keys()
    path.write_text(json.dumps(values | before), "utf-8")
    assert same(load_memory(base(), tmp_path), model)
    load_memory(base(torch.bfloat16), tmp_path)
    other = base()
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    with pytest.raises(ValueError, match=r"its norm\.weight is another"):
        load_memory(other, tmp_path)


@pytest.mark.parametrize("size", [1e-4, 1e-3])
def test_a_finetune_is_another_base(size: float, tmp_path: Path) -> None:
    save_memory(taught("llama"), tmp_path)
    other = tiny_model("llama")
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight) * weight.std() * size)
    with pytest.raises(ValueError, match="another base"):
        load_memory(other, tmp_path)
    load_memory(tiny_model("llama", torch.float16), tmp_path)


def test_the_type_of_tables_comes_back(tmp_path: Path) -> None:
    config = tiny_memory(placement="beside")
    model = add_memory(tiny_model("llama"), config, value_dtype=torch.bfloat16)
    save_memory(model, tmp_path)
    assert same(load_memory(tiny_model("llama"), tmp_path), model)


def test_another_base_is_refused_with_a_reason(tmp_path: Path) -> None:
    save_memory(taught("llama"), tmp_path)
    other = tiny_model("llama")
    with torch.no_grad():
        other.model.layers[1].self_attn.q_proj.weight.mul_(1.5)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(
        ValueError, match=r"another base .* its layers\.1\.self_attn\.q_proj\.weight"
    ):
        load_memory(other, tmp_path)
    assert not memory_layers_of(other)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    longer = tiny_model("llama", num_hidden_layers=4)
    longer.load_state_dict(tiny_model("llama").state_dict(), strict=False)
    with pytest.raises(ValueError, match=r"it has layers\.3\..* too"):
        load_memory(longer, tmp_path)
    head = tiny_model("llama")
    with torch.no_grad():
        head.lm_head.weight.mul_(1.5)
    with pytest.raises(ValueError, match="its output embeddings are others"):
        load_memory(head, tmp_path)
    with pytest.raises(ValueError, match="another base than this model: it has no"):
        load_memory(tiny_model("gpt2"), tmp_path)
    with pytest.raises(ValueError, match=r"of shape \[40, 32\]"):
        load_memory(tiny_model("llama", hidden_size=32), tmp_path)
    fitted = add_memory(tiny_model("llama"), tiny_memory(placement="beside", top_k=2))
    with pytest.raises(ValueError, match="memory of another configuration"):
        load_memory(fitted, tmp_path)


def test_damaged_folders_are_refused_and_change_nothing(tmp_path: Path) -> None:
    save_memory(taught("llama"), tmp_path)
    weights, description = tmp_path / "memory.safetensors", tmp_path / "memory.json"
    whole, text = weights.read_bytes(), description.read_text("utf-8")
    values = json.loads(text)
    model = tiny_model("llama")

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_memory(model, tmp_path)
        assert not memory_layers_of(model)
        assert type(model) is type(tiny_model("llama"))

    weights.write_bytes(whole[: len(whole) // 2])
    refused("damaged or cut off")
    weights.write_bytes(whole)
    description.write_text(json.dumps({**values, "memory_format": 99}), "utf-8")
    refused("this package reads up to")
    changed = {**values["memory"], "sub_keys": 7}
    description.write_text(json.dumps({**values, "memory": changed}), "utf-8")
    refused(r"must have shape \[.*\], got \[")
    del changed["sub_keys"], values["base"]
    for wrong in (values, [1]):
        description.write_text(json.dumps(wrong), "utf-8")
        refused(r"memory\.json is damaged, it lacks .*base")
    description.write_text(text[:50], "utf-8")
    refused(r"memory\.json is damaged")
    description.unlink()
    with pytest.raises(FileNotFoundError, match=r"memory\.json"):
        load_memory(model, tmp_path)


def test_models_without_memory_are_refused(tmp_path: Path) -> None:
    for call in (lambda m: save_memory(m, tmp_path / "new"), freeze_all_but_memory):
        with pytest.raises(ValueError, match="has no memory layers"):
            call(tiny_model("llama"))
    assert not (tmp_path / "new").exists()
