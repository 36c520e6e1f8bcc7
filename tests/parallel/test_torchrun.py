"""Runs that a user starts with torchrun: their mistakes, ranks that die or hang, other sizes."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_support import SHAPE, write_facts

from memory_layers.cli import main
from memory_layers.evaluate.trained import load_trained
from memory_layers.train.export import export_checkpoint
from memory_layers.train.folders import list_checkpoints

SCRIPT = Path(__file__).with_name("faulty_train.py")


@dataclass(frozen=True)
class Ended:
    """A run that has ended.

    Attributes:
        code: Exit code of torchrun.
        text: What torchrun and all ranks printed.
        at: Time of the end.
    """

    code: int
    text: str
    at: float


def torchrun(ranks: int, *arguments: str, faults: str = "", restarts: int = 0) -> Ended:
    """Train as a user would, and return when all is over."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    sizes = ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    what = [str(SCRIPT)] if faults else ["-m", "memory_layers", "train"]
    process = subprocess.Popen(
        [*launcher, *sizes, *what, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "FAULTS": faults, "COLUMNS": "400"},
    )
    try:
        text, _ = process.communicate(timeout=280)
    finally:
        process.terminate()
        process.wait()
    return Ended(process.returncode, text, time.time())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("config")
    values = {
        "name": "x",
        "model": SHAPE,
        "memory": {"layers": [1], "sub_keys": 8, "top_k": 4, "heads": 2},
        "data": {
            "facts": str(write_facts(folder / "facts")),
            "vocab_size": 300,
            "cache_dir": str(folder / "cache"),
        },
        "optim": {"warmup_steps": 2, "value_lr": 0.02},
        "train": {
            "steps": 6, "batch_size": 12, "seq_len": 32, "log_every": 1, "checkpoint_every": 2,
        },
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(json.dumps(values))
    return str(path)


@pytest.fixture(scope="module")
def mistaken(config: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A run on two ranks after two mistakes. Nothing interrupts it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, torchrun(2, config, "--out", str(out), faults="mistakes")


@pytest.fixture(scope="module")
def whole(mistaken: tuple[Path, Ended]) -> Path:
    assert mistaken[1].code == 0, mistaken[1].text
    return mistaken[0]


@pytest.fixture(scope="module")
def stopped(config: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A run on two ranks whose torchrun gets SIGINT before step 3."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    return out, torchrun(2, config, "--out", str(out), faults="stop")


def metrics_of(out: Path) -> list[dict[str, Any]]:
    """The lines of a run, without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    return load_trained(model)[0].state_dict()


def same_weights(one: Path, other: Path, budget: float) -> None:
    expected = weights_of(one)
    for name, weights in weights_of(other).items():
        torch.testing.assert_close(weights, expected[name], rtol=0, atol=budget)


def test_one_message_for_sizes_that_do_not_fit(mistaken: tuple[Path, Ended]) -> None:
    _, ended = mistaken
    errors = [line for line in ended.text.splitlines() if "error:" in line]
    assert len(errors) == 2
    assert errors[0].startswith("error: parallel: replicate * shard * tensor must be the number")
    assert errors[1].startswith("error: train.batch_size must be a multiple of")
    assert all("hint: " in error for error in errors)
    assert len(re.findall("rank [01] would end with 2", ended.text)) == 4
    assert "Traceback" not in ended.text


def test_torchrun_goes_on_after_a_full_disk_and_a_death_in_a_save(
    config: str, whole: Path, tmp_path: Path
) -> None:
    ended = torchrun(2, config, "--out", str(tmp_path / "run"), faults="full,kill", restarts=2)
    assert ended.code == 0, ended.text
    for rank in (0, 1):
        (full,) = re.findall(rf"rank {rank}: error: could not write .*", ended.text)
        assert "rank 1: [Errno 28] No space left on device" in full
        assert "hint: free disk space and run the same command again" in full
    (lost,) = re.findall("rank 0: error: lost contact.*", ended.text)
    assert re.search(r"in step [456]: rank 1 last seen at the (start|end) of step [456], ", lost)
    assert "hint: run the same command again" in lost
    assert "resuming after step 2" in ended.text
    assert "Traceback" not in ended.text
    assert metrics_of(tmp_path / "run") == metrics_of(whole)
    same_weights(whole / "model", tmp_path / "run" / "model", 0)


@pytest.mark.usefixtures("whole")  # which has prepared the data
def test_a_rank_that_hangs_is_named(config: str, tmp_path: Path) -> None:
    ended = torchrun(
        2, config, "--out", str(tmp_path / "run"), "--parallel.timeout", "5", faults="hang"
    )
    assert ended.code == 1
    (lost,) = re.findall("rank 0: error: lost contact.*", ended.text)
    assert "in step 3: rank 1 last seen at the end of step 2" in lost
    assert re.search("rank 1: ended in step 2: another rank has lost contact", ended.text)
    assert ended.at - float(re.findall("hanging (.*)", ended.text)[0]) < 25
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000002"]


def test_a_signal_to_torchrun_stops_all_ranks_after_one_step(
    stopped: tuple[Path, Ended], tmp_path: Path
) -> None:
    out, ended = stopped
    assert ended.code != 0
    assert ended.text.count("to go on, run the same command again") == 1, ended.text
    assert ended.text.count("stopping after this step") == 1
    newest = list_checkpoints(out)[-1]
    assert f"stopped after step {int(newest.name[-1])}, saved in" in ended.text
    export_checkpoint(newest, tmp_path / "model")
    assert weights_of(tmp_path / "model")


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_stopped_run_goes_on_with_another_number_of_ranks(
    config: str, stopped: tuple[Path, Ended], whole: Path, tmp_path: Path, ranks: int
) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped[0], out)
    if ranks == 1:
        assert main(["train", config, "--out", str(out)]) == 0
    else:
        ended = torchrun(ranks, config, "--out", str(out))
        assert ended.code == 0, ended.text
    ours, expected = metrics_of(out), metrics_of(whole)
    for line, other in zip(ours, expected, strict=True):
        if "loss" in other:
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-6)
    same_weights(whole / "model", out / "model", 1e-6)
