"""The page of the command has every command, option and exit code, and none that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.fixtures.whole_command import whole_command

from eventseal.cli.exits import ExitCode
from eventseal.eventstore.field_survey import PERSONAL_WORDS

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
ROOT = whole_command()
GLOBAL = {"--config", "--json", "--yes", "-y", "--dry-run"}


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/cli.md has no section {title}"
    return found[1]


def documented(title: str) -> set[str]:
    cells = re.findall(r"^\| (`-[^|]*) \|", section(title), re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`(--?[a-z-]+)", cell)}


def options(command) -> set[str]:
    """The options of a command, and those of its own commands."""
    own = {name for param in command.params for name in param.opts if name.startswith("-")}
    return own.union(*map(options, getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("name", list(ROOT.commands))
def test_each_command_has_its_options(name):
    assert documented(f"`{name}`") == options(ROOT.commands[name]) - GLOBAL


def test_no_command_is_documented_that_is_gone():
    assert set(re.findall(r"^## `([\w-]+)`", PAGE, re.MULTILINE)) == set(ROOT.commands)


def test_the_global_options_are_the_roots():
    assert documented("Global options") == {name for param in ROOT.params for name in param.opts} | {"--help"}


def test_the_exit_codes_are_those_of_the_code():
    codes = re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)
    assert [int(code) for code in codes] == list(ExitCode)


def test_the_words_that_say_personal_data_are_those_of_the_code():
    text = re.search(r"is a part of it \(.*?\):\s+(.*?), and some plurals", section("`fields`"), re.DOTALL)
    assert text is not None
    words = set(re.findall(r"\w+", text[1]))
    assert words | {f"{word}s" for word in words} | {f"{word}es" for word in words} >= PERSONAL_WORDS
    assert words <= PERSONAL_WORDS
