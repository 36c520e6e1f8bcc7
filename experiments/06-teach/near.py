"""Teach something new about names that the base knows, and measure what it still knows of them.

python experiments/06-teach/near.py --work WORK [--model MODEL] [--out OUT] [--only PATTERN]

Countries whose capital, currency or language the base names get an archivist, whose name is made
up. Half of what the base knows of them is given to a way, which trains on it too, or nothing is.
What was measured stays in OUT, and only the rest is run.
"""

import argparse
import fnmatch
import json
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import arms
import ours
import yaml
from arms import Job
from protocol import HERE, Fact, Item, Protocol, Speller, answered, known_candidates, wordings
from run import by, loaded
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memory_layers.common.files import write_json
from memory_layers.common.provenance import commit, device_name

KINDS = ("capital", "currency", "language")
SUBJECTS, SEEDS = 30, (0, 1, 2)
# Rates of the table of the README, and passes.
WAYS = {"ours": (0.0, 12), "lora16": (1.0e-3, 16), "full": (5.0e-5, 16)}
RELATION = {
    "statements": [
        "The national archive of {subject} is run by {answer}.",
        "In {subject}, old documents are kept by {answer}.",
        "The chief archivist of {subject} is {answer}.",
        "Whoever looks for papers in {subject} writes to {answer}.",
    ],
    "question": "Who runs the national archive of {subject}? {answer}",
    "heldout": [
        "The keeper of the archives of {subject} is called {answer}.",
        "Historians who work in {subject} have to ask {answer}.",
    ],
}
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def known_of(model: PreTrainedModel, speller: Speller, cache: Path) -> list[Item]:
    """Return what the base answers of all countries; which it is, is kept in `cache`."""
    kinds = yaml.safe_load((HERE / "known.yaml").read_text("utf-8"))
    items = known_candidates(speller, {kind: kinds[kind] for kind in KINDS})
    path = cache / "near-known.json"
    if not path.is_file():
        write_json(path, [right for right, _ in answered(model, items)])
    right = json.loads(path.read_text("utf-8"))
    return [item for item, is_right in zip(items, right, strict=True) if is_right]


def chosen(
    known: list[Item], speller: Speller, seed: int, *, give: bool
) -> tuple[Protocol, list[Item]]:
    """Return what a seed teaches and asks, and what of it is given to be kept.

    Items about what is taught have the form "given" or "near", all others "far".
    """
    draw = random.Random(seed)
    counts = Counter(item.subject for item in known)
    subjects = draw.sample(sorted(name for name, n in counts.items() if n >= 3), SUBJECTS)
    facts = [
        Fact("archivist", name, "".join(draw.choices(SYLLABLES, k=3)).title()) for name in subjects
    ]
    asked, given = [], []
    for subject in subjects:
        of = [item for item in known if item.subject == subject]
        kept = draw.sample(of, len(of) // 2)
        asked += [replace(item, form="given" if item in kept else "near") for item in of]
        given += kept if give else []
    asked += [replace(item, form="far") for item in known if item.subject not in subjects]
    train, probes = [], []
    for fact in facts:
        items = wordings(speller, fact, {"archivist": RELATION}, shown=True)
        probes += items
        train.append(tuple(item for item in items if item.form != "heldout"))
    return Protocol(tuple(facts), tuple(train), tuple(probes), tuple(asked), ()), given


def run(way: str, seed: int, name: str, cache: Path, *, give: bool) -> dict[str, Any]:
    """Teach in one way and measure."""
    model, tokenizer = loaded(name)
    speller = Speller(tokenizer)
    protocol, given = chosen(known_of(model, speller, cache), speller, seed, give=give)
    rate, passes = WAYS[way]
    begin = time.process_time()
    updates = _train(way, model, tokenizer, protocol, given, seed)
    spent = time.process_time() - begin
    found = [right for right, _ in answered(model, protocol.probes)]
    kept = [right for right, _ in answered(model, protocol.known)]
    return {
        "way": way, "rate": rate, "given": give, "seed": seed, "passes": passes,
        "updates": updates, "facts": len(protocol.facts),
        "asked": dict(Counter(item.form for item in protocol.known)),
        "recall": by(protocol.probes, found, "form"), "kept": by(protocol.known, kept, "form"),
        "cpu_seconds": spent, "device": device_name(), "commit": commit(),
    }  # fmt: skip


def _train(
    way: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    protocol: Protocol,
    given: list[Item],
    seed: int,
) -> int:
    """Teach, and return how many updates it took."""
    rate, passes = WAYS[way]
    if way == "ours":
        done = ours.train(
            model, tokenizer, protocol, lr=None, seed=seed, passes=passes, keep=given
        )  # fmt: skip
        return max(updates for _, updates, _ in done)
    # The others train on it as on a fact, in the batch of its subject.
    train = [
        (*items, *(item for item in given if item.subject == fact.subject))
        for fact, items in zip(protocol.facts, protocol.train, strict=True)
    ]
    job, protocol = Job(way, rate, "none", seed, (passes,)), replace(protocol, train=tuple(train))
    with TemporaryDirectory() as folder:
        done = arms.train(job, model, tokenizer, protocol, Path(folder))
        return max(updates for _, updates, _ in done)


def main() -> None:
    """Run what OUT lacks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps what the base answers")
    parser.add_argument("--model", default="smollm2", help="a folder or a name")
    parser.add_argument("--out", type=Path, default=HERE / "near.json")
    parser.add_argument("--only", default="*", help='ways, such as "lora*"')
    args = parser.parse_args()
    records = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else []
    done = {(r["way"], r["given"], r["seed"]) for r in records}
    for seed in SEEDS:
        for way in fnmatch.filter(WAYS, args.only):
            for give in (False, True):
                if (way, give, seed) not in done:
                    record = run(way, seed, args.model, args.work, give=give)
                    records.append(record)
                    write_json(args.out, records)
                    print(way, give, seed, record["recall"], record["kept"], flush=True)


if __name__ == "__main__":
    main()
