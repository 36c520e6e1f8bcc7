"""The runs of a study in worker processes: each is a process of its own with its own folder.

What was stopped goes on where it was: finished runs are left alone, unfinished ones resume from
their checkpoints. Next: measure.py, what a run records, and outcome.py, how it may end.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from memory_layers.common.errors import UserError
from memory_layers.common.files import write_json
from memory_layers.common.locks import alone_in
from memory_layers.common.progress import ProgressLine
from memory_layers.common.provenance import commit, device_name, versions
from memory_layers.data.config import DataConfig
from memory_layers.data.prepare import PreparedData, prepare_data
from memory_layers.study import outcome
from memory_layers.train.claim import check_folder, claim_folder
from memory_layers.train.config import RunConfig
from memory_layers.train.folders import has_saved
from memory_layers.train.interrupt import StopSignal
from memory_layers.train.metrics import METRICS, read_lines

# Folders in that of a study: its runs, and those of a sweep of learning rates before them.
RUNS, SWEEP = "runs", "sweep"
SECONDS_BETWEEN_LOOKS = 0.5
# For a worker of a comparison that was killed: it ends after its step.
SECONDS_FOR_ORPHANS = 300.0

# Variant, seed and configuration.
Job = tuple[str, int, RunConfig]


def has_begun(out: Path) -> bool:
    """Tell whether any run in the folder of a study has saved something, one of a sweep too."""
    return any(has_saved(run) for part in (RUNS, SWEEP) for run in (out / part).glob("*"))


def prepare_runs(runs: Iterable[RunConfig], study: str) -> dict[DataConfig, PreparedData]:
    """Prepare the data of all runs, once for each, however many runs share it.

    Args:
        runs: All runs.
        study: What they belong to, for the error.

    Raises:
        UserError: There are no facts to ask for, or the data is malformed.
    """
    different = dict.fromkeys(run.data for run in runs)
    if any(data.facts is None for data in different):
        raise UserError(f"{study} measures recall and needs data.facts. hint: facts: builtin")
    with ProgressLine() as line:
        return {data: prepare_data(data, line.update) for data in different}


def run_jobs(
    jobs: Mapping[str, Job],
    prepared: Mapping[DataConfig, PreparedData],
    out: Path,
    about: Mapping[str, Any],
    workers: int,
    threads: int,
    *,
    order: Sequence[str] = (),
    conclude: Callable[[list[dict[str, Any]]], Mapping[str, Any]] = lambda runs: {"runs": runs},
) -> dict[str, Any]:
    """Train the runs of a study, and write OUT/results.json whenever one has ended.

    Args:
        jobs: By the name of the run's folder in OUT/runs, in the order of the results.
        prepared: The data of all runs.
        out: Folder of the study. The caller is alone in it.
        about: What results.json says about the study.
        workers: Processes at a time.
        threads: Of each process.
        order: Names of the jobs in the order of their start. Without it: that of the results.
        conclude: Returns from the entries of all runs what results.json holds of them.

    Returns:
        The content of results.json, with `complete` true.

    Raises:
        UserError: A folder holds another run, or one on other data.
        KeyboardInterrupt: Ctrl-C or SIGTERM. All runs have saved a checkpoint.
    """
    claim_runs(jobs, prepared, out / RUNS)
    write = partial(
        write_results, jobs, out / RUNS, out / "results.json", about, workers, conclude=conclude
    )
    ordered = {name: jobs[name] for name in order or jobs}
    run_all(ordered, out / RUNS, workers, threads, lambda _name: write(complete=False))
    return write(complete=True)


def write_results(
    jobs: Mapping[str, Job],
    folder: Path,
    path: Path,
    about: Mapping[str, Any],
    workers: int,
    *,
    complete: bool,
    conclude: Callable[[list[dict[str, Any]]], Mapping[str, Any]] = lambda runs: {"runs": runs},
) -> dict[str, Any]:
    """Write results.json from the folders of runs, and return its content.

    Args:
        jobs: As in run_jobs.
        folder: Where the folders of the runs are.
        path: The file.
        about: As in run_jobs.
        workers: As in run_jobs.
        complete: All runs have ended.
        conclude: As in run_jobs.
    """
    runs = [
        outcome.read_outcome(variant, seed, folder / name)
        for name, (variant, seed, _) in jobs.items()
    ]
    results = {
        "format_version": 1,
        "device": _device(jobs),
        "workers": workers,
        "versions": versions("torch", "numba", "triton", "transformers", "tokenizers"),
        "commit": commit(),
        **about,
        "complete": complete,
        **conclude(runs),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    write_json(path, results)
    return results


def claim_runs(
    jobs: Mapping[str, Job], prepared: Mapping[DataConfig, PreparedData], folder: Path
) -> None:
    """Take the folders of runs, all of them or none.

    Args:
        jobs: By the name of the run's folder.
        prepared: The data of all runs.
        folder: Where the folders of the runs are.

    Raises:
        UserError: A folder holds another run, or one on other data.
    """
    for name, (_, _, run) in jobs.items():
        check_folder(folder / name, run, prepared[run.data])
    with ProgressLine() as line:
        for name, (_, _, run) in jobs.items():
            for told in claim_folder(folder / name, run, prepared[run.data]):
                line.say(told)


def run_all(
    jobs: Mapping[str, Job],
    folder: Path,
    workers: int,
    threads: int,
    ended: Callable[[str], object],
) -> None:
    """Keep `workers` processes busy until every job has ended: see run_jobs.

    Args:
        jobs: In the order of their start.
        folder: Where the folders of the runs are.
        workers: As in run_jobs.
        threads: As in run_jobs.
        ended: Called with the name of a run that has ended, well or not.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM. All runs have saved a checkpoint.
    """
    context = multiprocessing.get_context("spawn")
    steps = {name: run.train.steps for name, (_, _, run) in jobs.items()}
    waiting = [name for name in jobs if outcome.read_result(folder / name) is None]
    for name in waiting:
        (folder / name / outcome.FAILURE).unlink(missing_ok=True)
    running: dict[str, BaseProcess] = {}
    stopping = False
    with StopSignal() as stop, ProgressLine() as progress:
        while waiting or running:
            while waiting and len(running) < workers and not stop.requested:
                name = waiting.pop(0)
                arguments = (jobs[name], folder / name, threads)
                running[name] = context.Process(target=_work, args=arguments, name=name)
                running[name].start()
            if stop.requested and not stopping:
                # Once: a second signal would keep a worker from saving its checkpoint.
                stopping = True
                waiting.clear()
                for process in running.values():
                    process.terminate()
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for name in [name for name, process in running.items() if not process.is_alive()]:
                fine = outcome.record_exit(folder / name, running.pop(name).exitcode)
                log = folder / name / outcome.LOG
                progress.say(f"{name} done" if fine else f"{name} did not finish, see {log}")
                # A run that was asked to stop has not ended: it goes on when started again.
                if not stopping:
                    ended(name)
            done = {name: _state(folder / name) for name in steps}
            status = "  |  ".join(f"{name} {done[name][1]}" for name in running if done[name][0])
            total = sum(step for step, _ in done.values())
            progress.update(total, sum(steps.values()), "all runs", status)
        if stop.requested:
            raise KeyboardInterrupt(f"stopped, every run has saved a checkpoint in {folder}")


def workers_for(jobs: Mapping[str, Job], asked: int | None, threads: int = 1) -> int:
    """Return how many runs to keep going at a time.

    Args:
        jobs: All runs.
        asked: By the user. None: one at a time on a GPU, else as many as the cores have threads.
        threads: Of each run.
    """
    if asked is None:
        asked = 1 if _on_gpu(jobs) else max(1, cores() // threads)
    return min(len(jobs), asked)


def _on_gpu(jobs: Mapping[str, Job]) -> bool:
    devices = {run.train.device for _, _, run in jobs.values()}
    return "cuda" in devices or ("auto" in devices and torch.cuda.is_available())


def _device(jobs: Mapping[str, Job]) -> str:
    """Return what runs train on, for results.json."""
    # Runs that ask for a GPU where there is none have failed, and are written down, too.
    if not _on_gpu(jobs) or not torch.cuda.is_available():
        return device_name()
    return f"{torch.cuda.get_device_name()}, {device_name()}"


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _state(folder: Path) -> tuple[int, str]:
    """Return the last step of a run and what is known about it."""
    step, loss, recall = 0, "", ""
    for line in read_lines(folder / METRICS):
        step = line["step"]
        if "loss" in line:
            loss = f"loss {line['loss']:.2f}"
        if line.get("recall", {}).get("question_heldout") is not None:
            recall = f"held-out recall {line['recall']['question_heldout']:.2f}"
    return step, f"step {step} {loss} {recall}".rstrip()


def _work(job: Job, out: Path, threads: int) -> None:
    """Body of a worker process. What it prints goes to OUT/log.txt."""
    from transformers.utils import logging

    from memory_layers.study.measure import measure_run

    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    log = os.open(out / outcome.LOG, flags, 0o666)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    # To the end of the process: a signal that comes when the run has saved must not keep it from
    # writing why it ended.
    stop = StopSignal(show=False)
    stop.__enter__()
    threading.Thread(target=_follow_parent, args=(stop,), daemon=True).start()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    variant, seed, config = job
    with outcome.recorded_failures(out):
        _wait_for_orphan(out, stop)
        measure_run(variant, seed, config, out)


def _wait_for_orphan(out: Path, stop: StopSignal) -> None:
    """Wait until nobody works in the folder of a run, or until this process is to stop."""
    until = time.monotonic() + SECONDS_FOR_ORPHANS
    while not stop.requested:
        try:
            with alone_in(out, seconds=SECONDS_BETWEEN_LOOKS):
                return
        except UserError:
            if time.monotonic() >= until:
                raise
    raise KeyboardInterrupt(f"stopped, another process works in {out}")


def _follow_parent(stop: StopSignal) -> None:
    """Wait until the parent dies, and then ask this process to stop, unless it was asked to."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if not stop.requested:
            signal.raise_signal(signal.SIGTERM)
