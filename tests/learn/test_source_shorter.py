"""Prompts with words left out: what stays in them, and what they must not be."""

from typing import Any

import pytest

from memory_layers.common.errors import UserError
from memory_layers.learn.sources import LearnData, read_data
from tests.learn.tiny_tokenizers import chatml

TOKENIZER = chatml()
PROMPT = "What is the land of The Code and said Oslo"


def row(prompt: str, answer: str = "small", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, **more}


def read(*rows: dict[str, Any], wordings: int = 4) -> LearnData:
    return read_data(list(rows), TOKENIZER, max_length=400, wordings=wordings)


def prompts(data: LearnData) -> list[str]:
    return [TOKENIZER.decode(example.ids[: example.spans[-1][0]]) for example in data.examples]


def test_usual_words_come_and_go_and_names_stay() -> None:
    data = read(row(PROMPT))
    found = prompts(data)
    assert len(set(found)) == 4
    assert found[0] == PROMPT
    words = PROMPT.split()
    for prompt in found:
        left = iter(prompt.split())
        # In their order, and nothing new.
        assert all(word in words for word in prompt.split())
        assert {"The", "Code", "Oslo"} <= set(left)
    # The answer is learned and ended alike, and only what was given is asked.
    answers = {TOKENIZER.decode(ex.ids[ex.spans[0][0] :]) for ex in data.examples}
    assert len(answers) == 1
    assert len(data.items) == 1


def test_in_a_conversation_the_last_turn_is_shortened() -> None:
    turns = [("user", "said land"), ("assistant", "the code"), ("user", PROMPT)]
    messages = [{"role": role, "content": text} for role, text in (*turns, ("assistant", "small"))]
    found = prompts(read({"messages": messages}))
    before = found[0].index(PROMPT)
    assert len(set(found)) == 4
    assert {prompt[:before] for prompt in found} == {found[0][:before]}


def test_what_is_asked_is_not_shown_shortened() -> None:
    asked = "What is land of The Code said Oslo"
    shorter = "What is the land of The Code said Oslo"
    for seed_of_words in range(8):
        given = row(f"{shorter}{' is' * seed_of_words}", paraphrases=[asked], group=1)
        assert asked not in prompts(read(given, wordings=8))


def test_what_two_prompts_have_in_common_answers_neither() -> None:
    data = read(row("the code of Oslo is", "small"), row("the land of Oslo is", "said"), wordings=6)
    answers: dict[str, set[int]] = {}
    for prompt, example in zip(prompts(data), data.examples, strict=True):
        answers.setdefault(prompt, set()).add(example.group)
    assert len(answers) > 2
    assert all(len(groups) == 1 for groups in answers.values())


def test_groups_with_wordings_of_their_own_get_the_rest() -> None:
    rows = [row(PROMPT, group=1), row("the land of Oslo is", group=1)]
    assert len(read(*rows).examples) == 4
    assert len(read(*rows, wordings=2).examples) == 2
    assert len(read(*rows, wordings=1).examples) == 2


def test_nothing_is_left_out_of_text_and_of_a_script_without_spaces() -> None:
    assert len(read({"text": PROMPT}).examples) == 1
    assert prompts(read(row("日本の首都は", "東京"))) == ["日本の首都は"]


def test_the_look_tells() -> None:
    assert "3 of the texts" in str(read(row(PROMPT)).look)
    assert "left out" not in str(read(row(PROMPT), wordings=1).look)


def test_a_number_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="wordings"):
        read(row(PROMPT), wordings=0)


def test_a_prompt_of_usual_words_alone_stays_whole() -> None:
    assert prompts(read(row("the land is"), wordings=8)) == ["the land is"]
