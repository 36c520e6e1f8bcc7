"""The tokenizer that is trained on the data, and folders of others."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from memory_layers.common.errors import UserError
from memory_layers.data.encode import encode_texts
from memory_layers.data.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
    vocabulary_size,
)
from memory_layers.data.tokens import Document, read_pieces, write_tokens

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


def damaged(folder: Path, file: str, content: object) -> Path:
    """Write a tokenizer, and then other fields or other bytes into one of its files."""
    train_tokenizer(TEXTS * 5, 300).save_pretrained(folder)
    path = folder / file
    if isinstance(content, dict):
        values = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if "model" in content:
            content = {**content, "model": {**values["model"], **content["model"]}}
        path.write_text(json.dumps({**values, **content}), "utf-8")
    elif content is None:
        path.unlink()
    else:
        path.write_text(str(content), "utf-8")
    return folder


MARK = {"content": "<|new|>", "special": True, "single_word": False, "lstrip": False,
        "rstrip": False, "normalized": False}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tokenizer.json", None, "hint: it needs tokenizer.json"),
        ("tokenizer.json", "", "tokenizer.json is no tokenizer: "),
        ("tokenizer.json", "{", "tokenizer.json is no tokenizer: "),
        ("tokenizer.json", "[]", "tokenizer.json is no tokenizer: "),
        ("tokenizer.json", "7", "tokenizer.json is no tokenizer: "),
        ("tokenizer.json", "[" * 9999, "tokenizer.json is no tokenizer: "),
        ("tokenizer.json", {"model": {"merges": None}}, "tokenizer.json is no tokenizer: "),
        ("tokenizer.json", {"model": {"merges": [1]}}, "tokenizer.json is no tokenizer: "),
        ("tokenizer.json", {"model": {"vocab": {"a": -1}}}, "tokenizer.json is no tokenizer: "),
        ("tokenizer.json", {"normalizer": {"type": "None"}}, "tokenizer.json is no tokenizer: "),
        ("tokenizer.json", {"added_tokens": None}, "tokenizer.json is no tokenizer: "),
        ("tokenizer.json", {"model": {"vocab": {}, "merges": []}}, "2 special tokens and no other"),
        (
            "tokenizer.json",
            {"added_tokens": [{**MARK, "id": 9}]},
            r"gives the token '<\|new\|>' the id 9, which becomes 300",
        ),
        (
            "tokenizer.json",
            {"added_tokens": [{**MARK, "id": 50_000}]},
            "the id 50000, which becomes 300",
        ),
        ("tokenizer_config.json", "", "tokenizer_config.json:.*the text is not valid JSON"),
        ("tokenizer_config.json", '{"eos', "tokenizer_config.json:.*the text is not valid JSON"),
        ("tokenizer_config.json", "[" * 9999, "tokenizer_config.json:.*the text is not valid JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json must hold a JSON object, got list"),
        ("tokenizer_config.json", {"eos_token": 5}, "tokenizer.json can be read, look at"),
        ("tokenizer_config.json", {"eos_token": None}, "no eos_token. hint"),
        ("tokenizer_config.json", {"tokenizer_class": 3}, "tokenizer.json can be read, look at"),
        ("tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"}, "must be a fast one"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": []}}, "can be read, look at"),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "BertTokenizer"},
            "'.UNK.', is not in the voc",
        ),
        ("tokenizer_config.json", {"model_max_length": "x"}, "can be read, look at"),
        ("tokenizer_config.json", {"chat_template": 5}, "'chat_template' must be text, got int"),
        ("tokenizer_config.json", {"chat_template": "a" * 10**6 + "b"}, "has 1,000,001 letters"),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "../more", "template": ""}]},
            "'../more' must have a name without folders",
        ),
        ("special_tokens_map.json", "[", "special_tokens_map.json:1: the text is not valid JSON"),
        ("config.json", "[]", "tokenizer.json can be read, look at"),
        ("config.json", '{"model_type": []}', "tokenizer.json can be read, look at"),
    ],
)
def test_what_is_wrong_in_a_folder_is_said_in_one_line(
    file: str, content: object, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says) as error:
        load_tokenizer(damaged(tmp_path, file, content))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_letters_that_texts_would_lose(tmp_path: Path) -> None:
    vocab = train_tokenizer(TEXTS, 258).get_vocab()
    kept = sorted(vocab.keys() - {"e"}, key=vocab.__getitem__)
    content = {"model": {"vocab": {t: n for n, t in enumerate(kept)}, "merges": []}}
    with pytest.raises(UserError, match="no token has 'e', so that texts would lose it"):
        load_tokenizer(damaged(tmp_path, "tokenizer.json", content))


def test_ids_with_holes_are_kept(tmp_path: Path) -> None:
    """Tokens beyond 65,535 need four bytes, however few there are."""
    vocab = train_tokenizer(TEXTS * 5, 300).get_vocab()
    # The last ones are those that merges make.
    moved = {token: n + 70_000 if n >= 258 else n for token, n in vocab.items()}
    tokenizer = load_tokenizer(damaged(tmp_path, "tokenizer.json", {"model": {"vocab": moved}}))
    assert len(tokenizer) == 300
    assert vocabulary_size(tokenizer) == 70_300
    ids = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    assert max(ids) > 2**16
    write_tokens(tmp_path, [Document(ids)], vocabulary_size(tokenizer))
    (piece,) = read_pieces(tmp_path, 512)
    assert piece.tolist() == ids


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda n: 7 if n == 8 else n, "have both the id 7"),
        (lambda n: 2**31 if n == 299 else n, "ids of tokens reach 2,147,483,648, expected less"),
    ],
)
def test_ids_that_no_model_can_have_are_refused(
    change: Callable[[int], int], says: str, tmp_path: Path
) -> None:
    vocab = train_tokenizer(TEXTS * 5, 300).get_vocab()
    moved = {token: change(n) for token, n in vocab.items()}
    with pytest.raises(UserError, match=says):
        load_tokenizer(damaged(tmp_path, "tokenizer.json", {"model": {"vocab": moved}}))


def test_a_tokenizer_that_finds_no_room_says_so(tmp_path: Path) -> None:
    """Its package raises no error of the system, but an exception of no type."""

    def fail(_folder: Path) -> None:
        raise Exception("No space left on device (os error 28)")

    full: Any = SimpleNamespace(save_pretrained=fail)
    with pytest.raises(OSError, match=r"cannot be written: No space left.*hint: free disk space"):
        save_tokenizer(full, tmp_path)
