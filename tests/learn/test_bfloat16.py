"""Products in bfloat16: near those in float32, and only while something is trained."""

import pytest
import torch

from memory_layers.data.tokens import IGNORE
from memory_layers.layers.walk import memory_layers_of
from memory_layers.learn import bfloat16
from memory_layers.learn.bfloat16 import in_bfloat16
from memory_layers.learn.skeleton import look_up
from memory_layers.learn.train import Text, Trainer
from tests.learn.tiny_taught import base_for, with_memory, write_rows
from tests.learn.tiny_tokenizers import chatml

IDS = torch.arange(3, 40)[None]


@pytest.fixture
def model() -> torch.nn.Module:
    """A frozen base with a memory that speaks."""
    torch.manual_seed(0)
    changed = with_memory(base_for(chatml(), hidden_size=64).float(), match="nearest")
    write_rows(changed, 0.05, share=0.3)
    changed.requires_grad_(False)
    memory_layers_of(changed)[0].values.weight.requires_grad_(True)
    return changed


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every processor."""
    monkeypatch.setattr(bfloat16, "is_faster", lambda: True)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def trainer_of(model: torch.nn.Module) -> tuple[Trainer, Text]:
    labels = torch.full((37,), IGNORE)
    labels[-9:] = IDS[0, -9:]
    text = Text(IDS[0], labels, 0)
    return Trainer(model, [text]), text


def gradient(model: torch.nn.Module) -> tuple[float, torch.Tensor]:
    trainer, text = trainer_of(model)
    weight = memory_layers_of(model)[0].values.weight
    weight.grad = None
    loss, _ = trainer.backward([text])
    return loss, weight.grad.to_dense()


def test_only_within_the_context_and_behind_the_look_up(
    model: torch.nn.Module, faster: None
) -> None:
    before, queries = logits(model), look_up(model, [IDS[0]])[0]
    with in_bfloat16(model)():
        within = logits(model)
        assert torch.equal(look_up(model, [IDS[0]])[0], queries)
    assert within.dtype == torch.float32
    assert 0 < (within - before).norm() < 0.02 * before.norm()
    assert torch.equal(logits(model), before)


def test_an_error_within_leaves_the_model_as_it_was(model: torch.nn.Module, faster: None) -> None:
    before = logits(model)
    with pytest.raises(IndexError), in_bfloat16(model)():
        model(input_ids=torch.tensor([[10**6]]))
    assert torch.equal(logits(model), before)


def test_gradients_of_rows_are_near(
    model: torch.nn.Module, faster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, rows = gradient(model)
    monkeypatch.setattr(bfloat16, "is_faster", lambda: False)
    exact, exact_rows = gradient(model)
    assert 0 < abs(loss - exact) < 0.01 * exact
    # What is only measured is exact.
    monkeypatch.setattr(bfloat16, "is_faster", lambda: True)
    trainer, text = trainer_of(model)
    assert trainer.loss([text])[0].item() == pytest.approx(exact, rel=1e-6)
    assert torch.cosine_similarity(rows.flatten(), exact_rows.flatten(), 0) > 0.999


@pytest.mark.parametrize("why", ["processor", "room", "trained"])
def test_where_it_would_not_help_or_not_hold_nothing_changes(
    why: str, model: torch.nn.Module, faster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "processor":
        monkeypatch.setattr(bfloat16, "is_faster", lambda: False)
    if why == "room":
        monkeypatch.setattr(bfloat16, "SHARE", 0)
    if why == "trained":
        model.requires_grad_(True)
    before = logits(model)
    with in_bfloat16(model)():
        assert torch.equal(logits(model), before)
