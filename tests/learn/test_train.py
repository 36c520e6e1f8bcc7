"""Training of rows: what is kept between passes, and what rests in one."""

from collections.abc import Sequence

import pytest
import torch
from torch.nn import functional as F

from memory_layers.data.tokens import IGNORE
from memory_layers.layers.walk import memory_layers_of
from memory_layers.learn.steps import RowSteps
from memory_layers.learn.train import Pass, Text, Trainer, one_pass
from tests.learn.tiny_taught import base_for, said_by, with_memory, write_rows
from tests.learn.tiny_tokenizers import chatml

TOKENIZER = chatml()


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every processor."""
    monkeypatch.setattr("memory_layers.learn.bfloat16.is_faster", lambda: False)


@pytest.fixture
def model() -> torch.nn.Module:
    """A base with a memory of two rows, which speaks at some tokens."""
    torch.manual_seed(0)
    # Attention that is strong enough to carry something to other tokens.
    base = base_for(TOKENIZER, hidden_size=64, initializer_range=0.15).float()
    changed = with_memory(base, match="nearest")
    write_rows(changed, 0.05, share=0.1)
    changed.requires_grad_(False)
    memory_layers_of(changed)[0].values.weight.requires_grad_(True)
    return changed


def text(ids: Sequence[int], learned: int, group: int) -> Text:
    """A text of which the last tokens are learned."""
    labels = torch.full((len(ids),), IGNORE)
    labels[-learned:] = torch.tensor(ids[-learned:])
    return Text(torch.tensor(ids), labels, group)


def texts_for(model: torch.nn.Module) -> list[Text]:
    """Group 0 is what the model says itself, group 1 is not."""
    prompts = [list(range(start, start + 14)) + [start] * more for start, more in ((3, 0), (9, 60))]
    said = [said_by(model, TOKENIZER, prompt, 2) for prompt in prompts]
    wrong = [[(n + 1) % 50 for n in of] for of in said]
    rows = [*zip(prompts, said, (0, 0), strict=True), *zip(prompts, wrong, (1, 1), strict=True)]
    return [text([*prompt, *of], 2, group) for prompt, of, group in rows]


def passed(model: torch.nn.Module, texts: list[Text], resting: Sequence[int] = ()) -> Pass:
    trainer = Trainer(model, texts)
    steps = RowSteps(memory_layers_of(model)[0].values, torch.arange(2), torch.arange(2), 1e-6)
    return one_pass(trainer, texts, steps, 0, lambda *_: None, lambda: False, resting)


def test_the_loss_with_kept_keys_and_values_is_that_of_the_model(model: torch.nn.Module) -> None:
    texts = texts_for(model)
    trainer = Trainer(model, texts)
    assert any(text.cache is not None for text in texts)
    loss, right = trainer.loss(texts)
    expected = []
    for one in texts:
        logits = model(input_ids=one.ids[None], use_cache=False).logits[0, :-1]
        expected.append(F.cross_entropy(logits, one.labels[1:], ignore_index=IGNORE))
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-3, atol=1e-4)
    assert right == [True, True, False, False]
    assert trainer.answers(texts) == right


def test_gradients_of_parts_are_those_of_the_whole(model: torch.nn.Module) -> None:
    texts = texts_for(model)
    trainer = Trainer(model, texts)
    weight = memory_layers_of(model)[0].values.weight
    trainer.loss(texts)[0].backward()
    expected, weight.grad = weight.grad.to_dense(), None
    trainer.backward(texts)
    torch.testing.assert_close(weight.grad.to_dense(), expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 0


def test_what_is_right_in_all_its_texts_is_learned(model: torch.nn.Module) -> None:
    done = passed(model, texts_for(model))
    assert (done.learned, done.right, done.whole) == ({0}, 0.5, True)


def test_groups_that_rest_count_as_right_and_are_not_trained(model: torch.nn.Module) -> None:
    texts = texts_for(model)
    done = passed(model, texts, resting=[0])
    assert (done.learned, done.right) == (set(), 0.5)
    alone = passed(model, texts[2:])
    assert done.loss == pytest.approx(alone.loss, rel=1e-3)
    # With nothing left to train, all are.
    assert passed(model, texts, resting=[0, 1]).learned == {0}
