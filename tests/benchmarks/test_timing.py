"""Timing and memory: in turn, without the preparation, and with what a run really takes."""

import time

import pytest
import torch

from benchmarks.checks import WrongResultError
from benchmarks.harness import (
    WARM_UP_ROUNDS,
    Suite,
    Variant,
    copy_variants,
    find_variant,
    measure,
    peak_extra_bytes,
    percentile,
    time_variants,
)

CPU = torch.device("cpu")


def variant(name: str, run: object, **changes: object) -> Variant:
    values = {"check": lambda: None, "checked": "nothing", "bytes": 10**6, **changes}
    return Variant(name=name, run=run, **values)


def silent(_line: str) -> None:
    pass


def test_variants_take_turns_and_preparation_is_not_timed() -> None:
    calls: list[str] = []
    prepared: list[str] = []

    def prepare() -> None:
        prepared.append("slow")
        time.sleep(0.05)

    slow = variant("slow", lambda: calls.append("slow"), prepare=prepare)
    fast = variant("fast", lambda: calls.append("fast"))
    samples = time_variants((slow, fast), CPU, repeats=4, seconds=0.0, report=silent)
    assert {name: len(times) for name, times in samples.items()} == {"slow": 4, "fast": 4}
    assert percentile(samples["slow"], 0.5) < 50
    assert len(prepared) == calls.count("slow")
    timed = calls[2 * WARM_UP_ROUNDS :]
    assert timed == ["slow", "fast", "fast", "slow"] * 2


def test_rounds_go_on_until_the_time_is_up() -> None:
    sleeper = variant("a", lambda: time.sleep(0.01))
    samples = time_variants((sleeper,), CPU, repeats=1, seconds=0.1, report=silent)
    assert 2 <= len(samples["a"]) <= 10


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(list(range(11)), 0.2) == pytest.approx(2.0)


def test_speedup_is_over_the_fastest_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harness.SMALLEST_COPY", 2**20)
    variants = tuple(
        variant(name, lambda: None, against=("slow", "slower") if name == "ours" else ())
        for name in ("ours", "slow", "slower")
    )
    times = {"ours": [1.0, 2.0, 3.0], "slow": [8.0, 8.0, 8.0], "slower": [9.0, 9.0, 9.0]}
    copies = {"streaming copy (torch)": [0.5] * 3, "streaming copy (memmove)": [0.25] * 3}
    monkeypatch.setattr("benchmarks.harness.time_variants", lambda *_, **__: times | copies)
    results = measure(Suite(variants), CPU, repeats=3, seconds=0.0, report=silent)
    ours = find_variant(results, "ours")
    assert ours["speedup"] == 4.0
    assert ours["gbs"] == pytest.approx(1e6 / 2e-3 / 1e9)
    # 2**20 bytes in the faster copy's 0.25 ms.
    assert results["bandwidth_gbs"] == pytest.approx(2**20 / 0.25e-3 / 1e9)
    assert ours["share_of_copy"] == pytest.approx(ours["gbs"] / results["bandwidth_gbs"])
    assert (ours["p20_ms"], ours["p80_ms"]) == pytest.approx((1.4, 2.6))
    assert ours["samples_ms"] == [1.0, 2.0, 3.0]
    with pytest.raises(KeyError):
        find_variant(results, "nobody's")


def test_a_wrong_variant_is_never_run_for_time() -> None:
    def wrong() -> None:
        raise WrongResultError("b is wrong")

    ran: list[str] = []
    variants = (
        variant("a", lambda: ran.append("a")),
        variant("b", lambda: ran.append("b"), check=wrong),
    )
    with pytest.raises(WrongResultError, match="b is wrong"):
        measure(Suite(variants), CPU, repeats=1, seconds=0.0, report=silent)
    assert ran == []


def test_copies_copy_and_are_larger_than_a_cache() -> None:
    copies = copy_variants(10, CPU)
    assert [copy.name for copy in copies] == ["streaming copy (torch)", "streaming copy (memmove)"]
    for copy in copies:
        assert copy.bytes == 256 * 2**20
        copy.check()


def test_peak_finds_what_was_allocated_and_freed() -> None:
    size = 96 * 2**20
    extra = peak_extra_bytes(lambda: torch.ones(size // 4).sum(), CPU)
    if extra is None:
        pytest.skip("this kernel does not let a process reset its high-water mark")
    assert 0.9 * size < extra < 1.3 * size
    assert peak_extra_bytes(lambda: None, CPU) < 2**20
