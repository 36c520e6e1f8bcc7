"""Train the headline on one GPU within a time: python gpu.py DATA OUT --size d384 --seconds 520.

DATA is what pack.py wrote. Of packages it needs torch, triton, numpy, transformers and what these
need, and `src` of this repository on PYTHONPATH.

One variant after the other: rates are tried on DATA/sweep, then it is trained on DATA/data with the
best. OUT/results.json is written whenever a run has ended. The same command goes on where the time
ended: with the checkpoints in RUNS, and where these are gone with the runs in OUT/results.json.
"""

import argparse
import gc
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from transformers.utils import logging

from memory_layers.common.errors import UserError
from memory_layers.common.files import remove, write_json
from memory_layers.common.provenance import commit
from memory_layers.common.reader import read_yaml
from memory_layers.common.text_files import read_json
from memory_layers.data.prepare import PreparedData, read_prepared
from memory_layers.data.tokenizer import vocabulary_size
from memory_layers.data.tokens import TokenStream
from memory_layers.study.config import CompareConfig, load_compare, tokens_of, with_seed
from memory_layers.study.facts_asked import shared_exposure
from memory_layers.study.fields import merge_fields
from memory_layers.study.flops import forward_flops, shape_of
from memory_layers.study.measure import measure_run
from memory_layers.study.outcome import FAILURE, read_result, recorded_failures
from memory_layers.study.rates import Sweep, with_rates
from memory_layers.study.runs import Job, write_results
from memory_layers.study.tune import find_rates
from memory_layers.train.config import RunConfig
from memory_layers.train.folders import RESULT
from memory_layers.train.interrupt import StopSignal

STARTED = time.monotonic()
# Of the steps of a run.
WARMUP, EVALUATIONS = 0.1, 4
# Questions of each kind that runs at a rate that is tried are asked: asking takes time, too.
TRIED_ITEMS = 1000


class Headline:
    """The runs of one size of base.

    Args:
        config: Variants, seeds and rates to try.
        packed: What pack.py wrote, unpacked.
        out: Gets results.json.
        runs: Gets the folders of runs.
        stop: Asks the runs to stop.
        steps: Of a run. None: an epoch.
    """

    def __init__(
        self,
        config: CompareConfig,
        packed: Path,
        out: Path,
        runs: Path,
        stop: StopSignal,
        steps: int | None,
    ) -> None:
        self._config, self._out, self._runs, self._stop = config, out, runs, stop
        self._steps = steps
        self._data, self._other = (read_prepared(packed / name) for name in ("data", "sweep"))
        about = read_json(packed / "about.json")
        self._variants = {
            name: _with_steps(run, self._data, steps) for name, run in config.variants().items()
        }
        earlier = self._earlier()
        self._found = earlier.get("runs", [])
        self._rates: dict[str, Any] = {
            "fields": list(config.sweep.values) if config.sweep else [],
            "seed": config.sweep.seed if config.sweep else 0,
            "variants": (earlier.get("rates") or {}).get("variants", {}),
        }
        self._about = {
            "name": config.base.name,
            "command": "python " + " ".join(sys.argv),
            **shared_exposure(self._variants.values(), {config.base.data: self._data}),
            "facts": self._data.summary,
            "content": dict(self._data.content),
            "guessers": about["guessers"],
            "kinds": config.kinds(),
            "match": self._matched(),
            "commit": commit() or about["commit"],
        }

    def train(self) -> None:
        """Train all variants, the first seed of all first.

        Raises:
            KeyboardInterrupt: It was asked to stop. The run that was going on has a checkpoint.
        """
        for seed in self._config.seeds:
            for name in self._variants:
                if self._config.sweep is not None:
                    self._sweep(name, self._config.sweep)
                job = (name, seed, with_seed(self._variants[name], seed))
                self._take_over(job)
                self._train(self._runs / _folder(job), job, self._data)
                self._write()
        self._write(complete=True)

    def _sweep(self, name: str, sweep: Sweep) -> None:
        """Set a variant to its best rates, those in the results of before where they are there."""
        folder = self._runs / "sweep"
        if name not in self._rates["variants"]:
            run = _with_steps(with_seed(self._variants[name], sweep.seed), self._other, self._steps)
            train = replace(run.train, eval_every=0, final_items=TRIED_ITEMS)
            run = replace(run, train=train)

            def train_all(jobs: Mapping[str, Job]) -> None:
                for title, job in jobs.items():
                    self._train(folder / title, job, self._other)

            _, record = find_rates({name: run}, sweep, folder, train_all)
            self._rates["variants"] |= record["variants"]
            self._write()
        best = self._rates["variants"][name]["best"]
        self._variants[name] = with_rates(self._variants[name], tuple(best.items()))
        say(f"{name}: best rates {best}")

    def _train(self, folder: Path, job: Job, data: PreparedData) -> None:
        """Train and measure a run, unless it has been. What ends it early is recorded."""
        variant, seed, run = job
        if read_result(folder) is not None:
            return
        if self._stop.requested:
            raise KeyboardInterrupt(f"stopped before {folder.name}")
        say(f"{folder.name}: {run.train.steps} steps")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILURE).unlink(missing_ok=True)
        try:
            with recorded_failures(folder):
                measure_run(variant, seed, run, folder, show=True, data=data)
        except UserError:
            raise
        except (RuntimeError, OSError, MemoryError, ValueError, ArithmeticError) as error:
            say(f"{folder.name} did not finish: {error}")
        for kept in ("checkpoints", "model"):
            remove(folder / kept)
        gc.collect()
        torch.cuda.empty_cache()
        if result := read_result(folder):
            recall = result["recall"]["question_heldout"]
            say(f"{folder.name}: recall of held-out questions {recall:.4f}, {result['seconds']} s")

    def _earlier(self) -> dict[str, Any]:
        """Return the results that are in OUT, or nothing.

        Raises:
            UserError: They are of other data, or of another size.
        """
        if not (path := self._out / "results.json").is_file():
            return {}
        earlier = read_json(path)
        wanted = {"name": self._config.base.name, "content": dict(self._data.content)}
        if any(earlier.get(field) != value for field, value in wanted.items()):
            raise UserError(
                f"{path} has results of another size or on other data, expected those of "
                f"{self._config.base.name}. hint: another OUT"
            )
        return earlier

    def _take_over(self, job: Job) -> None:
        """Write down a run of the results of before, if it is the same and its folder is gone."""
        variant, seed, run = job
        folder, config = self._runs / _folder(job), json.loads(json.dumps(asdict(run)))
        for result in self._found:
            same = (result["variant"], result["seed"]) == (variant, seed)
            if same and result.get("config") == config and not (folder / RESULT).exists():
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / RESULT, result)

    def _write(self, *, complete: bool = False) -> None:
        jobs = {
            _folder(job): job
            for seed in self._config.seeds
            for job in ((name, seed, run) for name, run in self._variants.items())
        }
        about = self._about | ({"rates": self._rates} if self._rates["fields"] else {})
        write_results(
            jobs, self._runs, self._out / "results.json", about, workers=1, complete=complete
        )

    def _matched(self) -> dict[str, Any]:
        """Return what variants have in common, as match_variants does."""
        size = vocabulary_size(self._data.tokenizer)
        counts = {
            name: forward_flops(shape_of(run, size), run.train.seq_len)
            for name, run in self._variants.items()
        }
        reference = next(n for n, kind in self._config.kinds().items() if kind == "dense")
        target = counts[reference]
        off = {n: count / target / max(1, round(count / target)) - 1 for n, count in counts.items()}
        return {
            "tokens": tokens_of(self._variants[reference]),
            "flops": {"reference": reference, "target": target, "off": off},
        }


def _folder(job: Job) -> str:
    return f"{job[0]}-seed{job[1]}"


def _with_steps(run: RunConfig, data: PreparedData, steps: int | None) -> RunConfig:
    """Return a run of so many steps, or an epoch: rows at its end that fill no batch are left."""
    train = run.train
    if steps is None:
        stream = TokenStream(data.folder, train.seq_len, train.seed, data.tokenizer.eos_token_id)
        steps = max(1, int(1 / stream.epoch_of(1, train.batch_size) + 1e-6))
    train = replace(train, steps=steps, eval_every=max(1, steps // EVALUATIONS))
    return replace(run, train=train, optim=replace(run.optim, warmup_steps=int(WARMUP * steps)))


def read_size(config: Path, size: str, out: Path) -> CompareConfig:
    """Read gpu.yaml for one size, which is written to OUT/compare.yaml.

    Raises:
        UserError: The file cannot be used, or has no such size.
    """
    values = read_yaml(config)
    sizes = values.pop("sizes")
    del values["sweep_data"]
    if size not in sizes:
        raise UserError(f"--size must be one of {', '.join(sizes)}, got {size!r}")
    values = merge_fields({**values, "name": f"{values['name']}_{size}"}, sizes[size])
    path = out / "compare.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    return load_compare(path)


@contextmanager
def unpacked(folder: Path) -> Generator[Path]:
    """Unpack what pack.py wrote for the time of the block.

    Raises:
        UserError: It is not there.
    """
    with TemporaryDirectory() as place:
        for name in ("data", "sweep"):
            archive = folder / f"{name}.tar.gz"
            if not archive.is_file():
                raise UserError(f"{archive} is not there. hint: python pack.py {folder}")
            shutil.unpack_archive(archive, Path(place) / name, filter="data")
        shutil.copy(folder / "about.json", place)
        yield Path(place)


def say(text: str) -> None:
    """Print a line with the seconds since the start."""
    sys.stderr.write(f"[{time.monotonic() - STARTED:4.0f} s] {text}\n")
    sys.stderr.flush()


@contextmanager
def stopped_after(seconds: float) -> Generator[StopSignal]:
    """Within the block, ask to stop when the time is over, as SIGTERM does."""
    left = max(0.0, seconds - (time.monotonic() - STARTED))
    timer = threading.Timer(left, signal.raise_signal, (signal.SIGTERM,))
    timer.daemon = True
    with StopSignal() as stop:
        timer.start()
        try:
            yield stop
        finally:
            timer.cancel()


def main(arguments: list[str] | None = None) -> int:
    """Train what the time allows. Return 0 when all is done, 3 when there is something left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="what pack.py wrote")
    parser.add_argument("out", type=Path, help="folder for results.json")
    parser.add_argument("--size", default="d384", help="of `sizes:` in the configuration")
    parser.add_argument("--seconds", type=float, default=520.0, help="until it is asked to stop")
    parser.add_argument("--steps", type=int, help="of a run, for a rehearsal: an epoch without it")
    parser.add_argument("--runs", type=Path, help="folder for runs, OUT/runs without it")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("gpu.yaml"))
    given = parser.parse_args(arguments)
    logging.disable_progress_bar()
    if torch.cuda.is_available():
        # Evaluation is in fp32, which has no matrix units of its own.
        torch.set_float32_matmul_precision("high")
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        config = read_size(given.config, given.size, given.out)
        with stopped_after(given.seconds) as stop, unpacked(given.data) as packed:
            runs = (given.runs or given.out / "runs") / given.size
            Headline(config, packed, given.out, runs, stop, given.steps).train()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt as error:
        say(f"{error}. The same command goes on")
        return 3
    say("complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
