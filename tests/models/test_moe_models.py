"""Models with experts: they save, load, generate and train like those with memory."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama, tiny_memory
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from memory_layers import MemoryAdamW
from memory_layers.common.errors import UserError
from memory_layers.config import MoeConfig
from memory_layers.layers.experts import ExpertChoice, TokenChoice
from memory_layers.models import add_experts, add_memory, memory_layers_of
from memory_layers.models.initialize import materialize
from memory_layers.parallel.config import Layout, ParallelConfig
from memory_layers.plan.job import Job
from memory_layers.train.config import ModelConfig, RunConfig

IDS = torch.arange(18).view(2, 9) * 7 % 40
COARSE: dict[str, Any] = {"routing": "expert_choice", "experts": 3}
FINE: dict[str, Any] = {"routing": "token_choice", "experts": 6, "top_k": 2}
KINDS = pytest.mark.parametrize("moe", [COARSE, FINE], ids=["coarse", "fine"])


def moe_llama(moe: dict[str, Any], dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    return add_experts(tiny_llama(dtype), MoeConfig(**moe))


def logits(model: nn.Module) -> torch.Tensor:
    # As in test_save_load.py: a loaded weight may lie at any address.
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model(IDS).logits


def test_blocks() -> None:
    model = moe_llama(COARSE)
    assert [type(block.mlp) for block in model.model.layers] == [ExpertChoice] * 3
    assert not memory_layers_of(model)
    assert type(model).__name__ == "MemoryLlamaForCausalLM"
    model = moe_llama({**FINE, "layers": (1,)})
    assert [type(block.mlp) for block in model.model.layers] == [LlamaMLP, TokenChoice, LlamaMLP]
    experts = model.model.layers[1].mlp.experts
    assert experts.gate.shape == experts.up.shape == (6, 16, 12)
    assert experts.down.shape == (6, 12, 16)
    assert not experts.training


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(moe: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    model = moe_llama(moe, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["moe"] == MoeConfig(**moe).to_dict()
    assert config["memory"] is None
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded) is type(model)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(logits(loaded), logits(model))
    backbone = AutoModel.from_pretrained(tmp_path)
    assert type(backbone) is type(model.model)


@KINDS
def test_initial_values(moe: dict[str, Any]) -> None:
    """Those of the base's linear maps, whichever way a model is made."""
    added = moe_llama(moe)
    built = AutoModelForCausalLM.from_config(added.config)
    with torch.device("meta"):
        drawn = AutoModelForCausalLM.from_config(added.config)
        again = moe_llama(moe)
    materialize(drawn, 3)
    materialize(again, 3)
    assert type(built) is type(drawn) is type(added)
    for model in (added, built, drawn):
        for name, value in model.state_dict().items():
            if ".mlp." in name:
                assert float(value.std()) == pytest.approx(0.02, rel=0.3), name
                assert float(value.mean()) == pytest.approx(0.0, abs=0.01), name
    for name, value in drawn.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@KINDS
def test_generation_with_a_cache_equals_without(moe: dict[str, Any]) -> None:
    model = moe_llama(moe)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(IDS)
    with_cache = model.generate(IDS, attention_mask=mask, **options)
    assert torch.equal(
        model.generate(IDS, attention_mask=mask, use_cache=False, **options), with_cache
    )


@KINDS
def test_training_lowers_the_loss_and_moves_every_parameter(moe: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = moe_llama(moe).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = MemoryAdamW(model, lr=1e-2)
    losses = []
    for _ in range(15):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@KINDS
def test_gradient_checkpointing_takes_the_same_gradients(moe: dict[str, Any]) -> None:
    model = moe_llama(moe).train()
    twin = copy.deepcopy(model)
    enable = getattr(twin, "activation_checkpointing_enable", None)
    (enable or twin.gradient_checkpointing_enable)({"use_reentrant": False})
    for each in (model, twin):
        each(IDS, labels=IDS).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(twin.get_parameter(name).grad, parameter.grad, msg=name)


def test_what_cannot_be_is_refused_and_the_model_stays_as_it_was() -> None:
    model = tiny_llama()
    with pytest.raises(ValueError, match=r"below the number of blocks, 3, got \[3\]"):
        add_experts(model, MoeConfig(**COARSE, layers=(3,)))
    assert type(model) is LlamaForCausalLM
    with pytest.raises(TypeError, match="must be a transformers PreTrainedModel, got Linear"):
        add_experts(nn.Linear(2, 2), MoeConfig(**COARSE))
    for moe in (COARSE, FINE):
        for add, config in ((add_memory, tiny_memory()), (add_experts, MoeConfig(**moe))):
            with pytest.raises(ValueError, match="the model has experts already"):
                add(moe_llama(moe), config)
    with pytest.raises(ValueError, match="the model has memory layers already"):
        add_experts(add_memory(tiny_llama(), tiny_memory()), MoeConfig(**COARSE))
    config = moe_llama(COARSE).config
    config.memory = tiny_memory().to_dict()
    with pytest.raises(ValueError, match=r"config\.memory and config\.moe are both set"):
        AutoModelForCausalLM.from_config(config)


def run(**changes: Any) -> RunConfig:
    return RunConfig(**{"name": "x", "model": ModelConfig(), "moe": MoeConfig(**FINE), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory": tiny_memory()}, "memory and moe cannot be set together"),
        (
            {"moe": MoeConfig(**COARSE, layers=(1, 4))},
            r"moe.layers must be below model.layers = 4, got \[1, 4\]",
        ),
        ({"parallel": ParallelConfig(tensor=2)}, "parallel.tensor must be 1 with moe"),
    ],
)
def test_runs_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**changes)


def test_plan_says_that_it_does_not_cover_experts() -> None:
    with pytest.raises(UserError, match="plan does not cover moe"):
        Job(run(), Layout(1, 1, 1, 1))
