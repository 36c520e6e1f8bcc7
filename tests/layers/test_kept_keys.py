"""Normalised sub-keys are kept between calls that write text, until the sub-keys change."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from memory_layers.layers import keys
from memory_layers.layers.keys import ProductKeys, normalize


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what was normalised."""
    seen: list[tuple[int, ...]] = []

    def count(vectors: Tensor) -> Tensor:
        seen.append(tuple(vectors.shape))
        return normalize(vectors)

    monkeypatch.setattr(keys, "normalize", count)
    return seen


def build(seed: int = 0) -> ProductKeys:
    torch.manual_seed(seed)
    return ProductKeys(2, 9, 4, 3, qk_norm=True).eval()


def scores(layer: ProductKeys, query: Tensor, *, grad: bool = False) -> Tensor:
    with torch.set_grad_enabled(grad):
        return layer(query)[0].detach()


def copied(layer: ProductKeys) -> None:
    with torch.no_grad():
        layer.sub_keys.copy_(torch.randn_like(layer.sub_keys))


def through_data(layer: ProductKeys) -> None:
    layer.sub_keys.data.mul_(torch.linspace(0.5, 2, layer.sub_keys.numel()).view_as(layer.sub_keys))


def some_through_data(layer: ProductKeys) -> None:
    layer.sub_keys.data[:, :, 0] = 1.0


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


def test_kept_between_calls(counted: list[tuple[int, ...]]) -> None:
    layer, query = build(), torch.randn(5, 2, 2, 4)
    first = scores(layer, query)
    assert counted.count((2, 2, 9, 4)) == 1
    assert torch.equal(first, scores(layer, query))
    assert counted.count((2, 2, 9, 4)) == 1
    assert torch.equal(first, scores(layer, query, grad=True))
    assert torch.equal(first, scores(layer.train(), query))
    assert counted.count((2, 2, 9, 4)) == 3


@pytest.mark.parametrize(
    "change", [copied, through_data, some_through_data, other_data, loaded, assigned, stepped]
)
def test_never_stale(change: Callable[[ProductKeys], None]) -> None:
    layer, query = build(), torch.randn(5, 2, 2, 4)
    before = scores(layer, query)
    change(layer)
    after = scores(layer, query)
    assert torch.equal(after, scores(layer, query, grad=True))
    assert not torch.equal(after, before)


def test_copies_have_their_own() -> None:
    layer, query = build(), torch.randn(5, 2, 2, 4)
    size = len(pickle.dumps(layer))
    before = scores(layer, query)
    assert len(pickle.dumps(layer)) == size
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        through_data(other)
        assert torch.equal(scores(other, query), scores(other, query, grad=True))
        assert torch.equal(scores(layer, query), before)


def test_threads_share_a_layer() -> None:
    query = torch.randn(5, 2, 2, 4)
    for seed in range(20):
        layer = build(seed)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(scores, [layer] * 8, [query] * 8))
        assert all(torch.equal(found[0], each) for each in found)


def test_in_inference_mode() -> None:
    layer, query = build(), torch.randn(5, 2, 2, 4)
    with torch.inference_mode():
        first = layer(query)[0]
    assert torch.equal(first, scores(layer, query))
    assert torch.equal(first, scores(layer, query, grad=True))
    layer(query)[0].sum().backward()
    with torch.inference_mode():
        made = build()
        assert torch.equal(made(query)[0], first)
