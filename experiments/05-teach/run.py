"""Teach new facts to memory beside a frozen model: python experiments/05-teach/run.py OUT.

Three seeds. For each a base is trained on 300 airports, then memory beside it on 100 others, with
and without old facts mixed in. OUT keeps the runs: those of the same commit are not run again.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from memory_layers.common.provenance import commit, device_name
from memory_layers.data.config import DataConfig
from memory_layers.data.prepare import corpus_of
from memory_layers.evaluate.recall import recall_items, summarize_recall
from memory_layers.evaluate.trained import load_trained
from memory_layers.train.config import load_run
from memory_layers.train.loop import train

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import airports  # noqa: E402
import hf_trainer  # noqa: E402
import take_in  # noqa: E402

SEEDS = (0, 1, 2)


def measure(model: Path, facts: Path) -> dict[str, float]:
    """Return the recall of the facts of a folder, by kind."""
    loaded, tokenizer = load_trained(model)
    probes = corpus_of(DataConfig(facts=str(facts))).probes
    recall = summarize_recall(probes, recall_items(loaded, tokenizer, probes))["recall"]
    return {kind: value for kind, value in recall.items() if kind != "by_relation"}


def both(model: Path, facts: Path) -> dict[str, dict[str, float]]:
    """Return the recall of new and old facts."""
    return {name: measure(model, facts / name) for name in ("new", "old")}


def run(seed: int, out: Path, facts: Path) -> list[dict[str, Any]]:
    """Train a base, teach it twice, and return what each model knows."""
    config = load_run(ROOT / "examples" / "base.yaml")
    train(replace(config, train=replace(config.train, seed=seed)), out / "base")
    base = out / "base" / "model"
    found = [{"seed": seed, "model": "base", **both(base, facts)}]
    for name, keep in (("old facts mixed in", str(facts / "old")), ("new facts alone", None)):
        folder = out / name.replace(" ", "_")
        hf_trainer.main(
            str(base), str(facts / "new"), str(folder), keep, seed=seed, disable_tqdm=True,
            logging_steps=500,
        )  # fmt: skip
        take_in.main(str(base), str(folder / "memory"), str(folder / "model"))
        found.append({"seed": seed, "model": name, **both(folder / "model", facts)})
    return found


def main(out: str) -> None:
    """Run all seeds and write results.json beside this file."""
    logging.disable_progress_bar()
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # base.yaml names its facts as seen from here.
    os.chdir(folder)
    facts = folder / "airports"
    airports.main(str(facts))
    runs = []
    for seed in SEEDS:
        done = folder / f"{commit()}_seed{seed}.json"
        if not done.is_file():
            found = run(seed, folder / f"seed{seed}", facts)
            done.write_text(json.dumps(found), "utf-8")
        runs += json.loads(done.read_text("utf-8"))
    record = {"commit": commit(), "device": device_name(), "runs": runs}
    path = ROOT / "experiments" / "05-teach" / "results.json"
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
