"""add_memory: what it changes, what it leaves alone, what it refuses."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_llama, tiny_memory
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from memory_layers import MemoryAdamW
from memory_layers.layers import MemoryBeside, MemoryLayer, ValueTable
from memory_layers.models import (
    Patch,
    add_memory,
    apply_patch,
    backbone_of,
    load_memory,
    memory_layers_of,
    remove_memory,
    save_memory,
)
from memory_layers.models.names import base_name

IDS = torch.arange(18).view(2, 9) * 7 % 40
PADDED = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9])
ATTENTION = ("eager", "sdpa")


def logits(model: LlamaForCausalLM, mask: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, attention_mask=mask).logits


def open_memory(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Move the outputs that start at zero away from it."""
    for layer in memory_layers_of(model):
        nn.init.normal_(layer.gate.out.weight, std=0.5)
    return model


@pytest.mark.parametrize("share_values", [True, False])
def test_blocks_and_tables(share_values: bool) -> None:
    model = add_memory(tiny_llama(), tiny_memory(share_values=share_values))
    kinds = [isinstance(block.mlp, MemoryLayer) for block in model.model.layers]
    assert kinds == [True, False, True]
    assert memory_layers_of(model) == [model.model.layers[0].mlp, model.model.layers[2].mlp]
    tables = [name for name, _ in model.named_parameters() if "memory_table" in name]
    if share_values:
        assert tables == ["model.memory_table.weight"]
        for layer in memory_layers_of(model):
            assert layer.values is model.model.memory_table
    else:
        assert tables == [f"model.layers.{i}.mlp.memory_table.weight" for i in (0, 2)]
    assert len([m for m in model.modules() if isinstance(m, ValueTable)]) == len(tables)
    assert backbone_of(model) is model.model


@pytest.mark.parametrize("gate", ["silu", "sigmoid", "none"])
@pytest.mark.parametrize("share_values", [True, False])
@pytest.mark.parametrize("placement", ["replace", "beside"])
def test_model_built_from_its_config_starts_alike(
    placement: str, share_values: bool, gate: str
) -> None:
    """The initialisation is ours, not that of transformers, whichever way a model is made."""
    memory = tiny_memory(placement=placement, share_values=share_values, gate=gate, sub_keys=20)
    added = add_memory(tiny_llama(), memory)
    built = AutoModelForCausalLM.from_config(added.config)
    assert type(built) is type(added)
    initial = built.state_dict()
    assert initial.keys() == added.state_dict().keys()
    for name, value in added.state_dict().items():
        if bool((value == value.flatten()[0]).all()):
            assert torch.equal(initial[name], value), name
        else:
            spread = float(value.std())
            assert float(initial[name].std()) == pytest.approx(spread, rel=0.6), name


def test_output_depends_on_each_table() -> None:
    model = add_memory(tiny_llama(), tiny_memory(share_values=False))
    before = logits(model)
    for layer in memory_layers_of(model):
        with torch.no_grad():
            layer.values.weight.mul_(2.0)
        after = logits(model)
        assert not torch.equal(after, before)
        before = after


@pytest.mark.parametrize("placement", ["replace", "beside"])
def test_all_other_weights_stay_as_they_are(placement: str) -> None:
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    kept = dict(model.named_parameters())
    add_memory(model, tiny_memory(placement=placement))
    for name, parameter in model.named_parameters():
        plain = name.replace(".mlp.mlp.", ".mlp.")
        if plain in before:
            assert parameter is kept[plain]
            assert torch.equal(parameter, before[plain]), name
    gone = [
        n
        for n in before
        if placement == "replace" and n.startswith(("model.layers.0.mlp", "model.layers.2.mlp"))
    ]
    names = {name.replace(".mlp.mlp.", ".mlp.") for name in model.state_dict()}
    assert set(before) - names == set(gone)
    assert len(gone) == (6 if placement == "replace" else 0)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beside_changes_no_logit(attention: str, mask: torch.Tensor, dtype: torch.dtype) -> None:
    model = tiny_llama(dtype, attn_implementation=attention)
    before = logits(model, mask)
    add_memory(model, tiny_memory(placement="beside", value_init_std=3.0))
    assert isinstance(model.model.layers[0].mlp, MemoryBeside)
    assert torch.equal(logits(model, mask), before)
    assert not torch.equal(logits(open_memory(model), mask), before)


@pytest.mark.parametrize("gate", ["silu", "sigmoid", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beside_with_values_at_zero_changes_no_logit(gate: str, dtype: torch.dtype) -> None:
    model = tiny_llama(dtype)
    before = logits(model)
    add_memory(model, tiny_memory(placement="beside", gate=gate, value_init_std=0))
    assert torch.equal(logits(model), before)
    with torch.no_grad():
        model.model.memory_table.weight.fill_(1.0)
    assert not torch.equal(logits(model), before)
    built = AutoModelForCausalLM.from_config(model.config)
    for layer in memory_layers_of(built):
        assert not layer.values.weight.any()
        maps = [m for m in layer.gate.modules() if isinstance(m, nn.Linear)]
        assert all(m.weight.any() for m in maps)


@pytest.mark.parametrize("attention", ATTENTION)
def test_padding_and_the_future_stay_invisible(attention: str) -> None:
    """The attention implementation is not a part of to_dict: a new config had none, so no mask."""
    model = add_memory(tiny_llama(attn_implementation=attention), tiny_memory())
    assert model.config._attn_implementation == attention
    padded = logits(model, PADDED)
    with torch.no_grad():
        alone = model(IDS[:1, 3:], position_ids=torch.arange(3, 9)[None]).logits
        changed = IDS.clone()
        changed[:, -1] = (changed[:, -1] + 1) % 40
        before_change = model(changed, attention_mask=PADDED).logits[:, :-1]
    torch.testing.assert_close(padded[0, 3:], alone[0], rtol=1e-4, atol=1e-5)
    real = PADDED[:, :-1].bool()
    assert torch.equal(padded[:, :-1][real], before_change[real])


def test_every_module_has_the_new_config() -> None:
    model = add_memory(tiny_llama(), tiny_memory())
    configs = [m.config for m in model.modules() if hasattr(m, "config")]
    assert len(configs) > 4
    assert all(config is model.config for config in configs)
    model.set_attn_implementation("eager")
    assert model.model.layers[1].self_attn.config._attn_implementation == "eager"
    assert model.config.memory == tiny_memory().to_dict()
    assert model.config.model_type == "memory_llama"


@pytest.mark.parametrize("share_values", [True, False])
@pytest.mark.parametrize("value_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_follow_the_model_and_the_config(
    dtype: torch.dtype, value_dtype: torch.dtype | None, share_values: bool
) -> None:
    memory = tiny_memory(share_values=share_values)
    model = add_memory(tiny_llama(dtype), memory, value_dtype=value_dtype)
    of_table = value_dtype or dtype
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (of_table if "memory_table" in name else dtype), name
    assert logits(model).dtype == dtype
    assert logits(model).isfinite().all()


def test_backbone_alone() -> None:
    backbone = tiny_llama().model
    with torch.no_grad():
        before = backbone(IDS).last_hidden_state
        assert add_memory(backbone, tiny_memory(placement="beside")) is backbone
        assert torch.equal(backbone(IDS).last_hidden_state, before)
    assert type(backbone).__name__ == "MemoryLlamaModel"
    assert len(memory_layers_of(backbone)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (1, 3)}, r"layers must be below the number of blocks, 3, got \[3\]"),
        ({"value_dim": 7}, "hint: set key_dim"),
    ],
)
def test_bad_sizes_are_refused_and_the_model_stays_as_it_was(
    changes: dict[str, object], message: str
) -> None:
    model = tiny_llama()
    before = logits(model)
    with pytest.raises(ValueError, match=message):
        add_memory(model, tiny_memory(**changes))
    assert type(model) is LlamaForCausalLM
    assert not memory_layers_of(model)
    assert not hasattr(model.model, "memory_table")
    assert torch.equal(logits(model), before)
    add_memory(model, tiny_memory())


def test_memory_twice_is_refused() -> None:
    model = add_memory(tiny_llama(), tiny_memory())
    before = logits(model)
    for again in (model, model.model):
        with pytest.raises(ValueError, match="the model has memory layers already"):
            add_memory(again, tiny_memory(layers=(1,)))
    assert torch.equal(logits(model), before)


def test_other_types_of_tables_are_refused() -> None:
    model = tiny_llama()
    with pytest.raises(ValueError, match=r"value_dtype must be torch\.float32.*got torch\.int8"):
        add_memory(model, tiny_memory(), value_dtype=torch.int8)
    assert type(model) is LlamaForCausalLM


def test_other_modules_are_refused() -> None:
    with pytest.raises(TypeError, match="model must be a transformers PreTrainedModel, got Linear"):
        add_memory(nn.Linear(2, 2), tiny_memory())


@pytest.mark.parametrize("placement", ["replace", "beside"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_generation_with_a_cache_equals_without(placement: str, do_sample: bool) -> None:
    model = open_memory(add_memory(tiny_llama(), tiny_memory(placement=placement)))
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        texts.append(
            model.generate(
                IDS, attention_mask=PADDED, max_new_tokens=12, do_sample=do_sample,
                use_cache=use_cache, pad_token_id=0, eos_token_id=None,
            )
        )  # fmt: skip
    assert texts[0].shape == (2, 21)
    assert torch.equal(*texts)


def test_left_padding_changes_no_generated_token() -> None:
    model = add_memory(tiny_llama(), tiny_memory())
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    both = model.generate(IDS, attention_mask=PADDED, **options)
    alone = model.generate(IDS[:1, 3:], attention_mask=PADDED[:1, 3:], **options)
    assert torch.equal(both[0, 9:], alone[0, 6:])


@pytest.mark.parametrize("share_values", [True, False])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_copies_are_whole_and_separate(duplicate: object, share_values: bool) -> None:
    model = add_memory(tiny_llama(), tiny_memory(share_values=share_values))
    before = logits(model)
    twin = duplicate(model)
    assert type(twin) is type(model)
    assert torch.equal(logits(twin), before)
    if share_values:
        assert all(layer.values is twin.model.memory_table for layer in memory_layers_of(twin))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin(IDS, labels=IDS).loss.backward()
    assert torch.equal(logits(model), before)
    assert all(layer.values.weight.grad is None for layer in memory_layers_of(model))
    assert all(layer.values.weight.grad is not None for layer in memory_layers_of(twin))


def test_two_models_with_different_memories_in_one_process() -> None:
    one = add_memory(tiny_llama(), tiny_memory())
    before = logits(one)
    other = add_memory(
        tiny_llama(), tiny_memory(layers=(1,), sub_keys=4, heads=1, placement="beside")
    )
    assert type(one) is type(other)
    assert one.config.memory != other.config.memory
    assert one.model.memory_table.weight.shape == (36, 16)
    assert other.model.memory_table.weight.shape == (16, 16)
    optimizer = MemoryAdamW(other, lr=0.1)
    other(IDS, labels=IDS).loss.backward()
    assert one.model.memory_table.weight.grad is None
    optimizer.step()
    assert torch.equal(logits(one), before)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("ours", [True, False])
def test_gradient_checkpointing_takes_the_same_step(ours: bool, reentrant: bool) -> None:
    weights = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = add_memory(tiny_llama(), tiny_memory()).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        kind = MemoryAdamW if ours else torch.optim.AdamW
        optimizer = kind(model.parameters(), lr=1e-2)
        model(IDS, labels=IDS).loss.backward()
        if ours:
            assert len(model.model.memory_table.weight.grad.reads) == 2
        optimizer.step()
        weights.append(model.state_dict())
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, msg=name)


@pytest.mark.parametrize("placement", ["replace", "beside"])
def test_training_lowers_the_loss_and_moves_every_parameter(placement: str) -> None:
    model = add_memory(tiny_llama(), tiny_memory(placement=placement)).train()
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


def names_of(model: LlamaForCausalLM) -> set[str]:
    """Return every name by which somebody would load the model again."""
    return {
        name
        for part in (model, model.model)
        for name in (part.name_or_path, part.config.name_or_path, part.config._name_or_path)
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_model_that_got_memory_is_not_named_as_its_base(base: Path, tmp_path: Path) -> None:
    """TRL loads the reference by it, PEFT names the base of an adapter by it."""
    model = add_memory(AutoModelForCausalLM.from_pretrained(base), tiny_memory())
    (name,) = names_of(model)
    with pytest.raises(OSError, match=r"not saved yet: model.save_pretrained\(folder\)"):
        AutoModelForCausalLM.from_pretrained(name)
    model.save_pretrained(tmp_path / "whole")
    assert names_of(model) == {str(tmp_path / "whole")}
    model.save_pretrained(tmp_path / "later")
    assert names_of(model) == {str(tmp_path / "later")}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert names_of(loaded) == {str(tmp_path / "whole")}
    # As for any model that was loaded.
    loaded.save_pretrained(tmp_path / "copy")
    assert names_of(loaded) == {str(tmp_path / "whole")}


def test_what_loads_or_removes_memory_names_the_model_too(base: Path, tmp_path: Path) -> None:
    beside = tiny_memory(placement="beside", value_init_std=0)
    taught = add_memory(AutoModelForCausalLM.from_pretrained(base), beside)
    taught.save_pretrained(tmp_path / "whole")
    save_memory(taught, tmp_path / "memory")
    assert names_of(remove_memory(taught)) == {str(base)}
    unsaved = names_of(add_memory(AutoModelForCausalLM.from_pretrained(base), beside))
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert names_of(load_memory(plain, tmp_path / "memory")) == unsaved
    plain.save_pretrained(tmp_path / "first")
    assert names_of(load_memory(plain, tmp_path / "memory")) == unsaved
    assert base_name(plain) == str(base)
    assert names_of(remove_memory(plain)) == {base_name(plain)} == {str(base)}
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert names_of(load_memory(whole, tmp_path / "memory")) == unsaved
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert names_of(remove_memory(whole)) == unsaved
    patched = AutoModelForCausalLM.from_pretrained(base)
    assert names_of(apply_patch(patched, Patch.load(tmp_path / "memory"))) == unsaved
