"""A folder is replaced whole: whatever fails, the older one is there."""

import os
from pathlib import Path

import pytest

from memory_layers.common.files import new_folder


def write(folder: Path, text: str) -> None:
    with new_folder(folder) as part:
        (part / "file").write_text(text)


def test_an_older_folder_is_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    write(folder, "old")
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if ".part-" in str(source):
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
