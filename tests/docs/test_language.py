"""The check of the language finds what it should, in pages, docstrings and messages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "language.py"
_spec = importlib.util.spec_from_file_location("language", TOOL)
assert _spec is not None
assert _spec.loader is not None
language = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(language)


def rules(passages) -> list[str]:
    return [finding.rule for finding in language.findings(Path("page.md"), passages)]


@pytest.mark.parametrize("name", list(language.PATTERNS))
def test_each_pattern_finds_its_bad_sentence_and_not_its_good_one(name):
    pattern = language.RULES["patterns"][name]
    bad, good = (language.module(f'"""{pattern[which]}"""') for which in ("bad", "good"))
    assert name in rules(bad)
    assert [rule for rule in rules(good) if rule != "long-summary"] == []


def test_a_long_sentence_is_found_and_code_counts_as_one_word():
    words = "word " * 25
    assert rules(language.page(f"{words}end.")) == []
    assert rules(language.page(f"{words}`a long piece of code` end.")) == ["long-sentence"]
    assert rules(language.page(f"{words}.\n\n{words}.")) == []


def test_code_blocks_and_comments_of_a_page_are_left_out():
    assert rules(language.page("```console\n$ who; what; behind\n```\n\n<!-- beside -->\n")) == []
    assert rules(language.page("| a | b |\n| --- | --- |\n| beside | `behind` |\n")) == ["beside"]
    assert rules(language.page("# What EventSeal protects\n")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It goes on  \nbehind", ["go-on", "behind"]),
        ("![It is behind them](two.svg)\n", ["behind"]),
        ('!!! note "It is behind"\n\n    It is told.\n\nIt is beside.\n', ["behind", "tell", "beside"]),
        ('```python\nx = "beside"  # It is behind\n```\n', ["behind"]),
        ("- It is told.\n\n  1. It is beside.\n", ["tell", "beside"]),
        ("<details>\n<summary>It is told</summary>\nbeside\n</details>\n", ["tell", "beside"]),
    ],
    ids=["break", "image", "admonition", "comment", "list", "html"],
)
def test_no_text_of_a_page_slips_past(text, found):
    assert rules(language.page(text)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('x = name + " is told"', ["tell"]),
        ('x = "The key " + name + " is behind " + "others, and it is told."', ["tell", "behind"]),
        ('x = f"{name} was told"', ["tell"]),
        ('x = "word " * 3 + "' + "word " * 20 + '" + "' + "word " * 20 + '"', ["long-sentence"]),
        ('x = "IF NOT EXISTS (SELECT 1 FROM what)"', []),
    ],
)
def test_no_message_slips_past(text, found):
    assert rules(language.module(text)) == found


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.py", b"def ("), ("b.py", b"\0"), ("c.py", b"\xff"), ("d.md", b"\xff"), ("e.py", b"(" * 5000)],
)
def test_a_file_that_cannot_be_read_is_a_finding(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert [finding.rule for finding in language.read(path)] == ["unreadable"]


def test_a_path_without_checked_files_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["language.py", "docs/no-such-page.md"])
    with pytest.raises(SystemExit):
        language.main()


def test_docstrings_and_messages_of_a_module_are_read():
    text = '''
def call(name):
    """
    Give the name.

    Args:
        name: Stands beside it::

            beside = behind

    Raises:
        Error: It is told.
    """
    raise Error(f"the {name} went on behind the others", remedy="Run it again.")
    sql = "SELECT what FROM the table; beside it"
'''
    assert rules(language.module(text)) == ["give", "beside", "stand", "tell", "go-on", "behind"]


def test_the_first_line_of_a_docstring_is_short():
    words = "word " * 13
    assert rules(language.module(f'"""{words}"""')) == ["long-summary"]
    assert rules(language.module(f'"""Short.\n\n{words}"""')) == []


def test_findings_name_file_and_line():
    found = list(
        language.findings(language.REPOSITORY / "README.md", language.page("Fine.\n\nIt stands here.\n"))
    )
    assert [str(finding).split(": ")[:2] for finding in found] == [["README.md:3", "stand"]]
