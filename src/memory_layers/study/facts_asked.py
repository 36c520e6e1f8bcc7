"""What a run made of each fact whose question is in no document: recalled or not, and how likely.

Only facts that were asked both as a statement and as a question count, in the order of the items.
"""

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from memory_layers.common.seeds import stable_number
from memory_layers.data.config import DataConfig
from memory_layers.data.facts import Probe
from memory_layers.data.prepare import PreparedData
from memory_layers.evaluate.choices import choice_probabilities
from memory_layers.evaluate.recall import pick_items
from memory_layers.study.breakdown import answer_of
from memory_layers.train.config import RunConfig

# Answers of a relation that a probability is over, at most.
CANDIDATES = 32
# A probability of 1.
_WHOLE = 10_000


def measure_facts(
    model: PreTrainedModel,
    data: PreparedData,
    correct: Sequence[bool | int],
    asked: Sequence[int] | None = None,
) -> dict[str, dict[str, str]]:
    """Return for each relation what a model made of its facts.

    Args:
        model: A trained model.
        data: What it was trained on.
        correct: Whether each item that was asked was answered.
        asked: Their indices in the items of `data`. None: all.

    Returns:
        `seen` and `unseen`: a character for each fact, 1 where it was recalled in a wording in
        which it was stated, and as a question. `p_seen` and `p_unseen`: the probability of the
        right answer among answers of the relation, in ten-thousandths, with spaces between them.
        At most CANDIDATES answers: the right one, and others drawn by a hash of the fact, first
        from those of facts that are stated as often. An answer that is stated often is likely
        whatever is asked: so who does not know the subject gets about 1 / CANDIDATES.
    """
    picked = range(len(data.probes)) if asked is None else asked
    rights = dict(zip(picked, correct, strict=True))
    answers, heldout = _answers(data.probes), defaultdict(list)
    for probe in data.probes:
        if probe.kind == "question_heldout":
            heldout[probe.exposures].append(probe)
    alike = {exposures: _answers(probes) for exposures, probes in heldout.items()}
    found = {}
    for relation, facts in _facts(data.probes, picked).items():
        found[relation] = {}
        for name, items in zip(("seen", "unseen"), zip(*facts, strict=True), strict=True):
            probes = [data.probes[item] for item in items]
            candidates = [
                _candidates(probe, alike[probe.exposures][relation], answers[relation])
                for probe in probes
            ]
            shares = choice_probabilities(model, data.tokenizer, probes, candidates)
            found[relation] |= {
                name: "".join(str(int(rights[item])) for item in items),
                f"p_{name}": " ".join(str(round(share * _WHOLE)) for share in shares),
            }
    return found


def shared_exposure(
    runs: Iterable[RunConfig], prepared: Mapping[DataConfig, PreparedData]
) -> dict[str, Any]:
    """Return what the facts of measure_facts are, as the field `exposure` of results.json.

    Args:
        runs: All runs of a study.
        prepared: Their data.

    Returns:
        Nothing if the runs are not asked for the same facts, or if not all have `data.exposures`.
        Otherwise for each relation, with spaces between numbers: `subjects`, the number of the
        subject of each fact, the same in all relations; `statements`, how many documents state it;
        `answers`, how many different ones the relation has; `candidates`, how many of them a
        probability is over, fewer by those that are right too.
    """
    asked = {(run.data, run.train.final_items) for run in runs}
    if not all(data.exposures for data, _ in asked):
        return {}
    first, *others = (_exposure(prepared[data].probes, count) for data, count in asked)
    return {"exposure": first} if all(other == first for other in others) else {}


def _exposure(probes: Sequence[Probe], count: int | None) -> dict[str, dict[str, Any]]:
    answers = _answers(probes)
    numbers: dict[str, int] = {}
    found = {}
    for relation, facts in _facts(probes, pick_items(probes, count)).items():
        asked = [probes[question] for _, question in facts]
        subjects = [numbers.setdefault(probe.subject, len(numbers)) for probe in asked]
        found[relation] = {
            "subjects": " ".join(map(str, subjects)),
            "statements": " ".join(str(probe.exposures) for probe in asked),
            "answers": len(answers[relation]),
            "candidates": min(len(answers[relation]), CANDIDATES),
        }
    return found


def _facts(probes: Sequence[Probe], asked: Collection[int]) -> dict[str, list[tuple[int, int]]]:
    """Return for each relation its statement and its held-out question, where both were asked."""
    statements = {
        (probes[index].relation, probes[index].subject): index
        for index in asked
        if probes[index].kind == "statement"
    }
    found = defaultdict(list)
    for index in sorted(asked):
        probe = probes[index]
        statement = statements.get((probe.relation, probe.subject))
        if probe.kind == "question_heldout" and statement is not None:
            found[probe.relation].append((statement, index))
    return dict(found)


def _answers(probes: Sequence[Probe]) -> dict[str, list[str]]:
    """Return the different answers of each relation, sorted."""
    found = defaultdict(set)
    for probe in probes:
        found[probe.relation].add(answer_of(probe))
    return {relation: sorted(answers) for relation, answers in found.items()}


def _candidates(probe: Probe, *pools: Sequence[str]) -> list[str]:
    """Return the right answer of a fact and others, the same in every run.

    Args:
        probe: Asks for it.
        *pools: Answers of its relation: of the second so many as the first has too few.
    """
    right, *also_right = probe.answers
    seed = stable_number(0, "candidates", probe.relation, probe.subject, right)
    draw, most = random.Random(seed), CANDIDATES + len(also_right)  # noqa: S311
    drawn = dict.fromkeys(
        answer for pool in pools for answer in draw.sample(pool, min(most, len(pool)))
    )
    others = [answer for answer in drawn if answer not in probe.answers]
    return [right, *others[: CANDIDATES - 1]]
