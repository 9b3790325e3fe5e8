"""Damaged rows that can be set aside. No missing key or KMS explains them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventseal.cipher import ItemContext, Opened
from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    EventSealError,
    IntegrityError,
    JobError,
    KekNotConfiguredError,
    KeyDestroyedError,
    KeyNotFoundError,
    WrongApplicationError,
)
from eventseal.items.formats import OPAQUE_OLD_MESSAGE
from eventseal.rotation.did_you_mean import find_item
from eventseal.rotation.item_checks import ItemChecks, raise_if_outage
from eventseal.rotation.jobs.collections import open_former
from eventseal.rotation.jobs.sources import old_sources
from eventseal.rotation.migration import tables_in_migration
from eventseal.rotation.old_samples import sampled
from eventseal.rotation.results import Failure, JobResult, Run
from eventseal.rotation.sealed_store import configured_formats, own_tables, registered_tables
from eventseal.rotation.set_aside_rows import SET_ASIDE, AsideRows
from eventseal.storage.database.rows import chunks
from eventseal.storage.items.key_counts import count_by_key
from eventseal.storage.items.rows import stored_row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventseal.items.sealed_places import Place
    from eventseal.rotation.item_checks import Tally
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.rows import ItemRow, StoredRow
    from eventseal.storage.items.tables import SealedTable


_OF_A_KEY = (KeyNotFoundError, KekNotConfiguredError, WrongApplicationError)
"""Errors of a missing key, which say nothing about the row."""
_OF_THE_ROW = frozenset({OPAQUE_INTEGRITY_MESSAGE, OPAQUE_OLD_MESSAGE})
"""Messages of an ``IntegrityError`` about a row. Any other is about the key tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedRow:
    """
    A row that does not open, and its error.

    Attributes:
        table: The registered table.
        place: The row's sequence id and position, as pages return them.
        sha256: The digest of the row as it is. See ``StoredRow.digest``.
        error: The error that opening the row raised.
    """

    table: SealedTable
    place: Place
    sha256: str
    error: EventSealError

    def failure(self, error: EventSealError) -> Failure:
        """Describe an error of the row."""
        return Failure.of_item(self.table.table, self.place, None, error)


@dataclass(frozen=True, slots=True)
class DamagedRows:
    """
    The rows that do not open.

    Attributes:
        rows: The rows that can be set aside, in order.
        refused: Failing rows that cannot be set aside, each with the reason.
        already: The number of rows that are already set aside.
    """

    rows: Sequence[DamagedRow]
    refused: Sequence[Failure] = ()
    already: int = 0


def damaged_row(store: SealedStore, table: str, sequence_id: str, position: str) -> DamagedRows:
    """
    Try to open one row, as ``verify`` does.

    Args:
        store: An ``EventSeal``, or any other :class:`SealedStore`.
        table: A registered table.
        sequence_id: The item's sequence id, as text.
        position: The item's position, as text.

    Returns:
        The row, or nothing if it is already set aside.

    Raises:
        ConfigurationError: The table is not registered, or a text does not fit the type of its column. Or the
            row is no envelope, its table is being migrated, and the settings do not open the older items.
        ItemNotFoundError: There is no such row.
        JobError: The row opens or is erased, only a key is missing, or only the row's key id was edited.
        KmsError: The KMS refused or failed, which says nothing about the row.
        StoreError: The database refused or failed.
    """
    row = find_item(store.datastore, store.cipher.application, table, sequence_id, position)
    judge = _Judge(store, table)
    counts = judge.look([row]).by_table[table]
    if counts[SET_ASIDE]:
        return DamagedRows((), already=1)
    if not judge.rows and not judge.refusals:
        what, why = next((said for outcome, said in _WHAT_IT_IS.items() if counts[outcome]), _OPENS)
        raise JobError(f"the item at position {position} of {sequence_id} in {table} {what}", remedy=why)
    for refusal in judge.refusals.values():
        raise refusal
    return DamagedRows(tuple(judge.rows))


def damaged_rows(
    store: SealedStore, table: str, *, progress: Callable[[JobResult], None] | None = None
) -> DamagedRows:
    """
    Try to open every row of a table, as ``verify`` does.

    Args:
        store: An ``EventSeal``, or any other :class:`SealedStore`.
        table: A registered table.
        progress: Called after each page with the counts of checked rows. ``failed`` are those that do not
            open.

    Raises:
        ConfigurationError: The table is not registered. Or a row is no envelope, its table is being migrated,
            and the settings do not open the older items there.
        KmsError: The KMS refused or failed, which says nothing about the rows.
        StoreError: The database refused or failed.
    """
    judge = _Judge(store, table)
    found = judge.look_at_all(progress)
    refused = [Failure.of_item(table, place, None, error) for place, error in judge.refusals.items()]
    return DamagedRows(tuple(judge.rows), tuple(refused), found.by_table[table][SET_ASIDE])


class _Judge:
    """Divides failing rows into damaged ones and ones a key may save."""

    def __init__(self, store: SealedStore, table: str) -> None:
        self._store = store
        (self.table,) = registered_tables(store.datastore, store.cipher.application, [table])
        self._aside = AsideRows.of_store(store, [self.table])
        self.rows: list[DamagedRow] = []
        self.refusals: dict[Place, JobError] = {}
        self._has_checked_formats = False

    def look(self, rows: Sequence[ItemRow]) -> Tally:
        """Open rows that were read, and divide the failing ones."""
        checks = ItemChecks(self._store, self.table, aside=self._aside, on_failure=self._part)
        return checks.check(rows)

    def look_at_all(self, progress: Callable[[JobResult], None] | None) -> Tally:
        """Open all rows, and divide the failing ones."""
        failing: list[ItemRow] = []
        counted = count_by_key(self._store.datastore.engine, self.table)
        run = Run(verb="set-aside", progress=progress, expected=sum(counted.values()))
        checks = ItemChecks(
            self._store, self.table, aside=self._aside, on_failure=lambda row, _: failing.append(row)
        )
        found = checks.check(())
        for page in checks.run(None, None):
            found.add(page)
            run.failed = found.total("failed")
            run.done = found.by_table[self.table.table].total() - run.failed
            run.tell()
        # Again without the marks of compromised keys, because a suspected forgery may open.
        for rows in chunks(failing):
            self.look(rows)
        parted = {*self.refusals, *(row.place for row in self.rows)}
        for row in failing:
            if row[:2] not in parted:
                self.refusals[row[:2]] = JobError(f"the item {_OPENS[0]}", remedy=_OPENS[1])
        return found

    def _part(self, row: ItemRow, error: EventSealError) -> None:
        place = row[:2]
        stored = stored_row(self._store.datastore.engine, self.table, place)
        if stored is None or not stored.is_still(row):
            self.refusals[place] = JobError(
                "the row changed during the check, so it was not set aside",
                remedy="Run the same command again.",
            )
            return
        refusal = self._refusal(row, stored, error)
        if refusal is not None:
            self.refusals[place] = refusal
        else:
            self.rows.append(DamagedRow(table=self.table, place=place, sha256=stored.digest, error=error))

    def _refusal(self, row: ItemRow, stored: StoredRow, error: EventSealError) -> JobError | None:
        """Return why a row may be sound. ``None``: it is damaged."""
        is_integrity = isinstance(error, IntegrityError)
        if isinstance(error, _OF_A_KEY) or (is_integrity and str(error) not in _OF_THE_ROW):
            return JobError(_NEEDS_KEY.format(error), remedy=error.remedy)
        opened = self._opened(row)
        if isinstance(opened, Opened):
            if opened.key_id != row.key_id:
                return JobError(
                    "the row opens: only its key id column was edited",
                    remedy="To correct the key id, run `eventseal repair`.",
                )
            return JobError(
                f"the item opens, so its contents are as they were written: {error}",
                remedy="Find out which program wrote the item, and let it write the item again.",
            )
        key_id = stored.header_key
        if key_id is None:
            self._check_formats()
        if key_id is None or not is_integrity:
            return None
        outcome = self._store.keyring.opening_keys([key_id])[key_id]
        # An overwritten header names a key that never existed, so the row is damaged.
        if not isinstance(outcome, EventSealError) or isinstance(
            outcome, KeyDestroyedError | KeyNotFoundError
        ):
            return None
        raise_if_outage(outcome)
        return JobError(_NEEDS_KEY.format(outcome), remedy=outcome.remedy)

    def _opened(self, row: ItemRow) -> Opened | EventSealError:
        items = [(row.data, ItemContext(*row[:3], self.table.collection))]
        outcomes = self._store.cipher.open_many(items)
        open_former(self._store, self.table, items, outcomes)
        return outcomes[0]

    def _check_formats(self) -> None:
        """Refuse settings that do not open a migration's older items, like ``migrate``."""
        if self._has_checked_formats or not self.table.old_formats:
            return
        store = self._store
        accepted = configured_formats(store)
        begun = tables_in_migration(own_tables(store.datastore, store.cipher.application), accepted)
        sampled(store, old_sources(store, begun), accepted, registered=True)
        self._has_checked_formats = True


_NEEDS_KEY = "the row may be undamaged, but its key cannot be used: {}"
_OPENS = (
    "opens",
    "There is nothing to set aside. If `eventseal verify` lists the row, follow the remedy there.",
)
_WHAT_IT_IS = {
    "erased": ("is erased: its key was shredded", "You need not do anything."),
    "foreign": ("belongs to another application", "Run the command with that application's settings."),
}
