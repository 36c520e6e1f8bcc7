"""A run that was killed or interrupted ends with the same weights as one that was not."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import metrics_of, tiny_run

from memory_layers.train import checkpoint
from memory_layers.train.config import RunConfig
from memory_layers.train.loop import train


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads: the same here as in the processes below."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(config: RunConfig, out: Path) -> subprocess.Popen:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(_plain(asdict(config))))
    return subprocess.Popen(
        [sys.executable, "-m", "memory_layers", "train", str(path), "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_after(process: subprocess.Popen, out: Path, lines: int, number: signal.Signals) -> str:
    """Send a signal when the run has written some lines, and return what it says."""
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= lines:
            break
        time.sleep(0.005)
    process.send_signal(number)
    return process.communicate(timeout=120)[1]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_run(a: Path, b: Path) -> None:
    one, other = (weights_of(out / "model") for out in (a, b))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert metrics_of(a) == metrics_of(b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A run that nothing cuts short."""
    folder = tmp_path_factory.mktemp("whole")
    config = tiny_run(
        folder, train={"steps": 80, "log_every": 3, "eval_every": 20, "checkpoint_every": 4}
    )
    train(config, folder / "out", show=False)
    return config, folder / "out"


def test_killed_run_resumes_bit_equal(tmp_path: Path, whole: tuple[RunConfig, Path]) -> None:
    config, expected = whole
    out = tmp_path / "killed"
    stop_after(start(config, out), out, random.randint(1, 8), signal.SIGKILL)
    assert not (out / "model").exists()
    train(config, out, show=False)
    assert_same_run(expected, out)


def test_interrupted_run_saves_and_resumes(tmp_path: Path, whole: tuple[RunConfig, Path]) -> None:
    config, expected = whole
    out = tmp_path / "stopped"
    process = start(config, out)
    errors = stop_after(process, out, 4, signal.SIGINT)
    assert process.returncode == 130, errors
    assert "to go on, run the same command again" in errors
    assert "Traceback" not in errors
    assert list((out / "checkpoints").glob("step-*"))
    train(config, out, show=False)
    assert_same_run(expected, out)


@pytest.mark.parametrize("kept", ["nothing", "a part", "damage"])
def test_metrics_that_were_lost_cost_no_step(
    tmp_path: Path, whole: tuple[RunConfig, Path], kept: str, capsys: pytest.CaptureFixture
) -> None:
    """As after a loss of power, in the middle of a run and at its end."""
    config, expected = whole
    out = Path(shutil.copytree(expected, tmp_path / "out"))
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    if kept == "damage":
        lines[3:6] = ['{"step": 12, "loss": "x"}\n', "\0" * 30 + "\n", '["step"]\n']
        lines[-1] = '{"step": 80, "recall": []}\n'
    (out / "metrics.jsonl").write_text(
        "".join({"nothing": [], "a part": lines[:5]}.get(kept, lines))
    )
    shutil.rmtree(out / "model")
    trained = train(config, out)
    assert "lines up to step 80 are lost, as after a loss of power" in capsys.readouterr().err
    assert metrics_of(out)[-1] == metrics_of(expected)[-1]
    assert trained.history[-1]["recall"] == metrics_of(expected)[-1]["recall"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="files by number are Linux")
def test_metrics_are_on_the_disk_before_a_checkpoint_that_follows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = ""
    sync, publish = os.fsync, checkpoint.publish
    on_disk = {}

    def fsync(file: int) -> None:
        nonlocal flushed
        sync(file)
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        if path.name == "metrics.jsonl":
            flushed = path.read_text()

    def published(part: Path, folder: Path) -> None:
        on_disk[folder.name] = flushed
        publish(part, folder)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(checkpoint, "publish", published)
    train(tiny_run(tmp_path, train={"checkpoint_every": 2}), tmp_path / "out", show=False)
    for step in (2, 4):
        assert f'{{"step": {step}, "loss"' in on_disk[f"step-{step:08d}"]


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
