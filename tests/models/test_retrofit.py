"""Memory in models that come from a folder and go through other people's tools."""

import copy
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tiny_families import FAMILY_NAMES, IDS, tiny_model
from tiny_models import tiny_llama, tiny_memory
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from memory_layers import MemoryAdamW
from memory_layers.models import (
    add_memory,
    backbone_of,
    freeze_all_but_memory,
    load_memory,
    memory_layers_of,
    save_memory,
)
from memory_layers.models import classes as model_classes


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def loaded_whole(folder: Path, **options: object) -> PreTrainedModel:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **options
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[problem], report
    return model.eval()


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_base_from_a_folder_keeps_all_weights(name: str, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    model = add_memory(base, tiny_memory())
    model.save_pretrained(tmp_path / "model")
    assert torch.allclose(logits(loaded_whole(tmp_path / "model")), logits(model), atol=1e-6)


def test_a_mixture_from_a_folder_keeps_all_weights(tmp_path: Path) -> None:
    config = MixtralConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, vocab_size=40, max_position_embeddings=64, num_local_experts=3,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    model = add_memory(base, tiny_memory(layers=(1,), placement="beside"), target_module="mlp")
    model.save_pretrained(tmp_path / "model")
    again = loaded_whole(tmp_path / "model", trust_remote_code=True)
    assert torch.allclose(logits(again), logits(model), atol=1e-6)


def test_no_memory_for_it_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    before, kind = logits(model), type(model)
    build, built = model_classes.MemoryLayer, []

    def fails(*arguments: object, **options: object) -> object:
        built.append(arguments)
        if len(built) == 2:
            raise torch.OutOfMemoryError("no room")
        return build(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(model_classes, "MemoryLayer", fails)
        with pytest.raises(torch.OutOfMemoryError):
            add_memory(model, tiny_memory(share_values=False))
    assert type(model) is kind
    assert torch.equal(logits(model), before)
    assert len(memory_layers_of(add_memory(model, tiny_memory(share_values=False)))) == 2


def test_saving_beside_others(tmp_path: Path) -> None:
    model = add_memory(tiny_llama(), tiny_memory())
    model.save_pretrained(tmp_path / "other_rank", is_main_process=False)
    assert not list((tmp_path / "other_rank").glob("*.py"))
    with pytest.raises(ValueError, match="upload the folder before the code that loads it"):
        model.save_pretrained(tmp_path / "hub", push_to_hub=True)
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.warns(UserWarning, match="not saved yet: model.save_pretrained"):
        model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_zero_grad_of_the_model_forgets_reads() -> None:
    model = add_memory(tiny_llama(), tiny_memory()).train()
    optimizer = MemoryAdamW(model, lr=1e-2)
    (model(IDS, labels=IDS).loss * float("nan")).backward()
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_loss_scaling_is_refused() -> None:
    model = add_memory(tiny_llama(), tiny_memory()).train()
    optimizer = MemoryAdamW(model, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(model(IDS, labels=IDS).loss).backward()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"loss scaling does not reach .* train in bf16"):
        scaler.step(optimizer)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_any_optimizer_trains_the_table() -> None:
    model = add_memory(tiny_llama(), tiny_memory()).train()
    before = model.model.memory_table.weight.detach().clone()
    other = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        other.step()
        other.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert not torch.equal(model.model.memory_table.weight, before)


def test_memory_of_a_backbone_onto_its_causal_model(tmp_path: Path) -> None:
    backbone = backbone_of(tiny_llama())
    model = freeze_all_but_memory(add_memory(backbone, tiny_memory(placement="beside")))
    save_memory(model, tmp_path)
    causal = tiny_llama()
    backbone_of(causal).load_state_dict(backbone_of(tiny_llama()).state_dict())
    plain = {k.replace(".mlp.mlp.", ".mlp."): v for k, v in model.state_dict().items()}
    backbone_of(causal).load_state_dict(plain, strict=False)
    load_memory(causal, tmp_path)
    assert len(memory_layers_of(causal)) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"memory_format": 99, "head": None}, "memory format 99"),
        ({"memory": None}, "it lacks memory"),
        ({"base": 3}, "it lacks base"),
    ],
)
def test_other_descriptions(change: dict, says: str, tmp_path: Path) -> None:
    save_memory(add_memory(tiny_llama(), tiny_memory(placement="beside")), tmp_path)
    path = tmp_path / "memory.json"
    values = json.loads(path.read_text()) | change
    if values["head"] is None:
        del values["head"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=says):
        load_memory(tiny_llama(), tmp_path)


def test_a_later_format_without_its_field(tmp_path: Path) -> None:
    add_memory(tiny_llama(), tiny_memory()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text()) | {"memory_format": 99}
    del values["memory"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="memory format 99"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_children_and_classes_that_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"takes hidden states alone, it takes .*attention_mask"):
        add_memory(tiny_llama(), tiny_memory(), target_module="self_attn")
    model = tiny_llama()
    mine = type("Mine", (type(model),), {"__module__": "__main__"})
    main = types.ModuleType("__main__")
    main.Mine = mine
    monkeypatch.setitem(sys.modules, "__main__", main)
    model.__class__ = mine
    with pytest.raises(ValueError, match=r"__main__\.Mine cannot be imported.*a script"):
        add_memory(model, tiny_memory(), target_module="mlp")
