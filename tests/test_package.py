"""Rules that hold for the package as a whole."""

import ast
import json
from importlib import import_module

import pytest
from helpers import PACKAGE, fresh_interpreter

import memory_layers

MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
LONGEST = 400


def test_import_is_lean() -> None:
    """Importing the package loads nothing, touching a name loads torch and no more."""
    program = """
import json, sys
import memory_layers
loaded = set(sys.modules)
for name in memory_layers.__all__:
    if name not in ("add_experts", "add_memory"):
        getattr(memory_layers, name)
print(json.dumps([sorted(loaded), sorted(sys.modules)]))
"""
    at_import, after_names = (set(names) for names in json.loads(fresh_interpreter(program)))
    assert "torch" not in at_import
    assert "torch" in after_names
    for heavy in ("transformers", "numba", "triton", "safetensors", "tokenizers", "matplotlib",
                  "rich", "tyro", "yaml"):  # fmt: skip
        assert heavy not in at_import
        assert heavy not in after_names


def test_names_can_be_imported_and_are_listed() -> None:
    names = ", ".join(memory_layers.__all__)
    fresh_interpreter(f"from memory_layers import {names}")
    fresh_interpreter("from memory_layers import *\nMemoryAdamW, add_memory")
    assert set(memory_layers.__all__) < set(dir(memory_layers))
    # What a type checker reads is what the interpreter finds.
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        alias.name: getattr(import_module(str(node.module)), alias.name)
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: getattr(memory_layers, name) for name in memory_layers.__all__}


def test_a_name_of_before_says_what_replaced_it() -> None:
    assert not hasattr(memory_layers, "PeerLayer")
    with pytest.raises(AttributeError, match='readout="experts"'):
        _ = memory_layers.PeerLayer


def test_public_names() -> None:
    """A change here is a change for users: it belongs into CHANGELOG.md."""
    assert memory_layers.__all__ == [
        "MemoryAdamW",
        "MemoryConfig",
        "MemoryLayer",
        "MoeConfig",
        "ValueTable",
        "add_experts",
        "add_memory",
        "fuse_for_inference",
        "gather_dot",
        "gather_sum",
        "product_key_topk",
        "row_step_",
    ]
    for name in memory_layers.__all__:
        assert getattr(memory_layers, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'add_memories'"):
        memory_layers.add_memories  # noqa: B018


@pytest.mark.parametrize("module", MODULES)
def test_module(module: str) -> None:
    source = (PACKAGE / module).read_text("utf-8")
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "a module says in its docstring what it is for"
    assert len(source.splitlines()) <= LONGEST
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    prints = [f for f in calls if isinstance(f, ast.Name) and f.id == "print"]
    assert not prints or module.startswith("cli/"), "only the command line prints"


def test_no_module_level_mutable_state() -> None:
    """Two models in one process never meet: no list, dict or set is left lying in a module."""
    found = []
    for module in MODULES:
        for node in ast.parse((PACKAGE / module).read_text("utf-8")).body:
            value = getattr(node, "value", None)
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            constant = isinstance(target, ast.Name) and target.id.strip("_").isupper()
            if isinstance(value, ast.List | ast.Dict | ast.Set) and not constant:
                found.append(f"{module}: {ast.unparse(target)}")
    assert [name for name in found if not name.endswith("__all__")] == []
