"""Measure a suite: check it, time it in turn with a streaming copy, see what memory it takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.copying import PREFIX, copy_variants
from benchmarks.peak import peak_extra_bytes
from benchmarks.timing import Report, percentile, time_variants
from benchmarks.variant import Suite, Variant

DEFAULT_REPEATS = 10
DEFAULT_SECONDS = 2.0


def measure(
    suite: Suite,
    device: torch.device,
    *,
    repeats: int = DEFAULT_REPEATS,
    seconds: float = DEFAULT_SECONDS,
    report: Report,
) -> dict[str, Any]:
    """Check every variant, then time all of them and the copy in turn.

    Args:
        suite: What to measure.
        device: Where its variants run.
        repeats: Times each is timed, at least.
        seconds: Time spent on all together, at least.
        report: Takes lines of progress.

    Returns:
        What a result file holds of it: variants with their numbers and samples, bandwidth.

    Raises:
        WrongResultError: A variant is wrong. Nothing was timed.
    """
    copies = copy_variants(suite.variants[0].bytes, device)
    everything = (*suite.variants, *copies)
    for variant in everything:
        report(f"checking {variant.name}")
        variant.check()
    samples = time_variants(everything, device, repeats=repeats, seconds=seconds, report=report)
    rates = {v.name: v.bytes / percentile(samples[v.name], 0.5) / 1e6 for v in everything}
    bandwidth = max(rates[copy.name] for copy in copies)
    medians = {name: percentile(times, 0.5) for name, times in samples.items()}
    results = []
    for variant in everything:
        extra = None
        if not variant.name.startswith(PREFIX):
            report(f"memory of {variant.name}")
            extra = _peak(variant, device)
        results.append(_summary(variant, samples[variant.name], bandwidth, medians, extra))
    return {
        "bandwidth_gbs": bandwidth,
        "facts": suite.facts,
        "variants": results,
    }


def find_variant(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the numbers of a variant in what `measure` returned.

    Args:
        result: What `measure` returned.
        name: Of the variant.

    Raises:
        KeyError: There is none of this name.
    """
    for variant in result["variants"]:
        if variant["name"] == name:
            return variant
    raise KeyError(name)


def _peak(variant: Variant, device: torch.device) -> int | None:
    if variant.prepare is not None:
        variant.prepare()
    return peak_extra_bytes(variant.run, device)


def _summary(
    variant: Variant,
    samples: Sequence[float],
    bandwidth: float,
    medians: Mapping[str, float],
    extra: int | None,
) -> dict[str, Any]:
    median = percentile(samples, 0.5)
    rate = variant.bytes / median / 1e6
    fastest = min((medians[name] for name in variant.against), default=None)
    return {
        "name": variant.name,
        "ours": variant.ours,
        "against": list(variant.against),
        "speedup": None if fastest is None else fastest / median,
        "median_ms": median,
        "p20_ms": percentile(samples, 0.2),
        "p80_ms": percentile(samples, 0.8),
        "bytes": variant.bytes,
        "gbs": rate,
        "share_of_copy": rate / bandwidth,
        "tokens_per_second": variant.tokens / median * 1e3 if variant.tokens else None,
        "peak_extra_bytes": extra,
        "checked": variant.checked,
        "samples_ms": list(samples),
    }
