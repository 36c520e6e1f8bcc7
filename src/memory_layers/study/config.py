"""CompareConfig: one base run, and what each variant changes in it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from memory_layers.train.config import ConfigError, RunConfig, from_dict, read_yaml


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Variants of one run, trained on the same tokens.

    Attributes:
        base: What the variants share.
        overrides: For each variant, the fields that differ from the base, nested.
        seeds: Each variant is trained once with each.
    """

    base: RunConfig
    overrides: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]

    def variants(self) -> dict[str, RunConfig]:
        """Return the full configuration of each variant, with the first seed.

        Raises:
            ConfigError: A variant names an unknown field, or its fields do not fit together.
        """
        base = asdict(self.base)
        return {
            name: from_dict(RunConfig, {**_merge(base, changes), "name": name}, f"variants.{name}")
            for name, changes in self.overrides.items()
        }

    def jobs(self) -> dict[str, tuple[str, int, RunConfig]]:
        """Return each run by the name of its folder: variant, seed and configuration."""
        return {
            f"{variant}-seed{seed}": (
                variant,
                seed,
                replace(config, train=replace(config.train, seed=seed)),
            )
            for variant, config in self.variants().items()
            for seed in self.seeds
        }

    def with_base(self, base: RunConfig) -> "CompareConfig":
        """Return this comparison on another base.

        Raises:
            ConfigError: A field was changed that every run takes from its variant or seed.
        """
        before, after = _flat(asdict(self.base)), _flat(asdict(base))
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        for variant, changes in self.overrides.items():
            clash = sorted(changed & set(_flat(changes)))
            if clash:
                raise ConfigError(
                    f"--{clash[0]} has no effect: variant {variant!r} sets its own. "
                    "hint: change it in the file, under `variants:`"
                )
        if "train.seed" in changed:
            raise ConfigError("--train.seed has no effect on a comparison. hint: use --seeds")
        return replace(self, base=base)


def load_compare(path: Path) -> CompareConfig:
    """Read a comparison: the fields of a run, and `variants:` and `seeds:`.

    Raises:
        ConfigError: The file cannot be used. The field at fault is named.
    """
    values = read_yaml(path)
    overrides = values.pop("variants", None)
    seeds = values.pop("seeds", [0])
    if not isinstance(overrides, dict) or not overrides:
        raise ConfigError(
            f"{path}: needs `variants:`, names and what each changes. hint: to train one model, "
            "use `memory-layers train`"
        )
    for name, changes in overrides.items():
        if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"{path}: variants: {name!r} must be letters, digits, - and _")
        if changes is None:
            overrides[name] = {}
        elif not isinstance(changes, dict):
            raise ConfigError(f"{path}: variants.{name} must be a mapping, got {changes!r}")
    for where, part in {"": values, **{f"variants.{n}.": c for n, c in overrides.items()}}.items():
        if isinstance(part.get("train"), dict) and "seed" in part["train"]:
            raise ConfigError(f"{path}: {where}train.seed has no effect. hint: use `seeds:`")
    check_seeds(seeds, f"{path}: seeds")
    config = CompareConfig(
        base=from_dict(RunConfig, values, str(path)), overrides=overrides, seeds=tuple(seeds)
    )
    config.variants()
    return config


def check_seeds(seeds: Any, where: str) -> None:  # noqa: ANN401
    """Refuse seeds that are not different whole numbers from 0.

    Raises:
        ConfigError: They are not.
    """
    whole = isinstance(seeds, list | tuple) and all(type(s) is int and s >= 0 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where} must be different whole numbers >= 0, got {seeds!r}")


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        old = merged.get(name)
        nested = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[name] = _merge(old, value) if nested else value
    return merged


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
