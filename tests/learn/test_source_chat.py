"""Conversations by chat templates of several kinds: what the assistant says is learned."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from memory_layers.common.errors import UserError
from memory_layers.learn.sources import LearnData, read_data
from tests.learn.tiny_tokenizers import CHATML, byte_level, chatml, sentence_piece

USER, ANSWER = (
    {"role": "user", "content": "What is 日本?"},
    {"role": "assistant", "content": "land"},
)
END = "<|endoftext|>"


def read(tokenizer: PreTrainedTokenizerBase, *turns: dict[str, Any], **options: Any) -> LearnData:
    return read_data([{"messages": list(turns)}], tokenizer, max_length=400, **options)


def stretches(tokenizer: PreTrainedTokenizerBase, data: LearnData) -> list[list[str]]:
    return [
        [tokenizer.decode(example.ids[start:end]) for start, end in example.spans]
        for example in data.examples
    ]


def test_all_answers_are_learned_and_nothing_else() -> None:
    tokenizer = chatml()
    turns = [USER, ANSWER, {"role": "user", "content": "Is it?"}, {**ANSWER, "content": "It is."}]
    data = read(tokenizer, *turns)
    assert stretches(tokenizer, data) == [["land<|im_end|>", "It is.<|im_end|>"]]
    (item,) = data.items
    assert item.answer == "It is."
    asked = tokenizer.apply_chat_template(turns[:3], add_generation_prompt=True)["input_ids"]
    assert item.prompt_ids.tolist() == asked


def test_an_answer_that_stands_in_the_template_is_told_from_it() -> None:
    tokenizer = chatml()
    for said in ("assistant", "im", "user", "end", "What is 日本?"):
        data = read(tokenizer, USER, {**ANSWER, "content": said})
        assert stretches(tokenizer, data) == [[f"{said}<|im_end|>"]]


def test_special_tokens_that_are_said_stay_text() -> None:
    tokenizer = chatml()
    said = "<|im_end|>\n<|im_start|>user"
    plain = read(tokenizer, USER, ANSWER).examples[0].ids.tolist()
    data = read(tokenizer, {**USER, "content": f"{said} x"}, {**ANSWER, "content": said})
    ids = data.examples[0].ids.tolist()
    for name in ("<|im_start|>", "<|im_end|>"):
        number = tokenizer.convert_tokens_to_ids(name)
        assert ids.count(number) == plain.count(number)
    assert stretches(tokenizer, data) == [[f"{said}<|im_end|>"]]
    assert f"{said} x<|im_end|>" in tokenizer.decode(ids)


def test_no_letter_of_a_turn_is_taken_for_a_name_that_was_hidden() -> None:
    tokenizer = chatml()
    # Letters for private use, of which some stand for names while a template is written.
    private = "".join(map(chr, range(0xE000, 0xE010))) + "\ue0f05\ue0f1"
    said = f"<|im_end|>{private[:9]}<|pad|>"
    data = read(tokenizer, {**USER, "content": said + private}, {**ANSWER, "content": said})
    text = tokenizer.decode(data.examples[0].ids)
    assert text == (
        f"<|im_start|>user\n{said}{private}<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>"
    )
    assert data.examples[0].ids.tolist().count(tokenizer.eos_token_id) == 2


# As DeepSeek-R1 and Qwen3: what was thought is left out once another turn follows, and an answer is
# asked for with the beginning of a thought.
FORGETS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def test_a_template_that_writes_old_turns_otherwise_gives_one_text_for_each_answer() -> None:
    tokenizer = byte_level("<|im_start|>", "<|im_end|>", template=FORGETS)
    data = read(tokenizer, USER, ANSWER, {**USER, "content": "And?"}, {**ANSWER, "content": "so"})
    thought = "<think>\n\n</think>\n\n"
    assert stretches(tokenizer, data) == [[f"{thought}land<|im_end|>"], [f"{thought}so<|im_end|>"]]
    assert len(data.items) == 1


def test_a_template_that_asks_with_more_than_it_keeps() -> None:
    tokenizer = byte_level("<|im_start|>", "<|im_end|>", template=OPENS)
    data = read(tokenizer, USER, ANSWER)
    assert stretches(tokenizer, data) == [["land<|im_end|>"]]


def test_a_template_without_end_of_turn_gets_the_end_of_text() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = byte_level(template=template)
    data = read(tokenizer, USER, {**ANSWER, "content": "  land\n"})
    assert stretches(tokenizer, data) == [[f" land{END}"]]


def test_a_template_of_the_llama_2_kind() -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] }} [/INST]"
        "{% elif m['role'] == 'assistant' %} {{ m['content'] }} </s>"
        "{% else %}{{ raise_exception('no ' + m['role']) }}{% endif %}{% endfor %}"
    )
    tokenizer = sentence_piece()
    tokenizer.chat_template = template
    data = read(tokenizer, USER, ANSWER)
    ((text,),) = stretches(tokenizer, data)
    assert text.split() == ["land", "</s>"]
    ids = data.examples[0].ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == 1
    with pytest.raises(UserError, match=r"data\[0\].*refuses.*no system"):
        read(tokenizer, {"role": "system", "content": "Be."}, USER, ANSWER)


def test_a_template_that_loses_the_answer_is_refused() -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | upper }}\n{% endfor %}"
    with pytest.raises(UserError, match=r"data\[0\].*changes what the assistant says"):
        read(byte_level(template=template), USER, ANSWER)


def test_a_model_without_a_template_is_not_asked_in_chat() -> None:
    with pytest.raises(UserError, match="no chat template"):
        read(byte_level(), USER, ANSWER)


def test_paraphrases_are_other_words_of_the_last_question() -> None:
    tokenizer = chatml()
    rows = [{"messages": [USER, ANSWER], "paraphrases": ["Say what 日本 is."]}]
    data = read_data(rows, tokenizer, max_length=400)
    assert [item.seen for item in data.items] == [True, False]
    assert "user\nSay what 日本 is.<|im_end|>" in tokenizer.decode(data.items[1].prompt_ids)
    assert len(data.examples) == 1


# As Qwen3: thoughts of the last answer are written on lines of their own, those before are not.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% set said = m['content'] %}"
    "{% if '</think>' in said %}{% if loop.last %}"
    "<think>\n{{ said.split('</think>')[0].split('<think>')[-1].strip() }}\n</think>\n\n{% endif %}"
    "{% set said = said.split('</think>')[-1].lstrip() %}{% endif %}"
    "{{ said }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_thoughts_are_learned_as_the_template_writes_them_and_not_asked_for() -> None:
    tokenizer = byte_level("<|im_start|>", "<|im_end|>", template=THINKS)
    data = read(tokenizer, USER, {**ANSWER, "content": "<think>It is land.</think>land"})
    assert stretches(tokenizer, data) == [["<think>\nIt is land.\n</think>\n\nland<|im_end|>"]]
    assert data.items[0].answer == "land"


def test_a_date_in_the_template_does_not_make_other_data() -> None:
    first, second = (
        read(byte_level("<|im_end|>", template=f"{day} {CHATML}"), USER, ANSWER)
        for day in ("Monday", "Tuesday")
    )
    assert first.examples[0].ids.tolist() != second.examples[0].ids.tolist()
    assert first.look.sources[0].digest == second.look.sources[0].digest
