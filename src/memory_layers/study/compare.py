"""compare(): train all variants on the same tokens, in worker processes, and write the report.

Each run is a process of its own with its own folder. A comparison that was stopped goes on where
it was: finished runs are read back, unfinished ones resume from their checkpoints.
"""

import json
import multiprocessing
import os
import sys
import time
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from memory_layers.data.prepare import prepare_data
from memory_layers.provenance import commit, device_name, versions
from memory_layers.study.config import CompareConfig
from memory_layers.study.progress import CompareProgress
from memory_layers.study.report import write_report
from memory_layers.train.checkpoint import claim_folder
from memory_layers.train.config import ConfigError, RunConfig
from memory_layers.train.interrupt import StopSignal
from memory_layers.train.loop import Interrupted

SECONDS_BETWEEN_LOOKS = 0.5


def compare(
    config: CompareConfig, out: Path, *, workers: int | None = None, command: str = ""
) -> dict[str, Any]:
    """Run a comparison and write OUT/results.json, OUT/report.html and OUT/plots/.

    Args:
        config: Variants and seeds.
        out: Folder of the comparison. Each run has a folder in OUT/runs.
        workers: Runs at a time. None: one a core, as far as there are runs.
        command: For the report.

    Returns:
        The content of results.json. A run that failed is in it, with its error.

    Raises:
        ConfigError: `out` holds another comparison, or there are no facts to ask for.
        DataError: The data is malformed.
        Interrupted: Ctrl-C or SIGTERM. All runs have saved a checkpoint.
    """
    if config.base.data.facts is None:
        raise ConfigError("a comparison measures recall and needs data.facts. hint: facts: builtin")
    jobs = config.jobs()
    for name, (_, _, run) in jobs.items():
        claim_folder(out / "runs" / name, run)
    summaries = [prepare_data(run.data).summary for _, _, run in jobs.values()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(len(jobs), workers or cores or 1)
    _run_all(jobs, out / "runs", workers, max(1, (cores or 1) // workers))
    results = {
        "format_version": 1,
        "name": config.base.name,
        "command": command,
        "device": device_name(),
        "workers": workers,
        "versions": versions("torch", "numba", "transformers", "tokenizers"),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "facts": summaries[0],
        "runs": [
            _read_result(variant, seed, out / "runs" / name)
            for name, (variant, seed, _) in jobs.items()
        ],
    }
    part = out / "results.json.part"
    part.write_text(json.dumps(results, indent=1), "utf-8")
    os.replace(part, out / "results.json")
    write_report(results, out)
    return results


def _run_all(
    jobs: dict[str, tuple[str, int, RunConfig]], folder: Path, workers: int, threads: int
) -> None:
    """Keep `workers` processes busy until every job has ended."""
    context = multiprocessing.get_context("spawn")
    steps = {name: run.train.steps for name, (_, _, run) in jobs.items()}
    waiting = [name for name in jobs if not (folder / name / "result.json").is_file()]
    running: dict[str, BaseProcess] = {}
    stopping = False
    with StopSignal() as stop, CompareProgress(steps, folder) as progress:
        while waiting or running:
            while waiting and len(running) < workers and not stop.requested:
                name = waiting.pop(0)
                arguments = (name, jobs[name], folder / name, threads)
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
                fine = running.pop(name).exitcode == 0
                log = folder / name / "log.txt"
                progress.say(f"{name} done" if fine else f"{name} did not finish, see {log}")
            progress.look()
        if stop.requested:
            raise Interrupted(f"stopped, every run has saved a checkpoint in {folder}")


def _work(name: str, job: tuple[str, int, RunConfig], out: Path, threads: int) -> None:
    """Body of a worker process. What it prints goes to OUT/log.txt."""
    from transformers.utils import logging

    from memory_layers.study.measure import measure_run

    log = os.open(out / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    variant, seed, config = job
    measure_run(variant, seed, config, out)


def _read_result(variant: str, seed: int, folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    if path.is_file():
        return json.loads(path.read_text("utf-8"))
    log = (folder / "log.txt").read_text("utf-8").strip() if (folder / "log.txt").is_file() else ""
    last = log.splitlines()[-1] if log else "the process was killed"
    return {"variant": variant, "seed": seed, "status": "failed", "error": last}
