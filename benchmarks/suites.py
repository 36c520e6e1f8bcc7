"""Every suite by its name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from benchmarks.find import find_suite
from benchmarks.generate import generate_suite
from benchmarks.layer import layer_suite
from benchmarks.read import read_suite
from benchmarks.request import Request
from benchmarks.step import step_suite
from benchmarks.train import train_suite
from benchmarks.variant import Suite
from benchmarks.write import write_suite

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
