"""The small parts of the plots: styles, short numbers, what counts as a number."""

from __future__ import annotations

import subprocess
import sys

import pytest

from memory_layers.study.intervals import finite
from memory_layers.study.plots_base import short_number, variant_styles


def test_importing_the_report_imports_no_plotting_library() -> None:
    code = "import sys, memory_layers.study.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_styles_are_distinct_and_stay_with_the_variant() -> None:
    names = [f"v{i}" for i in range(20)]
    styles = variant_styles(names)
    assert len(set(styles.values())) == 20
    assert variant_styles(names[:3]) == {name: styles[name] for name in names[:3]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999.9, "1.00k"),
        (12_345, "12.3k"),
        (999_600, "1.00M"),
        (138_748_000_000, "139B"),
        (1.5e15, "1500T"),
    ],
)
def test_short_number(value: float, text: str) -> None:
    assert short_number(value) == text


@pytest.mark.parametrize("value", [None, "1", True, float("nan"), float("inf")])
def test_only_finite_numbers_count(value: object) -> None:
    assert finite(value) is None
