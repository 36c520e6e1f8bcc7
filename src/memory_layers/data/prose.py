"""Prose in the documentation of Python and of installed packages, as running text for training.

It is read at run time: paragraphs come from the language reference that Python's `help` shows, from
the docstrings of the standard library (PSF-2.0) and from those of packages that are installed with
this one. Nothing is downloaded or copied, and what there is depends on their versions.
"""

import ast
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from memory_layers.common.errors import UserError
from memory_layers.common.progress import Report, counted
from memory_layers.data.config import BUILTIN, PACKAGES
from memory_layers.data.facts import collection_paused

SHORTEST_PARAGRAPH = 15  # words
_MARKUP = re.compile(r">>>|\.\.\. |::|[{}|=<>\\$]|:[a-z]+:`|__|\*\*")
_WORD = re.compile(r"[A-Za-z][a-z'-]*[.,;:)]?")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
# Tests say little in sentences, and what is bundled has the licence of somebody else.
_SKIPPED = {"test", "tests", "testing", "_vendor"}
_INSTALL = 'hint: pip install "memory-layers[data,train]"'


@dataclass(frozen=True)
class Package:
    """An installed package whose docstrings are read.

    Attributes:
        name: As pip knows it.
        licence: Of its documentation.
    """

    name: str
    licence: str


# Of those that the extras `data` and `train` install, with what they depend on: the ones that are
# free to use and have 15,000 words of prose or more. Each one more is one more version to agree on.
FREE_PACKAGES = (
    Package("chemicals", "MIT"),
    Package("fluids", "MIT"),
    Package("fonttools", "MIT"),
    Package("huggingface-hub", "Apache-2.0"),
    Package("matplotlib", "Matplotlib, after PSF-2.0"),
    Package("networkx", "BSD-3-Clause"),
    Package("numba", "BSD-2-Clause"),
    Package("numpy", "BSD-3-Clause"),
    Package("pandas", "BSD-3-Clause"),
    Package("scipy", "BSD-3-Clause"),
    Package("sympy", "BSD-3-Clause"),
    Package("tensorboard", "Apache-2.0"),
    Package("torch", "BSD-3-Clause"),
    Package("transformers", "Apache-2.0"),
)


def installed_text(sources: Sequence[str], progress: Report | None = None) -> dict[str, list[str]]:
    """Return the documents of "builtin" and "packages", those of them that are asked for.

    What stands in both is in "builtin" only.

    Args:
        sources: As data.text names them. Others are not looked at.
        progress: As for `package_text`.

    Raises:
        ImportError: A package is not installed.
        UserError: Files of a package are gone.
    """
    found = {BUILTIN: builtin_text()} if BUILTIN in sources else {}
    if PACKAGES in sources:
        of_packages = package_text(found.get(BUILTIN, ()), progress).values()
        found[PACKAGES] = [document for documents in of_packages for document in documents]
    return found


def help_text() -> list[str]:
    """Return the prose of the language reference that Python's `help` shows: some 20,000 words."""
    from pydoc_data.topics import topics

    return [prose for name in sorted(topics) if (prose := _prose(topics[name]))]


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
        yield from _docstrings((folder / path).read_bytes())


def package_versions() -> dict[str, str]:
    """Return the version of each of `FREE_PACKAGES`.

    Raises:
        ImportError: One is not installed.
    """
    return {package.name: _distribution(package.name).version for package in FREE_PACKAGES}


@collection_paused()
def package_text(known: Iterable[str] = (), progress: Report | None = None) -> dict[str, list[str]]:
    """Return the prose of each of `FREE_PACKAGES`, one document for each docstring that has any.

    A paragraph is in one document only: packages repeat theirs often, as a method says what that
    of its base class does.

    Args:
        known: Documents whose paragraphs are left out.
        progress: Called with the number of files that are read, and how many there are.

    Returns:
        Documents by name of the package, in the order of `FREE_PACKAGES`.

    Raises:
        ImportError: A package is not installed.
        UserError: Files of a package are gone.
    """
    seen = {paragraph for text in known for paragraph in text.split("\n")}
    files = [(package.name, path) for package in FREE_PACKAGES for path in _files(package.name)]
    found: dict[str, list[str]] = {package.name: [] for package in FREE_PACKAGES}
    for name, path in counted(files, len(files), "reading files of packages", progress):
        source = path.read_bytes()
        # Parsing takes nearly all of the time.
        for text in _docstrings(source) if b'"""' in source else ():
            new = [paragraph for paragraph in _paragraphs(text) if paragraph not in seen]
            seen.update(new)
            if new:
                found[name].append("\n".join(dict.fromkeys(new)))
    return found


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise ImportError(
            f"the package {name!r} is not installed, its prose is part of data.text: packages. "
            f"{_INSTALL}"
        ) from error


def _files(name: str) -> list[Path]:
    """Return the Python files of a package, in the order of their names."""
    files = _distribution(name).files or []
    ours = (file for file in files if file.suffix == ".py" and not _SKIPPED & set(file.parts))
    paths = [Path(str(file.locate())) for file in sorted(ours, key=str)]
    gone = next((str(path) for path in paths if not path.is_file()), None)
    if gone or not paths:
        raise UserError(
            f"{gone or 'the list of its files'}: not there, expected that of the package {name!r}. "
            f"hint: pip install --force-reinstall --no-deps {name}"
        )
    return paths


def _docstrings(source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        # Python's own tests have files with faults on purpose.
        return
    nodes: list[ast.AST] = [tree]
    for node in nodes:
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text
        # Expressions, which are most of a tree, hold no docstrings.
        nodes += (child for child in ast.iter_child_nodes(node) if isinstance(child, _STATEMENTS))


def _prose(text: str) -> str:
    return "\n".join(_paragraphs(text))


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs that are sentences, each on one line."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return filter(_is_prose, paragraphs)


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split(" ")
    if len(words) < SHORTEST_PARAGRAPH or _MARKUP.search(paragraph):
        return False
    plain = sum(_WORD.fullmatch(word) is not None for word in words)
    return paragraph[0].isalpha() and paragraph[-1] in ".!?:" and plain > 0.85 * len(words)
