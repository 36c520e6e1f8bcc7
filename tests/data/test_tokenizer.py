"""The tokenizer that is trained on the data, and folders of others."""

import random
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from memory_layers.common.errors import UserError
from memory_layers.data.encode import encode_texts
from memory_layers.data.tokenizer import load_tokenizer, train_tokenizer

TEXTS = ["The capital of Ægypt is Kairo.", "  two  spaces\n", "東京 🗼 is in Japan"]


@pytest.mark.parametrize("text", [*TEXTS, "", "never seen: ߷ \x00 é e\u0301", " Q", "a\r\n\tb"])
def test_any_text_comes_back(text: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)


@pytest.mark.parametrize("letters", ["a", " ", "acgt", "".join(map(chr, range(0x4E00, 0x5600)))])
def test_what_has_no_break_is_learned_from_in_seconds(letters: str) -> None:
    draw = random.Random(0)
    long = "".join(draw.choices(letters, k=200_000))
    start = time.process_time()
    tokenizer = train_tokenizer([long, *TEXTS], 1000)
    # Minutes as one word.
    assert time.process_time() - start < 30
    assert max(map(len, tokenizer.get_vocab())) <= 256
    (found,) = encode_texts(tokenizer, [long])
    assert tokenizer.decode(found.ids, clean_up_tokenization_spaces=False) == long


def test_words_of_any_usual_length_are_learned_whole() -> None:
    word = "".join(map(chr, range(97, 123))) * 8
    tokenizer = train_tokenizer([f" {word}"] * 3, 1000)
    assert f"Ġ{word}" in tokenizer.get_vocab()


def test_size_is_an_upper_bound() -> None:
    assert len(train_tokenizer(TEXTS * 5, 262)) == 262
    assert 258 <= len(train_tokenizer(["ab"], 5000)) < 300


def test_same_text_same_tokenizer(tmp_path: Path) -> None:
    one, other = (train_tokenizer(TEXTS, 280) for _ in range(2))
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    one.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.eos_token_id, loaded.pad_token_id) == (one.eos_token_id, one.pad_token_id)
    assert loaded(TEXTS)["input_ids"] == one(TEXTS)["input_ids"]


def test_without_end_of_text_refused(tmp_path: Path) -> None:
    bare = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=bare).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no eos_token. hint"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0"}'])
def test_no_tokenizer_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"hint: it needs tokenizer.json") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
