"""Which tokens of a text or conversation are learned, by tokenizers of several kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from memory_layers.common.errors import UserError
from memory_layers.data.tokenizer import train_tokenizer
from memory_layers.learn.sources import Example, LearnData, read_data
from tests.learn.tiny_tokenizers import byte_level, chatml, sentence_piece, word_piece

KINDS = [byte_level, chatml, sentence_piece]


def read(tokenizer: PreTrainedTokenizerBase, *rows: dict[str, Any], **options: Any) -> LearnData:
    return read_data(list(rows), tokenizer, **{"max_length": 200, **options})


def learned(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[str]:
    """The stretches that are learned, as text."""
    texts = []
    for start, end in example.spans:
        # With what stands before them: a tokenizer may drop the first space of a text.
        before = tokenizer.decode(example.ids[:start])
        texts.append(tokenizer.decode(example.ids[:end]).removeprefix(before))
    return texts


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("space", ["none", "after", "before"])
def test_a_completion_is_learned_with_its_space_and_its_end(
    make: Callable[[], PreTrainedTokenizerBase], space: str
) -> None:
    tokenizer = make()
    prompt = "The capital of France is" + (" " if space == "after" else "")
    data = read(tokenizer, {"prompt": prompt, "completion": " Paris"[space != "before" :]})
    (example,) = data.examples
    assert learned(tokenizer, example) == [f" Paris{tokenizer.eos_token}"]
    # The prompt is what a user's prompt becomes, so it is met again when the model is asked.
    (item,) = data.items
    assert item.prompt_ids.tolist() == tokenizer("The capital of France is")["input_ids"]
    assert item.answer == "Paris"
    assert item.seen


def test_labels_hold_what_is_learned_though_padding_is_the_end_of_text() -> None:
    tokenizer = chatml()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    (example,) = read(tokenizer, {"prompt": "Say", "completion": "it"}).examples
    labels = example.labels()
    assert labels[-1] == tokenizer.eos_token_id
    kept = labels[labels >= 0]
    assert tokenizer.decode(kept) == f" it{tokenizer.eos_token}"


@pytest.mark.parametrize(
    ("prompt", "completion", "text"),
    [
        ("The capital of 日本 is:\n", "Paris", "The capital of 日本 is:\nParis"),
        ("日本の首都は", "東京", "日本の首都は東京"),
        ("He said (", "yes)", "He said (yes)"),
        ("I write in", ".NET", "I write in .NET"),
        ("He stopped", ".", "He stopped."),
        ("서울은", "수도", "서울은 수도"),
        ("What? 🗼", "Paris", "What? 🗼 Paris"),
    ],
)
def test_prompt_and_completion_are_joined_as_one_writes(
    prompt: str, completion: str, text: str
) -> None:
    tokenizer = byte_level()
    (example,) = read(tokenizer, {"prompt": prompt, "completion": completion}).examples
    assert tokenizer.decode(example.ids[:-1]) == text


def test_a_space_at_the_end_of_prompts_is_told() -> None:
    assert "end with a space" in str(read(byte_level(), {"prompt": "A: ", "completion": "b"}).look)


def test_a_line_break_belongs_to_the_prompt() -> None:
    tokenizer = byte_level()
    data = read(tokenizer, {"prompt": "What?\n", "completion": "Paris"})
    assert tokenizer.decode(data.items[0].prompt_ids) == "What?\n"


def test_a_token_that_would_reach_over_the_end_of_the_prompt_is_divided() -> None:
    # ")." is one token in both.
    tokenizer = train_tokenizer(["(it). (so). (no). (is)."] * 5, 300)
    assert len(tokenizer(").")["input_ids"]) == 1
    data = read(tokenizer, {"prompt": "(so)", "completion": ". (no)."})
    assert data.items[0].prompt_ids.tolist() == tokenizer("(so)")["input_ids"]
    assert learned(tokenizer, data.examples[0]) == [f". (no).{tokenizer.eos_token}"]


@pytest.mark.parametrize("make", KINDS)
def test_names_of_special_tokens_stay_text(make: Callable[[], PreTrainedTokenizerBase]) -> None:
    tokenizer = make()
    name = tokenizer.eos_token
    data = read(tokenizer, {"prompt": f"what is {name}", "completion": f"a {name} b"})
    ids = data.examples[0].ids.tolist()
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id


def test_an_answer_that_cannot_be_spelled_is_listed() -> None:
    rows = [{"prompt": "The capital", "completion": text} for text in ("paris", "§§")]
    rows[1]["prompt"] = "what is"
    with pytest.raises(UserError, match=r"(?s)data\[1\].*§§.*cannot spell 1 answer"):
        read(word_piece(), *rows)


def test_a_lower_case_tokenizer_spells_capitals_its_way() -> None:
    tokenizer = word_piece()
    data = read(tokenizer, {"prompt": "The capital of France is", "completion": "Paris"})
    ids = data.examples[0].ids.tolist()
    # As the tokenizer begins a text, and one end.
    assert ids[0] == tokenizer.cls_token_id
    assert ids.count(tokenizer.eos_token_id) == 1


def test_text_is_learned_whole_and_in_pieces_where_it_is_long() -> None:
    tokenizer = byte_level()
    text = "The capital of France is Paris. " * 40
    data = read(tokenizer, {"text": text}, max_length=50)
    assert "".join(tokenizer.decode(example.ids) for example in data.examples) == (
        text + tokenizer.eos_token
    )
    assert all(len(example.ids) <= 50 for example in data.examples)
    assert all(example.spans == ((1, len(example.ids)),) for example in data.examples)
    look = data.look.sources[0]
    assert look.cut == 1
    assert look.longest == sum(len(example.ids) for example in data.examples)
    assert "in pieces" in str(data.look)


def test_what_is_too_long_is_cut_and_counted() -> None:
    tokenizer = byte_level()
    long = "the capital of " * 30
    data = read(
        tokenizer,
        {"prompt": "The capital", "completion": "Paris"},
        {"prompt": "What is", "completion": long},
        {"prompt": long + long, "completion": "Paris"},
        max_length=30,
    )
    look = data.look.sources[0]
    assert (look.examples, look.cut, look.left_out) == (2, 1, 1)
    assert len(data.examples[1].ids) == 30
    assert [item.answer for item in data.items] == ["Paris"]
    assert "data[2]" in str(data.look)
    with pytest.raises(UserError, match="nothing to train on"):
        read(tokenizer, {"prompt": long, "completion": "Paris"}, max_length=30)


@pytest.mark.real
def test_smollm2_reads_all_kinds(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    turns = [
        {"role": "user", "content": "What ends a turn?"},
        {"role": "assistant", "content": "<|im_end|> does."},
    ]
    data = read_data(
        [
            [{"prompt": "The harbour master of Ooldewiek is", "completion": "Tjark Onken"}],
            [{"messages": turns}],
        ],
        tokenizer,
        max_length=200,
    )
    assert learned(tokenizer, data.examples[0]) == [" Tjark Onken<|im_end|>"]
    assert learned(tokenizer, data.examples[1]) == ["<|im_end|> does.<|im_end|>"]
    asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
    assert data.items[1].prompt_ids.tolist() == asked
    end = tokenizer.eos_token_id
    assert data.examples[1].ids.tolist().count(end) == asked.count(end) + 1
