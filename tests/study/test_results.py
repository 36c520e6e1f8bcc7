"""Results of somebody else: what a report cannot show is refused by the path of the field."""

import copy
import json
import operator
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from made_up import make_up
from test_scale_report import make_results

from memory_layers.cli import main
from memory_layers.common.errors import UserError
from memory_layers.study.results import check_results, is_sweep, read_results

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
COMMITTED = [
    *(path for path in EXPERIMENTS.glob("0[0-4]-*/results.json") if "allocator" not in str(path)),
    *EXPERIMENTS.glob("*/history/results.json"),
    *EXPERIMENTS.glob("*/history/sweep.json"),
    *EXPERIMENTS.glob("02-recipe/*.json"),
]
STUDY = make_up(("dense", "memory_plus", "moe_fine"), 2)
MODEL = {"preset": "tiny", "hidden_size": 8, "layers": 2}
STUDY["runs"][0] |= {
    "config": {
        "model": MODEL,
        "memory": {"sub_keys": 8, "layers": [1], "heads": 2, "top_k": 4},
        "train": {"steps": 10, "batch_size": 2, "accumulate": 1, "seq_len": 8},
    },
    "losses": {"training": [[1, 2.0], [2, float("nan")]], "text": []},
    "examples": [{"correct": True, "relation": "a", "prompt": "b", "answer": "c", "said": "d"}],
}
ASKED = {"seen": "011", "unseen": "001", "p_seen": "0 9931 10000", "p_unseen": "7 8 9"}
STUDY["exposure"] = {
    "code": {"subjects": "0 1 5", "statements": "0 64 8", "answers": 96, "candidates": 32}
}
STUDY["runs"][0]["facts"] = {"code": ASKED}
STUDY["guessers"] = {
    "capital_of": {"facts": 9, "heldout": 4, "asked": 4, "chance": 0.5, "majority": 0.1,
                   "neighbour": 0.2, "prefix": 0.0},
}  # fmt: skip
TRIED = {
    "optim.lr": 0.1,
    "status": "ok",
    "question_heldout": 0.5,
    "answer_nll": 1.0,
    "seconds": 9.0,
}
STUDY["rates"] = {
    "seed": 1000,
    "fields": ["optim.lr"],
    "variants": {
        "dense": {"best": {"optim.lr": 0.1}, "edges": {"optim.lr": "lowest"}, "tried": [TRIED]}
    },
}
SWEEP = make_results()


def put(path: str, value: object) -> Callable[[Any], None]:
    """Set the field at a path such as runs.0.seed."""
    *parents, last = [int(name) if name.isdecimal() else name for name in path.split(".")]

    def change(results: Any) -> None:
        for name in parents:
            results = results[name]
        results[last] = value

    return change


def take(path: str) -> Callable[[Any], None]:
    """Remove the field at a path."""
    *parents, last = [int(name) if name.isdecimal() else name for name in path.split(".")]

    def change(results: Any) -> None:
        for name in parents:
            results = results[name]
        del results[last]

    return change


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_what_was_measured_before_is_read(path: Path) -> None:
    assert len(COMMITTED) >= 8
    assert read_results(path)["runs"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("runs", {}), "runs must be a list, got {}"),
        (put("runs.1", 3), "runs[1] must be a mapping, got 3"),
        (put("format_version", 2), "format_version must be"),
        (put("name", ["x"]), "name must be a text, got ['x']"),
        (put("facts.facts", -1), "facts.facts must be a whole number from 0"),
        (put("guessers.capital_of.prefix", 2), "guessers.capital_of.prefix must be a number from"),
        (take("guessers.capital_of.heldout"), "guessers.capital_of.heldout is missing"),
        (put("match.flops.off.dense", "x"), "match.flops.off.dense must be a number"),
        (take("runs.1.variant"), "runs[1].variant is missing"),
        (put("runs.1.seed", 0), "runs[1] is ('dense', 0) again, after [0]"),
        (put("runs.1.status", "fine"), "runs[1].status must be one of ok, diverged"),
        (put("runs.0.error", "x"), "runs[0].status is that of a run without an error"),
        (put("runs.1.seconds", "12"), "runs[1].seconds must be a number from 0"),
        (put("runs.1.seconds", True), "runs[1].seconds must be a number from 0"),
        (put("runs.1.params_total", 1e308), "runs[1].params_total must be a number from 0"),
        (put("runs.1.tokens", 10**25), "runs[1].tokens must be a number from 0"),
        (put("runs.0.recall.question_heldout", 1.01), "must be a number from 0 to 1, got 1.01"),
        (put("runs.0.recall.question_heldout", float("nan")), "from 0 to 1, got nan"),
        (put("runs.0.recall.by_relation.capital_of", 1), "by_relation.capital_of must be a map"),
        (put("runs.0.text.nll", float("inf")), "runs[0].text.nll must be a number"),
        (put("runs.2.slot_usage.histogram_edges", [0, 1]), "one more than histogram, got [0, 1]"),
        (put("runs.0.history.1.step", 1.5), "runs[0].history[1].step must be a whole number"),
        (put("runs.0.losses.training.0", [1]), "runs[0].losses.training[0] must be a list of 2"),
        (take("runs.0.examples.0.said"), "runs[0].examples[0].said is missing"),
        (take("runs.0.config.memory.sub_keys"), "runs[0].config.memory.sub_keys is missing"),
        (put("runs.0.config.train.steps", 0), "runs[0].config.train.steps must be"),
        (take("exposure.code.answers"), "exposure.code.answers is missing"),
        (put("exposure.code.statements", "0 8"), "statements must be of 3 facts, got 2"),
        (put("exposure.code.subjects", "0  1 5"), "subjects must be whole numbers, a space"),
        (put("exposure.code.candidates", 97), "candidates must be at most answers = 96, got 97"),
        (put("runs.0.facts", {}), "runs[0].facts must have the relations of exposure, code, got"),
        (put("runs.0.facts.code.seen", "012"), "facts.code.seen must be digits 0 and 1, got '012'"),
        (put("runs.0.facts.code.unseen", "01"), "facts.code.unseen must be of 3 facts, got 2"),
        (put("runs.0.facts.code.p_seen", "0 1 10001"), "p_seen must be whole numbers up to 10000"),
        (put("runs.0.facts.code.p_unseen", "7 8"), "code.p_unseen must be of 3 facts, got 2"),
        (take("runs.0.facts.code.p_seen"), "runs[0].facts.code.p_seen is missing"),
        (put("rates.fields", ["optim.x"]), "rates.fields[0] must be one of optim.lr, optim.value"),
        (take("rates.variants.dense.tried.0.status"), "dense.tried[0].status is missing"),
        (put("rates.variants.dense.best", {}), "edges must name a field of best, got 'optim.lr'"),
        # Nobody would see that a report leaves them out.
        (put("runs.0.recall", None), "runs[0].recall must be a mapping, got None"),
        (put("runs.0.recall.question_heldout", None), "question_heldout must be a number from 0"),
        (put("runs.0.answer_nll.statement", None), "answer_nll.statement must be a number from 0"),
        (put("runs.0.history.1.tokens", None), "history[1].tokens must be a number from 0"),
        (put("runs.0.status", None), "runs[0].status must be one of ok, diverged"),
        (put("runs.0.examples", None), "runs[0].examples must be a list, got None"),
    ],
)
def test_a_comparison_is_refused(change: Callable[[Any], None], says: str) -> None:
    _refused(STUDY, change, says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (take("exchange"), "exchange is missing"),
        (take("threads"), "threads is missing"),
        (put("seeds", [0, 0]), "seeds[1] is 0 again"),
        (put("runs.0.base", "other"), "runs[0].base must name one of bases, got 'other'"),
        (put("exchange.1.slots", 7), "exchange[1].slots must name one of slots, got 7"),
        (put("exchange.0.metric", "x"), "exchange[0].metric must be one of recall, answer_nll"),
        (put("exchange.0.times", -1), "exchange[0].times must be a number"),
        (put("exchange.0.times", None), "exchange[0].reason is missing"),
        (put("fits.slots.small", None), "fits.slots.small must be a mapping, got None"),
        (take("runs.0.flops_per_token"), "runs[0].flops_per_token is missing"),
        (take("fits.flops.recall"), "fits.flops.recall is missing"),
        (put("fits.flops.recall.curve.y.0", 1.5), "curve.y[0] must be a number from 0 to 1"),
        (put("fits.flops.recall.curve.low", []), "curve.low must be as long as curve.x"),
        (put("fits.slots.other", {}), "fits.slots.other.recall is missing"),
    ],
)
def test_a_sweep_is_refused(change: Callable[[Any], None], says: str) -> None:
    _refused(SWEEP, change, says)


def _refused(good: Any, change: Callable[[Any], None], says: str) -> None:
    check_results(good, "results.json")
    results = copy.deepcopy(good)
    change(results)
    with pytest.raises(UserError) as error:
        check_results(results, "results.json")
    assert str(error.value).startswith("results.json: ")
    assert says in str(error.value)


def _leaves(value: object) -> Iterator[list[str | int]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1]) if value else ()
    for name, part in parts:
        if isinstance(part, dict | list):
            yield from ([name, *rest] for rest in _leaves(part))
        yield [name]


@pytest.mark.parametrize("good", [STUDY, SWEEP], ids=["comparison", "sweep"])
def test_nothing_else_than_a_sentence_comes_of_any_field(good: Any) -> None:
    refused, results = 0, copy.deepcopy(good)
    for *parents, last in _leaves(good):
        parent = reduce(operator.getitem, parents, results)
        before = parent[last]
        for value in (None, "x", -1, float("nan"), 1e308, True, [], {}, [{}], {"a": [1]}):
            parent[last] = value
            try:
                check_results(results, "results.json")
            except UserError:
                refused += 1
        parent[last] = before
    assert refused > 100
    check_results(results, "results.json")
    assert is_sweep(good) == (good is SWEEP)


def test_the_command_names_file_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    for text, says in (
        (json.dumps({"runs": [{"variant": "a"}]}), f"{path}: runs[0].seed is missing. hint: res"),
        ('{"runs": [],\n"runs": []}', f"{path}:2: 'runs' is already there, in line 1"),
        ("[" * 99_999, "nested too deep"),
        ("[]", f"{path}: must hold `runs`"),
    ):
        path.write_text(text)
        assert main(["report", str(path)]) == 2
        assert says in capsys.readouterr().err
