"""What a re-encryption counts, as its result has it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from eventseal.rotation.sources import Standing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventseal.rotation.sources import TableSources

OUTCOMES = ("done", "failed", "suspected", "skipped", "plain", "foreign", "erased", "left")
"""
What ``by_table`` counts: moved; not moved, for whatever reason, among them suspected forgeries and those
whose scope has no active key; in plain; another application's; shredded; still to be moved.
"""


def by_table(
    counted: Mapping[str, Counter[str]], sources: Sequence[TableSources]
) -> dict[str, dict[str, int]]:
    """
    Put together what was counted while moving, and what is in the tables.

    Args:
        counted: By table and outcome, as the job has it.
        sources: What each table holds now.
    """
    shown: dict[str, dict[str, int]] = {}
    for source in sources:
        counts = Counter(counted.get(source.table.table, Counter()))
        counts["left"] = left_of(counted, source)
        counts["plain"] = source.items.get(None, 0)
        counts["foreign"] = source.items.get(Standing.FOREIGN, 0)
        counts["erased"] = source.items.get(Standing.ERASED, 0)
        shown[source.table.table] = {outcome: counts[outcome] for outcome in OUTCOMES}
    return shown


def left_of(counted: Mapping[str, Counter[str]], source: TableSources) -> int:
    """Say how many items of a table are to be moved still, without those that no pass can move."""
    return max(0, source.moving - counted.get(source.table.table, Counter())["stuck"])
