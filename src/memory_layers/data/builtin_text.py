"""Running text read at run time from the installed Python: the prose in its documentation.

Nothing is downloaded or copied: paragraphs come from the language reference that Python's `help`
shows and from the docstrings of the standard library (PSF-2.0). What there is depends on the
version of Python.
"""

import ast
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from memory_layers.data.facts import collection_paused

SHORTEST_PARAGRAPH = 15  # words
_MARKUP = re.compile(r">>>|\.\.\. |::|[{}|=<>\\$]|:[a-z]+:`|__|\*\*")
_WORD = re.compile(r"[A-Za-z][a-z'-]*[.,;:)]?")


@collection_paused()
def builtin_text() -> list[str]:
    """Return documents of prose, one for each docstring or topic that has any, each once."""
    documents = (prose for text in _texts() if (prose := _prose(text)))
    return list(dict.fromkeys(documents))


def _texts() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    folder = Path(sysconfig.get_path("stdlib"))
    files = (path.relative_to(folder) for path in folder.rglob("*.py"))
    # Other packages may be installed inside the folder of the standard library.
    own = [path for path in files if not {"site-packages", "dist-packages"} & set(path.parts)]
    for path in sorted(own):
        yield from _docstrings(folder / path)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        # Python's own tests have files with faults on purpose.
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def _prose(text: str) -> str:
    """Return the paragraphs that are sentences, each on one line."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return "\n".join(part for part in paragraphs if _is_prose(part))


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split(" ")
    if len(words) < SHORTEST_PARAGRAPH or _MARKUP.search(paragraph):
        return False
    plain = sum(_WORD.fullmatch(word) is not None for word in words)
    return paragraph[0].isalpha() and paragraph[-1] in ".!?:" and plain > 0.85 * len(words)
