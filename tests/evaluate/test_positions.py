"""Texts that are longer than a model can read are refused, whatever its positions are made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from example_models import LINES, write_example
from transformers import AutoModelForCausalLM, AutoTokenizer

from memory_layers.cli import main
from memory_layers.common.errors import UserError
from memory_layers.data.facts import Probe
from memory_layers.evaluate.positions import check_texts
from memory_layers.evaluate.questions import Question, ask
from memory_layers.evaluate.recall import recall_items

LONG = " ".join(LINES)


def probe(text: str) -> Probe:
    return Probe(
        kind="shown", relation="r", subject="s", text=text,
        answer_start=len(text) - 3, answer_end=len(text),
    )  # fmt: skip


ASKED: dict[str, Callable[..., Any]] = {
    "recall": lambda m, t, text: recall_items(m, t, [probe(LINES[0]), probe(text)]),
    "questions": lambda m, t, text: ask(m, t, [Question(text, ("1",))]),
    "training": lambda m, t, text: check_texts(m, t, [LINES[0], text]),
}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_text_beyond_the_positions_is_refused(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, _ = write_example(tmp_path, family)
    model = AutoModelForCausalLM.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    for call in ASKED.values():
        call(model, tokenizer, LINES[1])
        with pytest.raises(UserError, match=r"The code of town 0 .* model reads at most 64. hint"):
            call(model, tokenizer, LONG)
    assert main(["generate", name, LINES[1], "--max-tokens", "2"]) == 0
    for arguments in ([LONG], [LINES[1], "--max-tokens", "64"]):
        assert main(["generate", name, *arguments]) == 2
        assert "the model reads 64 in all" in capsys.readouterr().err
