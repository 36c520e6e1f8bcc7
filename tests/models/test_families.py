"""What memory promises, on a tiny model of every supported family."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fresh_interpreter
from tiny_families import FAMILY_NAMES, IDS, tiny_model
from tiny_models import tiny_memory
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from memory_layers import MemoryAdamW, MoeConfig
from memory_layers.models import (
    add_experts,
    add_memory,
    backbone_of,
    load_memory,
    memory_layers_of,
    remove_memory,
    save_memory,
)

AUTO_CLASSIFIERS = [AutoModelForSequenceClassification, AutoModelForTokenClassification]
every_family = pytest.mark.parametrize("name", FAMILY_NAMES)


def logits(model: PreTrainedModel, ids: torch.Tensor = IDS, **kwargs: object) -> torch.Tensor:
    # Loaded weights lie at other addresses, which some processors' matrix products round by.
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model(ids, **kwargs).logits


def trained(name: str, dtype: torch.dtype = torch.float32, **memory: object) -> PreTrainedModel:
    """A model with memory whose every parameter is away from its initial value."""
    model = add_memory(tiny_model(name, dtype), tiny_memory(**memory))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(dtype) * 0.05)
    return model


@every_family
def test_hidden_states_come_with_memory_as_without(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    before = model(IDS, output_hidden_states=True).hidden_states
    add_memory(model, tiny_memory(placement="beside"))
    model.save_pretrained(tmp_path)
    for taken in (model, AutoModelForCausalLM.from_pretrained(tmp_path)):
        after = taken(IDS, output_hidden_states=True).hidden_states
        assert [states.shape for states in after] == [states.shape for states in before]
        torch.testing.assert_close(after[-1], before[-1])


@every_family
def test_beside_changes_no_bit_until_it_is_trained_and_goes_again(name: str) -> None:
    model = tiny_model(name)
    before, weights = logits(model), copy.deepcopy(model.state_dict())
    kind, config = type(model), model.config.to_dict()
    add_memory(model, tiny_memory(placement="beside"))
    assert type(model) is not kind
    assert torch.equal(logits(model), before)
    optimizer = MemoryAdamW(model, lr=1e-2)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert not torch.equal(logits(model), before)
    remove_memory(model)
    assert type(model) is kind
    assert type(backbone_of(model)) is type(backbone_of(tiny_model(name)))
    model.load_state_dict(weights)
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config


@every_family
def test_replace_learns(name: str) -> None:
    model = add_memory(tiny_model(name), tiny_memory())
    optimizer = MemoryAdamW(model, lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saves_and_loads_to_the_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = trained(name, dtype, placement="beside" if dtype == torch.bfloat16 else "replace")
    size = "8KB" if dtype == torch.float32 else "50GB"
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == "8KB")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.dtype == dtype
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert torch.equal(logits(loaded), logits(model))
    backbone = AutoModel.from_pretrained(tmp_path)
    assert type(backbone) is type(backbone_of(model))
    for key, value in backbone_of(model).state_dict().items():
        assert torch.equal(backbone.state_dict()[key], value), key


LOAD = """
import sys, torch
from transformers import AutoModel, AutoModelForCausalLM
folders = sys.argv[1:]
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    backbone = AutoModel.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        expected = torch.load(folder + "/logits.pt", weights_only=True)
        out = model(torch.arange(18).view(2, 9) * 7 % 40).logits
    print(torch.equal(out, expected), type(model.base_model) is type(backbone))
"""


def test_fresh_process_loads_every_family(tmp_path: Path) -> None:
    folders = []
    for name in FAMILY_NAMES:
        model, folder = trained(name), tmp_path / name
        model.save_pretrained(folder)
        torch.save(logits(model), folder / "logits.pt")
        folders.append(str(folder))
    printed = fresh_interpreter(LOAD, *folders, HF_HOME=str(tmp_path / "home"))
    assert printed.split() == ["True"] * 2 * len(FAMILY_NAMES)


@every_family
def test_cached_generation_equals_uncached(name: str) -> None:
    model = trained(name)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(IDS[:, :5], use_cache=True, **options)
    assert cached.shape == (2, 13)
    assert torch.equal(cached, model.generate(IDS[:, :5], use_cache=False, **options))


@every_family
def test_left_padding_changes_nothing(name: str) -> None:
    model, pad = trained(name), 3
    ids = torch.cat([torch.zeros(2, pad, dtype=torch.long), IDS], 1)
    mask = torch.ones_like(ids)
    mask[:, :pad] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = logits(model, ids, attention_mask=mask, position_ids=positions)[:, pad:]
    torch.testing.assert_close(padded, logits(model), atol=2e-5, rtol=1e-4)


@every_family
def test_copies(name: str) -> None:
    model = trained(name)
    expected = logits(model)
    twin = copy.deepcopy(model)
    unpickled = pickle.loads(pickle.dumps(model))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (twin, unpickled, torch.load(buffer, weights_only=False)):
        assert type(other) is type(model)
        assert torch.equal(logits(other), expected)
        with torch.no_grad():
            memory_layers_of(other)[0].values.weight.zero_()
        assert not torch.equal(logits(other), expected)
    assert torch.equal(logits(model), expected)
    half = twin.to(torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.isfinite(half(IDS).logits).all()


@every_family
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = trained(name).train()
        if checkpointing:
            # Its name in transformers since 5.23, which warns of the older one.
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        torch.manual_seed(0)
        model(IDS, labels=IDS).loss.backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    assert any("memory_table" in key for key in gradients[0])
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient)


@every_family
def test_tied_embeddings_stay_tied(name: str, tmp_path: Path) -> None:
    model = add_memory(tiny_model(name, tie_word_embeddings=True), tiny_memory())
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is embeddings.weight
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert torch.equal(logits(loaded), logits(model))


def test_two_models_in_one_process_have_nothing_in_common() -> None:
    first, second = trained("qwen3"), trained("gemma3_text", sub_keys=7)
    expected = logits(second)
    optimizer = MemoryAdamW(first, lr=1e-1)
    first(IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert torch.equal(logits(second), expected)
    assert backbone_of(second).memory_table.weight.grad is None


@every_family
def test_compiles_in_one_graph(name: str) -> None:
    model = trained(name)
    expected = logits(model)
    # Code that all families share is compiled for each, up to a limit.
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS, use_cache=False).logits, expected)


def test_a_model_of_no_family_by_the_name_of_its_child(tmp_path: Path) -> None:
    model = tiny_model("olmo")
    before = logits(model)
    with pytest.raises(
        ValueError, match=r"type 'olmo' are not in the table .*llama.* target_module="
    ):
        add_memory(model, tiny_memory())
    with pytest.raises(ValueError, match=r"no list of blocks has it. hint: .*mlp, post_a"):
        add_memory(model, tiny_memory(), target_module="feed_forward")
    assert torch.equal(logits(model), before)
    add_memory(model, tiny_memory(placement="beside"), target_module="mlp")
    assert torch.equal(logits(model), before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path / "olmo")
    torch.save(logits(model), tmp_path / "olmo" / "logits.pt")
    assert torch.equal(logits(pickle.loads(pickle.dumps(model))), logits(model))
    save_memory(model, tmp_path / "memory")
    base = remove_memory(copy.deepcopy(model))
    assert type(base) is type(tiny_model("olmo"))
    assert torch.equal(logits(load_memory(base, tmp_path / "memory")), logits(model))
    printed = fresh_interpreter(LOAD, str(tmp_path / "olmo"), HF_HOME=str(tmp_path / "home"))
    assert printed.split() == ["True", "True"]


def test_other_classes_are_not_lost() -> None:
    class Derived(LlamaForCausalLM):
        """A user's own model, of the same model_type."""

    config = tiny_model("llama").config
    for model, says in (
        (Derived(config), r"Derived is not the llama model of .* add_memory\(model, .*target_m"),
        (
            LlamaForQuestionAnswering(config),
            r"LlamaForQuestionAnswering is none .*save it for Auto",
        ),
    ):
        kind = type(model)
        with pytest.raises(ValueError, match=says):
            add_memory(model, tiny_memory())
        assert type(model) is kind
        assert not memory_layers_of(model)
    with pytest.raises(ValueError, match="cannot be imported by that name"):
        add_memory(Derived(config), tiny_memory(), target_module="mlp")


@pytest.mark.parametrize("auto", AUTO_CLASSIFIERS)
@every_family
def test_classifiers_have_the_memory_of_the_folder(name: str, auto: Any, tmp_path: Path) -> None:
    """As a reward model, say, is made of a language model."""
    model = add_memory(tiny_model(name), tiny_memory())
    model.save_pretrained(tmp_path / "language")
    if type(tiny_model(name).config) not in auto._model_mapping:
        with pytest.raises(ValueError, match="Unrecognized configuration class"):
            auto.from_pretrained(tmp_path / "language")
        return
    classifier = auto.from_pretrained(tmp_path / "language", num_labels=3).eval()
    assert len(memory_layers_of(classifier)) == 2
    with torch.no_grad():
        hidden = [backbone_of(m)(IDS).last_hidden_state for m in (model, classifier)]
        assert torch.equal(*hidden)
        out = classifier(IDS).logits
        classifier.save_pretrained(tmp_path / "classifier")
        loaded = auto.from_pretrained(tmp_path / "classifier").eval()
        assert type(loaded) is type(pickle.loads(pickle.dumps(classifier)))
        assert torch.equal(loaded(IDS).logits, out)
    assert names_of_tables(loaded) == names_of_tables(model)


def names_of_tables(model: PreTrainedModel) -> list[str]:
    return [name for name, _ in model.named_parameters() if "memory_table" in name]


def test_a_plain_classifier_gets_memory_and_gives_it_back(tmp_path: Path) -> None:
    plain = LlamaForSequenceClassification(tiny_model("llama").config).eval()
    kind, before = type(plain), plain(IDS[:1]).logits
    model = add_memory(plain, tiny_memory(placement="beside"))
    assert torch.equal(model(IDS[:1]).logits, before)
    open_gates(model)
    changed = model(IDS[:1]).logits
    assert not torch.allclose(changed, before)
    save_memory(model, tmp_path)
    assert type(remove_memory(model)) is kind
    assert torch.equal(load_memory(model, tmp_path)(IDS[:1]).logits, changed)


def open_gates(model: PreTrainedModel) -> None:
    for layer in memory_layers_of(model):
        torch.nn.init.normal_(layer.gate.out.weight)


def test_the_former_name_of_target_module_says_the_new_one() -> None:
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=r"no argument mlp\. hint: target_module='mlp'"):
        add_memory(model, tiny_memory(), mlp="mlp")  # ty: ignore[invalid-argument-type]
    assert not memory_layers_of(model)


def test_naming_the_child_of_a_known_family_changes_nothing() -> None:
    named = add_memory(tiny_model("llama"), tiny_memory(), target_module="mlp")
    assert type(named) is type(add_memory(tiny_model("llama"), tiny_memory()))


def test_two_models_of_one_type_with_other_children_stay_apart() -> None:
    config = tiny_memory(placement="beside")
    attention = add_memory(tiny_model("olmo"), config, target_module="input_layernorm")
    mlp = add_memory(tiny_model("olmo"), config, target_module="mlp")
    assert attention.config.model_type != mlp.config.model_type
    for model in (attention, mlp):
        assert type(AutoConfig.for_model(model.config.model_type)) is type(model.config)


@every_family
def test_experts(name: str) -> None:
    config = MoeConfig(routing="token_choice", experts=4, top_k=2)
    model = tiny_model(name)
    if name == "gpt2":
        with pytest.raises(ValueError, match="gpt2 has no intermediate_size"):
            add_experts(model, config)
        return
    assert torch.isfinite(logits(add_experts(model, config))).all()


def test_memory_that_replaced_blocks_cannot_be_removed() -> None:
    model = trained("llama")
    expected = logits(model)
    with pytest.raises(ValueError, match="replaced feed-forward blocks"):
        remove_memory(model)
    with pytest.raises(ValueError, match="no memory layers to remove"):
        remove_memory(tiny_model("llama"))
    assert torch.equal(logits(model), expected)
