"""
Repair damaged rows, which do not open, from a backup.

The replacements are encrypted under today's keys. Repair belongs to erasure because it must not undo one: the
ledger says what was erased, and records each replaced row.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from eventseal.cipher import ItemContext, Opened
from eventseal.erasure.backup_rows import BackupRows, Encrypted, page_of
from eventseal.erasure.ledger.entries import REPAIR
from eventseal.erasure.ledger.recording import prepare_ledger
from eventseal.erasure.restore import Reading, undone_scopes
from eventseal.erasure.setting_aside import required_ledger, withdraw_places
from eventseal.erasure.shredding import own_ledger
from eventseal.errors import EventSealError, JobError, KeyClosedError, KeyNotFoundError
from eventseal.rotation.item_checks import ItemChecks
from eventseal.rotation.jobs.collections import open_former
from eventseal.rotation.results import MAX_FAILURES, Failure, JobResult, Run
from eventseal.rotation.sealed_store import own_tables
from eventseal.rotation.table_checks import refuse_old_key_tables, refuse_unregistered_tables
from eventseal.storage.database.rows import chunks
from eventseal.storage.database.transactions import write
from eventseal.storage.items.fences import open_fences, share_fences
from eventseal.storage.items.key_counts import count_by_key
from eventseal.storage.items.rows import ItemRow, RowChange, replace_rows, stored_row, stored_rows
from eventseal.storage.items.swaps import place_to_json
from eventseal.storage.jobs.compromised_items import (
    Replaced,
    add_replaced,
    forget_replaced,
    load_compromised_items,
)
from eventseal.suites.envelope import KEY_ID_IN_HEADER
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.erasure.backup import Backup
    from eventseal.erasure.ledger.ledger import Ledger
    from eventseal.items.sealed_places import Place
    from eventseal.rotation.item_checks import Tally
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.compromised_items import CompromisedItems


_BATCH = 100
"""The number of rows in a transaction, and in a ledger entry."""

_ATTEMPTS = 3
"""The most attempts to encrypt a batch whose keys are closed meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairResult(JobResult):
    """
    The result of a repair, or of its dry run.

    Attributes:
        backup: The identity of the backup. ``None``: there is no backup.
        places: The first 1,000 rows that were or can be repaired, by table, sequence id and position.
    """

    backup: dict[str, Any] | None
    places: Sequence[tuple[str, str, str]] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that ``--json`` prints."""
        places = [
            {"table": table, "sequence_id": sequence_id, "position": position}
            for table, sequence_id, position in self.places
        ]
        return {**super(RepairResult, self).to_json(), "backup": self.backup, "rows": places}


def repair(
    store: SealedStore,
    backup: Backup | None = None,
    *,
    ledger: Ledger | None = None,
    tables: Collection[str] | None = None,
    dry_run: bool = False,
    confirm: Callable[[RepairResult], object] | None = None,
    progress: Callable[[JobResult], object] | None = None,
) -> RepairResult:
    """
    Replace each row that does not open by a backup's row.

    The replacements are encrypted under today's keys. If only the key id next to an envelope is wrong, it is
    corrected, which needs no backup. A row that opens is never touched.

    Today's key tables and the ledger decide which keys may open items, and never the backup. Under a shredded
    key, nothing opens. Under a key that was ever compromised, only envelopes with a recorded digest open. The
    digest was recorded when the key was marked as compromised, or when the envelope was replaced. Fields
    inside an item are copied as they are. Snapshots are not repaired: the application takes new ones.

    Each row is recorded in the ledger before it is replaced. If a run is interrupted, run it again.

    Args:
        store: An ``EventSeal``, or another ``SealedStore``.
        backup: A backup of the items, and of the key tables of that time. ``None``: only key ids are
            corrected.
        ledger: The erasure ledger, which is created if it is missing and nothing was ever shredded. ``None``:
            the store's own ledger.
        tables: The names of the tables to repair. ``None``: all tables that the application registered.
        dry_run: Whether to only check the rows. It needs no ledger.
        confirm: Called with the planned result before anything is written. If it raises, the repair ends.
        progress: Called now and then, with how many items were checked.

    Returns:
        The result:

        - ``done`` counts the repaired rows.
        - ``left`` counts the rows that can be repaired, or that were changed meanwhile.
        - ``failed`` counts the rows for which the backup has no usable row.

    Raises:
        ConfigurationError: There is no ledger, or a table is not registered or not in the backup.
        IntegrityError: The ledger does not authenticate.
        JobError: The key tables and the ledger do not agree on the shredded keys, as after a restore.
        KmsError: The KMS rejects a request or fails.
        StoreError: A database rejects a request or fails.
        StoreReadOnlyError: The key tables are from an earlier release. Run `eventseal upgrade` first.
    """
    started = time.monotonic()
    ledger = (ledger or own_ledger(store)) if dry_run else required_ledger(store, ledger)
    if not dry_run:
        refuse_old_key_tables(store)
    refuse_unregistered_tables(store)
    found = own_tables(store.datastore, store.cipher.application, tables)
    if ledger is not None:
        _refuse_undone_erasures(store, ledger)
    run = _Run(store, backup, found, progress=progress, started=started)
    run.look()
    if dry_run or not run.damaged:
        return run.repaired(dry_run=dry_run)
    if confirm is not None:
        confirm(run.repaired(dry_run=True))
    if ledger is not None:
        prepare_ledger(store, ledger)
        run.replace(ledger)
    return run.repaired(dry_run=False)


def _refuse_undone_erasures(store: SealedStore, ledger: Ledger) -> None:
    """Refuse key tables in which a restore brought back erased keys."""
    if not ledger.exists(store.keyring.application):
        return
    reading = Reading.of(store, ledger)
    if reading.unrecorded or undone_scopes(store, ledger, reading, progress=lambda _: None):
        raise JobError(
            f"the key tables and {ledger.name} do not agree on the shredded keys. Nothing was changed",
            remedy="Run `eventseal verify --after-restore`, which shows the differences and shreds such keys "
            "again. Then repeat the repair.",
        )


class _Damaged(NamedTuple):
    """
    A row that can be repaired.

    Attributes:
        table: The table, as today's registry describes it.
        place: The sequence id and position of the row.
        digest: The digest of the row as it was read.
        key_id: The key id that is stored next to the item.
        mended: The corrected row, if its own envelope opens and only the stored key id is wrong.
    """

    table: SealedTable
    place: Place
    digest: str
    key_id: UUID | None
    mended: ItemRow | None


class _Run(Run):
    """One repair, with its findings and progress."""

    def __init__(
        self, store: SealedStore, backup: Backup | None, tables: Sequence[SealedTable], **run: Any
    ) -> None:
        counts: dict[str, Counter[str]] = {table.table: Counter() for table in tables}
        super().__init__(verb="repair", by_table=counts, **run)
        self._store = store
        self._engine = store.datastore.engine
        self._tables = tables
        self._identity = None if backup is None else backup.identity()
        self._rows = BackupRows(store, backup)
        self._places: list[tuple[str, str, str]] = []
        self.damaged: list[_Damaged] = []

    def look(self) -> None:
        """Open every item, and check whether the backup can repair failing ones."""
        total = looked_at = 0
        for table in self._tables if self.progress is not None else ():
            total += sum(count_by_key(self._engine, table).values())
        for table in self._tables:
            for tally in self._check(table):
                looked_at += sum(counts.total() for counts in tally.by_table.values())
                if self.progress is not None:
                    failed = self.failed + self._total("left")
                    left = max(0, total - looked_at)
                    self.progress(self.result(complete=False, done=looked_at, left=left, failed=failed))

    def _check(self, table: SealedTable) -> Iterator[Tally]:
        failing: list[ItemRow] = []
        checks = ItemChecks(self._store, table, on_failure=lambda row, _: failing.append(row))
        for tally in checks.run(None, None):
            if failing:
                self._judge(table, failing)
                failing.clear()
            yield tally

    def _judge(self, table: SealedTable, rows: Sequence[ItemRow]) -> None:
        contexts = [ItemContext(*row[:3], table.collection) for row in rows]
        items = [(row.data, context) for row, context in zip(rows, contexts, strict=True)]
        outcomes = self._store.cipher.open_many(items)
        open_former(self._store, table, items, outcomes)
        closed: list[ItemRow] = []
        found: list[tuple[ItemRow, ItemRow | None]] = []
        for row, outcome in zip(rows, outcomes, strict=True):
            if not isinstance(outcome, Opened):
                closed.append(row)
            # Otherwise, a field inside the item fails, or the item may be forged.
            elif outcome.key_id != row.key_id:
                found.append((row, row._replace(key_id=outcome.key_id)))
        for row, error in zip(closed, self._rows.open(table, [row[:2] for row in closed]), strict=True):
            if error is None:
                found.append((row, None))
            else:
                self._refuse(table, row[:2], row.key_id, error)
        self._note(table, found)

    def _note(self, table: SealedTable, found: Sequence[tuple[ItemRow, ItemRow | None]]) -> None:
        """
        Record the rows that can be repaired.

        Rows that were changed since they failed to open are only counted.
        """
        self.by_table[table.table]["left"] += len(found)
        stored = stored_rows(self._engine, table, [row[:2] for row, _ in found])
        for (row, mended), now in zip(found, stored, strict=True):
            if now is None or not now.is_still(row):
                continue
            self.damaged.append(_Damaged(table, row[:2], now.digest, row.key_id, mended))
            if len(self._places) < MAX_FAILURES:
                self._places.append((table.table, str(row.sequence_id), str(row.position)))

    def replace(self, ledger: Ledger) -> None:
        """Replace the rows that can be repaired, in batches."""
        replaced: list[_Damaged] = []
        for table in self._tables:
            damaged = [each for each in self.damaged if each.table is table]
            for some in chunks(damaged, _BATCH):
                replaced += self._replace(ledger, table, some)
        if replaced:
            withdraw_places(self._store, ledger, {(each.table.table, each.place) for each in replaced})

    def _replace(self, ledger: Ledger, table: SealedTable, damaged: Sequence[_Damaged]) -> list[_Damaged]:
        """Replace a batch, and return the rows that were still unchanged."""
        for _ in range(_ATTEMPTS):
            stored = stored_rows(self._engine, table, [each.place for each in damaged])
            still = [
                each
                for each, now in zip(damaged, stored, strict=True)
                if now is not None and now.digest == each.digest
            ]
            try:
                outcomes = list(zip(still, self._encrypted(table, still), strict=True))
                given = [(each, new) for each, new in outcomes if isinstance(new, Encrypted)]
                replaced = self._write(ledger, table, given) if given else []
            except (KeyClosedError, KeyNotFoundError):
                self._store.keyring.refresh()
                continue
            self.by_table[table.table]["done"] += len(replaced)
            self.by_table[table.table]["left"] -= len(replaced)
            for each, outcome in outcomes:
                if isinstance(outcome, EventSealError):
                    self.by_table[table.table]["left"] -= 1
                    self._refuse(table, each.place, each.key_id, outcome)
            return replaced
        raise JobError(
            f"the keys of {table.table} changed {_ATTEMPTS} times while rows were repaired. Not all rows are "
            "repaired",
            remedy="Run the same command again.",
        )

    def _encrypted(self, table: SealedTable, damaged: Sequence[_Damaged]) -> list[Encrypted | EventSealError]:
        wanted = [each.place for each in damaged if each.mended is None]
        encrypted = iter(self._rows.encrypt(table, wanted) if wanted else ())
        return [
            next(encrypted) if each.mended is None else Encrypted(each.mended, each.mended, is_suspect=False)
            for each in damaged
        ]

    def _write(
        self, ledger: Ledger, table: SealedTable, given: Sequence[tuple[_Damaged, Encrypted]]
    ) -> list[_Damaged]:
        """Write the ledger, then the rows, and return the replaced ones."""
        changes = [RowChange(each.place, each.digest, encrypted.new) for each, encrypted in given]
        # A row that stays under its key does not depend on that key's fence.
        new = [encrypted.new.key_id for each, encrypted in given if not each.mended]
        targets = {key_id for key_id in new if key_id is not None}
        # Committed before the items: otherwise, a process that waits for such a fence row waits for the whole
        # batch.
        open_fences(self._engine, targets)
        # The ledger first: if this run ends here, the rows are unchanged (docs/decisions/0026).
        rows = [_as_json(table, change) for change in changes]
        ledger.append(self._store, REPAIR, details={"backup": self._identity, "rows": rows})

        def work(connection: Connection) -> list[int]:
            closed = share_fences(connection, targets)
            if closed:
                raise KeyClosedError(
                    f"nothing was changed in {table.table}: {counted(len(closed), 'key')} retired meanwhile: "
                    f"{', '.join(map(str, closed))}",
                    key_ids=tuple(sorted(closed)),
                )
            marks = load_compromised_items(connection, table.table)
            gone = [
                None if each.mended else _overwritten(connection, table, each.place, marks)
                for each, _ in given
            ]
            numbers = replace_rows(connection, table, changes)
            # An item that was counted when its key was marked is not missing now, but replaced.
            found = [given[number][1].found for number in numbers if given[number][1].is_suspect]
            said = {(row[:2], row.key_id) for row in found}
            lost = [
                (row, changes[number].old)
                for number in numbers
                if (row := gone[number]) is not None and (row[:2], row.key_id) not in said
            ]
            # For a damaged row, the digest of the row. The digest of its envelope would allow the same
            # envelope from a backup (docs/decisions/0026).
            replaced = [_replaced(table, row, sha256(row.data).digest()) for row in found]
            replaced += [_replaced(table, row, bytes.fromhex(digest)) for row, digest in lost]
            add_replaced(connection, replaced)
            forget_replaced(connection, table.table, page_of([*found, *(row for row, _ in lost)]))
            return numbers

        numbers = write(self._engine, work, doing=f"repairing items of {table.table}")
        return [given[number][0] for number in numbers]

    def repaired(self, *, dry_run: bool) -> RepairResult:
        """Return the result so far."""
        left = self._total("left")
        facts = self.facts(complete=dry_run or not left, done=self._total("done"), left=left)
        return RepairResult(**facts, backup=self._identity, places=tuple(self._places))

    def _total(self, outcome: str) -> int:
        return sum(counts[outcome] for counts in self.by_table.values())

    def _refuse(self, table: SealedTable, place: Place, key_id: UUID | None, error: EventSealError) -> None:
        self.by_table[table.table]["failed"] += 1
        self.add_failure(Failure.of_item(table.table, place, key_id, error))


def _as_json(table: SealedTable, change: RowChange) -> dict[str, Any]:
    return {
        "table": table.table,
        "place": place_to_json(change.place),
        "old": change.old,
        "new": change.new_digest(table),
    }


def _overwritten(
    connection: Connection, table: SealedTable, place: Place, marks: Mapping[UUID, CompromisedItems]
) -> ItemRow | None:
    """
    Return a damaged row if its header still names a marked key.

    Such a row was counted when the key was marked as compromised.
    """
    now = stored_row(connection, table, place)
    if now is None or now.header_key not in marks:
        return None
    return ItemRow(*place, now.topic, now.data, now.header_key)


def _replaced(table: SealedTable, row: ItemRow, digest: bytes) -> Replaced:
    key_id = UUID(bytes=row.data[KEY_ID_IN_HEADER])
    return Replaced(key_id, table.table, digest, str(row.sequence_id), str(row.position))
