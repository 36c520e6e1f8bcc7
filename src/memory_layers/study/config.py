"""CompareConfig: one base run, and what each variant changes in it.

Next: kinds.py, the variants that have a name, match_config.py, what they can be made equal in, and
match.py and step_time.py, which do that.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from memory_layers.common.checks import check_seed
from memory_layers.common.errors import UserError
from memory_layers.common.reader import from_dict, read_yaml
from memory_layers.study.fields import changed_fields, flat_fields, merge_fields
from memory_layers.study.kinds import KINDS, check_kind, check_options, is_moe, kind_of
from memory_layers.study.match_config import (
    MEASURES,
    SETS,
    Measure,
    check_references,
    find_references,
    read_match,
)
from memory_layers.study.rates import Sweep, check_sweep, take_sweep
from memory_layers.train.config import RunConfig

TOKEN_FIELDS = ("steps", "batch_size", "accumulate", "seq_len")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one variant changes.

    Attributes:
        kind: Name of a kind. None: the changes say it all.
        times: FLOPs of a token, as a multiple of the reference's.
        match: What it is made to have in common with the references. None: as the comparison says.
        changes: Fields that differ from the base, or from what the kind sets, nested.
    """

    kind: str | None = None
    times: float = 1.0
    match: tuple[Measure, ...] | None = None
    changes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Variants of one run, trained on the same tokens or for the same time.

    Attributes:
        base: What the variants share.
        overrides: What each variant changes, by name.
        seeds: Each variant is trained once with each.
        match: What variants are made to have in common, unless they say so themselves: see
            match.match_variants and step_time.match_seconds.
        reference: For a measure, the variant that the others are made to equal. Without it:
            for "flops" the first dense variant, for the others `memory_plus`, or else the first
            with memory.
        sweep: Learning rates of which each variant is trained with the best. None: those of the
            file.
    """

    base: RunConfig
    overrides: Mapping[str, Variant]
    seeds: tuple[int, ...]
    match: tuple[Measure, ...] = ()
    reference: Mapping[str, str] = field(default_factory=dict)
    sweep: Sweep | None = None

    def variants(self) -> dict[str, RunConfig]:
        """Return the full configuration of each variant as it stands, with the first seed.

        Raises:
            UserError: A variant names an unknown field, its fields do not fit together, or it
                is trained on another number of tokens.
        """
        runs = {name: self._run(name, variant) for name, variant in self.overrides.items()}
        as_set = {n: run for n, run in runs.items() if "seconds" not in self.match_of(n)}
        check_tokens("variants", as_set)
        return runs

    def match_of(self, name: str) -> tuple[Measure, ...]:
        """Return what a variant is made to have in common with the references."""
        own = self.overrides[name].match
        return self.match if own is None else own

    def measures(self) -> tuple[Measure, ...]:
        """Return what any variant is matched by."""
        used = {measure for name in self.overrides for measure in self.match_of(name)}
        return tuple(measure for measure in MEASURES if measure in used)

    def kinds(self) -> dict[str, str]:
        """Return the kind of each variant: the one it names, or the one it comes closest to."""
        runs = self.variants()
        return {name: v.kind or kind_of(runs[name]) for name, v in self.overrides.items()}

    def references(self) -> dict[str, str]:
        """Return for each measure that is matched the variant that the others are made to equal.

        Raises:
            UserError: No variant can take its place, or it is one that is to be changed.
        """
        kinds = self.kinds()
        plain = [name for name, variant in self.overrides.items() if variant.times == 1]
        memory = [n for n, kind in kinds.items() if kind != "dense" and not is_moe(kind)]
        found = find_references(
            self.measures(),
            self.reference,
            [name for name in plain if kinds[name] == "dense"],
            sorted(memory, key=lambda name: kinds[name] != "memory_plus"),
        )
        if found.get("flops") not in (None, *plain):
            raise UserError(f"reference.flops: {found['flops']!r} has `times:` itself")
        return found

    def jobs(
        self, variants: Mapping[str, RunConfig] | None = None
    ) -> dict[str, tuple[str, int, RunConfig]]:
        """Return each run by the name of its folder: variant, seed and configuration.

        All variants of the first seed come first: what a stopped comparison has can be compared.

        Args:
            variants: Configurations to use. None: as they stand.
        """
        runs = self.variants() if variants is None else variants
        return {
            f"{variant}-seed{seed}": (variant, seed, with_seed(config, seed))
            for seed in self.seeds
            for variant, config in runs.items()
        }

    def with_base(self, base: RunConfig) -> "CompareConfig":
        """Return this comparison on another base.

        Raises:
            UserError: A field was changed that every run takes from its variant or seed.
        """
        changes = {name: variant.changes for name, variant in self.overrides.items()}
        flags = {"train.seed": "--seeds", **flags_swept(self.sweep)}
        check_changes(self.base, base, ("variant", changes), flags)
        return replace(self, base=base)

    def check_sweep(self) -> None:
        """Refuse a sweep of rates that would not find the best of each variant.

        Raises:
            UserError: As rates.check_sweep.
        """
        changes = {name: variant.changes for name, variant in self.overrides.items()}
        check_sweep(self.sweep, self.variants(), changes, self.seeds, "variants")

    def _run(self, name: str, variant: Variant) -> RunConfig:
        where = f"variants.{name}"
        values = asdict(self.base)
        if variant.kind is not None:
            # What a kind sets follows from the model, which the variant may change.
            model = {"model": variant.changes.get("model") or {}}
            shaped = from_dict(RunConfig, merge_fields(values, model), where)
            try:
                values |= KINDS[variant.kind].changes(shaped)
            except ValueError as error:
                raise UserError(f"{where}: kind {variant.kind!r}: {error}") from error
        return from_dict(RunConfig, {**merge_fields(values, variant.changes), "name": name}, where)


def tokens_of(run: RunConfig) -> int:
    """Return how many tokens a run reads, those of all steps."""
    train = run.train
    return train.steps * train.batch_size * train.accumulate * train.seq_len


def load_compare(path: Path) -> CompareConfig:
    """Read a comparison: the fields of a run, and `variants:`, `seeds:`, `match:`, `reference:`.

    Raises:
        UserError: The file cannot be used. The field at fault is named.
    """
    values = read_yaml(path)
    hint = "to train one model, use `memory-layers train`"
    entries, seeds = take_parts(values, path, "variants", hint, {"train.seed": "seeds:"})
    match = read_match(values.pop("match", []), f"{path}: match")
    references = values.pop("reference", {})
    sweep = take_sweep(values, path)
    overrides = {n: _read_variant(entry, f"{path}: variants.{n}") for n, entry in entries.items()}
    if values.get("moe") is not None and any(v.kind for v in overrides.values()):
        raise UserError(f"{path}: moe has no effect on kinds. hint: put it under `variants:`")
    config = CompareConfig(
        base=from_dict(RunConfig, values, str(path)),
        overrides=overrides,
        seeds=seeds,
        match=match,
        reference=references,
        sweep=sweep,
    )
    check_references(references, config.measures(), overrides, f"{path}: reference")
    config.variants()
    _check_free(config, path)
    config.check_sweep()
    return config


def _read_variant(entry: Any, where: str) -> Variant:  # noqa: ANN401
    if isinstance(entry, str):
        return Variant(kind=check_kind(entry, where), changes={})
    if not isinstance(entry, dict | None):
        raise UserError(
            f"{where} must be a mapping or the name of a kind, got {entry!r}. "
            f"hint: kinds: {', '.join(KINDS)}"
        )
    changes = dict(entry or {})
    times, match = changes.pop("times", 1.0), changes.pop("match", None)
    match = None if match is None else read_match(match, f"{where}.match")
    if "kind" not in changes:
        if times != 1.0:
            raise UserError(f"{where}.times needs a kind. hint: kind: dense")
        return Variant(match=match, changes=changes)
    kind = check_kind(changes.pop("kind"), where)
    check_options(kind, changes, where)
    number = isinstance(times, int | float) and not isinstance(times, bool)
    if not number or not 1 <= times < float("inf"):
        raise UserError(f"{where}.times must be a number >= 1, got {times!r}")
    if times != 1 and kind != "dense":
        raise UserError(f"{where}.times is for dense models, got kind {kind!r}. hint: remove it")
    return Variant(kind=kind, times=float(times), match=match, changes=changes)


def _check_free(config: CompareConfig, path: Path) -> None:
    """Refuse a size that a variant sets and that matching would set to another."""
    references, kinds = config.references(), config.kinds()
    for name, variant in config.overrides.items():
        where, match = f"{path}: variants.{name}", config.match_of(name)
        if variant.times != 1 and "flops" not in match:
            raise UserError(f"{where}.times has no effect. hint: match: [flops]")
        if "parameters" in (variant.match or ()) and kinds[name] in ("dense", "one_slot"):
            raise UserError(
                f"{where}.match: kind {kinds[name]!r} has nothing to set to reach parameters. "
                "hint: leave parameters out"
            )
        for measure in match:
            own = sorted(set(SETS[measure]) & set(flat_fields(variant.changes)))
            if own and name != references[measure]:
                raise UserError(
                    f"{where}.{own[0]} has no effect: match: {measure} sets it. hint: remove it, "
                    f"or make {name} the `reference:` of {measure}"
                )
        if variant.times != 1 and "hidden_size" in (variant.changes.get("model") or {}):
            raise UserError(f"{where}.model.hidden_size has no effect: `times:` sets it")


def check_seeds(seeds: Any, where: str) -> None:  # noqa: ANN401
    """Refuse seeds that are not different whole numbers from 0.

    Raises:
        UserError: They are not.
    """
    whole = isinstance(seeds, list | tuple) and all(type(s) is int and s >= 0 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{where} must be different whole numbers >= 0, got {seeds!r}")
    for seed in seeds:
        check_seed(where, seed)


def take_parts(
    values: dict[str, Any], path: Path, parts: str, hint: str, instead: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Take what a study's file lists, by name, and its seeds out of its fields.

    Args:
        values: The fields of the file at `path`.
        path: For errors.
        parts: "variants" or "bases".
        hint: For a file that lists none.
        instead: Fields that every run takes from elsewhere, and from where.

    Raises:
        UserError: There are none, a name cannot be that of a folder, or such a field is set.
    """
    entries, seeds = values.pop(parts, None), values.pop("seeds", [0])
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path}: needs `{parts}:`, names and what each changes. hint: {hint}")
    for name in entries:
        if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
            raise UserError(f"{path}: {parts}: {name!r} must be letters, digits, - and _")
    named = {f"{parts}.{n}.": own for n, own in entries.items() if isinstance(own, Mapping)}
    for where, own in {"": values, **named}.items():
        for name in (name for name in flat_fields(own) if name in instead):
            raise UserError(f"{path}: {where}{name} has no effect. hint: use `{instead[name]}`")
    check_seeds(seeds, f"{path}: seeds")
    return entries, tuple(seeds)


def check_tokens(where: str, runs: Mapping[str, RunConfig]) -> None:
    """Refuse runs that would be trained on different numbers of tokens.

    Raises:
        UserError: They would.
    """
    counts = {name: tokens_of(run) for name, run in runs.items()}
    if len(set(counts.values())) > 1:
        raise UserError(
            f"{where} must be trained on the same number of tokens, got {counts}. "
            f"hint: set train.{', '.join(TOKEN_FIELDS)} for all of them, outside `{where}:`"
        )


def flags_swept(sweep: Sweep | None) -> dict[str, str]:
    """Return the flags that have no effect where a file sweeps them, and what has one."""
    return dict.fromkeys(sweep.values, "`sweep:` in the file") if sweep else {}


def check_changes(
    before: RunConfig,
    after: RunConfig,
    parts: tuple[str, Mapping[str, Mapping[str, Any]]],
    flags: Mapping[str, str],
) -> None:
    """Refuse flags of the command line that change nothing.

    Args:
        before: The base that the file gives.
        after: The base with the flags.
        parts: What a part of the study is called, and the fields that each sets itself.
        flags: Fields that every run takes from elsewhere, with the flag that sets them.

    Raises:
        UserError: Such a field differs.
    """
    changed = set(changed_fields(asdict(before), asdict(after)))
    for field_, flag in flags.items():
        if field_ in changed:
            raise UserError(f"--{field_} has no effect: runs set their own. hint: use {flag}")
    what, own = parts
    for name, changes in own.items():
        clash = sorted(changed & set(flat_fields(changes)))
        if clash:
            section = clash[0].split(".")[0]
            # All fields of a section that the file leaves out are new.
            flag = clash[0] if getattr(before, section) is not None else f"{section}.*"
            raise UserError(
                f"--{flag} has no effect: {what} {name!r} sets its own. "
                f"hint: change it in the file, under `{what}s:`"
            )


def with_seed(run: RunConfig, seed: int) -> RunConfig:
    """Return a run with another seed."""
    return replace(run, train=replace(run.train, seed=seed))
