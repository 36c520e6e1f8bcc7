"""The CPU kernels with vector code and with plain loops, and what a new LLVM would do to them."""

from pathlib import Path

import pytest
import torch
from every_kernel import results
from helpers import fresh_interpreter

HERE = Path(__file__).parent
SAVE = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from every_kernel import results
import torch
torch.save(results("cpu"), sys.argv[1])
from memory_layers.ops._numba.compile import inner_loops
print(inner_loops().__name__)
"""
# What llvmlite had, and no longer has: no vector code compiles. A plain table is read all the same.
WITHOUT_VECTORS = """
import warnings
from llvmlite import ir
del ir.IRBuilder.shuffle_vector
import torch
from memory_layers import gather_sum
table, slots, weights = torch.randn(9, 20), torch.randint(9, (7, 11)), torch.randn(7, 11)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        found = gather_sum(table, slots, weights, impl="cpu")
torch.testing.assert_close(found, gather_sum(table, slots, weights, impl="reference"))
for warning in caught:
    print(warning.category.__name__, warning.message)
"""


def test_plain_loops_give_what_vector_code_gives(tmp_path: Path) -> None:
    """Sums over rows have one order in both. Dot products over columns do not."""
    file = tmp_path / "results.pt"
    chosen = fresh_interpreter(SAVE, str(file), MEMORY_LAYERS_PLAIN_NUMBA="1")
    assert chosen.strip().endswith("plain")
    plain, vectors = torch.load(file), results("cpu")
    assert plain.keys() == vectors.keys()
    for name, tensor in vectors.items():
        if "gather_dot" in name or "scores of one" in name:
            torch.testing.assert_close(plain[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
        else:
            assert torch.equal(plain[name], tensor), name


def test_vector_code_runs_where_it_compiles(tmp_path: Path) -> None:
    assert fresh_interpreter(SAVE, str(tmp_path / "results.pt")).strip().endswith("intrinsics")


def test_an_llvmlite_without_vectors_costs_one_warning(tmp_path: Path) -> None:
    printed = fresh_interpreter(WITHOUT_VECTORS, NUMBA_CACHE_DIR=str(tmp_path)).splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("RuntimeWarning numba ")
    assert "plain loops take its place" in printed[0]


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_program_covers_find_read_and_write(name: str) -> None:
    """What the comparison above runs is held to the reference here."""
    kernels, exact = results("cpu"), results("reference")
    for kind in ("gather_sum", "gather_dot", "scatter_sum", "row_sums", "scores", "d_query"):
        key = f"{kind} {name}"
        torch.testing.assert_close(kernels[key], exact[key], rtol=1e-2, atol=1e-4, msg=key)
