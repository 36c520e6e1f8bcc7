"""A result survives its file, and its shares count prompts."""

import json
from dataclasses import replace

import pytest
from example_result import RESULT

from memory_layers.common.errors import UserError
from memory_layers.learn.result import LearnResult, Recall, recall_of


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
