"""Copy items from another library's tables, sealed, into the store's own table."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, tuple_

from eventseal.cipher import ItemContext
from eventseal.cipher.context import ItemBinder
from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KeyClosedError,
    KmsError,
    SequencedItemConflictError,
    SerializationError,
    StoreError,
    StoreUnavailableError,
    UnknownFormatError,
)
from eventseal.items import SequencedItem
from eventseal.items.acceptance import translated
from eventseal.keys.records import DEFAULT_SCOPE, checked_scope
from eventseal.rotation.jobs.jobs import MIGRATE
from eventseal.rotation.jobs.older_formats import class_checks, rule_of, scope_given
from eventseal.rotation.old_samples import Sample, refuse_wrong_keys
from eventseal.rotation.results import Failure, JobResult, Run
from eventseal.rotation.sealed_store import configured_formats
from eventseal.storage.database.engines import make_engine
from eventseal.storage.database.transactions import read
from eventseal.storage.foreign_tables import OldTable, text_of, time_of, uuid_of, whole_number_of
from eventseal.storage.items.columns import item_columns
from eventseal.storage.items.rows import pages_behind
from eventseal.storage.items.tables import ColumnKind
from eventseal.storage.strategy import SQLAlchemyActiveRecordStrategy
from eventseal.suites.envelope import parse_envelope

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.engine import Connection, Engine

    from eventseal.items.acceptance import AcceptedFormats
    from eventseal.rotation.jobs.older_formats import ScopeOf
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage import SQLAlchemyDatastore, SQLAlchemySettings
    from eventseal.storage.foreign_tables import OldRow

ATTEMPTS = 8
"""
The most attempts to write a batch.

It is repeated if keys changed, or if another copier wrote a part of it.
"""

MOST_IN_A_BATCH = 5000
"""The most places that one query can name."""

_SAMPLE = 1000


def copy_items(
    store: SealedStore,
    *,
    source: SQLAlchemySettings,
    table: str,
    into: str,
    columns: Mapping[str, str] | None = None,
    only: Mapping[str, str] | None = None,
    key_scope: str | ScopeOf = DEFAULT_SCOPE,
    batch: int = 500,
    dry_run: bool = False,
    progress: Callable[[JobResult], None] | None = None,
) -> JobResult:
    """
    Copy and seal items of the eventsourcing library's releases 1 to 7.

    The old table is only read. Topics stay the same: ``register_alias`` maps them to today's classes. JSON is
    written in the form that the store's transcoder reads. If it is interrupted, run it again: it copies the
    items that are missing. This includes items that the old application has written meanwhile.

    Args:
        store: A store with ``accepted_formats``, like an ``EventSeal``.
        source: The database of the old table.
        table: The old table. If it is not in the default schema, write its schema and a dot before it.
        into: The new table, which belongs to a record class of the store.
        columns: The old names of the columns, by role: ``sequence_id``, ``position``, ``topic``, ``data``.
        only: Copies only rows with these values, by column.
        key_scope: The scope whose keys seal the items, or a function of an item's place and its JSON.
        batch: The most items in one transaction, from 1 to 5,000.
        dry_run: Whether only to count, and to open a sample.
        progress: Called after each batch with the progress so far.

    Returns:
        The result's ``done`` counts the copied items. Its ``failed`` counts the items that do not open, or
        have no place in the new table. Its ``left`` counts the items still to copy. It is ``complete`` if
        each row existed already, was copied, or failed.

    Raises:
        ConfigurationError: An argument or a key is wrong. Nothing was written.
        KmsError: The KMS refused or failed. Run it again.
        StoreError: A database refused or failed. Run it again.
    """
    if not 1 <= batch <= MOST_IN_A_BATCH:
        raise ConfigurationError(f"batch is {batch}. It must be from 1 to {MOST_IN_A_BATCH:,}")
    if isinstance(key_scope, str):
        checked_scope(key_scope)
    record = _record_class(store.datastore, into)
    _refuse_itself(store.datastore, source, table, into)
    accepted = configured_formats(store)
    engine = make_engine(source, reads_only=True)
    try:
        open_table = partial(OldTable, name=table, columns=columns or {}, only=only or {})
        old = read(engine, open_table, doing=f"looking at {table}")
        copying = _Copying(
            store, engine, old, record, key_scope=key_scope, accepted=accepted, progress=progress
        )
        copying.check_keys()
        return copying.counted() if dry_run else copying.copy(batch)
    finally:
        engine.dispose()


class _Copying(Run):
    """One run of a copy: its counts so far."""

    def __init__(
        self,
        store: SealedStore,
        source: Engine,
        old: OldTable,
        record: type[Any],
        *,
        key_scope: str | ScopeOf,
        accepted: AcceptedFormats,
        progress: Callable[[JobResult], None] | None,
    ) -> None:
        super().__init__(verb=MIGRATE, progress=progress)
        self._store = store
        self._source = source
        self._old = old
        self._columns = item_columns(record, SequencedItem)
        self._strategy = SQLAlchemyActiveRecordStrategy(record, store.datastore.session)
        self._binder = ItemBinder(store.cipher.application)
        self._scope_of = rule_of(key_scope)
        self._accepted = accepted
        self._classes = class_checks(store, is_library=False)
        self._counts: Counter[str] = Counter()
        id_kind = ColumnKind.of(self._columns.sequence_id.type)
        is_uuid = id_kind in {ColumnKind.UUID, ColumnKind.GENERIC_UUID}
        self._id_of: Callable[[Any], Any] = uuid_of if is_uuid else text_of
        is_time = ColumnKind.of(self._columns.position.type) is ColumnKind.DECIMAL
        self._position_of: Callable[[Any], Any] = time_of if is_time else whole_number_of
        self.expected = read(source, old.count, doing=f"counting {old.name}")

    def check_keys(self) -> None:
        """Open the first rows, and refuse wrong keys."""
        rows = self._page(None, _SAMPLE)
        opened: Counter[str] = Counter()
        refused = 0
        unfit: SerializationError | None = None
        self._refused: list[tuple[OldRow, EventSealError]] = []
        for row in rows:
            try:
                plaintext, context, name = self._opened(row)
                opened[name] += 1
            except IntegrityError:
                refused += 1
            except SerializationError as error:
                unfit = error
            except EventSealError:
                continue
            else:
                try:
                    self._classes.check(context.topic, plaintext)
                except EventSealError as error:
                    self._refused.append((row, error))
        if unfit is not None and not opened and not refused:
            raise ConfigurationError(
                f"no item of {self._old.name} fits {self._columns.table}: {unfit}. Nothing was written",
                remedy=unfit.remedy,
            )
        self._sampled = {"sampled": len(rows), **opened}
        refuse_wrong_keys([Sample(self._columns.table.fullname, len(rows), opened, refused)], self._accepted)

    def counted(self) -> JobResult:
        """Return the number of items to copy, and the sample's failures."""
        self._counts.update(self._sampled)
        for row, error in self._refused:
            self._refuse(row, error)
        self.left = self.expected
        return self.result(complete=True)

    def copy(self, batch: int) -> JobResult:
        """Copy the table page by page."""
        self.left = self.expected
        for page in pages_behind(partial(self._page, limit=batch), batch):
            self._copy(page)
            self.left = max(0, self.left - len(page))
            if self.progress is not None:
                self.progress(self.result(complete=False))
        self.left = 0
        return self.result(complete=True)

    def _page(self, after: Any, limit: int) -> list[OldRow]:
        look = partial(self._old.page, after=after, limit=limit)
        return read(self._source, look, doing=f"reading {self._old.name}")

    def _copy(self, page: Sequence[OldRow]) -> None:
        opened: list[tuple[bytes, ItemContext, str]] = []
        for row in page:
            try:
                plaintext, context, _ = self._opened(row)
                self._classes.check(context.topic, plaintext)
                scope = scope_given(self._scope_of, context, plaintext)
            except EventSealError as error:
                if isinstance(error, KmsError | StoreError):
                    raise
                self._refuse(row, error)
                continue
            opened.append((plaintext, context, scope))
        for _ in range(ATTEMPTS):
            try:
                there = self._there([context for _, context, _ in opened])
                missing = [item for item in opened if (item[1].sequence_id, item[1].position) not in there]
                if missing:
                    self._strategy.append(self._sealed(missing))
            except (SequencedItemConflictError, KeyClosedError):
                self._store.keyring.refresh()
            else:
                self.done += len(missing)
                self._counts["done"] += len(missing)
                self._counts["there"] += len(opened) - len(missing)
                return
        raise StoreUnavailableError(
            f"{ATTEMPTS} attempts to write a batch of {self._old.name} met concurrent writes or changed keys",
            remedy="Run the same command again. It copies the items that are missing.",
        )

    def _opened(self, row: OldRow) -> tuple[bytes, ItemContext, str]:
        """Return a row's JSON, its new place and its format."""
        topic = row.topic
        if not isinstance(topic, str):
            raise SerializationError("an item's topic must be text")
        sequence_id, position = self._id_of(row.sequence_id), self._position_of(row.position)
        context = ItemContext(sequence_id, position, topic, self._columns.collection)
        self._binder.bind(context)  # a row without a place in the new table must not stop the others
        data = row.data.encode(errors="surrogateescape") if isinstance(row.data, str) else row.data
        if not isinstance(data, bytes):
            raise SerializationError(f"an item's data must be text or bytes, not {type(data).__name__}")
        found = self._accepted.open(data, context, UnknownFormatError("the item is of an older release"))
        if isinstance(found, EventSealError):
            raise found
        return translated(found.plaintext, sequence_id, position), context, found.format.name

    def _sealed(self, items: Sequence[tuple[bytes, ItemContext, str]]) -> list[SequencedItem]:
        envelopes = self._store.cipher.encrypt_many(
            [(plaintext, context) for plaintext, context, _ in items], scopes=[scope for _, _, scope in items]
        )
        sealed = zip(envelopes, (context for _, context, _ in items), strict=True)
        return [
            SequencedItem(
                place.sequence_id, place.position, place.topic, envelope, parse_envelope(envelope).key_id
            )
            for envelope, place in sealed
        ]

    def _there(self, contexts: Sequence[ItemContext]) -> set[tuple[Any, Any]]:
        """Return which of these places are taken by items copied before."""
        if not contexts:
            return set()
        place = self._columns.place
        wanted = [(context.sequence_id, context.position) for context in contexts]

        def look(connection: Connection) -> set[tuple[Any, Any]]:
            query = select(*place).where(tuple_(*place).in_(wanted))
            return {(row[0], row[1]) for row in connection.execute(query)}

        return read(self._store.datastore.engine, look, doing=f"reading {self._columns.table}")

    def _refuse(self, row: OldRow, error: EventSealError) -> None:
        self._counts["failed"] += 1
        shown = row.sequence_id.hex() if isinstance(row.sequence_id, bytes) else row.sequence_id
        self.add_failure(Failure.of_item(self._old.name, (shown, row.position), None, error))

    def result(self, *, complete: bool, **more: Any) -> JobResult:
        """Return the progress so far, by table too."""
        by_table = {self._columns.table.fullname: {"left": self.left, **self._counts}}
        return super().result(complete=complete, by_table=by_table, **more)


def _record_class(datastore: SQLAlchemyDatastore, into: str) -> type[Any]:
    by_name = {record.__table__.fullname: record for record in datastore.tables}
    if into not in by_name:
        raise ConfigurationError(
            f"the store has no table {into} to copy into",
            remedy=f"Copy into one of these: {', '.join(sorted(by_name))}.",
        )
    return by_name[into]


def _refuse_itself(store: SQLAlchemyDatastore, source: SQLAlchemySettings, table: str, into: str) -> None:
    if table == into and source.url == store.settings.url:
        raise ConfigurationError(
            f"{table} cannot be copied into itself",
            remedy="Set old_store_url to the database of the old table. Or copy into another table: "
            "--into TABLE.",
        )
