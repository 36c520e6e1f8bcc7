"""The command where nothing is as usual: streams, terminal, home and folder of the process."""

import io
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from memory_layers.cli import main
from memory_layers.common.errors import UserError
from memory_layers.common.files import cache_folder
from memory_layers.train.config import load_run

COMMAND = f"exec {sys.executable} -m memory_layers"


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", line], cwd=folder, env={**os.environ, **environment}, capture_output=True,
        check=False, timeout=100,
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_stdout_that_does_not_take_all_letters(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, stdout = tmp_path / "x.yaml", io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    path.write_text("name: Zürich [red]\n", "utf-8")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stdout)
        assert main(["show", str(path)]) == 0
        stdout.seek(0)
        text = stdout.read()
    assert "rich [red] | " in text
    assert "+----" in text
    assert list(yaml.safe_load(text.split("\n\n")[0])) == ["Zürich [red]"]


def test_a_reader_that_has_enough(tmp_path: Path) -> None:
    """As `| head` does: the pipe is closed before anything is written."""
    for unbuffered in ("", "1"):
        line = f"({COMMAND.removeprefix('exec ')} --help; echo $? >&3) 3>code | true"
        ended = shell(line, tmp_path, PYTHONUNBUFFERED=unbuffered)
        assert ended.stderr == b""
        assert (tmp_path / "code").read_text().strip() in ("1", "141")


def test_streams_that_are_closed(tmp_path: Path) -> None:
    """What is printed does not go into the file that is opened next."""
    assert shell(f"{COMMAND} init run <&- >&- 2>&-", tmp_path).returncode == 0
    assert load_run(tmp_path / "run.yaml").name == "run"
    assert shell(f"{COMMAND} --help >&-", tmp_path).stderr == b""


@pytest.mark.skipif(sys.platform == "win32", reason="a folder that is used cannot be removed")
def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    ended = shell(f"cd gone && rmdir ../gone && {COMMAND} train tiny", tmp_path)
    assert ended.returncode == 2
    assert b"error: the folder that this was called in is not there any more" in ended.stderr


@pytest.mark.parametrize("columns", ["0", "1", "-5"])
def test_a_terminal_of_no_width(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["show", "tiny"]) == 0
    assert "│ tiny    │ 1,340,992" in capsys.readouterr().out


# ------------------------------------------------------------------ home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, and another folder to be in."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_paths_of_flags(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "r.json").write_text(json.dumps({"name": "mine", "runs": []}))
    assert main(["report", "~/r.json", "--out=$HOME/page"]) == 0
    assert (home / "page" / "report.html").is_file()
    assert main(["generate", "~/model", "~/text"]) == 2
    assert f"{home}/model" in capsys.readouterr().err
    assert main(["init", "~/my_run"]) == 0
    assert (home / "my_run.yaml").is_file()
    assert main(["eval", "~nobody_of_this_name/model"]) == 2
    assert main(["report", "r.json", "--out", "$NOT_SET_HERE/x"]) == 2
    assert "error: $NOT_SET_HERE/x: $NOT_SET_HERE is not known" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_paths_of_a_configuration(home: Path) -> None:
    path = home / "run.yaml"
    path.write_text("name: x\ndata: {cache_dir: ~/cache, text: [$HOME/a.txt, ./~b]}")
    data = load_run(path).data
    assert data.cache_dir == f"{home}/cache"
    assert data.text == (f"{home}/a.txt", "./~b")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(UserError, match=r"no folder for caches.* hint: XDG_CACHE_HOME="):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "memory-layers"
