"""Text that has nothing to do with what is taught: it is the base's own, and written once."""

from pathlib import Path

import pytest
import torch
from tiny_families import tiny_model

from memory_layers.common.errors import UserError
from memory_layers.learn.background import own_text, packaged_text, users_text
from tests.learn.tiny_taught import base_for, said_by, with_memory
from tests.learn.tiny_tokenizers import byte_level, chatml, sentence_piece


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_what_the_base_would_write() -> None:
    tokenizer = byte_level()
    model = base_for(tokenizer)
    with torch.no_grad():
        # So sure that sampling has no choice.
        model.get_output_embeddings().weight.mul_(1000)
    text = own_text(model, tokenizer, 60, length=12)
    assert text.shape == (5, 12)
    for row in text.tolist():
        assert row[0] == tokenizer.eos_token_id
        assert row[1:] == said_by(model, tokenizer, row[:1], 11)


def test_tokens_are_drawn_as_often_as_the_base_finds_them_likely() -> None:
    tokenizer = byte_level()
    model = tiny_model("llama", vocab_size=len(tokenizer), pad_token_id=None)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
        start = torch.tensor([[tokenizer.eos_token_id]])
        likely = model(input_ids=start).logits[0, -1].softmax(-1)
    drawn = torch.bincount(own_text(model, tokenizer, 8000, length=4)[:, 1], minlength=len(likely))
    best = likely.topk(5).indices
    assert torch.allclose(drawn[best] / 2000, likely[best], atol=0.04)


def test_half_of_it_answers_a_user() -> None:
    tokenizer = chatml()
    text = own_text(base_for(tokenizer), tokenizer, 800, length=40)
    opening = tokenizer("<|im_start|>user\n")["input_ids"]
    begins = [row[: len(opening)] == opening for row in text.tolist()]
    assert sum(begins) == len(begins) // 2 == 10
    # Those who take every other row take both kinds.
    assert sum(begins[::2]) == sum(begins[1::2]) == 5


def test_another_seed_and_another_base_bring_another_text() -> None:
    tokenizer = byte_level()
    model = base_for(tokenizer)
    text = own_text(model, tokenizer, 100, length=20)
    assert len({tuple(row) for row in text.tolist()}) > 1
    assert not torch.equal(own_text(model, tokenizer, 100, length=20, seed=1), text)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.1)
    assert not torch.equal(own_text(model, tokenizer, 100, length=20), text)


def test_it_is_written_once_for_a_base_with_memory_or_without(cache: Path) -> None:
    tokenizer = byte_level()
    model = base_for(tokenizer)
    told: list[tuple[int, int, str]] = []
    first = own_text(model, tokenizer, 100, length=20, progress=lambda *args: told.append(args))
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] > 0
    with_memory(model)
    model.get_output_embeddings().register_forward_hook(_refuse)
    assert torch.equal(own_text(model, tokenizer, 100, length=20), first)
    (file,) = (cache / "memory-layers" / "own-text").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(AssertionError, match="written again"):
        own_text(model, tokenizer, 100, length=20)


def _refuse(*_: object) -> None:
    raise AssertionError("written again")


def test_without_a_place_to_keep_it_it_is_written_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    tokenizer = byte_level()
    model = base_for(tokenizer)
    first = own_text(model, tokenizer, 50, length=10)
    assert torch.equal(own_text(model, tokenizer, 50, length=10), first)


def test_rows_are_no_longer_than_the_model_reads() -> None:
    tokenizer = byte_level()
    model = tiny_model("gpt2", vocab_size=len(tokenizer))
    assert own_text(model, tokenizer, 100).shape == (2, 64)


def test_python_brings_a_text() -> None:
    tokenizer = sentence_piece()
    text = packaged_text(tokenizer, 3000, length=100)
    assert text.shape == (30, 100)
    assert (text[:, 0] == tokenizer.bos_token_id).all()
    # Prose from all over it.
    whole = tokenizer.decode(text[:, 1:].flatten())
    assert whole.count(" the ") > 20
    assert len({tuple(row) for row in text.tolist()}) == 30


def test_users_bring_a_text(tmp_path: Path) -> None:
    tokenizer = byte_level()
    file = tmp_path / "text.txt"
    file.write_text("The capital of France is Paris. " * 200, "utf-8")
    text = users_text([file], tokenizer, 200, length=50)
    assert text.shape == (4, 50)
    assert "capital of France" in tokenizer.decode(text[0])
    # One row is watched, and one is for the memory to stay silent in.
    for count in (1, 2):
        file.write_text("The capital of France is Paris. " * count, "utf-8")
        with pytest.raises(UserError, match=r"text.txt.*too short.*100 tokens.*hint"):
            users_text([file], tokenizer, length=50)
