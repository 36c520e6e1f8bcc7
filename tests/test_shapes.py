"""Every letter in the shapes of docstrings and comments stands in the table of shapes.py."""

import re

import pytest
from helpers import PACKAGE

from memory_layers import shapes

LETTERS = {
    letter
    for found in re.findall(r"(?:^|  )([A-Z](?:, [A-Z])*)  ", str(shapes.__doc__), re.MULTILINE)
    for letter in found.split(", ")
}
FOLDERS = ("layers", "ops", "models", "optim", "parallel")
MODULES = sorted(
    path.relative_to(PACKAGE).as_posix()
    for name in FOLDERS
    for path in PACKAGE.glob(f"{name}/**/*.py")
)


def letters_of(source: str) -> set[str]:
    """The capital letters alone between blanks, commas and operators in `[...]` of one line."""
    inside = re.findall(r"\[([^\[\]\n\"'=:|]*)\]", source)
    return {letter for shape in inside for letter in re.findall(r"(?<![\w.])[A-Z](?!\w)", shape)}


def test_the_table_is_read() -> None:
    assert {"T", "D", "N", "J", "V", "G", "B", "L", "X"} <= LETTERS
    assert letters_of("# [T * J, V / G] and [..., D], tensor[0]") == {"T", "J", "V", "G", "D"}


@pytest.mark.parametrize("module", MODULES)
def test_letters_stand_in_the_table(module: str) -> None:
    assert letters_of((PACKAGE / module).read_text("utf-8")) <= LETTERS
