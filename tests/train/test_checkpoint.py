"""Checkpoints: whole or not there, the newest kept, and a full disk harms nothing."""

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
from tiny_runs import metrics_of, tiny_run
from transformers import AutoModelForCausalLM

from memory_layers.train import checkpoint
from memory_layers.train.checkpoint import CheckpointError, list_checkpoints
from memory_layers.train.loop import train


def content(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(("keep", "kept"), [(1, [6]), (2, [4, 6]), (9, [2, 4, 6])])
def test_newest_are_kept(tmp_path: Path, keep: int, kept: list[int]) -> None:
    config = tiny_run(tmp_path, train={"steps": 6, "checkpoint_every": 2, "keep_checkpoints": keep})
    train(config, tmp_path / "out", show=False)
    folder = tmp_path / "out" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{n:08d}" for n in kept]


def test_checkpoint_is_a_model_folder(tmp_path: Path) -> None:
    trained = train(tiny_run(tmp_path), tmp_path / "out", show=False)
    (folder,) = list_checkpoints(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert (folder.stat().st_mode & 0o777) == 0o755


def no_space(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def torn_zip(state: object, path: Path) -> NoReturn:
    """What torch.save does on a full disk: half a file, and an error of its own."""
    path.write_bytes(b"half")
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")


def full_disk(_path: object) -> SimpleNamespace:
    return SimpleNamespace(total=10**9, used=10**9, free=10)


@pytest.mark.parametrize(
    ("place", "name", "fault", "says"),
    [
        (torch, "save", no_space, "No space left on device"),
        (torch, "save", torn_zip, "enforce fail"),
        (shutil, "disk_usage", full_disk, "MiB needed"),
        (checkpoint, "_sync", no_space, "No space left on device"),
        (checkpoint, "_save", no_space, "No space left on device"),
    ],
    ids=["torch-oserror", "torch-runtimeerror", "no-room", "fsync", "model"],
)
def test_failed_save_leaves_the_older_intact(
    tmp_path: Path,
    place: object,
    name: str,
    fault: Callable,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_run(tmp_path, train={"steps": 6, "checkpoint_every": 2, "keep_checkpoints": 1})
    out = tmp_path / "out"
    before: dict[str, bytes] = {}
    write = checkpoint._write

    def fail_at_step_four(folder: Path, size: int, save: Callable) -> None:
        if folder.name == "step-00000004":
            before.update(content(out / "checkpoints"))
            monkeypatch.setattr(place, name, fault)
        write(folder, size, save)

    monkeypatch.setattr(checkpoint, "_write", fail_at_step_four)
    with pytest.raises(CheckpointError, match=says) as error:
        train(config, out, show=False)
    assert "Checkpoints written before are intact. hint: free disk space" in str(error.value)
    assert "trainer.pt" in " ".join(before)
    assert content(out / "checkpoints") == before
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000002"]

    monkeypatch.undo()
    train(config, out, show=False)
    assert [line["step"] for line in metrics_of(out) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_failed_save_leaves_the_older_model_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(tmp_path)
    out = tmp_path / "out"
    train(config, out, show=False)
    before = content(out / "model")
    monkeypatch.setattr(checkpoint, "_sync", no_space)
    with pytest.raises(CheckpointError):
        train(config, out, show=False)
    assert content(out / "model") == before
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == [
        "checkpoints", "model", "tensorboard"
    ]  # fmt: skip


def test_what_a_killed_save_left_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    left = out / "checkpoints" / ".step-00000004.part-abc"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    train(tiny_run(tmp_path), out, show=False)
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000004"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_disk_that_is_really_full(small_disk: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, train={"steps": 40, "checkpoint_every": 1, "keep_checkpoints": 40})
    with pytest.MonkeyPatch.context() as patch:
        # So that it is not seen beforehand.
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**40))
        with pytest.raises(CheckpointError, match="could not write"):
            train(config, small_disk / "out", show=False)
    complete = list_checkpoints(small_disk / "out")
    assert complete
    assert sorted((small_disk / "out" / "checkpoints").iterdir()) == complete
    for folder in complete:
        AutoModelForCausalLM.from_pretrained(folder)
        assert torch.load(folder / "trainer.pt", weights_only=True)["step"] == int(folder.name[-8:])
