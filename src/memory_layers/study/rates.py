"""Sweep: which learning rates are tried for each variant of a study before it is trained.

Next: tune.py, which tries them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from memory_layers.common.checks import check_seed
from memory_layers.common.errors import UserError
from memory_layers.common.text import did_you_mean
from memory_layers.study.fields import flat_fields
from memory_layers.train.config import RunConfig

RATES = ("optim.lr", "optim.value_lr")
SEED = 1000
# A value for each field that is swept.
Values = tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is tried before a study.

    Attributes:
        values: The values of each field, rising.
        seed: Of the runs that are tried, and of their facts.
    """

    values: Mapping[str, tuple[float, ...]]
    seed: int


def take_sweep(values: dict[str, Any], path: Path) -> Sweep | None:
    """Take `sweep:` of a study, such as {optim.lr: [0.001, 0.002, 0.004]}, out of its fields.

    Args:
        values: The fields of the file at `path`.
        path: For errors.

    Returns:
        None where nothing is swept.

    Raises:
        UserError: A field is not one of RATES, its values cannot be swept, or the file sets
            `optim.lr` beside it. `optim.value_lr` is that of the runs in which `optim.lr` is swept.
    """
    entry, where = values.pop("sweep", None), f"{path}: sweep"
    if entry is None:
        return None
    example = "hint: sweep: {optim.lr: [1.0e-3, 2.0e-3, 4.0e-3]}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be a mapping of fields to values, got {entry!r}. {example}")
    fields = dict(entry)
    seed = fields.pop("seed", SEED)
    check_seed(f"{where}.seed", seed)
    swept = {}
    for name, given in fields.items():
        if name not in RATES:
            raise UserError(f"{where}: unknown field {name!r}. hint: {did_you_mean(name, RATES)}")
        numbers = given if isinstance(given, list) else []
        right = all(type(n) in (int, float) and 0 < n < float("inf") for n in numbers)
        if not right or len(numbers) < 2 or sorted(set(numbers)) != numbers:
            raise UserError(
                f"{where}.{name} must be two or more numbers above 0, rising, got {given!r}. "
                f"{example}"
            )
        swept[name] = tuple(map(float, numbers))
    if not swept:
        raise UserError(f"{where} names no field. {example}")
    if {"optim.lr"} & swept.keys() & flat_fields(values).keys():
        raise UserError(f"{path}: optim.lr has no effect: `sweep:` sets it. hint: remove it")
    return Sweep(values={name: swept[name] for name in RATES if name in swept}, seed=seed)


def check_sweep(
    sweep: Sweep | None,
    runs: Mapping[str, RunConfig],
    changes: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    where: str,
) -> None:
    """Refuse a sweep that would not find the best of each run.

    Args:
        sweep: What is tried. None: nothing.
        runs: The full configuration of each variant.
        changes: What the file changes in each, nested.
        seeds: Of the study.
        where: Where variants stand in the file, for errors.

    Raises:
        UserError: A variant sets what is swept, its rates cannot be trained with, or the seed is
            one of the study or of its data.
    """
    if sweep is None:
        return
    taken = {**dict.fromkeys(seeds, "the seeds of the study"),
             **{run.data.seed: "data.seed" for run in runs.values()}}  # fmt: skip
    if sweep.seed in taken:
        free = next(seed for seed in count(SEED) if seed not in taken)
        raise UserError(
            f"sweep.seed must be another than {taken[sweep.seed]}, got {sweep.seed}: a rate that "
            "is best by chance, for these facts or this seed, would count for it. "
            f"hint: sweep: {{seed: {free}}}"
        )
    for name, own in changes.items():
        if set_twice := sorted(set(sweep.values) & set(flat_fields(own))):
            raise UserError(
                f"{where}.{name}.{set_twice[0]} has no effect: `sweep:` sets it. hint: remove it"
            )
    for name, run in runs.items():
        for field, values in swept_fields(run, sweep).items():
            for value in values:
                try:
                    with_rates(run, ((field, value),))
                except ValueError as error:
                    raise UserError(f"sweep.{field}: {where}.{name}: {error}") from error
    tables = [name for name, run in runs.items() if run.memory is not None]
    if "optim.value_lr" in sweep.values and not tables:
        raise UserError(f"sweep.optim.value_lr has no effect: none of {where} has a memory")


def swept_fields(run: RunConfig, sweep: Sweep) -> dict[str, tuple[float, ...]]:
    """Return what is swept of a run: a model without a table has no rate of values."""
    return {
        name: values
        for name, values in sweep.values.items()
        if name != "optim.value_lr" or run.memory is not None
    }


def with_rates(run: RunConfig, values: Values) -> RunConfig:
    """Return a run with other learning rates."""
    changes = {name.removeprefix("optim."): value for name, value in values}
    return replace(run, optim=replace(run.optim, **changes))
