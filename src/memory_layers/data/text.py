"""Running text for training from users' files and folders."""

import re
from collections.abc import Iterator
from pathlib import Path

from memory_layers.common.errors import UserError
from memory_layers.common.untrusted import check_inside
from memory_layers.data.lines import (
    empty_file,
    has_blank,
    is_blank,
    parse_object,
    read_lines,
    text_field,
)
from memory_layers.data.tokenizer import END

SUFFIXES = (".txt", ".jsonl")
_MARK = re.compile(rf"^[ \t]*{re.escape(END)}[ \t]*\r?(?:\n|\Z)", re.MULTILINE)


def iter_text(path: Path, notes: list[str] | None = None) -> Iterator[str]:
    """Yield the documents of a file or folder as they are, without blank ones.

    Args:
        path: A .txt file, which is one document, or several, with `<|endoftext|>` on a line of its
            own between them; a .jsonl file, which has one document a line in the field `text`; or a
            folder of such files, read in the order of their names. Hidden files of a folder are
            left out.
        notes: Takes lines that say how many documents are blank, and in how many the mark that
            divides documents is text, if any are.

    Raises:
        UserError: A file is missing, of another kind, not UTF-8 or malformed, or there is no text.
            The error names the file and the line.
    """
    path = Path(path)
    read = blank = marked = 0
    first = ""
    for where, text in documents_of(path):
        read += 1
        marked += END in text
        if is_blank(text):
            blank += 1
            first = first or where
        else:
            yield text
    if read == blank:
        raise empty_file(Path(first.rpartition(":")[0]), "text")
    if notes is not None and blank:
        notes.append(f"{path}: blank documents, left out: {blank:,} of {read:,}, such as {first}")
    if notes is not None and marked:
        notes.append(
            f"{path}: documents with {END} inside, where it is text: {marked:,} of {read:,}. hint: "
            "on a line of its own in a .txt file it divides documents"
        )


def documents_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place, `FILE:LINE`, and the text of each document, reading one file at a time.

    Args:
        path: As for iter_text.

    Raises:
        UserError: As for iter_text, but that documents may be blank.
    """
    if not path.is_dir():
        yield from _read_file(path)
        return
    check_inside(path)
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    if not files:
        raise UserError(
            f"{path}:1: the folder has no files, expected {' or '.join(SUFFIXES)} files, "
            "got an empty folder. hint: check the path"
        )
    for file in files:
        yield from _read_file(file)


def _read_file(path: Path) -> Iterator[tuple[str, str]]:
    if path.suffix.lower() not in SUFFIXES and path.exists():
        got = "a folder" if path.is_dir() else repr(path.suffix or path.name)
        raise UserError(
            f"{path}:1: this is not a kind of file that can be read as text, expected "
            f"{' or '.join(SUFFIXES)}, got {got}. hint: convert it, or move it to another folder"
        )
    # Reading the lines checks existence and encoding, and says in which line the encoding is wrong.
    lines = read_lines(path)
    if path.suffix.lower() == ".jsonl":
        where = None
        for where, line in lines:
            row = parse_object(where, line)
            yield where, "" if has_blank(row, "text") else text_field(where, row, "text")
        if where is None:
            yield f"{path}:1", ""
    else:
        for _ in lines:
            pass
        yield from _stories(path, path.read_bytes().decode("utf-8-sig"))


def _stories(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Cut a text where a mark stands on a line of its own, as in files of stories."""
    marks = [*_MARK.finditer(text)]
    if not marks:
        yield f"{path}:1", text
        return
    line, start = 1, 0
    for n, mark in enumerate([*marks, None]):
        end = mark.start() if mark else len(text)
        story = text[start:end].strip("\r\n")
        # A mark may also stand before the first story and behind the last one.
        if story or 0 < n < len(marks):
            first = line + text.count("\n", start, text.find(story, start))
            yield f"{path}:{first}", story
        if mark:
            line += text.count("\n", start, mark.end())
            start = mark.end()
