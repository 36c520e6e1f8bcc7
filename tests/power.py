"""A disk that loses what was not flushed, for tests of what a power cut leaves."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """A folder, and how it would be after a power cut at each rename in it.

    A file has what it had when it was last flushed, and is empty if that is not all it has. Names
    stay: journals of file systems often write them first.

    Args:
        folder: What is in it now is on the disk.
        cuts: An empty folder for the states.
    """

    def __init__(self, folder: Path, cuts: Path) -> None:
        self.folder, self.cuts = folder, cuts
        self._flushed = {path.stat().st_ino: path.read_bytes() for path in _files(folder)}
        self._lock = threading.Lock()

    @contextmanager
    def watched(self) -> Generator[None]:
        """Watch what this process flushes and renames, under the number of one that has died."""
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        with pytest.MonkeyPatch.context() as patch:
            for name in ("replace", "rename"):
                patch.setattr(os, name, self._then_cut(getattr(os, name)))
            patch.setattr(os, "getpid", lambda: dead.pid)
            patch.setattr(os, "fsync", self._flush(os.fsync))
            yield

    def states(self) -> list[Path]:
        """Return the states, in order."""
        return sorted(self.cuts.iterdir())

    def restore(self, state: Path) -> None:
        """Put the folder into a state."""
        shutil.rmtree(self.folder)
        shutil.copytree(state, self.folder)

    def _flush(self, fsync: Callable) -> Callable:
        def flush(opened: int) -> None:
            fsync(opened)
            path = Path(f"/proc/self/fd/{opened}")
            if path.is_file():
                self._flushed[path.stat().st_ino] = path.read_bytes()

        return flush

    def _then_cut(self, rename: Callable) -> Callable:
        def renamed(source: Path, target: Path) -> None:
            with self._lock:
                rename(source, target)
                if Path(target).is_relative_to(self.folder):
                    self._cut()

        return renamed

    def _cut(self) -> None:
        state = self.cuts / f"{len(self.states()):03d}"
        shutil.copytree(self.folder, state)
        for path in _files(state):
            was = self.folder / path.relative_to(state)
            if self._flushed.get(was.stat().st_ino) != path.read_bytes():
                path.write_bytes(b"")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
