"""Prose in the documentation of the installed Python and of packages."""

import json
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from memory_layers.common.errors import UserError
from memory_layers.data import prepare, prose
from memory_layers.data.config import DataConfig
from memory_layers.data.prose import (
    Package,
    _docstrings,
    _prose,
    _texts,
    builtin_text,
    installed_text,
    package_text,
)

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


def test_docstrings_of_modules_classes_and_functions() -> None:
    source = b'"""M"""\nclass A:\n    """C"""\n    async def f(self):\n        """F"""\n'
    assert list(_docstrings(source)) == ["M", "C", "F"]
    assert list(_docstrings(b"def broken(:\n")) == []


def test_the_language_reference_comes_first_and_is_prose() -> None:
    kept = [prose for text, _ in zip(_texts(), range(60), strict=False) if (prose := _prose(text))]
    assert len(kept) > 40
    assert any("iterator" in prose for prose in kept)


def test_builtin_text_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prose, "_texts", lambda: [SENTENCE, SENTENCE, "x = 1"])
    assert builtin_text() == [SENTENCE]
    (tmp_path / "own.txt").write_text("My own text. " * 30)
    config = DataConfig(
        facts=None, text=("builtin", str(tmp_path / "own.txt")), text_heldout=0, vocab_size=300,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    data = prepare.prepare_data(config)
    assert data.summary["documents"] == 2


OTHER = "Another paragraph of words that are plain enough stands in this docstring of a method."
THIRD = "The last of the paragraphs has as many plain words as the others, and says no more."


def install(site: Path, name: str, version: str, files: dict[str, str]) -> None:
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(content)
    about = site / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (about / "RECORD").write_text("".join(f"{path},,\n" for path in files))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages that repeat paragraphs, of themselves and of one another."""
    site = tmp_path / "site"
    method = f'    def f(self):\n        """{OTHER}\n\n        {SENTENCE}\n        """\n'
    beta = f'"""{SENTENCE}\n\n{THIRD}\n\n{THIRD}\n"""\n'
    tests = f'"""Tests are not read, this one says: {SENTENCE}"""\n'
    install(site, "alpha", "1.0", {
        "alpha/b.py": f'class B:\n    """{SENTENCE}"""\n{method}',
        "alpha/a.py": f'def f():\n    if 1:\n        def g():\n            """{OTHER}"""\n',
        "alpha/data.txt": f'"""{THIRD}"""',
        "alpha/tests/a.py": tests,
        "alpha/_vendor/a.py": tests,
    })  # fmt: skip
    install(site, "beta", "2.0", {"beta.py": beta})
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(prose, "FREE_PACKAGES", (Package("alpha", "MIT"), Package("beta", "MIT")))
    return site


def test_a_paragraph_of_packages_is_there_once(site: Path) -> None:
    told = []
    found = package_text(progress=lambda *what: told.append(what))
    assert found == {"alpha": [OTHER, SENTENCE], "beta": [THIRD]}
    assert told[-1] == (3, 3, "reading files of packages")


@pytest.mark.parametrize("order", [("builtin", "packages"), ("packages", "builtin")])
def test_what_python_says_too_is_no_text_of_packages(
    site: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, str]
) -> None:
    monkeypatch.setattr(prose, "_texts", lambda: [f"{THIRD}\n\n{OTHER}"])
    assert installed_text(order) == {"builtin": [f"{THIRD}\n{OTHER}"], "packages": [SENTENCE]}


def test_packages_are_trained_on_and_their_versions_kept(tmp_path: Path, site: Path) -> None:
    config = DataConfig(
        facts=None, text=("packages",), text_heldout=0, vocab_size=300,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    first = prepare.prepare_data(config)
    assert first.summary["documents"] == 3
    assert first.sources["version of alpha"] == "1.0"
    assert prepare.prepare_data(config).folder == first.folder
    (site / "alpha-1.0.dist-info").rename(site / "alpha-1.1.dist-info")
    about = site / "alpha-1.1.dist-info" / "METADATA"
    about.write_text(about.read_text().replace("1.0", "1.1"))
    second = prepare.prepare_data(config)
    assert second.sources["version of alpha"] == "1.1"
    assert second.folder != first.folder


def test_a_package_or_file_that_is_missing_is_named(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "beta.py").unlink()
    with pytest.raises(UserError, match=r"beta\.py: not there.*--force-reinstall --no-deps beta"):
        package_text()
    monkeypatch.setattr(prose, "FREE_PACKAGES", (Package("no-such-package", "MIT"),))
    with pytest.raises(ImportError, match=r"'no-such-package'.*memory-layers\[data,train\]"):
        prepare.prepare_data(DataConfig(facts=None, text=("packages",)))


def test_the_extras_install_all_packages_that_are_read() -> None:
    wanted, installed = [("memory-layers", frozenset({"data", "train"}))], set()
    while wanted:
        name, extras = wanted.pop()
        if name not in installed:
            installed.add(name)
            for line in metadata.requires(name) or []:
                needed = Requirement(line)
                asked = ({"extra": extra} for extra in (extras or {""}))
                if needed.marker is None or any(map(needed.marker.evaluate, asked)):
                    wanted.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    assert {package.name for package in prose.FREE_PACKAGES} <= installed


def test_the_table_of_text_has_all_that_is_read() -> None:
    file = Path(__file__).parents[2] / "experiments" / "01-headline" / "text.json"
    listed = [(row["source"], row["licence"]) for row in json.loads(file.read_text())["sources"]]
    free = [(package.name, package.licence) for package in prose.FREE_PACKAGES]
    assert listed == [("Python", "PSF-2.0"), *free]
