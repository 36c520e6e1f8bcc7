"""A training step makes no tensor of the table's size, nor one of [R, V] or [T, J, V].

Measured in a process of its own: the address space is limited to what it already uses and a
headroom that is smaller than one such tensor, so allocating it is an error wherever it happens,
in torch, numpy or Numba.
"""

import json

import pytest
from helpers import fresh_interpreter

PROGRAM = """
import json, resource, sys
import torch
from memory_layers import MemoryAdamW, MemoryConfig, MemoryLayer
from memory_layers.layers import ValueTable
from memory_layers.ops.write import row_norm

MIB = 2**20

def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024

def limited(headroom, step):
    used = status("VmSize")
    open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts again
    before = status("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (used + headroom, resource.RLIM_INFINITY))
    try:
        step()
        return max(0, status("VmHWM") - before) / MIB
    except (MemoryError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def reads_and_step(mode, state):
    # R = T * J = 2^16 different rows of 2^17: [R, V] and [T, J, V] have 64 MiB, [N, V] 128 MiB.
    table = ValueTable(2**17, 256, init_std=0.1)
    optimizer = MemoryAdamW(table, value_state=state, value_weight_decay=0.1)
    slots = torch.randperm(2**17)[: 2**16].view(512, 128)
    weights = torch.rand(512, 128, requires_grad=True)
    def step():
        table(slots, weights).square().sum().backward()
        if mode != "factored":
            grad = table.weight.grad
            table.weight.grad = grad.to_sparse() if mode == "sparse" else grad.to_dense()
        optimizer.clip_grad_norm_(1.0, value_max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
    step()
    return limited(12 * MIB, step)

def layer_and_step(sub_keys):
    config = MemoryConfig(layers=(0,), sub_keys=sub_keys, heads=4, top_k=8, key_dim=8)
    layer = MemoryLayer(config, 32)
    optimizer = MemoryAdamW(layer)
    def step():
        for _ in range(2):
            layer(torch.randn(1024, 32)).square().sum().backward()
        optimizer.clip_grad_norm_(1.0, value_max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
    step()
    step()
    return limited(64 * MIB, step)

functions = {"reads": reads_and_step, "layer": layer_and_step}
print(json.dumps([functions[name](*arguments) for name, *arguments in json.loads(sys.argv[1])]))
"""


CALLS = {
    "full": ("reads", "factored", "full"),
    "row": ("reads", "factored", "row"),
    "sparse": ("reads", "sparse", "full"),
    "dense": ("reads", "dense", "full"),
    "small": ("layer", 128),
    "large": ("layer", 1024),
}


@pytest.fixture(scope="module")
def growth() -> dict[str, float | str]:
    """MiB by which each step grew, or the error it met. One process for all."""
    printed = fresh_interpreter(
        PROGRAM,
        json.dumps(list(CALLS.values())),
        OMP_NUM_THREADS="1",
        NUMBA_NUM_THREADS="1",
        # Freed memory goes back at once, so that no large tensor hides in what was used before.
        MALLOC_MMAP_THRESHOLD_="65536",
        MALLOC_ARENA_MAX="1",
    )
    return dict(zip(CALLS, json.loads(printed), strict=True))


@pytest.mark.parametrize("call", ["full", "row"])
def test_step_needs_no_more_than_the_factors(growth: dict, call: str) -> None:
    assert isinstance(growth[call], float), growth[call]
    assert growth[call] < 8


@pytest.mark.parametrize(("call", "size"), [("sparse", 2**26), ("dense", 2**27)])
def test_measurement_finds_what_it_looks_for(growth: dict, call: str, size: int) -> None:
    """These gradients make an [R, V] and an [N, V] tensor by their nature."""
    assert f"tried to allocate {size} bytes" in growth[call]


def test_step_does_not_grow_with_the_slots(growth: dict) -> None:
    """2 MiB of values against 128. What grows goes with M, not with M * M: sub-keys and scores."""
    assert isinstance(growth["small"], float), growth["small"]
    assert isinstance(growth["large"], float), growth["large"]
    assert growth["large"] - growth["small"] < 32
