"""Every suite by its name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from memory_layers.bench.find import find_suite
from memory_layers.bench.generate import generate_suite
from memory_layers.bench.layer import layer_suite
from memory_layers.bench.read import read_suite
from memory_layers.bench.request import Request
from memory_layers.bench.step import step_suite
from memory_layers.bench.train import train_suite
from memory_layers.bench.variant import Suite
from memory_layers.bench.write import write_suite

SUITES: Mapping[str, Callable[[Request], Suite]] = MappingProxyType(
    {
        "find": find_suite,
        "read": read_suite,
        "write": write_suite,
        "step": step_suite,
        "layer": layer_suite,
        "train": train_suite,
        "generate": generate_suite,
    }
)
