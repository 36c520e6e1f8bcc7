"""What is timed: a suite a function, each variant with its check, baselines beside ours."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from benchmarks.cases.find import find_suite
from benchmarks.cases.layer import layer_suite
from benchmarks.cases.model import generate_suite, train_suite
from benchmarks.cases.read import bag_suite, pages_suite, read_suite
from benchmarks.cases.step import step_suite, write_suite
from benchmarks.harness import Suite
from benchmarks.inputs import Request

SUITES: Mapping[str, Callable[[Request], Suite]] = MappingProxyType(
    {
        "find": find_suite,
        "read": read_suite,
        "write": write_suite,
        "step": step_suite,
        "layer": layer_suite,
        "train": train_suite,
        "generate": generate_suite,
        "huge-pages": pages_suite,
        "embedding-bag": bag_suite,
    }
)
