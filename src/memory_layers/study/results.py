"""results.json read and checked, before a report shows it: what is wrong is named by its path.

Fields that earlier versions did not write may be missing, and others may stand beside them.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.text_files import read_json
from memory_layers.study import checks
from memory_layers.study.facts_checked import check_facts
from memory_layers.study.fits import LAWS
from memory_layers.study.guess import GUESSERS
from memory_layers.study.match_config import MEASURES
from memory_layers.study.metrics import FORMS, METRICS
from memory_layers.study.rates import RATES
from memory_layers.study.summary import finished

# What only the results of a sweep have.
_OF_SWEEP = ("bases", "exchange", "fits")


def read_results(path: Path) -> dict[str, Any]:
    """Read the results of a comparison or a sweep.

    Args:
        path: results.json, as `compare` or `scale` wrote it.

    Raises:
        UserError: The file cannot be read, or has something that no comparison and no sweep writes.
    """
    hint = "hint: results.json, as `compare` or `scale` wrote it"
    try:
        results = read_json(path)
        check_results(results, str(path))
    except UserError as error:
        known = str(error)
        raise UserError(known if "hint: " in known else f"{known}. {hint}") from error
    return results


def is_sweep(results: Mapping[str, Any]) -> bool:
    """Tell whether results are those of a sweep."""
    return any(field in results for field in _OF_SWEEP)


def check_results(results: Any, where: str) -> None:  # noqa: ANN401
    """Refuse results that a report could not show, or would show as what they are not.

    Args:
        results: The content of results.json.
        where: Its path, for errors.

    Raises:
        UserError: A field is of a wrong type, out of range, or names what is not there.
    """
    if not isinstance(results, Mapping) or "runs" not in results:
        raise UserError(f"{where}: must hold `runs`")
    (_SWEEP if is_sweep(results) else _RESULTS)(results, f"{where}:")
    _once([(run["variant"], run["seed"]) for run in results["runs"]], f"{where}: runs")
    for number, run in enumerate(results["runs"]):
        if run.get("error") is not None and finished(run):
            raise UserError(f"{where}: runs[{number}].status is that of a run without an error")
    check_facts(results, where)
    if is_sweep(results):
        _check_cells(results, where)


def _once(keys: Sequence[object], where: str) -> None:
    seen: dict[object, int] = {}
    for number, key in enumerate(keys):
        if key in seen:
            raise UserError(
                f"{where}[{number}] is {key} again, after [{seen[key]}], expected each once"
            )
        seen[key] = number


def _check_cells(results: Mapping[str, Any], where: str) -> None:
    """Refuse runs and rates of bases and memory sizes that the sweep does not have."""
    for field in ("bases", "slots", "seeds"):
        _once(results[field], f"{where}: {field}")
    rates = [(rate["base"], rate["slots"], rate["metric"]) for rate in results["exchange"]]
    _once(rates, f"{where}: exchange")
    for field in ("runs", "exchange"):
        for number, entry in enumerate(results[field]):
            for key in ("base", "slots"):
                place = f"{where}: {field}[{number}].{key}"
                _known(entry[key], results[f"{key.rstrip('s')}s"], f"one of {key.rstrip('s')}s",
                       place)  # fmt: skip
    for number, run in enumerate(results["runs"]):
        # What a token costs is its place in a plot.
        if finished(run) and run.get("flops_per_token") is None:
            raise UserError(f"{where}: runs[{number}].flops_per_token is missing")
    for number, rate in enumerate(results["exchange"]):
        names = ("reason",) if rate["times"] is None else ("value", "flops_per_token")
        for name in names:
            if rate.get(name) is None:
                raise UserError(f"{where}: exchange[{number}].{name} is missing")
    for base in results["fits"]["slots"]:
        _known(base, results["bases"], "one of bases", f"{where}: fits.slots")


def _known(name: object, names: Collection[object], what: str, where: str) -> None:
    if name not in names:
        raise UserError(f"{where} must name {what}, got {name!r}")


_TEXT, _BOOL = checks.of_type(str, "a text"), checks.of_type(bool, "true or false")
_ANY, _AMOUNT, _SHARE = checks.number(), checks.number(0), checks.number(0, 1)
_COUNT, _SIZE = checks.number(0, whole=True), checks.number(1, whole=True)
_LOSS = checks.number(0, loose=True)
_FORM = dict.fromkeys(FORMS, _SHARE)
_METRIC = checks.one_of(*LAWS)


def _usage(value: Any, where: str) -> None:  # noqa: ANN401
    fields = {
        "slots": _SIZE, "used_share": _SHARE, "kl_to_uniform": _ANY,
        "histogram": checks.list_of(_AMOUNT), "histogram_edges": checks.list_of(_AMOUNT),
    }  # fmt: skip
    checks.record({}, fields)(value, where)
    counts, edges = value.get("histogram"), value.get("histogram_edges")
    if counts is not None and edges is not None and len(edges) != len(counts) + 1:
        expected = f"a list of {len(counts) + 1}, one more than histogram"
        checks.fail(f"{where}.histogram_edges", expected, edges)


_CONFIG = checks.record(
    {
        "model": checks.record(
            {},
            {
                "preset": _TEXT,
                **dict.fromkeys(("hidden_size", "mlp_size", "layers"), checks.nullable(_SIZE)),
            },
        )
    },
    {
        "memory": checks.nullable(
            checks.record(
                {
                    "sub_keys": _SIZE,
                    "layers": checks.list_of(_COUNT),
                    "heads": _SIZE,
                    "top_k": _SIZE,
                },
                {},
            )
        ),
        "moe": checks.nullable(
            checks.record(
                {"routing": _TEXT, "experts": _SIZE},
                {"top_k": _SIZE, "expert_size": checks.nullable(_SIZE)},
            )
        ),
        "train": checks.record(
            dict.fromkeys(("steps", "batch_size", "accumulate", "seq_len"), _SIZE), {}
        ),
    },
)
_STATUS = checks.one_of("ok", "diverged", "out_of_memory", "killed", "failed", "unfinished")
_EXAMPLE = checks.record(
    {"correct": _BOOL, "relation": _TEXT, "prompt": _TEXT, "answer": _TEXT, "said": _TEXT}, {}
)
_POINTS = checks.list_of(checks.list_of(_LOSS, 2))
_RUN: Mapping[str, checks.Check] = {
    "status": _STATUS,
    "error": _TEXT,
    "steps": _COUNT,
    "last_loss": checks.nullable(_LOSS),
    "value_learning_rate": checks.nullable(_AMOUNT),
    "flops_per_token": checks.number(1),
    **dict.fromkeys(
        ("train_flops_per_token", "params_total", "params_active",
         "params_memory", "tokens", "seconds", "learning_rate",
         "bits_stored", "bits_per_parameter", "bits_per_active_parameter", "bits_per_train_flop"),
        _AMOUNT,
    ),
    "recall": checks.record({}, {**_FORM, "by_relation": checks.map_of(checks.record({}, _FORM))}),
    "answer_nll": checks.map_of(_AMOUNT),
    "text": checks.nullable(
        checks.record({}, {"nll": _AMOUNT, "perplexity": _AMOUNT, "tokens": _COUNT})
    ),
    "recall_by_exposures": checks.list_of(
        checks.record({}, {"exposures": _COUNT, "facts": _COUNT, "recall": _SHARE})
    ),
    "recall_by_entropy": checks.list_of(
        checks.record({}, {"low": _AMOUNT, "high": _AMOUNT, "facts": _COUNT, "recall": _SHARE})
    ),
    "facts": checks.map_of(
        checks.record(dict.fromkeys(("seen", "unseen", "p_seen", "p_unseen"), _TEXT), {})
    ),
    "slot_usage": checks.nullable(_usage),
    "examples": checks.list_of(_EXAMPLE),
    "losses": checks.record({"training": _POINTS, "text": _POINTS}, {}),
    "shape": checks.map_of(_SIZE),
    "history": checks.list_of(
        checks.record({}, {"step": _COUNT, "tokens": _AMOUNT, "flops": _AMOUNT,
                     "seconds": _AMOUNT, "loss": checks.nullable(_LOSS), **_FORM})
    ),
    "config": _CONFIG,
}  # fmt: skip
_RATES = dict.fromkeys(RATES, _AMOUNT)
_TRIED = {"status": _STATUS, "error": _TEXT, "question_heldout": _SHARE,
          **dict.fromkeys(("answer_nll", "seconds", "text_nll"), _AMOUNT)}  # fmt: skip
_SWEPT = checks.record(
    {
        "seed": _COUNT,
        "fields": checks.list_of(checks.one_of(*RATES)),
        "variants": checks.map_of(
            checks.record(
                {
                    "best": checks.record({}, _RATES),
                    "edges": checks.map_of(checks.one_of("lowest", "highest")),
                    "tried": checks.list_of(
                        checks.record({"status": _STATUS}, {**_RATES, **_TRIED})
                    ),
                },
                {},
            )
        ),
    },
    {},
)
_MATCHED = checks.nullable(
    checks.record(
        {},
        {
            "reference": _TEXT,
            "target": _AMOUNT,
            "off": checks.map_of(checks.number(-1)),
            "step": checks.map_of(_AMOUNT),
        },
    )
)
_ABOUT: Mapping[str, checks.Check] = {
    "format_version": checks.number(1, 1, whole=True),
    "rates": checks.nullable(_SWEPT),
    **dict.fromkeys(("name", "command", "device", "date"), _TEXT),
    "commit": checks.nullable(_TEXT),
    "versions": checks.map_of(_TEXT),
    "complete": _BOOL,
    "kinds": checks.map_of(_TEXT),
    "exposure": checks.map_of(
        checks.record(
            {
                **dict.fromkeys(("subjects", "statements"), _TEXT),
                **dict.fromkeys(("answers", "candidates"), _SIZE),
            },
            {},
        )
    ),
    "match": checks.record(
        {},
        {
            "tokens": checks.nullable(_AMOUNT),
            **dict.fromkeys(MEASURES, _MATCHED),
        },
    ),
    "facts": checks.record(
        {},
        {
            "source": checks.nullable(_TEXT),
            **dict.fromkeys(("facts", "shown", "heldout"), _COUNT),
            "relations": checks.map_of(_COUNT),
        },
    ),
    "guessers": checks.map_of(
        checks.record(
            {"facts": _SIZE, "heldout": _SIZE, "asked": _SIZE} | dict.fromkeys(GUESSERS, _SHARE), {}
        )
    ),
}
_RESULTS = checks.record(
    {"runs": checks.list_of(checks.record({"variant": _TEXT, "seed": _COUNT}, _RUN))}, _ABOUT
)


def _fit(value: Any, where: str, most: float) -> None:  # noqa: ANN401
    """Check a law, or why there is none. Of what it predicts `most` is the largest value."""
    if isinstance(value, dict) and "reason" in value:
        _TEXT(value["reason"], f"{where}.reason")
        return
    line = dict.fromkeys(("slope", "intercept"), _ANY)
    ends = {f"{name}_interval": checks.list_of(_ANY, 2) for name in line}
    names = ("x", "y", "low", "high")
    shown = dict.fromkeys(names[1:], checks.list_of(checks.number(0, most)))
    lists = checks.record({"x": checks.list_of(checks.number(1)), **shown}, {})
    left = {
        "runs": _COUNT,
        "points": _COUNT,
        "left_out": checks.list_of(_TEXT),
        "r2": checks.number(most=1),
    }
    checks.record({**line, **ends, **left, "curve": lists}, {"form": _TEXT})(value, where)
    for name in names[1:]:
        if len(value["curve"][name]) != len(value["curve"]["x"]):
            checks.fail(f"{where}.curve.{name}", "as long as curve.x", value["curve"][name])


_LAWS = checks.record(
    {
        name: partial(_fit, most=min(METRICS[law.key].most, checks.MOST))
        for name, law in LAWS.items()
    },
    {},
)
_RATE = checks.record(
    {
        "base": _TEXT,
        "slots": _SIZE,
        "metric": _METRIC,
        "times": checks.nullable(checks.number(1e-30, 1e300)),
        **dict.fromkeys(("low", "high"), checks.nullable(checks.number(0, 1e300))),
        "extrapolated": checks.nullable(_BOOL),
    },
    {
        "reason": checks.nullable(_TEXT),
        "runs": _COUNT,
        **dict.fromkeys(("value", "flops_per_token"), checks.nullable(_AMOUNT)),
        "dense_flops": checks.nullable(checks.number(0, 1e300)),
    },
)
_CELL = {"variant": _TEXT, "seed": _COUNT, "base": _TEXT, "slots": _COUNT}
_SWEEP = checks.record(
    {
        "name": _TEXT,
        "workers": _SIZE,
        "threads": _SIZE,
        "bases": checks.list_of(_TEXT),
        "slots": checks.list_of(_COUNT),
        "seeds": checks.list_of(_COUNT),
        "fits": checks.record(
            {"slots": checks.map_of(_LAWS), "flops": _LAWS}, {"resamples": _COUNT, "level": _SHARE}
        ),
        "exchange": checks.list_of(_RATE),
        "runs": checks.list_of(checks.record(_CELL, _RUN)),
    },
    _ABOUT,
)
