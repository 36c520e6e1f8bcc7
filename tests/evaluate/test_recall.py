"""Recall: right is what greedy decoding would answer, whole and with its end."""

import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from memory_layers.data.facts import Probe
from memory_layers.data.tokenizer import train_tokenizer
from memory_layers.evaluate import batches
from memory_layers.evaluate.recall import (
    pick_items,
    recall_items,
    recall_share,
    summarize_recall,
)


def probe(template: str, answer: str, kind: str = "statement", relation: str = "r") -> Probe:
    start = template.index("@")
    return Probe(kind, relation, "s", template.replace("@", answer), start, start + len(answer))


PROBES = [
    probe("Q: What is the capital of France? A: @", "Paris", "question_shown", "capital"),
    probe("The capital of Denmark is @.", "Ærøskøbing"),
    probe("Q: 日本の首都は? A: @", "東京", "question_heldout", "capital"),
    probe("The tower is @, as they say", "🗼 of Tokyo 🗼", "statement", "tower"),
    probe("@ is the code of Berlin.", "BER TXL"),
    probe("x@y", "1"),
    probe("Q: two\nlines? A: @", "a\nb  c", "question_heldout"),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([item.text for item in PROBES] * 3, 330)


class Oracle(nn.Module):
    """Predicts the token that comes next, but for what `spoil` does to the logits."""

    def __init__(self, vocab_size: int, spoil: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(5.0))
        self.vocab_size = vocab_size
        self.spoil = spoil
        self.modes: list[bool] = []
        self.passes = 0

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        self.modes.append(self.training)
        self.passes += 1
        following = input_ids.roll(-1, dims=1)
        logits = self.scale * F.one_hot(following, self.vocab_size).float()
        self.spoil(input_ids, logits)
        return SimpleNamespace(logits=logits)


def spoiled_at(position: int) -> Callable[[Tensor, Tensor], None]:
    """Predict another token after the one at this position."""

    def spoil(_ids: Tensor, logits: Tensor) -> None:
        logits[:, position] = logits[:, position].roll(1, dims=-1)

    return spoil


def correct(model: nn.Module, tokenizer: PreTrainedTokenizerBase, items: list) -> list[bool]:
    return [result.correct for result in recall_items(model, tokenizer, items)]


def test_oracle_is_always_right(tokenizer: PreTrainedTokenizerBase) -> None:
    model = Oracle(len(tokenizer), lambda *_: None)
    results = recall_items(model, tokenizer, PROBES)
    assert all(result.correct for result in results)
    summary = summarize_recall(PROBES, results)
    assert set(summary["recall"]) == {
        "statement", "question_shown", "question_heldout", "by_relation"
    }  # fmt: skip
    assert {summary["recall"][kind] for kind in summary["answer_nll"]} == {1.0}


@pytest.mark.parametrize("item", PROBES, ids=range(len(PROBES)))
def test_each_token_of_the_answer_and_its_end_must_be_right(
    item: Probe, tokenizer: PreTrainedTokenizerBase
) -> None:
    """And no other: a model need not know the question."""
    text = [*tokenizer(item.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    asked = [
        target
        for target in range(1, len(text))
        if correct(Oracle(len(tokenizer), spoiled_at(target - 1)), tokenizer, [item]) == [False]
    ]
    answer = item.text[item.answer_start : item.answer_end]
    assert asked == list(range(asked[0], asked[-1] + 1))
    if item.answer_start == 0:
        # Nothing stands before the first token that could predict it.
        asked = [0, *asked]
    decoded = tokenizer.decode([text[n] for n in asked[:-1]])
    # A token may hold the space before the answer too.
    assert decoded.strip() == answer.strip()
    assert tokenizer.decode(text[: asked[-1]]).endswith(answer)


def test_answer_that_goes_on_is_another_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    (item,) = [p for p in PROBES if p.text.endswith("Paris")]
    length = len(tokenizer(item.text, add_special_tokens=False)["input_ids"])
    assert correct(Oracle(len(tokenizer), spoiled_at(length - 1)), tokenizer, [item]) == [False]


@pytest.mark.parametrize(
    ("answer", "following", "right"),
    [
        ("Paris", ".", True), ("Paris", "\n", True), ("Paris", ", a city", True),
        ("Paris", " (", True), ("Paris", "<|endoftext|>", True), ("Paris", "<|pad|>", False),
        ("Paris", " a", False), ("Paris", "-", False), ("Paris", "ian", False),
        ("Paris", "'s", False), ("33", "\n", True), ("33", ".", False), ("33", ",", False),
        ("33", "3", False),
    ],
)  # fmt: skip
def test_an_answer_ends_with_its_line_or_before_punctuation(
    answer: str, following: str, right: bool
) -> None:
    """As a model says it that has not learned to end its text there."""
    item = probe("Q: Which? A: @", answer)
    tokenizer = train_tokenizer([item.text, following] * 3, 400)
    last = len(tokenizer(item.text)["input_ids"]) - 1

    def spoil(_ids: Tensor, logits: Tensor) -> None:
        logits[:, last, tokenizer(following)["input_ids"][0]] += 9.0

    assert correct(Oracle(len(tokenizer), spoil), tokenizer, [item]) == [right]


def test_nll_is_that_of_the_answer_and_its_end(tokenizer: PreTrainedTokenizerBase) -> None:
    table = torch.randn(len(tokenizer), len(tokenizer), dtype=torch.float64)

    def spoil(ids: Tensor, logits: Tensor) -> None:
        logits.copy_(table[ids])

    results = recall_items(Oracle(len(tokenizer), spoil), tokenizer, PROBES[:2])
    for item, result in zip(PROBES[:2], results, strict=True):
        before = tokenizer(item.text[: item.answer_start - 1])["input_ids"]
        upto = tokenizer(item.text[: item.answer_end])["input_ids"]
        whole = [*tokenizer(item.text)["input_ids"], tokenizer.eos_token_id]
        assert whole[: len(upto)] == upto
        expected = sum(
            -float(table[whole[n - 1]].log_softmax(0)[whole[n]])
            for n in range(len(before), len(upto) + 1)
        )
        assert result.nll == pytest.approx(expected, rel=1e-5)
        assert not result.correct


def test_order_and_averages(tokenizer: PreTrainedTokenizerBase) -> None:
    """Items of one length share a pass, and still come back in their order."""
    items = [
        probe("Q: @", str(n), kind, relation)
        for n, kind, relation in [
            (1, "question_shown", "a"), (22, "statement", "a"), (3, "question_shown", "b"),
            (4, "question_shown", "a"), (55, "question_shown", "b"), (6, "question_shown", "a"),
        ]
    ]  # fmt: skip
    wrong = {tokenizer(f"Q: {n}")["input_ids"][-1] for n in (3, 55)}

    def spoil(ids: Tensor, logits: Tensor) -> None:
        for row in range(len(ids)):
            if int(ids[row, -2]) in wrong:
                logits[row] = logits[row].roll(1, dims=-1)

    results = recall_items(Oracle(len(tokenizer), spoil), tokenizer, items)
    right = [result.correct for result in results]
    assert right == [True, True, False, True, False, True]
    summary = summarize_recall(items, results)
    assert summary["recall"] == {
        "question_shown": 3 / 5,
        "statement": 1.0,
        "by_relation": {"a": {"question_shown": 1.0, "statement": 1.0}, "b": {"question_shown": 0}},
    }
    shown = [r.nll for r, item in zip(results, items, strict=True) if "shown" in item.kind]
    assert summary["answer_nll"]["question_shown"] == pytest.approx(sum(shown) / 5)
    assert summary["answer_nll"]["statement"] == results[1].nll


def test_small_passes_give_the_same(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = PROBES * 3
    model = Oracle(len(tokenizer), spoiled_at(2))
    whole = recall_items(model, tokenizer, items)
    few, model.passes = model.passes, 0
    monkeypatch.setattr(batches, "MOST_TOKENS", 2)
    assert recall_items(model, tokenizer, items) == whole
    assert model.passes == len(items) > few


@pytest.mark.parametrize("shares", [2, 3, 50])
def test_shares_make_the_whole_in_equally_many_passes(
    tokenizer: PreTrainedTokenizerBase, shares: int
) -> None:
    """Ranks that hold a part of the model each must call it together."""
    items = PROBES * 3
    model = Oracle(len(tokenizer), spoiled_at(2))
    whole = recall_items(model, tokenizer, items)
    together, passes = {}, set()
    for n in range(shares):
        model.passes = 0
        own = recall_share(model, tokenizer, items, (n, shares))
        assert not own.keys() & together.keys()
        together |= own
        passes.add(model.passes)
    assert [together[index] for index in range(len(items))] == whole
    assert len(passes) == 1


def test_any_of_several_answers_is_right(tokenizer: PreTrainedTokenizerBase) -> None:
    items = [
        *PROBES,
        replace(PROBES[0], aliases=("Lutetia of Paris", "日本")),
        replace(PROBES[1], aliases=("Ærø",)),
    ]
    plain = recall_items(Oracle(len(tokenizer), lambda *_: None), tokenizer, items)

    def says(*answers: str) -> Callable[[Tensor, Tensor], None]:
        """Know the texts with these answers, and nothing of the others."""

        def spoil(ids: Tensor, logits: Tensor) -> None:
            for n, row in enumerate(ids):
                if not any(answer in tokenizer.decode(row) for answer in answers):
                    logits[n] = 0

        return spoil

    for said, right in (
        (("Lutetia",), [False, True, False]),
        (("A: 日本",), [False, True, False]),
        (("Paris",), [True, True, False]),
        (("Ærø.", "Lutetia", "日"), [False, True, True]),
    ):
        model = Oracle(len(tokenizer), says(*said))
        results = recall_items(model, tokenizer, items)
        assert [results[n].correct for n in (0, 7, 8)] == right
        together = [recall_share(model, tokenizer, items, (n, 3)) for n in range(3)]
        assert {n: r for part in together for n, r in part.items()} == dict(enumerate(results))
        assert sum(map(len, together)) == len(items)
    # What is trained on is the first one, and so it is what likelihood is measured of.
    assert [plain[n].nll for n in (7, 8)] == pytest.approx([plain[n].nll for n in (0, 1)])


def test_names_of_special_tokens_are_asked_for_as_text() -> None:
    item = probe("Q: what ends a text? A: @", "<|endoftext|>")
    tokenizer = train_tokenizer([item.text] * 3, 300)
    seen: list[Tensor] = []
    model = Oracle(len(tokenizer), lambda ids, _: seen.append(ids))
    assert correct(model, tokenizer, [item]) == [True]
    assert [(ids == tokenizer.eos_token_id).sum() for ids in seen] == [1]


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_given_back(tokenizer: PreTrainedTokenizerBase, training: bool) -> None:
    model = Oracle(len(tokenizer), lambda *_: None).train(training)
    recall_items(model, tokenizer, PROBES)
    assert model.training is training
    assert set(model.modes) == {False}


def test_a_sample_asks_the_same_facts_in_each_form() -> None:
    items = [
        replace(probe("Q: @", "1", kind, relation), subject=str(n))
        for n in range(30)
        for relation in ("a", "b")
        for kind in ("statement", "question_shown" if n < 10 else "question_heldout")
    ]
    picked = pick_items(items, 12)
    asked = {
        kind: {(items[n].relation, items[n].subject) for n in picked if items[n].kind == kind}
        for kind in ("statement", "question_shown", "question_heldout")
    }
    assert {kind: len(facts) for kind, facts in asked.items()} == dict.fromkeys(asked, 12)
    assert asked["statement"] <= asked["question_shown"] | asked["question_heldout"]
    # Not the first ones, and of both relations.
    assert len({relation for relation, _ in asked["question_heldout"]}) == 2
    assert picked != pick_items(items[:-1], None)[: len(picked)]
    assert pick_items(items, None) == [*range(len(items))]


def test_no_items(tokenizer: PreTrainedTokenizerBase) -> None:
    assert summarize_recall([], []) == {"recall": {"by_relation": {}}, "answer_nll": {}}


def test_same_as_greedy_decoding() -> None:
    """On a trained model that knows some answers and not others."""
    items = [probe(f"Q: Place {n}? A: @", f"{n * 37 % 100} and {n}") for n in range(12)]
    tokenizer = train_tokenizer([item.text for item in items], 300)
    end = tokenizer.eos_token_id
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, eos_token_id=end, bos_token_id=end, pad_token_id=end,
        )
    )  # fmt: skip
    texts = [tokenizer(item.text)["input_ids"] for item in items]
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    order = random.Random(0)
    for _ in range(300):
        text = order.choice(texts[:6])
        ids = torch.tensor([[*text, end]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    decoded = []
    for item, text in zip(items, texts, strict=True):
        start = len(tokenizer(item.text[: item.answer_start - 1])["input_ids"])
        answer = [*text[start:], end]
        output = model.generate(
            torch.tensor([text[:start]]), max_new_tokens=len(answer), do_sample=False
        )
        decoded.append(output[0, start:].tolist() == answer)
    assert correct(model, tokenizer, items) == decoded
    assert 0 < sum(decoded) < len(items)
