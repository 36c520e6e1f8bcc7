"""Files and folders that are written whole or not at all."""

import errno
import glob
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from memory_layers.common.errors import UserError
from memory_layers.common.paths import expand

# Beside a file or folder that is replaced: its name, and the host and the process that write.
_LEFT = re.compile(r"\..+?\.(\w*)\.(\d+)(?:\.\w+)?\.part|\.lock")
# Earlier versions named what they wrote so.
_LEFT_BEFORE = re.compile(r"\.(?:.+\.)?part-\w+")
# Containers can share a folder and the name of their host, and see no process of one another.
_SECONDS_UNCHANGED = 3600.0


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Name what is written where an error of the system does not, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replacing(*paths: Path) -> Generator[tuple[Path, ...]]:
    """Write files beside their final places and move them there at the end, all or none.

    Args:
        *paths: The final places, in one folder or several. Folders are made.

    Yields:
        Paths to write to. Whatever is not moved, as after an error, is removed; what a process that
        was killed has left, too. Of several files the last goes first and comes last, so that it
        never stands beside files that it does not describe.

    Raises:
        OSError: The disk is full or cannot be written. The files that were there are intact.
    """
    parts = tuple(path.with_name(f".{path.name}.{_writer()}.part") for path in paths)
    for path in paths:
        make_folder(path.parent)
        remove_left(path.parent, path.name)
    _settle_files(paths)
    try:
        with naming(paths[0]):
            yield parts
        finish(parts, parts[0].parent, paths[0].name)
        try:
            for path in reversed(paths) if len(paths) > 1 else ():
                # A folder that is in the way stays there, so that its replacement fails.
                if path.is_file():
                    os.replace(path, _older(path))
            for part, path in zip(parts, paths, strict=True):
                os.replace(part, path)
        finally:
            _settle_files(paths)
        for folder in {path.parent for path in paths}:
            sync(folder)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _settle_files(paths: Sequence[Path]) -> None:
    """End a replacement of several files: without the last one the older ones come back."""
    for path in paths if len(paths) > 1 else ():
        if paths[-1].is_file():
            _older(path).unlink(missing_ok=True)
        elif _older(path).exists():
            os.replace(_older(path), path)


def is_left(name: str) -> bool:
    """Tell whether a name is of what `replacing`, `new_part` or `alone_in` leave when killed."""
    return _LEFT.fullmatch(name) is not None


def remove_left(
    folder: Path, name: str | None = None, *, unchanged: float = _SECONDS_UNCHANGED
) -> None:
    """Remove what processes that were killed have left of files and folders they were to write.

    Whether a process of another host lives is not known here: what it writes stays.

    Args:
        folder: Where they were writing.
        name: Of the file or folder. None: all.
        unchanged: Seconds since the last change of what is removed. Who is alone there needs none.
    """
    for left in folder.glob(".*" if name is None else f".{glob.escape(name)}.*"):
        found = _LEFT.fullmatch(left.name)
        if found and (found[1] != _host() or psutil.pid_exists(int(found[2]))):
            continue
        if not found and not _LEFT_BEFORE.fullmatch(left.name):
            continue
        with suppress(OSError):
            changed = max(path.lstat().st_mtime for path in (left, *left.rglob("*")))
            if time.time() - changed >= unchanged:
                remove(left)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it.

    Raises:
        OSError: It cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _writer() -> str:
    return f"{_host()}.{os.getpid()}"


def _host() -> str:
    return re.sub(r"\W", "_", platform.node())


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file that appears, or replaces an older one, only when complete.

    Args:
        path: The final place. Its folder is made.
        content: Text is written as UTF-8.

    Raises:
        OSError: The disk is full or cannot be written. A file that was there is intact.
    """
    with replacing(path) as (part,):
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401
    """Write a JSON file as write_file does, with an indent of one blank."""
    write_file(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:  # noqa: ANN401
    """Return JSON with an indent of one blank."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    # Names of files need not be UTF-8: JSON has the same escapes.
    return text.encode("utf-8", errors="backslashreplace")


@contextmanager
def new_folder(folder: Path, size: int = 0) -> Generator[Path]:
    """Make a folder that appears, or replaces an older one, only when complete.

    Args:
        folder: The final place.
        size: Bytes that it needs at least.

    Yields:
        A folder beside it to write into. It is removed after an error.

    Raises:
        OSError: The disk is full or cannot be written. A folder that was there is intact.
    """
    with new_part(folder, size) as part:
        yield part
        publish(part, folder)


@contextmanager
def new_part(folder: Path, size: int = 0) -> Generator[Path]:
    """Make an empty folder beside a final place, for `publish`.

    Args:
        folder: The final place.
        size: Bytes that it needs at least.

    Yields:
        The empty folder. It is removed at the end if it is still there, and what processes that
        were killed have left of theirs, too.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    make_folder(folder.parent)
    settle(folder)
    remove_left(folder.parent, folder.name)
    require_space(folder.parent, size)
    # Threads of this process may each make one.
    prefix = f".{folder.name}.{_writer()}."
    part = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=folder.parent))
    try:
        with naming(folder):
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, which a power cut does not take back.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(new):
        sync(path.parent)


def check_writable(folder: Path, name: str) -> None:
    """Make a folder, and refuse one that takes no files, before work of which they would be lost.

    Args:
        folder: Where files will be written.
        name: Of the argument that names it.

    Raises:
        UserError: No file can be made there.
    """
    try:
        make_folder(folder)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"{name}: {folder} cannot be written: {error.strerror}. hint: name another folder"
        ) from error


def cache_folder() -> Path:
    """Return the folder of this package among the user's caches. It may not exist.

    Raises:
        UserError: The user has no home, and the environment names no other place.
    """
    try:
        return Path(expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "memory-layers"
    except UserError as error:
        raise UserError(
            "there is no folder for caches, expected a home folder or XDG_CACHE_HOME in the "
            "environment, got neither. hint: XDG_CACHE_HOME=/a/folder memory-layers ..."
        ) from error


def require_space(folder: Path, size: int) -> None:
    """Refuse to begin a write that cannot end.

    Raises:
        OSError: The disk of `folder` has less than `size` bytes free.
    """
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, f"no room, {size / 2**20:.1f} MiB needed", str(folder))


def publish(part: Path, folder: Path) -> None:
    """Bring a complete folder to the disk, and then to its final place.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    finish([*part.rglob("*"), part], part)
    settle(folder)
    # Also where a link that leads nowhere is in the way.
    if os.path.lexists(folder):
        os.replace(folder, _older(folder))
    try:
        os.replace(part, folder)
    finally:
        settle(folder)
    sync(folder.parent)


def settle(folder: Path) -> None:
    """End a replacement that was cut off: without a new folder the older one comes back."""
    older = _older(folder)
    if not os.path.lexists(older):
        return
    if os.path.lexists(folder):
        remove(older)
    else:
        os.replace(older, folder)


def _older(path: Path) -> Path:
    """Return where the older file or folder is between the two renames that replace it."""
    return path.with_name(f".{path.name}.old")


def finish(paths: Iterable[Path], folder: Path, name: str = "new") -> None:
    """Bring files and folders to the disk, with the mode that new ones have.

    safetensors 0.8 lets nobody but its user read what it writes, tempfile nobody else in.

    Args:
        paths: Files and folders.
        folder: Where a new file shows that mode, and is removed at once.
        name: What `remove_left` finds that file by, should it be left.
    """
    new = folder / f".{name}.{_writer()}.mode.part"
    with new.open("w") as file:
        of_files = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    new.unlink(missing_ok=True)
    for path in paths:
        wanted, mode = of_files, stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            # Who may read may enter. What else a folder has, as of its group, it keeps.
            wanted |= (wanted & 0o444) >> 2 | mode & ~0o777
        # Some file systems refuse what would change nothing.
        if mode != wanted:
            path.chmod(wanted)
        sync(path)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk.

    Where folders cannot be opened, as on Windows, or not be waited for, as on some network file
    systems, their names come to the disk when the system sees fit.
    """
    if path.is_dir():
        try:
            opened = os.open(path, os.O_RDONLY)
        except PermissionError:
            return
    else:
        # Windows waits for a file only if it could be written to.
        opened = os.open(path, os.O_RDWR)
    try:
        os.fsync(opened)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(opened)
