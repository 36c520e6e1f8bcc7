"""Scores follow the sub-keys whatever edits them; only a caller who asks gets fixed ones."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file
from tiny_models import tiny_llama, tiny_memory
from torch import Tensor

from memory_layers import fuse_for_inference
from memory_layers.layers.keys import ProductKeys
from memory_layers.models import add_memory

QUERY = torch.randn(5, 2, 2, 4, generator=torch.Generator().manual_seed(1))


def build(seed: int = 0, *, sub_keys: int = 9) -> ProductKeys:
    torch.manual_seed(seed)
    return ProductKeys(2, sub_keys, 4, 3, qk_norm=True).eval()


def scores(layer: ProductKeys, query: Tensor = QUERY) -> Tensor:
    with torch.no_grad():
        return layer(query)[0]


def true_scores(layer: ProductKeys, query: Tensor = QUERY) -> Tensor:
    """Those of a layer that has never been called, with the same weights."""
    other = build(9, sub_keys=layer.sub_keys.shape[2]).to(layer.sub_keys.dtype)
    other.load_state_dict(layer.state_dict())
    return scores(other, query)


def copied(layer: ProductKeys) -> None:
    with torch.no_grad():
        layer.sub_keys.copy_(torch.randn_like(layer.sub_keys))


def through_data(layer: ProductKeys) -> None:
    layer.sub_keys.data.mul_(torch.linspace(-1, 2, layer.sub_keys.numel()).view_as(layer.sub_keys))


def other_data(layer: ProductKeys) -> None:
    layer.sub_keys.data = torch.randn_like(layer.sub_keys)


def loaded(layer: ProductKeys) -> None:
    layer.load_state_dict(build(1).state_dict())


def assigned(layer: ProductKeys) -> None:
    layer.load_state_dict(build(1).state_dict(), assign=True)


def stepped(layer: ProductKeys) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(torch.randn(4, 2, 2, 4))[0].sum().backward()
    optimizer.step()


def retrained(layer: ProductKeys) -> None:
    layer.train()
    stepped(layer)
    layer.eval()


def retyped(layer: ProductKeys) -> None:
    through_data(layer)
    layer.double()


@pytest.mark.parametrize("change", [copied, through_data, other_data, loaded, assigned, stepped])
def test_never_stale(change: Callable[[ProductKeys], None]) -> None:
    layer = build()
    before = scores(layer)
    change(layer)
    assert torch.equal(scores(layer), true_scores(layer))
    assert not torch.equal(scores(layer), before)


def test_edits_of_single_keys_through_data_are_seen() -> None:
    """As merging and averaging tools make them, between two texts."""
    layer = build(sub_keys=64)
    changed = 0
    for row in range(64):
        before = scores(layer)
        layer.sub_keys.data[:, :, row] = torch.randn(2, 2, 4)
        assert torch.equal(scores(layer), true_scores(layer)), row
        changed += not torch.equal(scores(layer), before)
    assert changed > 5


def test_fused_scores_are_the_same_and_fixed() -> None:
    layer = build()
    before = scores(layer)
    assert fuse_for_inference(layer) is layer
    assert torch.equal(scores(layer), before)
    through_data(layer)
    assert torch.equal(scores(layer), before), "nobody has asked for other sub-keys"
    # Where gradients flow they are those of the sub-keys as they are.
    assert torch.equal(layer(QUERY)[0], true_scores(layer))
    layer(QUERY)[0].sum().backward()
    assert layer.sub_keys.grad.any()
    fuse_for_inference(layer)
    assert torch.equal(scores(layer), true_scores(layer))


@pytest.mark.parametrize("change", [copied, loaded, assigned, stepped, retrained, retyped])
def test_what_undoes_it(change: Callable[[ProductKeys], None]) -> None:
    layer = fuse_for_inference(build())
    before = scores(layer)
    change(layer)
    query = QUERY.to(layer.sub_keys.dtype)
    assert torch.equal(scores(layer, query), true_scores(layer, query))
    assert not torch.equal(scores(layer, query), before)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_copies_are_not_fused(duplicate: Callable[[ProductKeys], ProductKeys]) -> None:
    plain = len(pickle.dumps(build()))
    layer = fuse_for_inference(build())
    assert len(pickle.dumps(layer)) == plain
    before = scores(layer)
    other = duplicate(layer)
    assert torch.equal(scores(other), before)
    through_data(other)
    assert torch.equal(scores(other), true_scores(other))
    assert torch.equal(scores(layer), before)


def test_a_fused_layer_may_be_offloaded() -> None:
    """Its weights are then on the meta device between two passes."""
    layer = build()
    expected = scores(layer)
    cpu_offload(fuse_for_inference(layer), execution_device="cpu")
    assert torch.equal(scores(layer), expected)
    assert torch.equal(scores(fuse_for_inference(layer)), expected)


def test_weights_of_inference_mode_are_fused_too() -> None:
    with torch.inference_mode():
        layer = build()
        expected = scores(layer)
        assert torch.equal(scores(fuse_for_inference(layer)), expected)


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training mode.*hint: model\.eval\(\)"):
        fuse_for_inference(build().train())


def test_without_norms_nothing_changes() -> None:
    layer = fuse_for_inference(ProductKeys(2, 9, 4, 3, qk_norm=False).eval())
    before = scores(layer)
    through_data(layer)
    assert not torch.equal(scores(layer), before)


def test_a_model_writes_the_same_text_and_saves_the_same_folder(tmp_path: Path) -> None:
    model = add_memory(tiny_llama(), tiny_memory())
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ids = torch.arange(5)[None]
    expected = model.generate(ids, **options)
    names = set(model.state_dict())
    fuse_for_inference(model)
    assert torch.equal(model.generate(ids, **options), expected)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        whole = compiled(ids, use_cache=False).logits
    torch.testing.assert_close(whole, model(ids).logits)
    assert set(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == names
