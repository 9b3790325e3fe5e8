"""The page of errors says what the code says."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from eventseal import errors
from eventseal.cli.exits import exit_code

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.EventSealError)
]


def test_the_tree_is_the_one_in_the_code():
    assert errors.__doc__ is not None
    tree = textwrap.dedent(errors.__doc__.split("::\n")[1].split("\n\nNo message")[0]).strip("\n")
    assert f"```text\n{tree}\n```" in PAGE


def test_the_tree_has_every_class_under_its_base():
    (tree,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    bases: dict[int, str] = {}
    found = {}
    for line in tree.splitlines():
        name = line.split()[0]
        depth = len(line) - len(line.lstrip())
        bases[depth] = name
        found[name] = bases.get(depth - 2)
    assert found == {
        cls.__name__: None if cls is errors.EventSealError else cls.__bases__[0].__name__ for cls in CLASSES
    }


@pytest.mark.parametrize(
    "cls", [cls for cls in CLASSES if cls is not errors.EventSealError], ids=lambda cls: cls.__name__
)
def test_each_error_has_its_row(cls):
    assert cls.__doc__ is not None
    meaning = cls.__doc__.strip().splitlines()[0]
    row = f"| `{cls.__name__}` | {meaning} | {cls.default_remedy} | {int(exit_code(cls('x')))} |"
    assert row in PAGE.splitlines(), f"docs/errors.md should have the row\n{row}"


def test_no_row_is_left_of_an_error_that_is_gone():
    rows = set(re.findall(r"^\| `(\w+Error)`", PAGE, re.MULTILINE))
    assert rows == {cls.__name__ for cls in CLASSES} - {"EventSealError"}
