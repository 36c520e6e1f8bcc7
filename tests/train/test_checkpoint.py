"""Checkpoints: whole or not there, exact, on any number of ranks. A full disk harms nothing."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import checkpoint_cases as cases
import pytest
import torch
from checkpoint_cases import CASES, assert_same, build, snapshot, step, tokenizer, trained
from ranks import run_ranks
from tiny_runs import tiny_run
from torch.distributed.checkpoint import FileSystemWriter
from transformers import PreTrainedModel

from memory_layers.common import files
from memory_layers.common.errors import UserError
from memory_layers.data.prepare import PreparedData
from memory_layers.optim import MemoryAdamW
from memory_layers.train import checkpoint
from memory_layers.train.checkpoint import Checkpoints, load_checkpoint
from memory_layers.train.claim import claim_folder
from memory_layers.train.folders import list_checkpoints
from memory_layers.train.stored import open_checkpoint

Trained = tuple[PreTrainedModel, MemoryAdamW]


@pytest.fixture
def full() -> Trained:
    return trained(CASES["full"])


def content(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def save(checkpoints: Checkpoints, number: int, run: Trained) -> Path:
    checkpoints.save(number, *run, {"tokens": number}, tokenizer())
    checkpoints.wait()
    return checkpoints.out / "checkpoints" / f"step-{number:08d}"


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_goes_on_bit_equal(tmp_path: Path, case: str) -> None:
    model, optimizer = trained(CASES[case])
    counters = {"tokens": 5, "seconds": 0.5, "losses": [1.0, 2.0], "reads": torch.arange(4)}
    checkpoints = Checkpoints(tmp_path, 1, block_bytes=cases.BLOCK_BYTES)
    checkpoints.save(2, model, optimizer, counters, tokenizer())
    checkpoints.wait()
    random = torch.rand(3)

    other, its_optimizer = build(CASES[case], seed=1)
    # What its optimizer has seen before is forgotten.
    step(other, its_optimizer, 7)
    loaded = Checkpoints(tmp_path, 1).load_newest(other, its_optimizer)
    assert loaded is not None
    done, read = loaded
    assert torch.equal(torch.rand(3), random)
    assert done == 2
    assert torch.equal(read.pop("reads"), counters.pop("reads"))
    assert read == counters
    assert_same(snapshot(other, its_optimizer), snapshot(model, optimizer))
    for number in (2, 3):
        assert step(model, optimizer, number) == step(other, its_optimizer, number)
    assert_same(snapshot(other, its_optimizer), snapshot(model, optimizer))


def test_untrained_parameters_stay_without_state(tmp_path: Path) -> None:
    run = build(CASES["full"])
    save(Checkpoints(tmp_path, 1), 0, run)
    other, optimizer = trained(CASES["full"])
    Checkpoints(tmp_path, 1).load_newest(other, optimizer)
    assert not any(optimizer.state.values())
    assert step(other, optimizer, 0) == step(*run, 0)


def test_nothing_to_load(tmp_path: Path, full: Trained) -> None:
    assert Checkpoints(tmp_path, 1).load_newest(*full) is None


@pytest.fixture(scope="module")
def saved_on(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders with the cases that were saved on 1, 2 and 4 ranks, 1 without a process group."""
    found = {world: tmp_path_factory.mktemp(f"ranks-{world}") for world in (1, 2, 4)}
    for name in cases.ON_RANKS:
        cases.save(found[1] / name, CASES[name])
    for world in (2, 4):
        run_ranks(world, cases.save_on_ranks, found[world])
    return found


@pytest.mark.parametrize("world", [1, 3, 4])
def test_loads_on_any_number_of_ranks(saved_on: dict[int, Path], world: int) -> None:
    run_ranks(world, cases.load_on_ranks, list(saved_on.values()))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("case", cases.ON_RANKS)
def test_loads_without_ranks(saved_on: dict[int, Path], world: int, case: str) -> None:
    cases.load_alone(saved_on[world] / case, CASES[case])


def test_blocks_are_the_same_on_any_number_of_ranks(saved_on: dict[int, Path]) -> None:
    for case in cases.ON_RANKS:
        sizes = []
        for folder in saved_on.values():
            (place,) = list_checkpoints(folder / case)
            entries = open_checkpoint(place).metadata.state_dict_metadata
            sizes.append({name: entry.size for name, entry in entries.items()})
        assert sizes[0] == sizes[1] == sizes[2]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Saves wait until it is opened."""
    opened = threading.Event()
    write = FileSystemWriter.write_data

    def wait_then_write(self: FileSystemWriter, *args: object) -> object:
        assert opened.wait(60)
        return write(self, *args)

    monkeypatch.setattr(FileSystemWriter, "write_data", wait_then_write)
    yield opened
    opened.set()


def test_running_save_holds_the_old_weights(
    tmp_path: Path, full: Trained, gate: threading.Event
) -> None:
    expected = snapshot(*full)
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(2, *full, {}, tokenizer())
    step(*full, 2)
    assert list_checkpoints(tmp_path) == []
    gate.set()
    checkpoints.wait()
    other = build(CASES["full"], seed=1)
    checkpoints.load_newest(*other)
    assert_same(snapshot(*other), expected)


@pytest.mark.parametrize(("keep", "kept"), [(1, [6]), (2, [4, 6]), (9, [2, 4, 6])])
def test_newest_are_kept(tmp_path: Path, full: Trained, keep: int, kept: list[int]) -> None:
    checkpoints = Checkpoints(tmp_path, keep)
    for number in (2, 4, 6):
        checkpoints.save(number, *full, {}, tokenizer())
    checkpoints.wait()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{number:08d}" for number in kept]
    assert (list_checkpoints(tmp_path)[0].stat().st_mode & 0o777) == 0o755


def no_space(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def torn_zip(state: object, stream: object) -> NoReturn:
    """What torch.save does on a full disk: half a file, and an error of its own."""
    stream.write(b"half")
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")


def full_disk(_path: object) -> SimpleNamespace:
    return SimpleNamespace(total=10**9, used=10**9, free=10)


FAULTS = pytest.mark.parametrize(
    ("place", "name", "fault", "says"),
    [
        (Path, "write_bytes", no_space, "No space left on device"),
        (FileSystemWriter, "write_data", no_space, "No space left on device"),
        (torch, "save", torn_zip, "enforce fail"),
        (shutil, "disk_usage", full_disk, "MiB needed"),
        (files, "sync", no_space, "No space left on device"),
    ],
    ids=["small-files", "shards", "torch-runtimeerror", "no-room", "fsync"],
)


@FAULTS
def test_failed_save_leaves_the_older_intact(
    tmp_path: Path,
    full: Trained,
    place: object,
    name: str,
    fault: Callable,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    save(checkpoints, 2, full)
    before = content(tmp_path)
    # What is packed in the main thread is no matter of the disk.
    monkeypatch.setattr(checkpoint, "_packed", lambda _state: b"state")
    monkeypatch.setattr(place, name, fault)
    with pytest.raises(OSError, match=says) as error:
        save(checkpoints, 4, full)
    assert "Checkpoints written before are intact. hint: free disk space" in str(error.value)
    assert content(tmp_path) == before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    save(checkpoints, 4, full)


def test_a_failure_is_reported_once(
    tmp_path: Path, full: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    monkeypatch.setattr(FileSystemWriter, "write_data", no_space)
    checkpoints.save(2, *full, {}, tokenizer())
    with pytest.raises(OSError, match=r"could not write .*No space left"):
        checkpoints.save(4, *full, {}, tokenizer())
    checkpoints.wait()


def fail_on_rank_one(out: Path) -> tuple[str, list[str]]:
    """Save twice. The second time the disk of rank 1 is full."""
    model, optimizer = build(CASES["full"], cases.ParallelConfig())
    checkpoints = Checkpoints(out, 1)
    checkpoints.save(2, model, optimizer, {}, tokenizer())
    checkpoints.wait()
    with pytest.MonkeyPatch.context() as patch:
        if torch.distributed.get_rank() == 1:
            patch.setattr(FileSystemWriter, "write_data", no_space)
        checkpoints.save(4, model, optimizer, {}, tokenizer())
        with pytest.raises(OSError, match="could not write") as error:
            checkpoints.wait()
    torch.distributed.barrier()
    return str(error.value), [path.name for path in (out / "checkpoints").iterdir()]


def test_failure_of_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    for said, names in run_ranks(2, fail_on_rank_one, tmp_path):
        assert "rank 1: [Errno 28] No space left on device" in said
        assert names == ["step-00000002"]


def die_while_saving(out: Path) -> None:
    """Save once, and be killed in the middle of the second time."""
    run = trained(CASES["full"])
    checkpoints = Checkpoints(out, 1)
    save(checkpoints, 2, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSystemWriter, "finish", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        save(checkpoints, 4, run)


def test_save_that_was_killed_leaves_the_older_usable(tmp_path: Path, full: Trained) -> None:
    killed = multiprocessing.get_context("forkserver").Process(
        target=die_while_saving, args=(tmp_path,)
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == [".step-00000004.part", "step-00000002"]
    assert content(tmp_path / "checkpoints" / left[0])
    # Earlier versions left such a file beside it, too.
    (tmp_path / "checkpoints" / ".step-00000004.part.7.mode").touch()
    checkpoints = Checkpoints(tmp_path, 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    loaded = checkpoints.load_newest(*full)
    assert loaded == (2, {"tokens": 2})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "state.pt"])
@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_damaged_checkpoint(
    tmp_path: Path, full: Trained, name: str, damage: Callable[[Path], None]
) -> None:
    folder = save(Checkpoints(tmp_path, 1), 2, full)
    damage(folder / name)
    with pytest.raises(OSError, match="cannot be read") as error:
        load_checkpoint(folder, *full)
    assert str(error.value).startswith(f"{folder / name} cannot be read: ")
    assert f"delete {folder} to resume from the one before" in str(error.value)


def test_spoiled_bytes(tmp_path: Path, full: Trained) -> None:
    folder = save(Checkpoints(tmp_path, 1), 2, full)
    shard = folder / "__0_0.distcp"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(OSError, match=f"delete {folder}"):
        load_checkpoint(folder, *full)


def test_checkpoint_of_another_model(tmp_path: Path, full: Trained) -> None:
    folder = save(Checkpoints(tmp_path, 1), 2, full)
    with pytest.raises(UserError, match=r"surplus, such as model.model.memory_table") as error:
        load_checkpoint(folder, *build(CASES["row"]))
    assert "missing, such as model.model.layers.0.mlp.memory_table" in str(error.value)
    with pytest.raises(UserError, match=r"memory_table.weight/rows-0+ \(\[36, 5\] float32"):
        load_checkpoint(folder, *build(CASES["master"]))
    with pytest.raises(UserError, match="hint: resume with the settings that it was saved with"):
        load_checkpoint(folder, *build(CASES["narrow"]))


def test_checkpoint_of_an_earlier_version(tmp_path: Path, full: Trained) -> None:
    (tmp_path / "trainer.pt").write_bytes(b"")
    with pytest.raises(UserError, match="written by an earlier version of memory-layers"):
        load_checkpoint(tmp_path, *full)


def test_checkpoint_of_a_later_version(tmp_path: Path, full: Trained) -> None:
    folder = save(Checkpoints(tmp_path, 1), 2, full)
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.save({**state, "format": 99}, folder / "state.pt")
    with pytest.raises(UserError, match="has checkpoint format 99"):
        load_checkpoint(folder, *full)


def test_run_may_go_on_with_other_parallelism(tmp_path: Path) -> None:
    config, data = tiny_run(tmp_path), PreparedData(tmp_path, tokenizer(), (), {})
    claim_folder(tmp_path / "out", config, data)
    (tmp_path / "out" / "model").mkdir()
    path = tmp_path / "out" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "parallel": {"memory": 64}}))
    claim_folder(tmp_path / "out", config, data)
    # Earlier versions wrote there how gradients were kept.
    memory = {**values["memory"], "grad_mode": "sparse"}
    path.write_text(json.dumps({**values, "memory": memory}))
    claim_folder(tmp_path / "out", config, data)
    path.write_text(json.dumps({**values, "moe": "y"}))
    with pytest.raises(UserError, match="moe was 'y', is None"):
        claim_folder(tmp_path / "out", config, data)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(checkpoints: Checkpoints, run: Trained) -> None:
    for number in range(checkpoints.keep):
        save(checkpoints, number, run)


def test_disk_that_is_really_full(small_disk: Path, full: Trained) -> None:
    checkpoints = Checkpoints(small_disk, 40)
    with pytest.MonkeyPatch.context() as patch:
        # So that it is not seen beforehand.
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**40))
        with pytest.raises(OSError, match="could not write"):
            fill(checkpoints, full)
    complete = list_checkpoints(small_disk)
    assert complete
    assert sorted((small_disk / "checkpoints").iterdir()) == complete
    for folder in complete:
        assert load_checkpoint(folder, *full)[0] == int(folder.name[-8:])
