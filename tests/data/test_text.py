"""Reading text from files and folders."""

import json
from pathlib import Path

import pytest

from memory_layers.common.errors import UserError
from memory_layers.data.text import documents_of, iter_text


def load_text(path: Path) -> list[str]:
    return list(iter_text(path))


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    text = "first\n\nsecond, ünï\r\n"
    file = tmp_path / "a.TXT"
    file.write_bytes(text.encode())
    assert load_text(file) == [text]
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_text(file) == [text]


def test_a_jsonl_file_has_a_document_a_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": " a\\n", "id": 1}\n\n{"text": "b\u2028c"}', encoding="utf-8")
    assert load_text(file) == [" a\n", "b\u2028c"]


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("3")
    (tmp_path / "a.txt").write_text("1")
    (tmp_path / "b.jsonl").write_text('{"text": "2a"}\n{"text": "2b"}\n')
    (tmp_path / ".hidden").write_bytes(b"\xff")
    assert load_text(tmp_path) == ["1", "2a", "2b", "3"]


def test_documents_come_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\nbroken')
    documents = iter_text(file)
    assert next(documents) == "a"
    with pytest.raises(UserError, match=r"a\.jsonl:2: "):
        next(documents)


@pytest.mark.parametrize(
    ("name", "content", "line", "says"),
    [
        pytest.param("a.md", b"x", 1, r"\.txt or \.jsonl, got '\.md'", id="suffix"),
        pytest.param("README", b"x", 1, r"\.txt or \.jsonl, got 'README'", id="no suffix"),
        pytest.param("a.txt", b"", 1, "the file is empty", id="empty text"),
        pytest.param("a.txt", b" \n\n", 1, "the file is empty", id="blank text"),
        pytest.param("a.jsonl", b"\n", 1, "the file is empty", id="blank lines"),
        pytest.param("a.txt", b"ok\nfine\n\xe4", 3, "not valid UTF-8", id="text encoding"),
        pytest.param("a.jsonl", b'{"text": "\xe4"}', 1, "not valid UTF-8", id="lines encoding"),
        pytest.param("a.jsonl", b'{"text": "a"}\n\n{', 3, "not valid JSON", id="json"),
        pytest.param("a.jsonl", b'"text"', 1, "not an object", id="not an object"),
        pytest.param("a.jsonl", b'{"txt": "a"}', 1, "'text' is missing.*'txt'", id="missing"),
        pytest.param("a.jsonl", b'{"text": 5}', 1, "'text' is not a string", id="number"),
        pytest.param("a.jsonl", b'{"text": ""}', 1, "the file is empty", id="empty field"),
        pytest.param("a.txt", "\u200b\ufeff\n".encode(), 1, "the file is empty", id="no width"),
        pytest.param("a.txt", b"ok\na\0b", 2, "byte 2 of the line is NUL", id="binary"),
        pytest.param("a.txt", "ok\n".encode("utf-16-le"), 1, "is NUL.*UTF-8", id="UTF-16"),
    ],
)
@pytest.mark.parametrize("by_folder", [False, True])
def test_bad_files_are_refused(
    tmp_path: Path, name: str, content: bytes, line: int, says: str, by_folder: bool
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        load_text(tmp_path if by_folder else file)
    assert str(caught.value).startswith(f"{file}:{line}: ")


MARK = "<|endoftext|>"


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (f"One\nand.\n{MARK}\nTwo.\n{MARK}\n", ["One\nand.", "Two."]),
        (f"{MARK}\r\nOne.\r\n {MARK}\t\r\n\r\nTwo.", ["One.", "Two."]),
        (f"The mark {MARK} ends\na text.{MARK}", None),
        (f"{MARK}{MARK}\none <|pad|>\n</s>\n", None),
    ],
)
def test_a_mark_on_a_line_of_its_own_divides_documents(
    tmp_path: Path, content: str, documents: list[str] | None
) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content.encode())
    notes: list[str] = []
    assert list(iter_text(file, notes)) == (documents or [content])
    assert ["inside, where it is text: 1 of 1" in note for note in notes] == (
        [] if documents else [True]
    )
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": content}))
    assert load_text(tmp_path / "a.jsonl") == [content]


def test_documents_know_their_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(f"One.\n{MARK}\n\nTwo\nlines.\n{MARK}\n\n{MARK}\nFour.")
    places = [(where.rpartition(":")[2], text) for where, text in documents_of(file)]
    assert [places[n] for n in (0, 1, 3)] == [("1", "One."), ("4", "Two\nlines."), ("9", "Four.")]


def test_blank_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n{"text": ""}\n{"text": null}\n')
    (tmp_path / "c.jsonl").write_text("")
    (tmp_path / "d.txt").write_text(f"d\n{MARK}\n\n{MARK}\n")
    notes: list[str] = []
    assert list(iter_text(tmp_path, notes)) == ["b", "d"]
    (note,) = notes
    assert f"5 of 7, such as {tmp_path / 'a.txt'}:1" in note


def test_bad_paths_are_refused(tmp_path: Path) -> None:
    for missing in ("a.txt", "a.md", "folder"):
        with pytest.raises(UserError, match=f"{missing}:1: there is no such file"):
            load_text(tmp_path / missing)
    with pytest.raises(UserError, match="the folder has no files"):
        load_text(tmp_path)
    (tmp_path / "inner").mkdir()
    with pytest.raises(UserError, match=r"inner:1: .*got a folder"):
        load_text(tmp_path)
