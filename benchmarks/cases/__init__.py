"""What is timed: a suite a file, each with the check of every variant."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from benchmarks.cases.find import find_suite
from benchmarks.cases.generate import generate_suite
from benchmarks.cases.layer import layer_suite
from benchmarks.cases.read import read_suite
from benchmarks.cases.step import step_suite
from benchmarks.cases.train import train_suite
from benchmarks.cases.write import write_suite
from benchmarks.harness import Suite
from benchmarks.request import Request

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
