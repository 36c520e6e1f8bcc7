"""match_seconds(): set the steps of variants so that they are trained for the same time.

A step of each variant is timed as it will be trained: on its data, in processes of as many threads,
and as many processes at a time. They take the variants in turns, forward and back, so that what
else the machine does meets all of them. Next: train/step.py, which is timed.
"""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from typing import Any

import torch

from memory_layers.common.errors import UserError
from memory_layers.common.files import write_json
from memory_layers.common.progress import ProgressLine
from memory_layers.common.provenance import device_name
from memory_layers.data.prepare import prepare_data
from memory_layers.study.config import CompareConfig
from memory_layers.study.fields import changed_fields
from memory_layers.study.match import Matched, common_tokens
from memory_layers.study.runs import has_begun
from memory_layers.train.claim import read_object
from memory_layers.train.config import RunConfig
from memory_layers.train.interrupt import StopSignal
from memory_layers.train.step import time_steps

STEP_SECONDS = "step_seconds.json"
# Each process takes every variant so often, in turns.
ROUNDS = 4
# Steps of a turn: those that are not counted, then those that are.
WARMUP, TIMED = 3, 4
# What the time of a step depends on. Learning rates may change between measurement and training.
_TIMED_BY = {
    "optim": ("value_state", "bf16_rows", "value_dtype", "train_keys"),
    "train": ("batch_size", "accumulate", "seq_len", "precision", "gradient_checkpointing"),
}


def match_seconds(
    config: CompareConfig,
    matched: Matched,
    out: Path,
    workers: int,
    threads: int,
) -> Matched:
    """Make the variants that are matched by seconds take as long as their reference.

    Their steps are set so that they are expected to take as many seconds as the reference does
    with its own, and the steps between evaluations and between checkpoints in proportion.
    Schedules of learning rates reach their ends with the last step; a warm-up keeps its steps.

    A folder holds one measurement: it is in OUT/step_seconds.json, and what goes on there has the
    steps that it began with.

    Args:
        config: The comparison.
        matched: Its variants, of their final sizes. Their data is prepared.
        out: Folder of the comparison. The caller is alone in it.
        workers: Processes at a time.
        threads: Of each process.

    Returns:
        The variants with their steps, and the record with `seconds`: `target`, `off` (how far each
        is expected to be from it) and `step`, the seconds of a step of each.

    Raises:
        UserError: `out` holds runs and no measurement of these variants, or a variant has no step
            that could be timed.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    if "seconds" not in config.measures():
        return matched
    reference = config.references()["seconds"]
    runs = {
        name: run
        for name, run in matched.variants.items()
        if name == reference or "seconds" in config.match_of(name)
    }
    step = _read(out, runs)
    if step is None:
        times = measure_steps(runs, workers, threads)
        step = _write(out, runs, times, workers, threads)
    target = step[reference] * runs[reference].train.steps
    timed = {
        name: run if name == reference else _with_steps(run, target / step[name])
        for name, run in runs.items()
    }
    variants = {**matched.variants, **timed}
    record = {
        **matched.record,
        "tokens": common_tokens(variants),
        "seconds": {
            "reference": reference,
            "target": target,
            "off": {n: step[n] * run.train.steps / target - 1 for n, run in timed.items()},
            "step": step,
        },
    }
    return Matched(variants, record)


def _with_steps(run: RunConfig, wanted: float) -> RunConfig:
    """Return a run of another number of steps, with as many evaluations and checkpoints."""
    train, steps = run.train, max(1, round(wanted))
    every = {
        # Rounded up: rounded down, there would be one more just before the last.
        name: -(-getattr(train, name) * steps // train.steps)
        for name in ("eval_every", "checkpoint_every")
    }
    return replace(run, train=replace(train, steps=steps, **every))


def measure_steps(
    runs: Mapping[str, RunConfig], workers: int, threads: int
) -> dict[str, list[float]]:
    """Time steps of several runs in turns, in several processes at a time.

    Args:
        runs: By name. Their data is prepared.
        workers: Processes.
        threads: Of each process.

    Returns:
        Seconds of steps of each run, `workers * ROUNDS * TIMED` of them.

    Raises:
        UserError: A run has no step that could be timed.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    total = len(runs) * workers * ROUNDS * TIMED
    working: dict[Connection, BaseProcess] = {}
    with StopSignal(show=False) as stop, ProgressLine() as progress:
        try:
            for worker in range(workers):
                # Not all begin with the same variant, as in training.
                first = worker * len(runs) // workers
                end, process = _start([*runs.items()][first:] + [*runs.items()][:first], threads)
                working[end] = process
            while working:
                ready = wait(list(working), timeout=0.5)
                for end in [end for end in working if end in ready]:
                    try:
                        name, found = end.recv()
                    except EOFError:
                        _check_exit(working.pop(end))
                        continue
                    if isinstance(found, str):
                        raise UserError(
                            f"variants.{name}: its steps cannot be timed: {found}. "
                            "hint: mend the variant, or give it a `match:` without seconds"
                        )
                    times[name] += found
                    progress.update(sum(map(len, times.values())), total, "timing steps", name)
                if stop.requested:
                    raise KeyboardInterrupt("stopped while steps were timed, nothing has begun")
        finally:
            for process in working.values():
                process.terminate()
                process.join()
    return times


def _start(runs: Sequence[tuple[str, RunConfig]], threads: int) -> tuple[Connection, BaseProcess]:
    """Start a process that times runs, and return where it sends names and seconds."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    turns = [*runs, *reversed(runs)] * (ROUNDS // 2)
    process = context.Process(target=_work, args=(theirs, turns, threads), daemon=True)
    process.start()
    # The end of the process is then the end of what it sends.
    theirs.close()
    return ours, process


def _work(out: Connection, turns: Sequence[tuple[str, RunConfig]], threads: int) -> None:
    """Body of a process. For each turn it sends a name, and its seconds or why there are none."""
    # Ctrl-C reaches it too: it is the parent who ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    for name, run in turns:
        try:
            data = prepare_data(run.data, check=False)
            out.send((name, time_steps(run, data, WARMUP + TIMED)[WARMUP:]))
        except (RuntimeError, OSError, MemoryError, ValueError, ArithmeticError) as error:
            out.send((name, f"{type(error).__name__}: {error}"))
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _check_exit(process: BaseProcess) -> None:
    process.join()
    if code := process.exitcode:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise UserError(
            f"a process that timed steps ended with {how}, expected 0. "
            "hint: out of memory? Try fewer --workers"
        )


def _settings(run: RunConfig) -> dict[str, Any]:
    """Return what the time of a step depends on, as JSON has it."""
    values = json.loads(json.dumps(asdict(run)))
    kept = {name: values[name] for name in ("model", "memory", "moe")}
    parts = {
        part: {name: values[part][name] for name in names} for part, names in _TIMED_BY.items()
    }
    return {**kept, **parts}


def _read(out: Path, runs: Mapping[str, RunConfig]) -> dict[str, float] | None:
    """Return the seconds of a step of each run that were measured before. None: measure now."""
    path = out / STEP_SECONDS
    found = (read_object(path) or {}).get("variants")
    variants = found if isinstance(found, dict) else {}
    step, wrong = {}, []
    for name, run in runs.items():
        match variants.get(name):
            case {"seconds": float(seconds), "settings": dict(settings)} if seconds > 0:
                step[name] = seconds
                if changed := changed_fields(settings, _settings(run)):
                    wrong.append(f"{name} with another {changed[0]}")
            case _:
                wrong.append(f"none of {name}")
    if not wrong:
        return step
    if has_begun(out):
        raise UserError(
            f"{path}: must hold a measurement of the variants whose runs go on, got "
            f"{', '.join(wrong)}. hint: choose another --out, or delete the folder"
        )
    return None


def _write(
    out: Path,
    runs: Mapping[str, RunConfig],
    times: Mapping[str, Sequence[float]],
    workers: int,
    threads: int,
) -> dict[str, float]:
    """Write OUT/step_seconds.json, and return the seconds of a step of each run: the median."""
    step = {name: median(seconds) for name, seconds in times.items()}
    variants = {
        name: {
            "seconds": step[name],
            "all": [round(second, 6) for second in times[name]],
            "settings": _settings(run),
        }
        for name, run in runs.items()
    }  # fmt: skip
    about = {"device": device_name(), "workers": workers, "threads": threads}
    write_json(out / STEP_SECONDS, {**about, "variants": variants})
    return step
