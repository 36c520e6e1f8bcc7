"""Huge pages are asked for where a table is large, and nowhere else."""

import mmap
import sys
from pathlib import Path

import pytest
import torch

from memory_layers import MemoryAdamW
from memory_layers.layers import ValueTable
from memory_layers.ops.huge_pages import advise_huge_pages

LARGE = (2**14, 256)  # 16 MiB of fp32: a mapping of its own


def is_advised(tensor: torch.Tensor) -> bool:
    """Whether the kernel notes "hg" (huge pages advised) of the mapping in the tensor's middle."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        fields = line.split()
        if "-" in fields[0] and ":" not in fields[0]:
            low, high = (int(number, 16) for number in fields[0].split("-"))
            inside = low <= middle < high
        elif inside and fields[0] == "VmFlags:":
            return "hg" in fields
    raise AssertionError("no mapping holds the tensor")


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages here"
)
def test_tables_and_moments_are_advised() -> None:
    table = ValueTable(*LARGE, init_std=0.1)
    optimizer = MemoryAdamW(table)
    table(torch.zeros(1, 1).long(), torch.ones(1, 1)).sum().backward()
    optimizer.step()
    state = optimizer.state[table.weight]
    for tensor in (table.weight, state["exp_avg"], state["exp_avg_sq"]):
        assert is_advised(tensor)
    # Not torch.empty, which may get memory that such a tensor had before.
    fresh = torch.frombuffer(mmap.mmap(-1, table.weight.nbytes), dtype=torch.float32)
    assert not is_advised(fresh)


def test_small_and_other_tensors_are_left_alone() -> None:
    assert not advise_huge_pages(torch.zeros(100))
    assert not advise_huge_pages(torch.empty(LARGE, device="meta"))


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not advise_huge_pages(torch.empty(LARGE))
