"""Many runs in worker processes: each is a process of its own with its own folder.

What was stopped goes on where it was: finished runs are left alone, unfinished ones resume from
their checkpoints. Next: measure.py, what a run records, and outcome.py, how it may end.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from memory_layers.common.progress import ProgressLine
from memory_layers.study.outcome import (
    FAILURE,
    LOG,
    RESULT,
    read_metrics,
    record_exit,
    recorded_failures,
)
from memory_layers.train.config import RunConfig
from memory_layers.train.interrupt import StopSignal

SECONDS_BETWEEN_LOOKS = 0.5

# Variant, seed and configuration.
Job = tuple[str, int, RunConfig]


def run_all(
    jobs: Mapping[str, Job],
    folder: Path,
    workers: int,
    threads: int,
    ended: Callable[[str], object] | None = None,
) -> None:
    """Keep `workers` processes busy until every job has ended.

    Args:
        jobs: By the name of the run's folder, in the order of their start.
        folder: Where the folders of the runs are.
        workers: Processes at a time.
        threads: Of each process.
        ended: Called with the name of a run that has ended, well or not.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM. All runs have saved a checkpoint.
    """
    context = multiprocessing.get_context("spawn")
    steps = {name: run.train.steps for name, (_, _, run) in jobs.items()}
    waiting = [name for name in jobs if not (folder / name / RESULT).is_file()]
    for name in waiting:
        (folder / name / FAILURE).unlink(missing_ok=True)
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
                fine = record_exit(folder / name, running.pop(name).exitcode)
                log = folder / name / LOG
                progress.say(f"{name} done" if fine else f"{name} did not finish, see {log}")
                # A run that was asked to stop has not ended: it goes on when started again.
                if ended is not None and not stopping:
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
        devices = {run.train.device for _, _, run in jobs.values()}
        on_gpu = "cuda" in devices or ("auto" in devices and torch.cuda.is_available())
        asked = 1 if on_gpu else max(1, cores() // threads)
    return min(len(jobs), asked)


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _state(folder: Path) -> tuple[int, str]:
    """Return the last step of a run and what is known about it."""
    step, loss, recall = 0, "", ""
    for line in read_metrics(folder):
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

    log = os.open(out / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    variant, seed, config = job
    with recorded_failures(out):
        measure_run(variant, seed, config, out)
