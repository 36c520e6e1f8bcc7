"""Train with each rule of rules.py at several value rates: python experiments/08-touch/run.py.

[--work WORK] [--until HH:MM] [--steps N]

Takes the runs one after the other and writes each to results.json; started again, it goes on. Each
arm gets three rates a factor of 2 apart, more until its best is not at an edge, then three other
seeds at that rate, the best two seven. `--until` starts no run after that time (UTC).
tables.py then writes the tables of README.md.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rules import TouchAdamW
from scores import Ties
from tables import score

from memory_layers.common.files import remove, write_json
from memory_layers.common.provenance import commit, device_name, versions
from memory_layers.study.measure import measure_run
from memory_layers.train.config import RunConfig, load_run

HERE = Path(__file__).parent
SWEPT, SEEDS = 0, (1, 2, 3)
# More of the best two, which three cannot tell apart.
CLOSE, MORE_SEEDS = ("rare/row", "rare/full_ahead"), (4, 5, 6, 7)
# A best rate lower or higher than this many doublings away is not sought.
FAR = 5


@dataclass(frozen=True)
class Arm:
    """What is compared.

    Attributes:
        rule: Of rules.py.
        middle: Value rate to begin with.
        schedule: Of the value rate.
        scores: "bf16" to find slots by rounded scores.
        rare: Four times the slots and a quarter of the reads of base.yaml, so that rows rest.
    """

    rule: str
    middle: float
    schedule: str = "constant"
    scores: str = "fp32"
    rare: bool = False


# Those that go on with momentum move further, so they begin with lower rates.
RULES = {
    "row": 0.02,
    "full": 0.02,
    "row_touches": 0.02,
    "full_touches": 0.02,
    "full_ahead": 0.005,
    "row_fades": 0.01,
    "dense": 0.005,
    "squares": 0.01,
    "squares_fade": 0.01,
}
RARE = {f"rare/{rule}": Arm(rule, middle, rare=True) for rule, middle in RULES.items()}
OFTEN = {rule: Arm(rule, RULES[rule]) for rule in ("row", "full", "full_ahead")}
BESIDE = {
    "row_cosine": Arm("row", 0.02, schedule="cosine"),
    "row_bf16": Arm("row", 0.02, scores="bf16"),
}
ARMS = {**RARE, **OFTEN, **BESIDE}

# Of a rate, in doublings from the middle.
Scores = dict[int, float]


def rate(arm: Arm, doublings: int) -> float:
    """Return a value rate of the sweep."""
    return arm.middle * 2.0**doublings


def swept(runs: Sequence[Mapping[str, Any]], name: str) -> Scores:
    """Return the scores of an arm's sweep."""
    return {
        run["doublings"]: score(run) for run in runs if run["arm"] == name and run["seed"] == SWEPT
    }


def best(scores: Scores) -> int:
    """Return the rate with the highest score."""
    return max(scores, key=lambda doublings: scores[doublings])


def missing(scores: Scores) -> int | None:
    """Return a rate to try: those around the middle, then beyond a best at an edge."""
    for doublings in (0, -1, 1):
        if doublings not in scores:
            return doublings
    top, low, high = best(scores), min(scores), max(scores)
    if top == low and low > -FAR:
        return low - 1
    if top == high and high < FAR:
        return high + 1
    return None


def following(runs: Sequence[Mapping[str, Any]]) -> tuple[str, int, int] | None:
    """Return arm, rate and seed of the next run. None: all are there."""
    done = {(run["arm"], run["doublings"], run["seed"]) for run in runs}
    for names in (RARE, OFTEN, BESIDE):
        for name in names:
            doublings = missing(swept(runs, name))
            if doublings is not None:
                return name, doublings, SWEPT
        for seed in (*SEEDS, *MORE_SEEDS):
            for name in names:
                job = name, best(swept(runs, name)), seed
                if job not in done and (seed in SEEDS or name in CLOSE):
                    return job
    return None


def configured(arm: Arm, value_lr: float, seed: int, steps: int | None) -> RunConfig:
    """Return the configuration of a run."""
    base = load_run(HERE / "base.yaml")
    train = replace(base.train, seed=seed, steps=steps or base.train.steps)
    optim = replace(base.optim, value_lr=value_lr, value_schedule=arm.schedule)
    memory = base.memory
    if arm.rare and memory is not None:
        memory = replace(memory, sub_keys=2 * memory.sub_keys, top_k=memory.top_k // 4)
    return replace(base, train=train, optim=optim, memory=memory)


def trained(name: str, config: RunConfig, folder: Path) -> dict[str, Any]:
    """Train a run with the rule of its arm, and return its measurements."""
    arm, ties = ARMS[name], Ties()
    made: list[TouchAdamW] = []

    def make_optimizer(config: RunConfig, model: torch.nn.Module) -> TouchAdamW:
        optim = config.optim
        optimizer = TouchAdamW(
            model, optim.lr, optim.peak_value_lr, betas=(optim.beta1, optim.beta2), eps=optim.eps,
            weight_decay=optim.weight_decay, rule=arm.rule, steps=config.train.steps,
        )  # fmt: skip
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        made.append(optimizer)
        return optimizer

    with (
        patch("memory_layers.train.loop.make_optimizer", make_optimizer),
        patch("memory_layers.layers.keys.product_key_topk", ties)
        if arm.scores == "bf16"
        else patch.dict({}),
    ):
        try:
            found = measure_run(name, config.train.seed, config, folder)
        except FloatingPointError as error:
            remove(folder)
            return {"status": "diverged", "error": str(error)}
    # One that is stopped stays, and goes on.
    remove(folder)
    kept = ("status", "seconds", "tokens", "recall", "answer_nll", "recall_by_exposures", "text",
            "facts", "losses")  # fmt: skip
    result = {key: found[key] for key in kept if key in found}
    result["gaps"] = made[0].gaps.tolist()
    if arm.scores == "bf16":
        result["ties"] = ties.share
    return result


def main() -> None:
    """Take the runs that are missing, and write results and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/08-touch"))
    parser.add_argument("--until", help="HH:MM in UTC")
    parser.add_argument("--steps", type=int, help="of a run, to try the script")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = json.loads(given.out.read_text("utf-8"))["runs"] if given.out.is_file() else []
    while (job := following(runs)) is not None:
        if given.until and f"{datetime.now(UTC):%H:%M}" >= given.until:
            break
        name, doublings, seed = job
        value_lr = rate(ARMS[name], doublings)
        config = configured(ARMS[name], value_lr, seed, given.steps)
        folder = given.work / f"{name.replace('/', '-')}-{value_lr:g}-{seed}"
        found = trained(name, config, folder)
        entry = {"arm": name, "doublings": doublings, "value_lr": value_lr, "seed": seed, **found}
        runs.append(entry)
        print(f"{datetime.now(UTC):%H:%M:%S} {name} {value_lr:g} seed {seed}: {score(entry):.4f}",
              flush=True)  # fmt: skip
        results = {
            "arms": {key: asdict(arm) for key, arm in ARMS.items()},
            "complete": following(runs) is None,
            "config": asdict(replace(config, optim=replace(config.optim, value_lr=None))),
            "device": device_name(),
            "versions": versions("torch", "numba", "transformers", "tokenizers"),
            "commit": commit(),
            "runs": runs,
        }
        write_json(given.out, results)


if __name__ == "__main__":
    main()
