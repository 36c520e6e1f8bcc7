"""A result survives its file, and its shares count prompts."""

import json
from dataclasses import replace

import pytest

from memory_layers.common.errors import UserError
from memory_layers.learn.result import (
    Kept,
    LearnResult,
    Point,
    Recall,
    TextLoss,
    recall_of,
)

RESULT = LearnResult(
    model="base",
    out="out",
    recall=(Recall("statement", True, 30, 0.0, 1.0), Recall("question", False, 10, 0.1, 0.5)),
    texts=(TextLoss("documentation", 100, 2.0, 2.1, 0.01, 0.02, 0.03),),
    kept=(Kept("capitals", 49, 48, ("The capital of France is",)),),
    curve=(Point(1, 10, 2.5, 0.1, 0.9, None, 0.001, None),),
    groups=10,
    learned=9,
    not_learned=("city: Ilulissat",),
    known_before=(),
    rows=120,
    parameters=1200,
    bytes=5000,
    seconds=61.5,
    passes=3,
    updates=30,
    tokens=500,
    peak_bytes=10**9,
    stopped="learned",
    settings={"lr": 0.1},
    look={"notes": ["one"]},
    provenance={"commit": None},
)


def test_a_result_comes_back_from_json() -> None:
    assert LearnResult.from_dict(json.loads(json.dumps(RESULT.to_dict()))) == RESULT


def test_a_result_with_a_field_of_another_version_is_refused() -> None:
    with pytest.raises(UserError, match="unknown field 'rowz'"):
        LearnResult.from_dict({**RESULT.to_dict(), "rowz": 1})
    with pytest.raises(UserError, match="settings: must be of type dict"):
        LearnResult.from_dict({**RESULT.to_dict(), "settings": 3})


def test_recall_of_all_forms_counts_prompts() -> None:
    recall = (*RESULT.recall, Recall("chat", False, 30, 0.0, 0.9))
    unseen = recall_of(recall, seen=False)
    assert unseen is not None
    assert unseen.items == 40
    assert unseen.after == pytest.approx(0.8)
    assert recall_of(RESULT.recall[:1], seen=False) is None


def test_growth_of_a_loss_is_relative() -> None:
    assert RESULT.texts[0].increase == pytest.approx(0.05)
    assert replace(RESULT.texts[0], after=1.0).increase == pytest.approx(-0.5)
