"""The page of a receipt: one file that needs nothing else, for people."""

from __future__ import annotations

from datetime import UTC
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    Rows = Sequence[tuple[str, str]]


def page(title: str, about: str, *, text: str, facts: Rows, lists: Sequence[tuple[str, Rows]]) -> str:
    """
    Write the page; whatever is given is text, and none of it markup.

    Args:
        title: What the receipt is of.
        about: Of whom, or of what; it stands in the window's title alone.
        text: What it means.
        facts: Names and values.
        lists: Headings, each with its rows.
    """
    sections = "".join(
        [f"<h2>{escape(heading)}</h2>\n<table>\n{_rows(rows)}\n</table>\n" for heading, rows in lists]
    )
    return _PAGE.format(
        title=escape(title),
        about=escape(about),
        text=escape(text),
        facts=_rows(facts),
        sections=sections,
    )


def moment(at: datetime) -> str:
    """Give a time as the page has it."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}: {about}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
td {{ border-top: 1px solid #ccc; padding: .3rem .6rem .3rem 0; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{text}</p>
<table>
{facts}
</table>
{sections}</body>
</html>
"""


def _rows(rows: Rows) -> str:
    return "\n".join(
        ["<tr>" + "".join([f"<td>{escape(cell)}</td>" for cell in row]) + "</tr>" for row in rows]
    )
