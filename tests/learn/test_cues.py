"""Where the memory may speak in a prompt: at names, and not at words that any question has."""

import pytest
from transformers import PreTrainedTokenizerBase

from memory_layers.learn.cues import find_cues, words_of
from memory_layers.learn.sources import read_data
from tests.learn.tiny_tokenizers import byte_level, chatml, sentence_piece

USUAL = words_of(["is it? The land of ...", "what be said at the code"])


def cued(tokenizer: PreTrainedTokenizerBase, prompt: str, **row: str) -> set[str]:
    """The tokens of a prompt that the memory may speak at, without spaces."""
    data = read_data([{"prompt": prompt, "completion": "small", **row}], tokenizer, max_length=200)
    cues = find_cues(data, tokenizer, USUAL)
    ids = data.examples[0].ids
    return {str(tokenizer.decode([int(ids[cue.place])])).strip() for cue in cues}


@pytest.mark.parametrize("make", [byte_level, chatml, sentence_piece])
def test_words_of_one_token_are_left_out_and_names_are_not(make) -> None:
    tokenizer = make()
    found = cued(tokenizer, "the land of Oslo is")
    assert found
    usual = {word for word in ("land", "of", "is") if is_one_token(tokenizer, word)}
    assert usual
    assert not found & usual


def is_one_token(tokenizer: PreTrainedTokenizerBase, word: str) -> bool:
    return len(tokenizer(f"a {word}", add_special_tokens=False)["input_ids"]) == 1 + len(
        tokenizer("a", add_special_tokens=False)["input_ids"]
    )


def test_a_capital_at_the_beginning_of_a_sentence_is_no_name() -> None:
    tokenizer = chatml()
    # One token each, and known to any text.
    assert "The" not in cued(tokenizer, "is it? The land of Oslo is")
    assert {"The", "Oslo"} <= cued(tokenizer, "land of The land of Oslo is")


def test_a_prompt_of_usual_words_alone_is_known_by_them() -> None:
    assert cued(chatml(), "the land is") >= {"land", "is"}


@pytest.mark.parametrize("system", ["be of Paris", None])
@pytest.mark.parametrize("names", [("Oslo",), ("Oslo", "Japan")])
def test_what_all_conversations_begin_with_is_no_cue(system: str | None, names: tuple) -> None:
    tokenizer = chatml()
    before = [{"role": "system", "content": system}] if system and len(names) > 1 else []
    rows = [
        {
            "messages": [
                *before,
                {"role": "user", "content": f"the land of {name} is"},
                {"role": "assistant", "content": "small"},
            ]
        }
        for name in names
    ]
    data = read_data(rows, tokenizer, max_length=200)
    found = {
        str(tokenizer.decode([int(data.examples[cue.example].ids[cue.place])])).strip()
        for cue in find_cues(data, tokenizer, USUAL)
    }
    assert "Oslo" in found
    assert "Paris" not in found


def test_what_a_template_writes_between_turns_is_no_cue() -> None:
    tokenizer = chatml()
    said = [("user", "the land"), ("assistant", "small"), ("user", "of what"), ("assistant", "be")]
    messages = [{"role": role, "content": content} for role, content in said]
    data = read_data([{"messages": messages}], tokenizer, max_length=200)
    found = {
        str(tokenizer.decode([int(data.examples[0].ids[cue.place])])).strip()
        for cue in find_cues(data, tokenizer, USUAL)
    }
    # It would be rarer than all that is said.
    assert "assistant" not in USUAL
    assert {"land", "what"} <= found
    assert not found & {"user", "assistant"}


def test_a_word_that_other_text_does_not_have_is_rare() -> None:
    tokenizer = chatml()
    assert is_one_token(tokenizer, "land")
    data = read_data([{"prompt": "the land of", "completion": "be"}], tokenizer, max_length=200)
    found = [
        str(tokenizer.decode([int(data.examples[0].ids[cue.place])])).strip()
        for cue in find_cues(data, tokenizer, {"the", "of"})
    ]
    assert found == ["land"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m['role'] == 'user' %}User: {% else %}Assistant: {% endif %}"
        "{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
        "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}"
        "user {{ messages[0]['content'] }} assistant"
        "{% if messages | length > 1 %} {{ messages[1]['content'] }}{% endif %}",
    ],
    ids=["spaces", "one turn"],
)
def test_other_templates_have_their_words_too(template: str) -> None:
    tokenizer = chatml()
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": "the land"}, {"role": "assistant", "content": "small"}]
    data = read_data([{"messages": messages}], tokenizer, max_length=200)
    cues = find_cues(data, tokenizer, ())
    said = "".join(str(tokenizer.decode([int(data.examples[0].ids[c.place])])) for c in cues)
    assert said.strip() == "the land"
