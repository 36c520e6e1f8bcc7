"""Memory of a training step, and time of the first compilation: each in a process of its own.

`python -m benchmarks targets --rows memory compile` starts these processes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import torch

from benchmarks.cases.step import create_moments, value_table
from benchmarks.harness import peak_extra_bytes
from benchmarks.inputs import make_table
from benchmarks.results import ROOT
from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryLayer
from memory_layers.layers.factored import FactoredGradient
from memory_layers.optim import MemoryAdamW

WARM_UP_STEPS = 2


def measure_memory(slots: int, tokens: int, reads: int, width: int) -> dict[str, float]:
    """Measure what a training step keeps and takes beyond the table and its moments.

    Args:
        slots: N.
        tokens: T.
        reads: J.
        width: V.

    Returns:
        pending: Bytes held between backward and step.
        growth: By how many bytes memory grew in optimizer.step().
        factors: Bytes of T * (2 J + V) numbers: slots int64, weights and gradient fp32.
    """
    sizes = [str(size) for size in (slots, tokens, reads, width)]
    # Freed memory goes back at once, so that none is taken again unseen.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    return _in_fresh_process(["memory", *sizes], settings)


def measure_compilation() -> dict[str, float]:
    """Measure how long the first training step of two tiny layers takes with an empty cache.

    Returns:
        cold: Seconds with an empty cache.
        warm: Seconds in the next process.
    """
    with tempfile.TemporaryDirectory() as cache:
        settings = {"NUMBA_CACHE_DIR": cache}
        cold, warm = (_in_fresh_process(["compile"], settings) for _ in range(2))
    return {"cold": cold["seconds"], "warm": warm["seconds"]}


def _in_fresh_process(arguments: Sequence[str], settings: dict[str, str]) -> dict[str, float]:
    places = [str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.footprint", *arguments],
        env={**os.environ, **settings, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"footprint {' '.join(arguments)} failed:\n{result.stderr}")
    return json.loads(result.stdout)


def _memory(slots: int, tokens: int, reads: int, width: int) -> dict[str, float]:
    device = torch.device("cpu")
    table = value_table(make_table(slots, width, torch.float32, device))
    optimizer = MemoryAdamW(table, value_state="full")
    create_moments(table, optimizer)
    picked = torch.randint(slots, (tokens, reads))
    weights = torch.rand(tokens, reads)
    d_out = torch.randn(tokens, width)
    for _ in range(WARM_UP_STEPS):
        table(picked, weights).backward(d_out)
        optimizer.step()
    table(picked, weights).backward(d_out)
    gradient = table.weight.grad
    assert isinstance(gradient, FactoredGradient)
    pending = gradient.reads.nbytes
    growth = peak_extra_bytes(optimizer.step, device)
    if growth is None:
        raise RuntimeError("this system does not say how much memory a process takes")
    factors = tokens * (reads * (8 + 4) + width * 4)
    return {"pending": pending, "growth": growth, "factors": factors}


def _compile() -> dict[str, float]:
    layers = [
        MemoryLayer(MemoryConfig(layers=(0,), sub_keys=16, top_k=4), 16, value_dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    start = time.perf_counter()
    for layer in layers:
        optimizer = MemoryAdamW(layer, value_state="full")
        layer(torch.randn(8, 16, requires_grad=True)).sum().backward()
        optimizer.clip_grad_norm_(1.0, value_max_norm=1.0)
        optimizer.step()
    return {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    what, *sizes = sys.argv[1:]
    print(json.dumps(_compile() if what == "compile" else _memory(*map(int, sizes))))
