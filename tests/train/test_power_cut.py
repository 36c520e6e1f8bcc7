"""After a power cut, a run goes on when it is started again, and ends as if nothing had been."""

import os
from pathlib import Path

import pytest
from power import Disk
from tiny_runs import tiny_run

from memory_layers.common.files import write_json
from memory_layers.train.config import RunConfig
from memory_layers.train.export import export_checkpoint
from memory_layers.train.loop import train

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks Linux for names")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunConfig, Path, Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    (tmp_path / "cuts").mkdir()
    changes = {"steps": 2, "checkpoint_every": 1}
    return tiny_run(folder, train=changes), folder / "out", Disk(folder, tmp_path / "cuts")


def test_a_run_goes_on_after_a_power_cut_at_any_rename(run: tuple[RunConfig, Path, Disk]) -> None:
    config, out, disk = run
    with disk.watched():
        train(config, out, show=False)
    model, names = content(out / "model"), []
    for state in disk.states():
        there = {path.relative_to(state) for path in state.rglob("*")}
        named = {path for path in there if not any(part.startswith(".") for part in path.parts)}
        if named in names:
            # Of states that differ in what has no name yet, one is enough.
            continue
        names.append(named)
        disk.restore(state)
        # What a process that is gone has left counts as left after an hour.
        for path in out.parent.rglob("*"):
            os.utime(path, (0, 0))
        train(config, out, show=False)
        assert content(out / "model") == model, state
        cache = out.parent / "cache"
        left = [path for path in (*out.rglob(".*"), *cache.rglob(".*")) if path.name != ".metadata"]
        assert not left, state
    assert len(names) > 4


def test_what_is_there_after_a_power_cut_is_whole(run: tuple[RunConfig, Path, Disk]) -> None:
    config, out, disk = run
    with disk.watched():
        train(config, out, show=False)
        export_checkpoint(out, out / "model")
        write_json(out / "result.json", {"recall": 1.0})
    last = disk.states()[-1] / "out"
    for state in disk.states():
        for name in ("model", "checkpoints/step-00000002", "checkpoints/step-00000001"):
            found = state / "out" / name
            assert not found.exists() or content(found) == content(out / name), state
        found = content(state / "out") if (state / "out").exists() else {}
        assert found.get("config.json") in (None, content(out)["config.json"])
    assert content(last)["result.json"] == content(out)["result.json"]
