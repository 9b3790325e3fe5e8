"""
Check that pages, messages and docstrings are in plain English.

Run it: ``python tools/language.py``. It prints each finding with its place, and exits with 1 if there is one.
With ``--counts`` it prints a table of counts instead. Paths as arguments limit it to those files and folders.

It measures sentences, and searches them for the patterns of ``language.toml``, where each has its reason.
It reads Markdown pages and the comments in their code. Of the modules of ``sdk``, ``kms_adapters``,
``examples`` and ``tools``, it reads docstrings, and each text literal of three words or more. It reads no
other comments. Code between backticks counts as one word.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[1]
RULES = tomllib.loads(Path(__file__).with_name("language.toml").read_text())
PATTERNS = {
    rule: re.compile("|".join(pattern["match"]), re.IGNORECASE) for rule, pattern in RULES["patterns"].items()
}
PAGES = ("*.md", "docs/**/*.md", "examples/**/*.md", "tests/**/*.md")
MODULES = ("sdk/**/*.py", "kms_adapters/**/*.py", "examples/**/*.py", "tools/**/*.py")

_CODE = re.compile(r"``.+?``|`[^`]+`")
_LINK = re.compile(r"https?://\S+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[)\"']?\s+(?=[A-Z\"'(\[`:]|\d)")
_ENTRY = re.compile(r"^(\s+)(\*{0,2}[\w.]+)(?: \([^)]*\))?: +(.*)$")
_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.)\s+(.*)$")
_BOX = re.compile(r"(?:!!!|\?\?\?\+?|===\+?) ?[\w\"]")
_SECTION = re.compile(r"^\s*(Args|Attributes|Raises|Returns|Yields):\s*$")
_STATEMENT = re.compile(
    r"^\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|CASE|DECLARE|PERFORM|from \w+ import)\b"
)

_PROSE = 3  # words that make a literal a message


class Passage(NamedTuple):
    """A paragraph, list item, table cell, message or summary, without its code."""

    line: int
    text: str
    kind: str


class Finding(NamedTuple):
    """A sentence that breaks a rule, and the reason of the rule."""

    path: Path
    line: int
    rule: str
    text: str
    why: str

    def __str__(self) -> str:
        place = self.path.relative_to(REPOSITORY) if self.path.is_relative_to(REPOSITORY) else self.path
        return f"{place}:{self.line}: {self.rule}: {self.text}\n    {self.why}"


def page(text: str) -> Iterator[Passage]:
    """Yield the passages of a Markdown page, without code blocks and comments."""
    line = 1
    kind = "page"
    for token in MarkdownIt("commonmark").enable("table").parse(_without_boxes(text)):
        if token.map is not None:
            line = token.map[0] + 1
        if token.nesting == 1:
            kind = "heading" if token.type == "heading_open" else "page"
        if token.type == "inline":
            read = {"code_inline": "`code`", "softbreak": " ", "hardbreak": " "}
            shown = [
                child.content if child.type in {"text", "image"} else read.get(child.type, "")
                for child in token.children or ()
            ]
            yield Passage(line, "".join(shown), kind)
        elif token.type == "fence":
            for number, code in enumerate(token.content.splitlines(), line + 1):
                for comment in re.findall(r"(?:^|\s)# (.+)", code):
                    yield Passage(number, comment, kind)
        elif token.type == "html_block" and not token.content.startswith("<!--"):
            yield Passage(line, re.sub(r"<[^>]*>", " ", token.content), kind)


def _without_boxes(text: str) -> str:
    """Unindent admonitions and tabs, which CommonMark takes for code blocks."""
    lines = []
    in_box = in_code = False
    for line in text.split("\n"):
        in_code ^= line.startswith("```")
        if _BOX.match(line) and not in_code:
            in_box = True
        elif line and not line.startswith("    "):
            in_box = False
        lines.append(line.removeprefix("    ") if in_box else line)
    return "\n".join(lines)


def docstring(text: str, first_line: int) -> Iterator[Passage]:
    """Yield the paragraphs, list items and entries (``Args:``) of a docstring."""
    gathered: list[str] = []
    start = first_line
    code = summary = False

    def passage() -> Iterator[Passage]:
        nonlocal summary
        if gathered:
            yield Passage(start, " ".join(gathered), "docstring" if summary else "summary")
            summary = True
            gathered.clear()

    for number, line in enumerate(inspect.cleandoc(text).splitlines(), first_line):
        if not line.strip():
            yield from passage()
            continue
        indented = line.startswith("    ")
        if code and indented:
            continue
        code = False
        opening = _ITEM.match(line) or _ENTRY.match(line)
        if _SECTION.match(line):
            yield from passage()
            continue
        if opening is not None:
            yield from passage()
        if not gathered:
            start = number
        gathered.append(opening[opening.lastindex or 1] if opening is not None else line.strip())
        if line.endswith("::"):
            code = True
            yield from passage()
    yield from passage()


def module(text: str) -> Iterator[Passage]:
    """Yield the docstrings and the messages of a Python module."""
    tree = ast.parse(text)
    documented = set()
    parts = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                value = statement.value
                if isinstance(value.value, str):
                    documented.add(value)
                    yield from docstring(value.value, value.lineno)
    for node in ast.walk(tree):
        if node in documented or node in parts or not (pieces := _pieces(node)):
            continue
        parts.update(pieces)
        shown = "".join(
            piece.value if isinstance(piece, ast.Constant) and isinstance(piece.value, str) else "X"
            for piece in pieces
            if not isinstance(piece, ast.BinOp | ast.JoinedStr)
        )
        is_code = "(?" in shown or "<style>" in shown or _STATEMENT.match(shown)
        prose = _PROSE if len(pieces) == 1 else _PROSE - 1  # X is a word too
        if len(re.findall(r"\b[a-z]{2,}\b", shown)) >= prose and not is_code:
            for paragraph in shown.split("\n"):
                yield Passage(pieces[0].lineno, paragraph, "message")


def _pieces(node: ast.AST) -> list[ast.expr]:
    """Return the parts of a literal, an f-string or a sum."""
    if isinstance(node, ast.Constant):
        return [node] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return [node, *node.values]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [_pieces(node.left), _pieces(node.right)]
        if any(sides):
            return [node, *(sides[0] or [node.left]), *(sides[1] or [node.right])]
    return []


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a passage, with code and addresses masked."""
    text = _LINK.sub("`code`", _CODE.sub("`code`", text))
    yield from filter(None, (part.strip() for part in _SENTENCE_END.split(text)))


def findings(path: Path, passages: Iterator[Passage]) -> Iterator[Finding]:
    """Yield each sentence that is too long, or that a pattern finds."""
    for passage in passages:
        for sentence in sentences(passage.text):
            words, limit = len(re.findall(r"[\w'\-/.]*\w", sentence)), RULES["sentence_words"]
            if words > limit:
                yield Finding(path, passage.line, "long-sentence", sentence, f"{words} words, of {limit}.")
            for rule, pattern in RULES["patterns"].items():
                if passage.kind == "heading" and rule == "headless-what":
                    continue  # "What EventSeal protects" is a good heading
                if pattern.get("only", passage.kind) != passage.kind:
                    continue
                for _ in PATTERNS[rule].finditer(sentence):
                    yield Finding(path, passage.line, rule, sentence, pattern["why"])
        if passage.kind == "summary":
            summary = next(sentences(passage.text), "")
            words, limit = len(summary.split()), RULES["summary_words"]
            if words > limit:
                yield Finding(path, passage.line, "long-summary", summary, f"{words} words, of {limit}.")


def read(path: Path) -> Iterator[Finding]:
    """Yield the findings of a file, by line."""
    try:
        text = path.read_text(encoding="utf-8")
        found = list(findings(path, module(text) if path.suffix == ".py" else page(text)))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        found = [Finding(path, 1, "unreadable", type(error).__name__, "The check cannot read this file.")]
    yield from sorted(found, key=lambda finding: finding.line)


def files(chosen: list[Path]) -> Iterator[Path]:
    """Yield the checked files, or only the chosen ones."""
    for pattern in PAGES + MODULES:
        for path in sorted(REPOSITORY.glob(pattern)):
            if not chosen or any(path.is_relative_to(one.resolve()) for one in chosen):
                yield path


def main() -> int:
    """Print the findings or their counts, and return the exit code."""
    parser = argparse.ArgumentParser(
        description="Check that pages, messages and docstrings are in plain English."
    )
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--counts", action="store_true", help="print a table of counts")
    options = parser.parse_args()
    for path in options.paths:
        if not any(files([path])):
            parser.error(f"{path} has no page or module that is checked")
    found = [finding for path in files(options.paths) for finding in read(path)]
    if options.counts:
        for rule, count in Counter(finding.rule for finding in found).most_common():
            print(f"{count:6} {rule}")
        print(f"{len(found):6} in all")
        return 0
    for finding in found:
        print(finding)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
