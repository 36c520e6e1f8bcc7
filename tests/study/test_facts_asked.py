"""What a run made of each fact, on facts that can be counted by hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_families import tiny_model

from memory_layers.data.config import DataConfig
from memory_layers.data.facts import Probe
from memory_layers.data.prepare import PreparedData
from memory_layers.data.tokenizer import train_tokenizer
from memory_layers.evaluate.choices import choice_probabilities
from memory_layers.evaluate.recall import pick_items
from memory_layers.study import facts_asked
from memory_layers.study.facts_asked import measure_facts, shared_exposure
from memory_layers.train.config import ModelConfig, RunConfig


def both(relation: str, subject: str, answer: str, statements: int, shown: bool) -> list[Probe]:
    """The statement and the question of a fact."""
    question = "question_shown" if shown else "question_heldout"
    texts = {"statement": f"The {relation} of {subject} is", question: f"Q: {relation}, {subject}?"}
    return [
        Probe(kind, relation, subject, f"{text} {answer}.", len(text) + 1,
              len(text) + 1 + len(answer), statements)
        for kind, text in texts.items()
    ]  # fmt: skip


def prepared(probes: Sequence[Probe]) -> PreparedData:
    tokenizer = train_tokenizer([probe.text for probe in probes], 400)
    return PreparedData(Path(), tokenizer, tuple(probes), {})


PROBES = [
    *both("city", "Ada", "Bonn", 0, shown=False),
    *both("city", "Bob", "Rome", 4, shown=True),
    *both("city", "Cem", "Paris", 1, shown=False),
    *both("code", "Ada", "X7", 0, shown=False),
    *both("code", "Bob", "Q2", 4, shown=True),
    *both("code", "Dan", "Z9", 64, shown=False),
    # Stated only in wordings that cannot be asked.
    *both("code", "Eve", "T1", 2, shown=False)[1:],
]
HELDOUT = {"city": [0, 4], "code": [6, 10]}


def test_facts_of_a_run_and_what_they_are() -> None:
    data = prepared(PROBES)
    model = tiny_model("llama", vocab_size=len(data.tokenizer))
    correct = [n in (0, 5, 6, 7) for n in range(len(PROBES))]
    found = measure_facts(model, data, correct)
    assert {name: (facts["seen"], facts["unseen"]) for name, facts in found.items()} == {
        "city": ("10", "01"),
        "code": ("10", "10"),
    }
    # All of the relation, those of shown facts and of those that were not asked twice too.
    answers = {"city": ["Bonn", "Rome", "Paris"], "code": ["X7", "Q2", "Z9", "T1"]}
    for relation, statements in HELDOUT.items():
        for name, question in (("p_seen", 0), ("p_unseen", 1)):
            items = [PROBES[n + question] for n in statements]
            candidates = [
                [item.answers[0], *(a for a in answers[relation] if a != item.answers[0])]
                for item in items
            ]
            shares = choice_probabilities(model, data.tokenizer, items, candidates)
            written = [int(share) / 10_000 for share in found[relation][name].split(" ")]
            assert written == pytest.approx(shares, abs=1e-4)
            assert min(written) > 0.1
    run = RunConfig(name="x", model=ModelConfig(), data=DataConfig(exposures=(1,)))
    assert shared_exposure([run, run], {run.data: data}) == {
        "exposure": {
            "city": {"subjects": "0 1", "statements": "0 1", "answers": 3, "candidates": 3},
            "code": {"subjects": "0 2", "statements": "0 64", "answers": 4, "candidates": 4},
        }
    }
    plain = replace(run, data=DataConfig())
    assert shared_exposure([plain], {plain.data: data}) == {}


def test_facts_of_a_sample_are_those_of_every_run() -> None:
    """And they differ between studies in which the runs are asked other numbers of them."""
    probes = [one for n in range(40) for one in both("r", f"S{n}", f"A{n}", n, shown=n % 4 == 0)]
    data = prepared(probes)
    model = tiny_model("llama", vocab_size=len(data.tokenizer))
    run = RunConfig(name="x", model=ModelConfig(), data=DataConfig(exposures=(1,)))
    sample = replace(run, train=replace(run.train, final_items=8))
    asked = pick_items(probes, 8)
    found = measure_facts(model, data, [1] * len(asked), asked)
    (about,) = shared_exposure([sample], {run.data: data})["exposure"].values()
    stated = [probes[n].exposures for n in asked if probes[n].kind == "statement"]
    assert [int(n) for n in about["statements"].split()] == [n for n in stated if n % 4]
    # Eight of each kind, and of the statements three in four are of held-out facts.
    assert 4 <= len(about["subjects"].split()) == len(found["r"]["seen"]) <= 8
    assert shared_exposure([run, sample], {run.data: data}) == {}


def test_others_are_drawn_once_for_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 31, none of which is right, the same for the statement and the question."""
    probes = [one for n in range(60) for one in both("r", f"S{n}", f"A{n}", 1, shown=n % 2 == 0)]
    probes = [replace(one, aliases=("A7", "A8")) for one in probes]
    # An answer of few facts that are stated as often, and of many.
    probes[2:40] = [replace(one, exposures=5) for one in probes[2:40]]
    asked: list[list[str]] = []

    def watched(_model: object, _tokenizer: object, _items: object, candidates: list) -> list:
        asked.extend(candidates)
        return [0.5] * len(candidates)

    monkeypatch.setattr(facts_asked, "choice_probabilities", watched)
    found = measure_facts(None, prepared(probes), [0] * len(probes))
    assert found["r"]["p_seen"] == " ".join(["5000"] * 30)
    statements, questions = asked[:30], asked[30:]
    assert statements == questions
    for (right, *others), n in zip(statements, range(1, 60, 2), strict=True):
        assert right == f"A{n}"
        assert len({*others} - {right, "A7", "A8"}) == 31
        alike = {f"A{n}" for n in range(1, 60, 2) if (n < 20) == (int(right[1:]) < 20)}
        assert alike - {right, "A7", "A8"} <= {*others}
    assert len({tuple(sorted(others)) for others in statements}) == 30
    before = statements.copy()
    asked.clear()
    # Whatever the order of the facts.
    measure_facts(None, prepared(probes[::-1]), [0] * len(probes))
    assert asked[:30] == before[::-1]
