"""Prose in the documentation of the installed Python."""

from pathlib import Path

import pytest

from memory_layers.data import prepare, text
from memory_layers.data.config import DataConfig
from memory_layers.data.text import _docstrings, _prose, _texts, builtin_text

SENTENCE = "This paragraph has words enough to be taken for prose, and so it is kept as a whole."


def test_paragraphs_of_sentences_are_kept_on_one_line() -> None:
    wrapped = SENTENCE.replace("enough ", "enough\n    ")
    assert _prose(f"Short.\n\n{wrapped}\n\n{SENTENCE}") == f"{SENTENCE}\n{SENTENCE}"


@pytest.mark.parametrize(
    "text",
    [
        ">>> " + SENTENCE,
        SENTENCE.replace("prose,", "prose::"),
        SENTENCE[:-1],
        "- " + SENTENCE,
        " ".join(f"x_{n} = {n}," for n in range(20)) + ".",
        " ".join(f"a{n}" for n in range(20)) + ".",
    ],
)
def test_code_lists_and_tables_are_left_out(text: str) -> None:
    assert _prose(text) == ""


def test_docstrings_of_modules_classes_and_functions(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text('"""M"""\nclass A:\n    """C"""\n    async def f(self):\n        """F"""\n')
    assert list(_docstrings(file)) == ["M", "C", "F"]
    file.write_text("def broken(:\n")
    assert list(_docstrings(file)) == []


def test_the_language_reference_comes_first_and_is_prose() -> None:
    kept = [prose for text, _ in zip(_texts(), range(100), strict=False) if (prose := _prose(text))]
    assert len(kept) > 50
    assert any("iterator" in prose for prose in kept)


def test_builtin_text_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_texts", lambda: [SENTENCE, SENTENCE, "x = 1"])
    assert builtin_text() == [SENTENCE]
    (tmp_path / "own.txt").write_text("My own text. " * 30)
    config = DataConfig(
        facts=None, text=("builtin", str(tmp_path / "own.txt")), text_heldout=0, vocab_size=300,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    data = prepare.prepare_data(config)
    assert data.summary["documents"] == 2
