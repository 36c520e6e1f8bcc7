"""Worker processes of a comparison: what they compute, how they fail and how they stop."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from tests_support import untimed, write_study

from memory_layers.cli import main
from memory_layers.common.locks import alone_in
from memory_layers.common.provenance import device_name
from memory_layers.study import compare as study_compare
from memory_layers.study import runs as study_runs
from memory_layers.study.outcome import recorded_failures
from memory_layers.study.runs import write_results
from memory_layers.train.config import ModelConfig, RunConfig, TrainConfig

MEMORY = {"layers": [1], "sub_keys": 8, "top_k": 4, "heads": 2}


def write_comparison(folder: Path, **changes: Any) -> Path:
    values = {
        "optim": {"warmup_steps": 2, "value_lr": 0.02},
        "train": {"steps": 6, "batch_size": 2, "seq_len": 32, "eval_every": 3},
        "variants": {"memory": {"memory": MEMORY}},
        **changes,
    }
    return write_study(folder / "compare.yaml", **values)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_results_of_runs_that_found_no_gpu_are_written(tmp_path: Path) -> None:
    run = RunConfig(name="x", model=ModelConfig(), train=TrainConfig(device="cuda"))
    path = tmp_path / "results.json"
    write_results({"a": ("dense", 0, run)}, tmp_path, path, {}, 1, complete=True)
    assert json.loads(path.read_text())["device"] == device_name()


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
    assert alone["seconds"] > 0
    assert untimed(alone) == untimed(runs[1])
    assert results["commit"] is None or len(results["commit"]) >= 7
    assert results["command"].startswith("memory-layers compare ")
    assert {"torch", "numba", "transformers", "python"} <= set(results["versions"])


class FakeProcess:
    """A worker that has ended as soon as it is started, in the way that its seed stands for."""

    ends: ClassVar[list[Callable[[Path], int]]] = []

    def __init__(self, target: object, args: tuple, name: str) -> None:
        del target
        self._job, self._out, _ = args
        self.name = name
        self.exitcode: int | None = None

    def start(self) -> None:
        self.exitcode = self.ends[self._job[1]](self._out)

    def is_alive(self) -> bool:
        return False


def raising(error: BaseException) -> Callable[[Path], int]:
    def end(out: Path) -> int:
        with suppress(type(error)), recorded_failures(out):
            raise error
        return 1

    return end


def log(text: str) -> Callable[[Path], int]:
    def end(out: Path) -> int:
        (out / "log.txt").write_text(text)
        return 1

    return end


def killed(number: int) -> Callable[[Path], int]:
    def end(out: Path) -> int:
        lines = '{"step": 3, "loss": 2.5}\n{"step": 4, "tokens": 9}\n{"step": 5, "lo'
        (out / "metrics.jsonl").write_text(lines)
        return -number

    return end


ENDS = [
    (
        raising(FloatingPointError("the loss became nan at step 3")),
        "diverged",
        "FloatingPointError: the loss",
    ),
    (raising(MemoryError()), "out_of_memory", "MemoryError"),
    (raising(torch.OutOfMemoryError("CUDA out of memory")), "out_of_memory", "CUDA out of memory"),
    (
        raising(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")),
        "out_of_memory",
        "can't allocate memory",
    ),
    (raising(OSError(errno.ENOMEM, "Cannot allocate memory")), "out_of_memory", "OSError"),
    (raising(KeyboardInterrupt("stopped after step 3")), "killed", "stopped after step 3"),
    (killed(signal.SIGKILL), "killed", "killed by SIGKILL. hint: out of memory?"),
    (killed(signal.SIGSEGV), "killed", "killed by SIGSEGV"),
    (raising(RuntimeError("shapes differ")), "failed", "RuntimeError: shapes differ"),
    (log("Traceback:\n  File ...\nKeyError: 3\n"), "failed", "KeyError: 3"),
    (lambda _: 5, "failed", "exit code 5 and said nothing"),
]


def test_runs_that_did_not_finish_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(study_runs, "SECONDS_BETWEEN_LOOKS", 0)
    context = SimpleNamespace(Process=FakeProcess)
    monkeypatch.setattr(study_runs.multiprocessing, "get_context", lambda _: context)
    monkeypatch.setattr(FakeProcess, "ends", [end for end, _, _ in ENDS])
    written = []

    def write(results: dict, out: Path) -> None:
        written.append((results, json.loads((out / "results.json").read_text())))

    monkeypatch.setattr(study_compare, "write_report", write)
    config = write_comparison(tmp_path, seeds=list(range(len(ENDS))))
    out = tmp_path / "out"
    assert main(["compare", str(config), "--out", str(out), "--workers", "1"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    results = json.loads((out / "results.json").read_text())
    assert written == [(results, results)]
    assert results["complete"]
    assert [run["seed"] for run in results["runs"]] == list(range(len(ENDS)))
    for run, (_, status, error) in zip(results["runs"], ENDS, strict=True):
        assert run["status"] == status
        assert error in run["error"]
        reached = (4, 2.5) if "killed by" in error else (0, None)
        assert (run["steps"], run["last_loss"]) == reached

    # What did not finish runs again, and an earlier end is forgotten.
    def finish(out: Path) -> int:
        seen.append(json.loads((out.parent.parent / "results.json").read_text()))
        result = {"variant": "memory", "seed": len(seen) - 1, "status": "ok"}
        (out / "result.json").write_text(json.dumps(result))
        return 0

    seen: list[dict] = []
    monkeypatch.setattr(FakeProcess, "ends", [finish] * len(ENDS))
    assert main(["compare", str(config), "--out", str(out), "--workers", "1"]) == 0
    second, third = seen[1], seen[2]
    assert not second["complete"]
    assert [run["status"] for run in second["runs"]] == ["ok", *["unfinished"] * (len(ENDS) - 1)]
    assert [run["status"] for run in third["runs"]][:3] == ["ok", "ok", "unfinished"]
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert {run["status"] for run in runs} == {"ok"}


@contextmanager
def started(
    config: Path, out: Path, wait_for: str | None = None
) -> Iterator[tuple[subprocess.Popen, list[Path]]]:
    """Start a comparison of two runs, and wait until both have written something.

    With the name of a file: until the first run has it.
    """
    metrics = [out / "runs" / f"memory-seed{seed}" / "metrics.jsonl" for seed in (0, 1)]
    waited = [metrics[0].with_name(wait_for)] if wait_for else metrics
    with subprocess.Popen(
        [sys.executable, "-m", "memory_layers", "compare", str(config), "--out", str(out),
         "--workers", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and process.poll() is None:
                if all(path.is_file() and (wait_for or path.stat().st_size) for path in waited):
                    break
                time.sleep(0.05)
            yield process, [path.parent for path in metrics]
        finally:
            # Whatever is left of it, should a test fail.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


ENDLESS = {"steps": 10**7, "batch_size": 2, "seq_len": 32, "log_every": 1, "eval_every": 0}


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals to a process group are POSIX")
def test_ctrl_c_saves_every_run(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the parent and to all workers."""
    config = write_comparison(tmp_path, seeds=[0, 1], train=ENDLESS)
    with started(config, tmp_path / "out") as (process, runs):
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "every run has saved a checkpoint" in errors
    assert "run the same command again" in errors
    for run in runs:
        assert len(list((run / "checkpoints").iterdir())) == 1
        assert "KeyboardInterrupt: stopped after step" in (run / "log.txt").read_text()
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals to a process group are POSIX")
def test_ctrl_c_ends_a_wait_for_a_worker_that_was_left(tmp_path: Path) -> None:
    config = write_comparison(tmp_path, train=ENDLESS)
    run = tmp_path / "out" / "runs" / "memory-seed0"
    with alone_in(run), started(config, tmp_path / "out", wait_for="log.txt") as (process, _):
        # Into the wait.
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "KeyboardInterrupt: stopped, another process works in" in (run / "log.txt").read_text()


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="SIGKILL is POSIX")
def test_workers_of_a_killed_comparison_save_and_end(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = write_comparison(tmp_path, seeds=[0, 1], train=ENDLESS)
    typed = ["compare", str(config), "--out", str(tmp_path / "out")]
    with started(config, tmp_path / "out") as (process, runs):
        assert main(typed) == 2
        said = capsys.readouterr().err
        assert f"out: another process works there, expected none, got process {process.pid}" in said
        process.kill()
        process.wait()
        for run in runs:
            with alone_in(run, seconds=60):
                assert len(list((run / "checkpoints").iterdir())) == 1
        # The pipe ends when the last worker has.
        process.communicate(timeout=60)
        for run in runs:
            assert "KeyboardInterrupt: stopped after step" in (run / "log.txt").read_text()

    # What is there goes on with what it was begun on, and with nothing else.
    facts = tmp_path / "facts" / "facts.jsonl"
    facts.write_text(facts.read_text().replace("X37", "X38"))
    assert main(typed) == 2
    said = capsys.readouterr().err
    assert "memory-seed0 holds a run on other data: data.facts: facts.jsonl has other con" in said
