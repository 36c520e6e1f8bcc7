"""Reading text from files and folders."""

from pathlib import Path

import pytest

from memory_layers.common.errors import UserError
from memory_layers.data.text import iter_text


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
        pytest.param("a.jsonl", b'{"text": ""}', 1, "'text' is empty", id="empty field"),
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


def test_bad_paths_are_refused(tmp_path: Path) -> None:
    for missing in ("a.txt", "a.md", "folder"):
        with pytest.raises(UserError, match=f"{missing}:1: there is no such file"):
            load_text(tmp_path / missing)
    with pytest.raises(UserError, match="the folder has no files"):
        load_text(tmp_path)
    (tmp_path / "inner").mkdir()
    with pytest.raises(UserError, match=r"inner:1: .*got a folder"):
        load_text(tmp_path)
