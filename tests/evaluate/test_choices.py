"""The probability of the right answer among others: that of plain passes, one for each text."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from tiny_families import tiny_model
from tiny_models import tiny_memory
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from memory_layers import add_memory
from memory_layers.common.errors import UserError
from memory_layers.config import MoeConfig
from memory_layers.data.facts import Probe
from memory_layers.data.tokenizer import train_tokenizer
from memory_layers.data.tokens import answer_tokens
from memory_layers.evaluate import batches
from memory_layers.evaluate.choices import choice_probabilities
from memory_layers.models import add_experts


def probe(template: str, answer: str) -> Probe:
    start = template.index("@")
    return Probe("statement", "r", "s", template.replace("@", answer), start, start + len(answer))


ASKED = [
    ("Q: What is the capital of France? A: @", ["Paris", "Pari", "Rome", "东", "A: B"]),
    ("Q: What is the capital of Japan? A: @", ["东京", "Kyoto", "Paris"]),
    ("The capital of Denmark is @, as they say", ["Ærø", "Ærøskøbing", "Æro", "a b"]),
    # The answer joins what stands before it, and the first token is one of the answer.
    ("Its code is x-@y", ["7", "77", "the", " "]),
    ("@ is the code of Berlin.", ["BER", "The BER", "B"]),
    ("Is it @", ["yes"]),
]  # fmt: skip
ITEMS = [probe(template, answers[0]) for template, answers in ASKED]
CANDIDATES = [answers for _, answers in ASKED]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([item.text for item in ITEMS] * 3, 330)


def plain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, item: Probe, answers: Sequence[str]
) -> float:
    """A pass for each text, whole."""
    scores = []
    for answer in answers:
        text = item.with_answer(answer)
        encoded = tokenizer(text.text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor([*encoded["input_ids"], tokenizer.eos_token_id])
        low, high = answer_tokens(
            text.text, encoded["offset_mapping"], text.answer_start, text.answer_end
        )
        with torch.no_grad():
            likely = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        scores.append(sum(likely[n - 1, ids[n]] for n in range(max(low, 1), high)))
    return float(torch.stack(scores).softmax(0)[0])


def assert_as_plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    found = choice_probabilities(model, tokenizer, ITEMS, CANDIDATES)
    expected = [plain(model, tokenizer, *one) for one in zip(ITEMS, CANDIDATES, strict=True)]
    assert found == pytest.approx(expected, rel=1e-5, abs=0)
    *choices, only = found
    # And none of them is a matter of course.
    assert len({f"{share:.3g}" for share in choices}) == len(choices)
    assert only == 1


# Rotary positions, learned ones, and a window for attention.
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_families(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(family, vocab_size=len(tokenizer), initializer_range=0.1)
    assert_as_plain(model, tokenizer)


@pytest.mark.parametrize("added", ["memory", "expert_choice", "token_choice"])
def test_memory_and_experts(
    added: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in evaluation mode, in whatever passes, and given back as it was."""
    model = tiny_model("llama", vocab_size=len(tokenizer), initializer_range=0.1)
    if added == "memory":
        model = add_memory(model, tiny_memory(query_norm="batch"))
    else:
        model = add_experts(model, MoeConfig(routing=added, layers=(1,), experts=8))
    assert_as_plain(model.eval(), tokenizer)
    monkeypatch.setattr(batches, "MOST_TOKENS", 40)
    assert_as_plain(model, tokenizer)
    whole = choice_probabilities(model, tokenizer, ITEMS, CANDIDATES)
    assert choice_probabilities(model.train(), tokenizer, ITEMS, CANDIDATES) == whole
    assert model.training


@pytest.mark.parametrize("kind", ["begins texts with a mark", "joins words"])
def test_an_end_that_has_other_tokens_than_in_its_text(kind: str) -> None:
    joined = ["Rome", " Rome", ": Rome", "A: Rome", " A: Rome", "? A: Rome"]
    letters = sorted({letter for item in ITEMS for letter in f"{item.text}▁mRo"})
    merges = [("R", "o"), ("Ro", "m"), ("Rom", "e")]
    merges += [(word.removesuffix(before), before) for before, word in pairwise(joined)]
    words = ["<unk>", "<end>", *letters, "Ro", "Rom", *joined]
    backend = Tokenizer(models.BPE({w: n for n, w in enumerate(words)}, merges, unk_token="<unk>"))
    if kind != "joins words":
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
        backend.normalizer = normalizers.Prepend("▁")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", unk_token="<unk>"
    )
    model = tiny_model("llama", vocab_size=len(tokenizer), initializer_range=0.1)
    assert_as_plain(model, tokenizer)


def test_text_that_the_model_cannot_read(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("llama", vocab_size=len(tokenizer))
    with pytest.raises(UserError, match="the model reads at most 64"):
        choice_probabilities(model, tokenizer, ITEMS[:1], [["Paris", "日" * 30]])
    assert choice_probabilities(model, tokenizer, [], []) == []
