"""Worker processes of a comparison: what they compute, how they fail and how they stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tests_support import SHAPE, write_facts

from memory_layers.cli import main
from memory_layers.study import compare as study_compare

MEMORY = {"layers": [1], "sub_keys": 8, "top_k": 4, "heads": 2}


def write_comparison(folder: Path, **changes: object) -> Path:
    if not (folder / "facts").is_dir():
        write_facts(folder / "facts")
    values = {
        "name": "x",
        "model": SHAPE,
        "data": {
            "facts": str(folder / "facts"),
            "vocab_size": 300,
            "cache_dir": str(folder / "cache"),
        },
        "optim": {"warmup_steps": 2, "value_lr": 0.02},
        "train": {"steps": 6, "batch_size": 2, "seq_len": 32, "eval_every": 3},
        "variants": {"memory": {"memory": MEMORY}},
        **changes,
    }
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_number_of_workers_changes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    # A worker has cores / workers threads, and sums depend on their number: one for each here.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    config = write_comparison(tmp_path, seeds=[0, 1])
    two = tmp_path / "two"
    assert main(["compare", str(config), "--out", str(two), "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    assert str(two / "results.json") in printed
    assert str(two / "report.html") in printed
    runs = {run["seed"]: run for run in json.loads((two / "results.json").read_text())["runs"]}
    assert runs[0]["answer_nll"] != runs[1]["answer_nll"]

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    config = write_comparison(tmp_path, seeds=[1])
    one = tmp_path / "one"
    assert main(["compare", str(config), "--out", str(one), "--workers", "1"]) == 0
    results = json.loads((one / "results.json").read_text())
    (alone,) = results["runs"]
    assert alone.pop("seconds") > 0
    assert alone == {name: value for name, value in runs[1].items() if name != "seconds"}
    assert results["commit"] is None or len(results["commit"]) >= 7
    assert results["command"].startswith("memory-layers compare ")
    assert {"torch", "numba", "transformers", "python"} <= set(results["versions"])


def test_runs_that_did_not_finish_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run_all(jobs: dict, folder: Path, *_: object) -> None:
        """One worker printed a traceback, the other was killed before it could."""
        log = "Traceback:\n  File ...\nDivergedError: the loss became nan at step 3"
        (folder / next(iter(jobs)) / "log.txt").write_text(log)

    monkeypatch.setattr(study_compare, "_run_all", run_all)
    config = write_comparison(tmp_path, seeds=[0, 1])
    out = tmp_path / "out"
    assert main(["compare", str(config), "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert "failed" in captured.out
    assert "Traceback" not in captured.err
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert [run["status"] for run in runs] == ["failed", "failed"]
    assert runs[0]["error"] == "DivergedError: the loss became nan at step 3"
    assert runs[1]["error"] == "the process was killed"
    assert "the loss became nan" in (out / "report.html").read_text()


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals to a process group are POSIX")
def test_ctrl_c_saves_every_run(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the parent and to all workers."""
    config = write_comparison(
        tmp_path,
        seeds=[0, 1],
        train={"steps": 10**6, "batch_size": 2, "seq_len": 32, "log_every": 1, "eval_every": 0},
    )
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "memory_layers", "compare", str(config), "--out", str(out),
         "--workers", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    metrics = [out / "runs" / f"memory-seed{seed}" / "metrics.jsonl" for seed in (0, 1)]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if all(path.is_file() and path.stat().st_size for path in metrics):
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "every run has saved a checkpoint" in errors
    assert "run the same command again" in errors
    for path in metrics:
        assert len(list((path.parent / "checkpoints").iterdir())) == 1
        assert "Interrupted: stopped after step" in (path.parent / "log.txt").read_text()
    assert not (out / "results.json").exists()
