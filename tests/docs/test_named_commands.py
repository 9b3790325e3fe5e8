"""
Every command, option and page that a message or a page names exists.

``{...}`` of f-strings, words in capitals, ``<...>`` and ``...`` are placeholders. A line may name a form of
earlier releases if it calls it old.
"""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.whole_command import whole_command

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
COMMAND = whole_command()
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MODULES = [path for folder in ("sdk", "kms_adapters") for path in sorted((ROOT / folder).rglob("*.py"))]
RECEIPTS = {
    "epoch",
    "erasure",
    "verification",
}  # they begin the titles of receipts, "EventSeal" in small letters
OLD_FORMS = ("retire --kek", *(f"migrate --{step}" for step in ("begin", "finish", "copy")))
CALLED_OLD = re.compile(
    r"old forms?\b|earlier releases\b|was removed\b|is now\b|`[^`]+` was\b", re.IGNORECASE
)

_QUOTED = re.compile(r"`(?:\$ )?eventseal ([^`]+)`")
_BARE = re.compile(
    r"(?:\b[Rr]un:? |\b\w+: |^\s*(?:\$ )?(?:\w+=\S+ )*|[|&] *)eventseal ((?!is\b|=)(?:\\\n|[^`\n])+)",
    re.MULTILINE,
)
_SENTENCE_END = re.compile(r"[.,;:)](?:\s|$)|,? (?:and|or|then|which|again|to|in|with|if|after|for)\b")
_PAGE = re.compile(r"""\b(?:the|a) pages? ["'“]?([A-Z][\w`']*(?: [\w`']+)*)""")
_PLACEHOLDER = re.compile(r"[A-Z_:]+|<.*>|\.\.\.|…|X")


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a module, docstrings too, with X for each value of an f-string."""
    tree = ast.parse(path.read_text())
    parts = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
        if isinstance(part, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "{X}" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield node.lineno, node.value


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """Each text with its place."""
    pages = [
        (f"{path.relative_to(ROOT)}:{number}", line)
        for path in PAGES
        for number, line in enumerate(path.read_text().replace("\\\n", " ").splitlines(), 1)
    ]
    messages = [
        (f"{path.relative_to(ROOT)}:{line}", text) for path in MODULES for line, text in literals(path)
    ]
    return (*pages, *messages)


def commands(text: str) -> Iterator[str]:
    """The commands that a text names, without ``eventseal``."""
    quoted = _QUOTED.findall(text.replace("``", "`"))
    yield from (" ".join(command.split()) for command in quoted if command.split()[0] not in RECEIPTS)
    for found in _BARE.finditer(text):
        command = found[1].replace("\\\n", " ")
        if not found[0].lstrip().startswith(("eventseal", "$")):  # in a sentence, not on its own line
            command = _SENTENCE_END.split(command, maxsplit=1)[0]
        if command.split()[0].rstrip(",") not in RECEIPTS:
            yield command.strip()


def fault(words: str) -> str | None:
    """What is wrong with a command, if anything."""
    words = re.split(r" (?:#|&&|\|\|?|>) ", words)[0]
    words = re.sub(r"<[^>]*>", "X", words)
    words = re.sub(r"\S\{X\}|\{X\}\S", lambda glued: glued[0].replace("{X}", ""), words)
    try:
        rest = shlex.split(words.replace("{X}", "X"))
    except ValueError:
        return "its quotes are not closed"
    command = COMMAND
    while hasattr(command, "commands"):
        if command.name == "migrate" and rest and rest[0].startswith("-") and rest[0] != "--help":
            rest.insert(0, "run")
        while rest and rest[0].startswith("-") and rest[0] not in {"--help", "--version"}:
            known = {name: param for param in command.params for name in param.opts}
            if rest[0] not in known:
                return f"no global option {rest[0]}"
            takes_value = not getattr(known[rest.pop(0)], "is_flag", False)
            del rest[: int(takes_value)]
        if not rest or _PLACEHOLDER.fullmatch(rest[0]):
            return None
        if rest[0] in {"--help", "--version"}:
            return None
        if rest[0] not in command.commands:
            return f"no command {rest[0]}"
        command = command.commands[rest.pop(0)]
    try:
        _, extra, _ = command.make_parser(command.context_class(command)).parse_args(rest)
    except Exception as error:  # noqa: BLE001 - typer has its own copy of click, whose errors are not public
        return None if str(error).endswith("requires an argument.") else str(error)
    extra = [word for word in extra if word != "..."]
    return f"extra words {extra}" if extra else None


def faults() -> list[str]:
    return [
        f"{place}: eventseal {command}: {wrong}"
        for place, text in texts()
        for command in commands(text)
        if (wrong := fault(command)) is not None
        and not (command.startswith(OLD_FORMS) and CALLED_OLD.search(text))
    ]


@pytest.mark.slow
def test_every_named_command_exists():
    assert not faults()


def test_commands_are_found():
    found = {command.split()[0] for _, text in texts() for command in commands(text)}
    assert set(COMMAND.commands) <= found


def test_every_page_that_a_message_names_exists():
    titles = {title for path in PAGES for title in re.findall(r"^# (.*)$", path.read_text(), re.MULTILINE)}
    named = {
        (place, title)
        for place, text in texts()
        if place.startswith(("sdk", "kms"))
        for title in _PAGE.findall(text)
    }
    assert named
    assert not [one for one in named if not any(one[1].startswith(title) for title in titles)]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Run `eventseal rewrap`.", []),
        ("To list the keys: eventseal keys", []),
        ("Run: eventseal init --kms-key local://dev.key", []),
        ("Run `eventseal shred {X}`. Or run `eventseal rotate --scope SCOPE` again", []),
        ("  eventseal migrate --workers 4\n  eventseal migrate begin\n", []),
        ("`eventseal --yes --config x.toml retire --key {X}`", []),
        ("Run `eventseal rewarp`.", ["no command rewarp"]),
        ("To list the keys: eventseal keyz", ["no command keyz"]),
        ("`eventseal rotate --scopes X`", ["No such option: --scopes"]),
        ("`eventseal migrate start`", ["no command start"]),
        ("`eventseal kek check`, `eventseal kek chek X`", ["no command chek"]),
        ("`eventseal rotate tenant:acme`", ["extra words ['tenant:acme']"]),
        ("`eventseal --quick status`", ["no global option --quick"]),
    ],
)
def test_a_wrong_command_is_found(text, wrong):
    assert [found for command in commands(text) if (found := fault(command))] == wrong


QUOTED = re.compile(
    r"(shlex\.(quote|join)|shell_word|verb_command|resume_command|verb_of|_named|geteuid|version)\(|_id\b|\.next$"
)
QUOTED_BEFORE = {
    "__version__",
    "named",
    "scopes",
    "words",
    "target",
    "resume",
    "verb",
    "function",
    "old",
    "new",
}


def unquoted(path: Path) -> Iterator[str]:
    """The values in printed commands of a module that a shell could read as more than one word."""
    for node in ast.walk(ast.parse(path.read_text())):
        said = ""
        for part in node.values if isinstance(node, ast.JoinedStr) else ():
            if isinstance(part, ast.Constant):
                said += str(part.value)
            elif isinstance(part, ast.FormattedValue):
                value = ast.unparse(part.value)
                names = {each.id for each in ast.walk(part.value) if isinstance(each, ast.Name)}
                is_safe = QUOTED.search(value) or (names & QUOTED_BEFORE)
                if re.search(r"\b(eventseal|chmod|chown|python -c) [^`\n]*$", said) and not is_safe:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: {value}"
                said += "X"


@pytest.mark.slow
def test_values_in_commands_are_quoted_for_the_shell():
    assert [one for path in MODULES for one in unquoted(path)] == []
