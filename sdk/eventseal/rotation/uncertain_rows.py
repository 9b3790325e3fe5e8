"""Rows of which nobody knows which key they need: what a retire stops at, or lists."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from eventseal.errors import REPAIR_ROW, IntegrityError, JobError
from eventseal.items.sealed_places import Selection
from eventseal.rotation.item_checks import ItemChecks, Tally
from eventseal.rotation.jobs.sources import FEW_ITEMS
from eventseal.rotation.results import MAX_FAILURES, Failure
from eventseal.rotation.rows_set_aside import SET_ASIDE
from eventseal.rotation.sealed_store import accepts_plain
from eventseal.rotation.table_checks import differing_items
from eventseal.storage.database.transactions import read
from eventseal.storage.items.key_counts import count_without_place, rows_without_envelope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.rotation.rows_set_aside import AsideHere, AsideRows
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable

GIVE_UP = "To destroy keys although these rows need them: eventseal retire --give-up-set-aside"

_KEY_ID = (
    "Run `eventseal repair`: if the envelope opens, it puts the key id right. Else name a backup: "
    "`eventseal repair --from-backup URL`."
)
_SHOWN = 3


def named_rows(rows: Sequence[AsideHere]) -> str:
    """Name the first rows, for a message."""
    named = [f"{here.said.table} {', '.join(here.said.row.values())}" for here in rows[:_SHOWN]]
    return "; ".join([*named, *["..."] * (len(rows) > _SHOWN)])


def differing_failures(
    store: SealedStore, table: SealedTable, aside: AsideRows, *, give_up: bool
) -> tuple[int, list[Failure]]:
    """
    Find the rows whose column and envelope name different keys: they keep both.

    Args:
        store: Has the items and the keys.
        table: From the registry.
        aside: The rows that are set aside.
        give_up: Whether those are left out.

    Returns:
        How many there are, and the first 1,000.
    """
    set_aside = {here.said.place for here in aside.of(table.table) if here.stored.differs}
    limit = MAX_FAILURES + len(set_aside)
    count, rows = differing_items(store.datastore, store.key_store, table, limit=limit)
    if give_up:
        count -= sum(row[:2] in set_aside for row in rows)
        rows = [row for row in rows if row[:2] not in set_aside]
    return count, [
        Failure(
            table=table.table,
            row={"sequence_id": str(row.sequence_id), "position": str(row.position)},
            key_id=row.key_id,
            error=IntegrityError.__name__,
            message="the key id beside the item is not the one in its envelope; both keys stay",
            remedy=GIVE_UP if row[:2] in set_aside else _KEY_ID,
        )
        for row in rows[:MAX_FAILURES]
    ]


def refuse_damaged_rows(
    store: SealedStore, tables: Sequence[SealedTable], aside: AsideRows, *, give_up: bool
) -> None:
    """
    Stop where a row is neither an envelope nor what its table accepts: its key may be any that is to go.

    Args:
        store: Has the items' database, and may say that its items need not be sealed.
        tables: From the registry.
        aside: The rows that are set aside.
        give_up: Whether those stop nothing.

    Raises:
        IntegrityError: There are such rows; it names the first three of a table.
        JobError: There are such rows, all of them set aside.
        StoreError: The database refused or failed.
    """
    damaged, given_up = [], []
    for table in tables:
        count, some, set_aside = _damaged_rows(store, table, aside)
        if count:
            damaged.append(_places(table, count, some))
        if set_aside:
            rows = [", ".join(row.values()) for row in set_aside[:_SHOWN]]
            given_up.append(_places(table, len(set_aside), rows))
    if damaged:
        raise IntegrityError(
            f"{'. '.join(damaged)}. These rows are not sealed, or damaged: nobody knows which key they need",
            remedy=f"{REPAIR_ROW} Delete rows that are no items. If they are in an older format, name it in "
            "the setting old_formats. Then run it again.",
        )
    if given_up and not give_up:
        raise JobError(
            f"{'. '.join(given_up)}. These rows are set aside, and nobody knows which key they need: no key "
            "was destroyed",
            remedy="To destroy keys all the same: eventseal retire --give-up-set-aside",
        )


def _places(table: SealedTable, count: int, some: Sequence[str]) -> str:
    places = "; ".join([*some, *["..."] * (count > len(some))])
    return f"{count:,} item{'s' * (count > 1)} of {table.table}: {places}"


def _damaged_rows(
    store: SealedStore, table: SealedTable, aside: AsideRows
) -> tuple[int, list[str], list[dict[str, str]]]:
    """Count the rows that are no envelopes and that no reader takes, and say where; give those set aside."""
    engine, doing = store.datastore.engine, f"looking for damaged rows of {table.table}"
    set_aside = {
        here.said.place: here.said.row for here in aside.of(table.table) if not here.stored.header_key
    }
    look = partial(rows_without_envelope, table=table, limit=_SHOWN + len(set_aside))
    count, some = read(engine, look, doing=doing)
    if not count or not accepts_plain(store, table):
        places = [f"{row.sequence_id}, {row.position}" for row in some if row[:2] not in set_aside]
        return count - len(set_aside), places[:_SHOWN], list(set_aside.values())
    if table.is_others:  # theirs to judge
        return 0, [], []
    found, plain = Tally(), Selection(keys=(), few=count <= FEW_ITEMS, plain=True)
    for page in ItemChecks(store, table, only=plain, aside=aside).run(None, None):
        found.add(page)
    # A row without a place is in no page.
    lost = read(engine, partial(count_without_place, table=table), doing=doing)
    failed = sum(counts["failed"] for counts in found.by_table.values())
    some_places = [", ".join(failure.row.values()) for failure in found.failures[:_SHOWN]]
    is_any_aside = any(counts[SET_ASIDE] for counts in found.by_table.values())
    return failed + lost, some_places, list(set_aside.values()) if is_any_aside else []
