"""results.json read and checked, before a report shows it: what is wrong is named by its path.

Fields that earlier versions did not write may be missing, and others may stand beside them.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.text_files import read_json
from memory_layers.study.fits import LAWS
from memory_layers.study.match_config import MEASURES
from memory_layers.study.metrics import FORMS, METRICS
from memory_layers.study.summary import finished

# Raises a UserError for a value that is not as it must be, with its path.
Check = Callable[[Any, str], None]
# Sums and logarithms of what is below it are numbers.
_MOST = 1e30
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


def _fail(where: str, expected: str, got: object) -> None:
    shown = repr(got)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise UserError(f"{where} must be {expected}, got {shown}")


def _number(
    least: float = -_MOST, most: float = _MOST, *, whole: bool = False, loose: bool = False
) -> Check:
    """Check numbers. Loose: those of a loss that was lost too, NaN and infinity."""
    kind = "a whole number" if whole else "a number"
    expected = f"{kind} from {least:g} to {most:g}"

    def check(value: Any, where: str) -> None:  # noqa: ANN401
        right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        right = right and not (isinstance(value, int) and abs(value) >= 2**63)
        lost = loose and isinstance(value, float) and not math.isfinite(value)
        if not right or not (least <= value <= most or lost):
            _fail(where, expected, value)

    return check


def _of_type(kind: type, expected: str) -> Check:
    def check(value: Any, where: str) -> None:  # noqa: ANN401
        if not isinstance(value, kind):
            _fail(where, expected, value)

    return check


def _one_of(*names: str) -> Check:
    def check(value: Any, where: str) -> None:  # noqa: ANN401
        if value not in names:
            _fail(where, f"one of {', '.join(names)}", value)

    return check


def _anything(_value: Any, _where: str) -> None:  # noqa: ANN401
    """Let everything pass."""


def _nullable(part: Check) -> Check:
    def check(value: Any, where: str) -> None:  # noqa: ANN401
        if value is not None:
            part(value, where)

    return check


def _list(part: Check, length: int | None = None) -> Check:
    def check(value: Any, where: str) -> None:  # noqa: ANN401
        if not isinstance(value, list) or (length is not None and len(value) != length):
            _fail(where, "a list" + (f" of {length}" if length else ""), value)
        for number, item in enumerate(value):
            part(item, f"{where}[{number}]")

    return check


def _map(part: Check) -> Check:
    """Check a mapping of any names."""

    def check(value: Any, where: str) -> None:  # noqa: ANN401
        if not isinstance(value, dict):
            _fail(where, "a mapping", value)
        for name, item in value.items():
            part(item, f"{where}.{name}")

    return check


def _record(required: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    """Check a mapping of known names. Those that are optional may be missing."""

    def check(value: Any, where: str) -> None:  # noqa: ANN401
        _map(_anything)(value, where)
        # The path of the file ends with a colon, those within it with their last field.
        inner = f"{where} " if where.endswith(":") else f"{where}."
        for name, part in required.items():
            if name not in value:
                raise UserError(f"{inner}{name} is missing")
            part(value[name], f"{inner}{name}")
        for name, part in optional.items():
            if name in value:
                part(value[name], f"{inner}{name}")

    return check


_TEXT, _BOOL = _of_type(str, "a text"), _of_type(bool, "true or false")
_ANY, _AMOUNT, _SHARE = _number(), _number(0), _number(0, 1)
_COUNT, _SIZE = _number(0, whole=True), _number(1, whole=True)
_LOSS = _number(0, loose=True)
_FORM = dict.fromkeys(FORMS, _SHARE)
_METRIC = _one_of(*LAWS)


def _usage(value: Any, where: str) -> None:  # noqa: ANN401
    fields = {
        "slots": _SIZE, "used_share": _SHARE, "kl_to_uniform": _ANY,
        "histogram": _list(_AMOUNT), "histogram_edges": _list(_AMOUNT),
    }  # fmt: skip
    _record({}, fields)(value, where)
    counts, edges = value.get("histogram"), value.get("histogram_edges")
    if counts is not None and edges is not None and len(edges) != len(counts) + 1:
        _fail(f"{where}.histogram_edges", f"a list of {len(counts) + 1}, one more than histogram",
              edges)  # fmt: skip


_CONFIG = _record(
    {
        "model": _record(
            {},
            {
                "preset": _TEXT,
                **dict.fromkeys(("hidden_size", "mlp_size", "layers"), _nullable(_SIZE)),
            },
        )
    },
    {
        "memory": _nullable(
            _record(
                {"sub_keys": _SIZE, "layers": _list(_COUNT), "heads": _SIZE, "top_k": _SIZE}, {}
            )
        ),
        "moe": _nullable(
            _record(
                {"routing": _TEXT, "experts": _SIZE},
                {"top_k": _SIZE, "expert_size": _nullable(_SIZE)},
            )
        ),
        "train": _record(
            dict.fromkeys(("steps", "batch_size", "accumulate", "seq_len"), _SIZE), {}
        ),
    },
)
_EXAMPLE = _record(
    {"correct": _BOOL, "relation": _TEXT, "prompt": _TEXT, "answer": _TEXT, "said": _TEXT}, {}
)
_POINTS = _list(_list(_LOSS, 2))
_RUN: Mapping[str, Check] = {
    "status": _one_of("ok", "diverged", "out_of_memory", "killed", "failed", "unfinished"),
    "error": _TEXT,
    "steps": _COUNT,
    "last_loss": _nullable(_LOSS),
    "value_learning_rate": _nullable(_AMOUNT),
    "flops_per_token": _number(1),
    **dict.fromkeys(
        ("train_flops_per_token", "params_total", "params_active",
         "params_memory", "tokens", "seconds", "learning_rate",
         "bits_stored", "bits_per_parameter", "bits_per_active_parameter", "bits_per_train_flop"),
        _AMOUNT,
    ),
    "recall": _record({}, {**_FORM, "by_relation": _map(_record({}, _FORM))}),
    "answer_nll": _map(_AMOUNT),
    "text": _nullable(_record({}, {"nll": _AMOUNT, "perplexity": _AMOUNT, "tokens": _COUNT})),
    "recall_by_exposures": _list(
        _record({}, {"exposures": _COUNT, "facts": _COUNT, "recall": _SHARE})
    ),
    "recall_by_entropy": _list(
        _record({}, {"low": _AMOUNT, "high": _AMOUNT, "facts": _COUNT, "recall": _SHARE})
    ),
    "slot_usage": _nullable(_usage),
    "examples": _list(_EXAMPLE),
    "losses": _record({"training": _POINTS, "text": _POINTS}, {}),
    "shape": _map(_SIZE),
    "history": _list(
        _record({}, {"step": _COUNT, "tokens": _AMOUNT, "flops": _AMOUNT, "seconds": _AMOUNT,
                     "loss": _nullable(_LOSS), **_FORM})
    ),
    "config": _CONFIG,
}  # fmt: skip
_MATCHED = _nullable(
    _record(
        {},
        {
            "reference": _TEXT,
            "target": _AMOUNT,
            "off": _map(_number(-1)),
            "step": _map(_AMOUNT),
        },
    )
)
_ABOUT: Mapping[str, Check] = {
    "format_version": _number(1, 1, whole=True),
    **dict.fromkeys(("name", "command", "device", "date"), _TEXT),
    "commit": _nullable(_TEXT),
    "versions": _map(_TEXT),
    "complete": _BOOL,
    "kinds": _map(_TEXT),
    "match": _record(
        {},
        {
            "tokens": _nullable(_AMOUNT),
            **dict.fromkeys(MEASURES, _MATCHED),
        },
    ),
    "facts": _record(
        {},
        {
            "source": _nullable(_TEXT),
            **dict.fromkeys(("facts", "shown", "heldout"), _COUNT),
            "relations": _map(_COUNT),
        },
    ),
}
_RESULTS = _record({"runs": _list(_record({"variant": _TEXT, "seed": _COUNT}, _RUN))}, _ABOUT)


def _fit(value: Any, where: str, most: float) -> None:  # noqa: ANN401
    """Check a law, or why there is none. Of what it predicts `most` is the largest value."""
    if isinstance(value, dict) and "reason" in value:
        _TEXT(value["reason"], f"{where}.reason")
        return
    line = dict.fromkeys(("slope", "intercept"), _ANY)
    ends = {f"{name}_interval": _list(_ANY, 2) for name in line}
    names = ("x", "y", "low", "high")
    shown = dict.fromkeys(names[1:], _list(_number(0, most)))
    lists = _record({"x": _list(_number(1)), **shown}, {})
    left = {"runs": _COUNT, "points": _COUNT, "left_out": _list(_TEXT), "r2": _number(most=1)}
    _record({**line, **ends, **left, "curve": lists}, {"form": _TEXT})(value, where)
    for name in names[1:]:
        if len(value["curve"][name]) != len(value["curve"]["x"]):
            _fail(f"{where}.curve.{name}", "as long as curve.x", value["curve"][name])


_LAWS = _record(
    {name: partial(_fit, most=min(METRICS[law.key].most, _MOST)) for name, law in LAWS.items()}, {}
)
_RATE = _record(
    {
        "base": _TEXT,
        "slots": _SIZE,
        "metric": _METRIC,
        "times": _nullable(_number(1e-30, 1e300)),
        **dict.fromkeys(("low", "high"), _nullable(_number(0, 1e300))),
        "extrapolated": _nullable(_BOOL),
    },
    {
        "reason": _nullable(_TEXT),
        "runs": _COUNT,
        **dict.fromkeys(("value", "flops_per_token"), _nullable(_AMOUNT)),
        "dense_flops": _nullable(_number(0, 1e300)),
    },
)
_CELL = {"variant": _TEXT, "seed": _COUNT, "base": _TEXT, "slots": _COUNT}
_SWEEP = _record(
    {
        "name": _TEXT,
        "workers": _SIZE,
        "threads": _SIZE,
        "bases": _list(_TEXT),
        "slots": _list(_COUNT),
        "seeds": _list(_COUNT),
        "fits": _record(
            {"slots": _map(_LAWS), "flops": _LAWS}, {"resamples": _COUNT, "level": _SHARE}
        ),
        "exchange": _list(_RATE),
        "runs": _list(_record(_CELL, _RUN)),
    },
    _ABOUT,
)
