"""Styles of variants, and where error bars go."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from memory_layers.study.plots.drawing import moved_apart, variant_styles


def test_importing_the_report_loads_neither_plots_nor_torch() -> None:
    code = (
        "import sys, memory_layers.study.report; "
        "sys.exit(bool({'matplotlib', 'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_twenty_variants_have_twenty_colours_that_stay() -> None:
    names = [f"v{i}" for i in range(60)]
    styles = variant_styles(names)
    assert len({styles[name].colour for name in names[:20]}) == 20
    assert len(set(styles.values())) == 60
    assert variant_styles(names[:3]) == {name: styles[name] for name in names[:3]}


@pytest.mark.parametrize("places", [[5.0, 5.0, 5.0], [0.0, 1.0, 30.0, 1.5], [3.0], [10.0, 0.0]])
def test_places_move_apart_and_keep_their_order(places: list[float]) -> None:
    given = np.array(places)
    moved = moved_apart(given, 4.0)
    order = np.argsort(given, kind="stable")
    assert all(b - a >= 4.0 - 1e-9 for a, b in pairwise(moved[order]))
    assert moved.sum() == pytest.approx(given.sum())
    # What is far from all others stays.
    far = [i for i, x in enumerate(given) if all(abs(x - y) >= 20 for y in np.delete(given, i))]
    np.testing.assert_allclose(moved[far], given[far])
