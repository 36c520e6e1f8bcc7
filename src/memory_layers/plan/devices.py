"""What devices can do, from their makers' data sheets, and this CPU by measurement."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.text import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device and what connects it to others. Rates are peaks.

    Attributes:
        name: For tables.
        memory: Bytes.
        bandwidth: Of its memory, bytes a second.
        bf16_flops: Dense bf16 products, operations a second.
        fp32_flops: fp32 products, operations a second, without TF32.
        link: To devices of the same node, bytes a second in one direction.
        network: Of its share of the node's network, bytes a second in one direction.
        per_node: Devices of a node.
        source: Where these numbers are from.
        is_measured: They are what was reached, not peaks.
    """

    name: str
    memory: float
    bandwidth: float
    bf16_flops: float
    fp32_flops: float
    link: float
    network: float
    per_node: int
    source: str
    is_measured: bool = False


# Bandwidths of links are half of what data sheets print, which add up both directions. Networks
# are those of the makers' reference nodes: 400 Gb/s a GPU, and 200 Gb/s in the DGX A100.
DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "h100": Device(
            name="H100 SXM", memory=80e9, bandwidth=3.35e12, bf16_flops=989e12, fp32_flops=67e12,
            link=450e9, network=50e9, per_node=8,
            source="NVIDIA H100 Tensor Core GPU data sheet, DGX H100 data sheet",
        ),
        "h200": Device(
            name="H200 SXM", memory=141e9, bandwidth=4.8e12, bf16_flops=989e12, fp32_flops=67e12,
            link=450e9, network=50e9, per_node=8,
            source="NVIDIA H200 Tensor Core GPU data sheet, DGX H200 data sheet",
        ),
        "b200": Device(
            name="B200", memory=180e9, bandwidth=8e12, bf16_flops=2250e12, fp32_flops=75e12,
            link=900e9, network=50e9, per_node=8,
            source="NVIDIA DGX B200 data sheet, eighths of the node",
        ),
        "a100": Device(
            name="A100 SXM 80GB", memory=80e9, bandwidth=2.039e12, bf16_flops=312e12,
            fp32_flops=19.5e12, link=300e9, network=25e9, per_node=8,
            source="NVIDIA A100 Tensor Core GPU data sheet, DGX A100 data sheet",
        ),
        "mi300x": Device(
            name="MI300X", memory=192e9, bandwidth=5.3e12, bf16_flops=1307.4e12,
            fp32_flops=163.4e12, link=448e9, network=50e9, per_node=8,
            source="AMD Instinct MI300X data sheet; network: a 400 Gb/s card a GPU",
        ),
    }
)  # fmt: skip


def check_device(name: str) -> None:
    """Refuse the name of a device that is neither in DEVICES nor "cpu".

    Raises:
        UserError: It is not.
    """
    if name not in (names := (*DEVICES, "cpu")):
        hint = did_you_mean(name, names)
        raise UserError(f"--device: there is no device {name!r}. hint: {hint}")


def measure_cpu(seconds: float = 1.0) -> Device:
    """Measure this CPU: products in both types and a streaming copy, the best of several each.

    All processes of this machine share it, so a rank of several gets a part. Its link and network
    are taken as half of the copy: a message is copied in and out of shared memory.

    Args:
        seconds: To spend, in all.
    """
    import torch

    share = seconds / 3
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(512, 512, dtype=dtype)
        rates[dtype] = 2 * 512**3 / _fastest("a @ a", share, a=a)
    source = torch.ones(2**25)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _fastest("b.copy_(a)", share, a=source, b=target)
    return Device(
        name=f"this CPU, {torch.get_num_threads()} threads",
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        bandwidth=copied,
        bf16_flops=rates[torch.bfloat16],
        fp32_flops=rates[torch.float32],
        link=copied / 2,
        network=copied / 2,
        per_node=2**20,
        source="measured just now: products of 512 x 512 matrices, a copy of 128 MiB",
        is_measured=True,
    )


def _fastest(statement: str, seconds: float, **tensors: Any) -> float:  # noqa: ANN401
    from torch import get_num_threads
    from torch.utils.benchmark import Timer

    timer = Timer(statement, globals=tensors, num_threads=get_num_threads())
    return min(timer.blocked_autorange(min_run_time=seconds).times)
