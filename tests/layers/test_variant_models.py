"""Each choice of a memory layer in a whole model: built, trained, saved in every way, loaded."""

from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from tiny_models import tiny_llama, tiny_memory
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from memory_layers import MemoryAdamW
from memory_layers.evaluate.usage import SlotUsage
from memory_layers.layers import ValueTable
from memory_layers.layers.walk import freeze_keys
from memory_layers.models import add_memory, memory_layers_of
from memory_layers.models.initialize import materialize
from memory_layers.train.checkpoint import Checkpoints
from memory_layers.train.export import export_checkpoint
from memory_layers.train.state import model_tensors, optimizer_tensors

# Few models with all choices between them: each alone is in test_variants.py.
CASES = {
    "values": {
        "query_norm": "batch", "sink_slot": True, "random_slots": 2, "weighing": "sigmoid",
    },
    "experts": {
        "readout": "experts", "gate": "none", "value_dim": 5, "key_dim": 4, "query_norm": "layer",
    },
    "fixed-experts": {
        "readout": "linear_experts", "share_values": False, "placement": "beside",
        "weighing": "relu",
    },
}  # fmt: skip
every_case = pytest.mark.parametrize("name", CASES)
IDS = torch.arange(18).view(2, 9) * 7 % 40


def build(name: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A model as the training loop makes it: built without numbers, then given them."""
    with torch.device("meta"):
        plain = tiny_llama()
        # As few tensors as can be: it is their number that takes time.
        plain.config.num_hidden_layers = 2
        del plain.model.layers[2:]
        model = add_memory(plain, tiny_memory(layers=(0, 1), **{**CASES[name], **changes}))
    if name == "fixed-experts":
        freeze_keys(model)
    materialize(model, seed)
    return model


def tables_of(model: PreTrainedModel) -> dict[str, ValueTable]:
    return {n: part for n, part in model.named_modules() if isinstance(part, ValueTable)}


def step(model: PreTrainedModel, optimizer: MemoryAdamW, number: int = 0) -> float:
    torch.manual_seed(number)
    loss = model.train()(input_ids=IDS, labels=IDS).loss
    loss.backward()
    optimizer.clip_grad_norm_(1.0, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def trained(name: str) -> tuple[PreTrainedModel, MemoryAdamW]:
    model = build(name)
    optimizer = MemoryAdamW(model, 0.01, 0.02)
    for number in range(2):
        step(model, optimizer, number)
    return model, optimizer


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        # A loaded weight lies at any address, which decides how some processors round.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model.eval()(IDS).logits


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


@every_case
def test_built_without_numbers_it_starts_as_add_memory_makes_it(name: str) -> None:
    built = build(name, sub_keys=12).state_dict()
    added = add_memory(tiny_llama(), tiny_memory(layers=(0, 1), sub_keys=12, **CASES[name]))
    for key, value in built.items():
        other = added.state_dict()[key].float()
        if value.numel() == 1 or float(value.float().std()) == 0:
            assert torch.equal(value.float(), other), key
        else:
            assert float(value.std()) == pytest.approx(float(other.std()), rel=0.6), key


@every_case
def test_a_step_moves_what_is_to_be_trained(name: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = MemoryAdamW(model, 0.01, 0.02)
    losses = [step(model, optimizer, number) for number in range(4)]
    assert losses[-1] < losses[0]
    fixed = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    expected = [
        key for key in before if name == "fixed-experts" and (".query." in key or ".keys." in key)
    ]
    assert fixed == expected
    assert all(table.weight.grad is None for table in tables_of(model).values())
    num_tables = [len(layer.tables) for layer in memory_layers_of(model)]
    assert num_tables == [1 + ("experts" in name)] * 2


@every_case
def test_resumed_from_a_checkpoint_it_goes_on_bit_equal(name: str, tmp_path: Path) -> None:
    model, optimizer = trained(name)
    checkpoints = Checkpoints(tmp_path, 1, block_bytes=320)
    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    checkpoints.save(2, model, optimizer, {}, PreTrainedTokenizerFast(tokenizer_object=words))
    checkpoints.wait()
    other = build(name, seed=1)
    its_optimizer = MemoryAdamW(other, 0.01, 0.02)
    assert checkpoints.load_newest(other, its_optimizer) == (2, {})
    assert step(other, its_optimizer, 2) == step(model, optimizer, 2)
    assert_same(model_tensors(other), model_tensors(model))
    assert_same(optimizer_tensors(other, its_optimizer), optimizer_tensors(model, optimizer))

    export_checkpoint(tmp_path, tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    plain, _ = trained(name)
    assert torch.equal(logits(exported), logits(plain))


@every_case
def test_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    model, _ = trained(name)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    if name == "fixed-experts":
        # As for any model: what is frozen is not saved with it.
        assert all(parameter.requires_grad for parameter in loaded.parameters())
        freeze_keys(loaded)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(loaded.state_dict(), model.state_dict())
    assert torch.equal(logits(loaded), logits(model))
    free = [
        [key for key, p in each.named_parameters() if p.requires_grad] for each in (model, loaded)
    ]
    assert free[0] == free[1]
    greedy = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    tokens = model.generate(IDS, **greedy)
    assert tokens.shape == (2, 13)
    assert torch.equal(loaded.generate(IDS, **greedy), tokens)
    whole = model.generate(IDS, use_cache=False, **greedy)
    assert torch.equal(whole, tokens)


def test_tables_of_experts_are_shared_and_named_once() -> None:
    model = build("experts")
    shapes = {name: tuple(table.weight.shape) for name, table in tables_of(model).items()}
    assert shapes == {"model.memory_table": (36, 5), "model.expert_table": (36, 16)}
    for layer in memory_layers_of(model):
        assert layer.experts is model.model.expert_table
    owned = tables_of(build("fixed-experts"))
    assert list(owned) == [
        f"model.layers.{block}.mlp.memory.{table}"
        for block in (0, 1)
        for table in ("memory_table", "expert_table")
    ]


def test_tables_that_accelerate_has_offloaded_are_read() -> None:
    model = build("experts").eval()
    with torch.no_grad():
        expected = logits(model)
        assert torch.equal(logits(cpu_offload(model, torch.device("cpu"))), expected)


def test_vectors_of_heads_are_not_decayed() -> None:
    model = build("values")
    names = {id(p): name for name, p in model.named_parameters()}
    groups = MemoryAdamW(model).param_groups[:2]
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in groups)
    layer = "model.layers.0.mlp."
    assert {layer + "keys.sub_keys", layer + "query.proj.weight"} <= set(decayed)
    for name in ("keys.gain", "keys.sink_key", "sink.weight", "query.batch_norm.weight"):
        assert layer + name in plain


def test_drawn_slots_are_not_counted_as_used() -> None:
    model = build("values").train()
    usage = SlotUsage(model)
    with usage.watch():
        model(IDS)
    # Tokens, layers, heads, K.
    assert usage.counts.sum() == 18 * 2 * 2 * 3


def test_parts_follow_the_type_of_the_model() -> None:
    memory = tiny_memory(sink_slot=True, query_norm="layer")
    model = add_memory(tiny_llama(torch.bfloat16), memory, value_dtype=torch.float32)
    for name, parameter in model.named_parameters():
        of_table = "memory_table" in name
        assert parameter.dtype == (torch.float32 if of_table else torch.bfloat16), name
    experts = add_memory(tiny_llama(torch.bfloat16), tiny_memory(readout="experts"))
    assert {parameter.dtype for parameter in experts.parameters()} == {torch.bfloat16}
