"""Files and folders are replaced whole: whatever fails, the older ones are there."""

import errno
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from memory_layers.common import locks
from memory_layers.common.errors import UserError, in_words
from memory_layers.common.files import is_left, new_folder, remove_left, replacing, write_json
from memory_layers.common.locks import alone_in
from memory_layers.common.tensors import save_tensors
from tests.helpers import fresh_interpreter


def write(folder: Path, text: str) -> None:
    with new_folder(folder) as part:
        (part / "file").write_text(text)


def write_new(paths: Sequence[Path]) -> None:
    with replacing(*paths) as parts:
        for part in parts:
            part.write_text("new")


def test_an_older_folder_is_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    write(folder, "old")
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if str(source).endswith(".part"):
            raise OSError("no room")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no room"):
        write(folder, "new")
    assert (folder / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_an_older_folder_is_back_when_the_process_died_between_two_renames(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write(folder, "old")
    folder.rename(tmp_path / ".model.old")
    with pytest.raises(RuntimeError, match="stop"), new_folder(folder):
        raise RuntimeError("stop")
    assert (folder / "file").read_text() == "old"
    write(folder, "new")
    assert (folder / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("call", range(4))
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_files_that_belong_together_are_replaced_together(
    error: type[BaseException], call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tmp_path / "weights", tmp_path / "description"
    for path in paths:
        path.write_text("old")
    replace, calls = os.replace, []

    def stopped(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == call + 1:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(error):
        write_new(paths)
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


@pytest.mark.parametrize("call", range(4))
def test_killed_while_files_are_replaced_the_older_ones_come_back(
    call: int, tmp_path: Path
) -> None:
    paths = tmp_path / "weights", tmp_path / "description"
    for path in paths:
        path.write_text("old")
    fresh_interpreter(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from memory_layers.common.files import replacing\n"
        "replace, calls = os.replace, []\n"
        "def killed(*paths):\n"
        f"    len(calls) == {call} and os._exit(0)\n"
        "    calls.append(replace(*paths))\n"
        "os.replace = killed\n"
        "with replacing(*map(Path, sys.argv[1:])) as parts:\n"
        "    for part in parts:\n"
        "        part.write_text('new')\n",
        *map(str, paths),
    )
    # Never beside files that it does not describe.
    assert not paths[1].exists() or paths[0].read_text() == "old"
    for left in tmp_path.glob(".*.part"):
        os.utime(left, (0, 0))
    with pytest.raises(RuntimeError, match="stop"), replacing(*paths):
        raise RuntimeError("stop")
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_folder_in_the_way_leaves_the_older_files(tmp_path: Path) -> None:
    paths = tmp_path / "weights", tmp_path / "description"
    paths[0].mkdir()
    paths[1].write_text("old")
    with pytest.raises(OSError, match="weights"):
        write_new(paths)
    assert paths[0].is_dir()
    assert paths[1].read_text() == "old"


def test_what_a_process_of_another_host_writes_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    monkeypatch.setattr(os, "getpid", lambda: dead.pid)
    path, left = tmp_path / "file", []
    for host in ("there.net", "here.net"):
        monkeypatch.setattr(platform, "node", lambda host=host: host)
        with replacing(path) as (part,):
            part.write_text("half")
        left.append(part)
    for part in left:
        part.write_text("half")
        assert is_left(part.name)
    # A container of the same name sees no process of another, but what it writes.
    remove_left(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([path, *left])
    for part in left:
        os.utime(part, (0, 0))
    remove_left(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([path, left[0]])


@pytest.mark.skipif(os.name == "nt", reason="files are not locked there")
def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with alone_in(folder):
        with pytest.raises(UserError, match=r"out: another process works there.*hint"):
            alone_in(folder).__enter__()
        assert all(is_left(path.name) for path in folder.iterdir())
    assert not folder.exists()
    fresh_interpreter(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from memory_layers.common.locks import alone_in\n"
        "with alone_in(Path(sys.argv[1])):\n"
        "    os._exit(0)\n",
        str(folder),
    )
    # One that was killed lets the next one in.
    with alone_in(folder):
        (folder / "file").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="files are not locked there")
@pytest.mark.parametrize("ends", [True, False])
def test_the_lock_of_another_host_may_outlive_its_process(
    tmp_path: Path, ends: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(locks, "SECONDS_ELSEWHERE", 30 if ends else 0.2)
    with ExitStack() as held:
        with monkeypatch.context() as patch:
            patch.setattr(platform, "node", lambda: "far")
            held.enter_context(alone_in(tmp_path))
        if ends:
            threading.Timer(0.2, held.close).start()
        with (
            nullcontext() if ends else pytest.raises(UserError, match="on far"),
            alone_in(tmp_path),
        ):
            pass
    assert f"process {os.getpid()} on far works there, or has died" in capsys.readouterr().err


def test_json_takes_names_that_are_no_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"J\xf6rg \xe6\x9d\xb1")
    write_json(tmp_path / "names.json", name)
    assert json.loads((tmp_path / "names.json").read_text("utf-8")) == name


def test_weights_that_find_no_room_are_an_os_error_and_the_older_ones_stay(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="sizes of files have no limit there")
    path = tmp_path / "weights"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"weights.*cannot be written"), replacing(path) as parts:
            save_tensors({"a": torch.ones(10_000)}, parts[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="files have no modes there")
@pytest.mark.parametrize(("umask", "mode"), [(0o027, "0o640"), (0o022, "0o644"), (0o002, "0o664")])
def test_who_may_read_other_new_files_may_read_ours(tmp_path: Path, umask: int, mode: str) -> None:
    tensors = {"a": torch.ones(1)}
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "runs" / "model") as folder:
            save_file(tensors, folder / "model.safetensors")
            inner = Path(tempfile.mkdtemp(dir=folder))
            (inner / "file").write_text("x")
        with replacing(tmp_path / "a.safetensors") as (part,):
            save_file(tensors, part)
    finally:
        os.umask(before)
    written = [*tmp_path.rglob("*")]
    assert {oct(path.stat().st_mode & 0o777) for path in written if path.is_file()} == {mode}
    folders = {oct(path.stat().st_mode & 0o777) for path in written if path.is_dir()}
    assert folders == {oct(0o777 & ~umask)}
    assert len(written) == 6


def test_a_folder_of_a_group_gives_what_is_in_it_to_the_group(tmp_path: Path) -> None:
    tmp_path.chmod(0o2755)
    write(tmp_path / "model", "x")
    assert (tmp_path / "model").stat().st_mode & 0o7777 == tmp_path.stat().st_mode & 0o7777


def test_where_folders_cannot_be_flushed_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows opens no folder, and flushes a file only through what could write to it."""
    fcntl = pytest.importorskip("fcntl", reason="this is Windows")
    opened, flush, flushed = os.open, os.fsync, []

    def open_file(path: Path, flags: int, *rest: object, **more: object) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *rest, **more)

    def flush_writable(number: int) -> None:
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed.append(os.fstat(number).st_ino)
        flush(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_file)
        patch.setattr(os, "fsync", flush_writable)
        write(tmp_path / "model", "new")
        write_json(tmp_path / "result.json", 1)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(flushed) == sorted(path.stat().st_ino for path in files)
    assert len(files) == 2


def test_a_disk_that_cannot_be_flushed_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "result.json", "old")

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        write_json(tmp_path / "result.json", "new")
    monkeypatch.undo()
    assert json.loads((tmp_path / "result.json").read_text()) == "old"


def test_what_killed_processes_have_left_of_a_folder_is_removed(tmp_path: Path) -> None:
    name = "import os, sys\nfrom pathlib import Path\n" + (
        "from memory_layers.common.files import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as part:\n"
        "    (part / 'half').write_text('x')\n"
        "    os._exit(0)\n"
    )
    fresh_interpreter(name, str(tmp_path / "model"))
    (left,) = tmp_path.iterdir()
    assert is_left(left.name)
    os.utime(left, (0, 0))
    with new_folder(tmp_path / "model"):
        # Something in it is new.
        assert left.exists()
    os.utime(left / "half", (0, 0))
    os.utime(left, (0, 0))
    with new_folder(tmp_path / "model") as part:
        # Another thread, or a process that is slower, writes on.
        with new_folder(tmp_path / "model") as other:
            (other / "file").write_text("other")
        assert part.is_dir()
        assert not left.exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_an_error_of_the_system_names_what_is_written(tmp_path: Path) -> None:
    """That of a write to a full disk names nothing."""
    for write in (replacing, new_folder):
        with pytest.raises(OSError, match="No space") as error, write(tmp_path / "x"):
            raise OSError(errno.ENOSPC, "No space left on device")
        said = in_words(error.value)
        assert (
            said == f"{tmp_path / 'x'}: No space left on device. hint: free disk space, and "
            "run the same command again"
        )
    assert not list(tmp_path.iterdir())
