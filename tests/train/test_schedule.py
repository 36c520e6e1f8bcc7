"""Learning rates: the rise, the fall, and where both end."""

import pytest

from memory_layers.train.config import OptimConfig

STEPS, WARMUP = 100, 10


def rates(schedule: str, warmup: int = WARMUP, end_ratio: float = 0.1) -> list[float]:
    optim = OptimConfig(warmup_steps=warmup, end_ratio=end_ratio)
    return [optim.rate(schedule, step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warmup_rises_to_the_peak(schedule: str) -> None:
    found = rates(schedule)
    assert found[:WARMUP] == pytest.approx([(n + 1) / WARMUP for n in range(WARMUP)])
    assert found[WARMUP] == 1.0
    assert max(found) == 1.0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("end_ratio", [0.0, 0.1, 1.0])
def test_last_step_has_the_end_ratio(schedule: str, end_ratio: float) -> None:
    found = rates(schedule, end_ratio=end_ratio)
    assert found[-1] == pytest.approx(end_ratio)
    falling = found[WARMUP:]
    assert falling == sorted(falling, reverse=True)
    # Halfway in time is halfway in the rate, for both.
    middle = (found[54] + found[55]) / 2
    assert middle == pytest.approx((1 + end_ratio) / 2, abs=1e-9)


def test_linear_falls_evenly_and_cosine_does_not() -> None:
    linear, cosine = rates("linear"), rates("cosine")
    assert linear[20] - linear[21] == pytest.approx(linear[70] - linear[71])
    assert cosine[11] - cosine[12] < (cosine[54] - cosine[55]) / 5


def test_constant_stays() -> None:
    assert set(rates("constant", warmup=0)) == {1.0}


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (5, 50), (2, 1)])
def test_short_runs(schedule: str, steps: int, warmup: int) -> None:
    optim = OptimConfig(warmup_steps=warmup, end_ratio=0.1)
    found = [optim.rate(schedule, step, steps) for step in range(steps)]
    assert all(0 < value <= 1 for value in found)
