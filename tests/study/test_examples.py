"""The answers that a report shows are the model's own, and the same in each run."""

from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch

from memory_layers.data.facts import Probe
from memory_layers.study.examples import COUNT, example_answers


class Letters:
    """A tokenizer of one token a letter. Token 0 ends a text."""

    eos_token_id = 0
    all_special_ids, all_special_tokens, added_tokens_decoder = (0,), ("\0",), MappingProxyType({})

    def __call__(self, texts: list[str], **_options: object) -> dict[str, Any]:
        offsets = [[(i, i + 1) for i in range(len(text))] for text in texts]
        return {"input_ids": [[*map(ord, text)] for text in texts], "offset_mapping": offsets}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


class Recites:
    """A model that goes on as one of its texts does, and then ends."""

    device = torch.device("cpu")
    training = False

    def __init__(self, *texts: str) -> None:
        self._texts = texts

    def eval(self) -> None: ...

    def train(self, training: bool) -> None: ...

    def __call__(self, input_ids: torch.Tensor, **_options: object) -> SimpleNamespace:
        read = "".join(map(chr, input_ids[0].tolist()))
        text = next(text for text in self._texts if text.startswith(read))
        logits = torch.zeros(1, len(read), 256)
        logits[0, -1, ord(text[len(read)]) if len(text) > len(read) else 0] = 1
        return SimpleNamespace(logits=logits)


def probe(text: str, kind: str = "question_heldout") -> Probe:
    start = text.index("A: ") + 3
    return Probe(kind, "r", "s", text, start, len(text), 1)


def test_right_and_wrong_answers_are_as_the_model_gives_them() -> None:
    known = [f"Q {n}? A: {n}{n}" for n in range(5)]
    texts = [*known, "Q x? A: yes", "Q y? A: no"]
    model = Recites(*known, "Q x? A: yesterday", "Q y? A: maybe")
    probes = [*map(probe, texts), probe("Q z? A: shown", "question_shown")]
    data = SimpleNamespace(probes=probes, tokenizer=Letters())
    correct = [1] * 5 + [0, 0, 1]
    found = example_answers(model, data, correct)
    assert [example["correct"] for example in found] == [True] * COUNT + [False] * 2
    for example in found[:COUNT]:
        assert example["said"] == example["answer"]
        assert f"{example['prompt']} {example['answer']}" in known
    said = {example["prompt"]: example["said"] for example in found[COUNT:]}
    assert said == {"Q x? A:": "yesterday", "Q y? A:": "maybe"}
    assert example_answers(model, data, correct) == found
    # Of a sample, only what was asked.
    (one,) = example_answers(model, data, [0], [6])
    assert one["prompt"] == "Q y? A:"
