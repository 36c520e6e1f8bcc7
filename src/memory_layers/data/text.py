"""Plain text for training: documents from .txt and .jsonl files or a folder of them."""

from collections.abc import Iterator
from pathlib import Path

from memory_layers.common.errors import UserError
from memory_layers.data.lines import empty_file, parse_object, read_lines, text_field

SUFFIXES = (".txt", ".jsonl")


def iter_text(path: Path) -> Iterator[str]:
    """Yield the documents of a file or folder as they are, reading one file or line at a time.

    Args:
        path: A .txt file, which is one document; a .jsonl file, which has one document a line in
            the field `text`; or a folder of such files, read in the order of their names. Hidden
            files of a folder are left out.

    Raises:
        UserError: A file is missing, empty, of another kind, not UTF-8 or malformed. The error
            names the file and the line.
    """
    path = Path(path)
    if not path.is_dir():
        yield from _read_file(path)
        return
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    if not files:
        raise UserError(
            f"{path}:1: the folder has no files, expected {' or '.join(SUFFIXES)} files, "
            "got an empty folder. hint: check the path"
        )
    for file in files:
        yield from _read_file(file)


def _read_file(path: Path) -> Iterator[str]:
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
            yield text_field(where, parse_object(where, line), "text")
        if where is None:
            raise empty_file(path, 'one {"text": "..."} a line')
    else:
        if not sum(1 for _ in lines):
            raise empty_file(path, "text")
        yield path.read_bytes().decode("utf-8-sig")
