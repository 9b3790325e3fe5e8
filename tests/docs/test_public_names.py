"""
Every public name is shown to users, in a page or in an example: else nobody can find it, and it is private.

Decision records do not count, since they are written for maintainers.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = "\n".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PROGRAMS = [
    *re.findall(r"^```python\n(.*?)^```$", PAGES, re.MULTILINE | re.DOTALL),
    *(example.read_text() for example in (ROOT / "examples").glob("*.py")),
]
IMPORTED = {
    (node.module, alias.name)
    for program in PROGRAMS
    for node in ast.walk(ast.parse(program))
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


def public_names() -> list[tuple[str, str]]:
    """List the names in each package's ``__all__``, with the package."""
    return [
        (".".join(init.parent.relative_to(ROOT / distribution).parts), name)
        for distribution in ("sdk", "kms_adapters")
        for init in sorted((ROOT / distribution).rglob("__init__.py"))
        for node in ast.parse(init.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for name in ast.literal_eval(node.value)
    ]


def is_shown(package: str, name: str) -> bool:
    """Say whether users can find a name. A command or a field of the same name does not show a function."""
    spans = rf"`{name}\(" if name.islower() else rf"`[^`\n]*\b{name}\b[^`\n]*`"
    full_name = rf"\b{re.escape(package)}(\.\w+)*[.:]{name}\b"  # maybe that of the package that it comes from
    return (package, name) in IMPORTED or re.search(f"{full_name}|{spans}", PAGES) is not None


def test_names_are_found():
    assert {("eventseal", "Keyring"), ("eventseal_kms.aws", "AwsKmsAdapter")} <= {*public_names()}


@pytest.mark.parametrize(("package", "name"), public_names())
def test_each_public_name_is_in_a_page_or_an_example(package, name):
    assert is_shown(package, name), f"show {package}.{name} where a user looks for it, or make it private"
