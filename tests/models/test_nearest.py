"""Memory that stores what was written, and is read by the nearest queries alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from memory_layers import MemoryConfig
from memory_layers.common.errors import UserError
from memory_layers.layers import WrittenTable
from memory_layers.models import (
    Patch,
    add_memory,
    apply_patch,
    load_memory,
    memory_layers_of,
    merge_patches,
    record_teaching,
    remove_memory,
    revert_patch,
    save_memory,
)

LAYERS, WIDTH = (1, 3, 4), 64
IDS = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(0))


def base():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def memory(**fields):
    return MemoryConfig(
        **{
            "layers": LAYERS, "placement": "beside", "gate": "none", "value_init_std": 0,
            "heads": 1, "top_k": 4, "sub_keys": 64, "key_dim": 64, "match": "nearest",
            "lookup": "first", **fields,
        }
    )  # fmt: skip


@pytest.fixture
def taught():
    """A model with one row, written for the sixth token of the first text."""
    model = add_memory(base(), memory())
    layer = memory_layers_of(model)[0]
    found = {}
    hook = layer.register_forward_pre_hook(lambda _, x: found.update(x=x[0]))
    model(IDS)
    hook.remove()
    query = layer.query(found["x"].flatten(0, 1)).flatten(1)[5]
    values = torch.randn(WIDTH * len(LAYERS), generator=torch.Generator().manual_seed(1))
    row = torch.cat([query, query.norm()[None] / 20, values])
    layer.values.write(torch.tensor([7]), row[None].detach())
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_the_sum_of_two_teachings_of_a_row_is_found_by_the_query_of_one():
    # Both patches have slot 7, for queries that are alike and not the same.
    patches = []
    for seed in (1, 2):
        torch.manual_seed(0)
        model = add_memory(base(), memory())
        query = torch.ones(WIDTH) + 0.01 * seed
        values = torch.randn(WIDTH * len(LAYERS), generator=torch.Generator().manual_seed(seed))
        row = torch.cat([query, torch.tensor([2.0]), values])
        memory_layers_of(model)[0].values.write(torch.tensor([7]), row[None])
        patches.append(record_teaching(model, author=str(seed)))
    torch.manual_seed(0)
    both, rows = merge_patches(patches, rule="sum"), [patch.rows()[1][0] for patch in patches]
    merged = both.rows()[1][0]
    assert any(torch.equal(merged[: WIDTH + 1], row[: WIDTH + 1]) for row in rows)
    torch.testing.assert_close(merged[WIDTH + 1 :], sum(row[WIDTH + 1 :] for row in rows))


def test_nothing_written_changes_nothing_to_the_bit():
    assert torch.equal(logits(add_memory(base(), memory())), logits(base()))


def test_only_the_token_that_was_written_and_those_after_it_change(taught):
    same = (logits(taught) == logits(base())).all(-1)
    assert same[0, :5].all()
    assert not same[0, 5]
    assert same[1].all()


def test_what_is_read_is_added_in_parts_to_the_blocks(taught):
    layer, seen = memory_layers_of(taught)[0], {}
    for number in LAYERS:
        taught.model.layers[number].mlp.memory.register_forward_hook(
            lambda _m, _x, y, number=number: seen.update({number: y[0, 5]})
        )
    logits(taught)
    for part, number in zip(
        layer.values.weight[0, -WIDTH * len(LAYERS) :].split(WIDTH), LAYERS, strict=True
    ):
        torch.testing.assert_close(seen[number], part)


def test_a_query_outside_the_radius_reads_nothing(taught):
    with torch.no_grad():
        memory_layers_of(taught)[0].values.weight[:, WIDTH + 1] += 1  # a value
        assert not torch.equal(logits(taught), logits(base()))
        memory_layers_of(taught)[0].values.weight[:, 0] += 100  # of its query
    assert torch.equal(logits(taught), logits(base()))


def test_the_row_that_is_nearest_in_radii_is_read():
    table = WrittenTable(100, 2, 2)
    rows = [[0.0, 0, 1, 5, 6], [4, 0, 2, 7, 8]]
    table.write(torch.tensor([3, 9]), torch.tensor(rows))
    queries = torch.tensor([[0.5, 0], [1.2, 0], [2.5, 0], [6.5, 0], [0, 1.1]])
    row, near = table.nearest(queries)
    assert near.tolist() == [True, False, True, False, False]
    assert row[near].tolist() == [0, 1]


def test_values_learn_and_queries_and_radii_stay(taught):
    table = memory_layers_of(taught)[0].values
    taught(IDS, labels=IDS).loss.backward()
    assert (table.weight.grad[0, WIDTH + 1 :] != 0).any()
    assert (table.weight.grad[0, : WIDTH + 1] == 0).all()


def test_saved_models_adapters_and_patches_compute_the_same_to_the_bit(taught, tmp_path):
    expected = logits(taught)
    taught.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), expected)
    save_memory(taught, tmp_path / "memory")
    assert torch.equal(logits(load_memory(base(), tmp_path / "memory")), expected)
    record_teaching(taught, author="a").save(tmp_path / "patch")
    patch, other = Patch.load(tmp_path / "patch"), base()
    assert torch.equal(logits(apply_patch(other, patch)), expected)
    revert_patch(other, patch)
    assert torch.equal(logits(other), logits(base()))


def test_removed_memory_leaves_the_base(taught):
    assert torch.equal(logits(remove_memory(taught)), logits(base()))


@pytest.mark.parametrize(
    "fields",
    [{"placement": "replace"}, {"value_init_std": None}, {"share_values": False},
     {"readout": "experts"}, {"sink_slot": True}],
)  # fmt: skip
def test_what_does_not_go_with_it_is_named(fields):
    with pytest.raises(UserError, match="|".join([*fields, "lookup"])):
        memory(**fields)
