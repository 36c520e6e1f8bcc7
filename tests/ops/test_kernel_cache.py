"""The machine code kept on disk: shared by processes, safe to lose, never stale."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import PACKAGE, fresh_interpreter

# Reads a table of each type that is named, and prints how many of the kernels came from disk. A
# wrong result is an error.
READ = """
import sys
import torch
from memory_layers import gather_sum
{setup}
torch.manual_seed(0)
for dtype in sys.argv[1:]:
    table = torch.randn(9, 20).to(getattr(torch, dtype))
    slots, weights = torch.randint(9, (7, 11)), torch.randn(7, 11)
    exact = gather_sum(table, slots, weights, impl="reference")
    torch.testing.assert_close(gather_sum(table, slots, weights, impl="cpu"), exact)
from memory_layers.ops.read.cpu import _gather_sum_kernel
print(sum(_gather_sum_kernel.parallel.stats.cache_hits.values()))
"""


def test_second_process_loads_what_the_first_compiled_until_a_helper_changes(
    tmp_path: Path,
) -> None:
    copy = tmp_path / "src" / "memory_layers"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    program = READ.format(setup="")
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(copy.parent)}
    hits = [int(fresh_interpreter(program, "float32", **environment)) for _ in range(2)]
    for helper in ("ops/_numba/intrinsics.py", "ops/find/cpu_sort.py"):
        (copy / helper).write_text((copy / helper).read_text("utf-8") + "\n# changed\n", "utf-8")
        hits.append(int(fresh_interpreter(program, "float32", **environment)))
    assert hits == [0, 1, 0, 0]


@pytest.mark.parametrize(
    "setup",
    [
        pytest.param(
            "from numba.core.caching import CompileResultCacheImpl as c; c._locator_classes = []",
            id="no-folder",
        ),
        pytest.param(
            "from numba.core.caching import IndexDataCacheFile as c\n"
            "def full(*_): raise OSError(28, 'No space left on device')\n"
            "c.save = full",
            id="full-disk",
        ),
    ],
)
def test_kernels_work_where_nothing_can_be_saved(tmp_path: Path, setup: str) -> None:
    program = READ.format(setup=setup)
    assert int(fresh_interpreter(program, "float32", NUMBA_CACHE_DIR=str(tmp_path))) == 0
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc")]


def test_processes_that_start_at_once_share_a_cache(tmp_path: Path) -> None:
    """Numba alone would give the code of both types one file name, and mix them up."""
    environment = {
        **os.environ, "PYTHONPATH": str(PACKAGE.parent), "NUMBA_CACHE_DIR": str(tmp_path)
    }  # fmt: skip
    both = [
        subprocess.Popen(
            [sys.executable, "-c", READ.format(setup=""), dtype],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for dtype in ("float32", "bfloat16")
    ]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    program = READ.format(setup="")
    cache = str(tmp_path)
    assert fresh_interpreter(program, "float32", "bfloat16", NUMBA_CACHE_DIR=cache) == "2\n"
