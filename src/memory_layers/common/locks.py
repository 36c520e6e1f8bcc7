"""One process at a time: locks on files, which end with the process that holds them."""

import errno
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from memory_layers.common.errors import UserError
from memory_layers.common.files import make_folder
from memory_layers.common.text import printable

# A file server keeps the lock of a machine that died until its lease ends.
SECONDS_ELSEWHERE = 120.0


@contextmanager
def locked(path: Path, *, seconds: float | None = math.inf) -> Generator[None]:
    """Let one process at a time in. A process that dies lets the next one in.

    On a file system without locks everybody is let in, with a warning.

    Args:
        path: The file that stands for what is locked, and says who is in. It stays.
        seconds: To wait for the process that is in. None: not at all, but for one of
            another host two minutes.

    Raises:
        UserError: Another process is in.
        OSError: The file cannot be written.
    """
    until = time.monotonic() + (seconds or 0)
    waits_for_host = False
    while True:
        try:
            make_folder(path.parent)
            # Not "w": the file says who is in.
            opened = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise OSError(
                f"{path.parent}: cannot be written: {error.strerror}. hint: choose another folder"
            ) from error
        with opened as file:
            if _lock(file, path):
                file.truncate(0)
                file.write(f"{os.getpid()} on {platform.node()}")
                file.flush()
                yield
                return
            file.seek(0)
            other = printable(file.read(200)) or "one that is not known"
        host = other.partition(" on ")[2]
        if seconds is None and not waits_for_host and host not in ("", platform.node()):
            waits_for_host, until = True, until + SECONDS_ELSEWHERE
            sys.stderr.write(
                f"{path.parent}: process {other} works there, or has died and its lock has not: "
                f"waiting up to {SECONDS_ELSEWHERE:.0f} s\n"
            )
        if time.monotonic() >= until:
            raise UserError(
                f"{path.parent}: another process works there, expected none, got process {other}. "
                "hint: wait until it ends, or choose another folder"
            )
        time.sleep(0.05)


def _lock(file: TextIO, path: Path) -> bool:
    """Lock an open file until it is closed. Return whether nobody else has."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # Far behind what the file says: what is locked cannot be read there.
            file.seek(2**30)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who was in may have removed the file when leaving, and then it keeps nobody out.
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        warnings.warn(
            f"{path.parent}: its file system has no locks ({error.strerror}): nothing keeps a "
            "second process from writing there too. hint: start one at a time",
            stacklevel=4,
        )
        return True


@contextmanager
def alone_in(folder: Path, *, seconds: float | None = None) -> Generator[None]:
    """Let one process at a time work in a folder.

    It is made, with those above it. What is made and still empty at the end is removed.

    Args:
        folder: The folder.
        seconds: As for `locked`.

    Raises:
        UserError: Another process works there.
        OSError: The folder cannot be written.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = folder / ".lock"
    with locked(lock, seconds=seconds):
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()
            with suppress(OSError):
                for path in new:
                    path.rmdir()
