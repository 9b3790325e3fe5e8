"""The items of a job: old keys, older formats or former collections."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from eventseal.errors import WrongApplicationError
from eventseal.items.sealed_places import Selection
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.storage.database.column_types import NIL_KEY_ID
from eventseal.storage.database.rows import chunks
from eventseal.storage.database.transactions import reads
from eventseal.storage.items.key_counts import count_by_key, count_differing
from eventseal.storage.items.swaps import MOST_LISTED_KEYS
from eventseal.storage.jobs import jobs
from eventseal.storage.jobs import shards as job_shards
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.keys.records import KeyRecord
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.jobs import Job


FEW_ITEMS = 20_000
"""
The most items to sort page by page.

With more items, reading the table in order is faster.
"""

_MOST_REMEMBERED = 100_000
_CHUNK = 1000


class KeyStatus(Enum):
    """The status of items, from the row of their key."""

    FITTING = "under their scope's active key"
    OLD = "under a key that was rotated"
    COMPROMISED = "under a compromised key"
    UNREADABLE = "under a key that opens nothing here"
    FOREIGN = "another application's"
    ERASED = "shredded"
    CHANCE = "an item of an older format that begins like an envelope"


TO_RESEAL = frozenset({KeyStatus.OLD, KeyStatus.COMPROMISED, KeyStatus.UNREADABLE})
"""Items that a pass processes. If one does not open, the pass reports its row."""


class KeyStatuses:
    """
    Finds the status of keys from their rows, for one pass.

    It checks the MACs of the rows, and remembers the results.

    Args:
        keys: Only items under these keys are re-encrypted. ``None``: under any key that is not active.
    """

    def __init__(self, store: SealedStore, keys: Collection[UUID] | None) -> None:
        self._store = store
        self._application = store.cipher.application
        self._keys = None if keys is None else frozenset(keys)
        self._known: dict[tuple[UUID, bool, bool], KeyStatus] = {}

    def of(self, key_ids: Collection[UUID], table: SealedTable) -> Mapping[UUID, KeyStatus]:
        """
        Return the status of each key.

        Args:
            key_ids: Any number of key ids.
            table: The table whose rows name them.
        """
        kind = table.application is None, bool(table.old_formats)
        unknown = [key_id for key_id in key_ids if (key_id, *kind) not in self._known]
        if len(self._known) + len(unknown) > _MOST_REMEMBERED:
            self._known.clear()
            unknown = list(key_ids)
        found: dict[UUID, KeyStatus] = {}
        for chunk in chunks(unknown, _CHUNK):
            records = self._store.key_store.get(chunk)
            found.update({key_id: self._status(key_id, records.get(key_id), table) for key_id in chunk})
            # An edited row is not believed, so each of its items is checked.
            for key_id in self._store.keyring.tables.edited_keys(chunk):
                found[key_id] = self._if_asked(key_id, KeyStatus.UNREADABLE)
        if len(found) <= _MOST_REMEMBERED:
            self._known.update({(key_id, *kind): status for key_id, status in found.items()})
        return {key_id: found.get(key_id) or self._known[(key_id, *kind)] for key_id in key_ids}

    def _status(self, key_id: UUID, record: KeyRecord | None, table: SealedTable) -> KeyStatus:
        if record is None and table.old_formats:
            return KeyStatus.CHANCE
        if record is not None and record.application != self._application:
            shared = table.application is None
            return KeyStatus.FOREIGN if shared else self._if_asked(key_id, KeyStatus.UNREADABLE)
        if record is None or record.purpose is not KeyPurpose.DATA:
            return self._if_asked(key_id, KeyStatus.UNREADABLE)
        if record.state is KeyState.DESTROYED:
            erased = record.destroyed_by == "shredded"
            return KeyStatus.ERASED if erased else self._if_asked(key_id, KeyStatus.UNREADABLE)
        if record.state is KeyState.ACTIVE:
            return KeyStatus.FITTING
        if record.state is KeyState.COMPROMISED:
            return self._if_asked(key_id, KeyStatus.COMPROMISED)
        return self._if_asked(key_id, KeyStatus.OLD)

    def _if_asked(self, key_id: UUID, status: KeyStatus) -> KeyStatus:
        return status if self._keys is None or key_id in self._keys else KeyStatus.FITTING


@dataclass(frozen=True, slots=True)
class TableSources:
    """
    A table's items by the status of the keys in their headers.

    Attributes:
        table: The registered table.
        items: The number of items by key status. Plaintext items are under ``None``.
        keys: The keys that have items here, by key status.
        by_key: The number of items under each key that needs re-encryption.
    """

    table: SealedTable
    items: Mapping[KeyStatus | None, int]
    keys: Mapping[KeyStatus, Sequence[UUID]]
    by_key: Mapping[UUID, int]

    @property
    def pending(self) -> int:
        """
        The number of items that a pass processes.

        It leaves out items of fitting keys whose header is old.
        """
        return sum(self.items.get(status, 0) for status in TO_RESEAL)

    def selections(self, heads: tuple[bytes, ...]) -> Iterator[tuple[int, Selection]]:
        """
        Return the phases of a pass: compromised keys first, then the others.

        Args:
            heads: The first bytes of current envelopes. Empty: only the keys decide.
        """
        compromised = self.keys.get(KeyStatus.COMPROMISED, ())
        if compromised:
            yield 0, Selection(keys=_listed(compromised), few=self._are_few(compromised))
        others = (*self.keys.get(KeyStatus.OLD, ()), *self.keys.get(KeyStatus.UNREADABLE, ()))
        fitting = self.keys.get(KeyStatus.FITTING, ()) if heads else ()
        if not others and not fitting:
            return
        listed = _listed(others)
        if listed is None or _listed(fitting) is None:
            yield 1, Selection(keys=None, heads=heads)
        elif fitting:
            yield 1, Selection(keys=listed, fitting=tuple(fitting), heads=heads)
        else:
            yield 1, Selection(keys=listed, few=self._are_few(others))

    def unsealed(self) -> Iterator[Selection]:
        """Select the rows that no pass processes. They are no envelopes, or only begin like one by chance."""
        if plain := self.items.get(None, 0):
            yield Selection(keys=(), few=plain <= FEW_ITEMS, plain=True)
        keys = self.keys.get(KeyStatus.CHANCE, ())
        few = self.items.get(KeyStatus.CHANCE, 0) <= FEW_ITEMS
        for chunk in chunks(keys, _CHUNK):
            yield Selection(keys=tuple(chunk), few=few)

    def _are_few(self, keys: Sequence[UUID]) -> bool:
        return sum(self.by_key[key_id] for key_id in keys) <= FEW_ITEMS


def table_sources(
    store: SealedStore, tables: Sequence[SealedTable], keys: Collection[UUID] | None
) -> list[TableSources]:
    """
    Count the items of tables by the current status of their keys.

    Args:
        store: The store of the items and keys.
        tables: Registered tables.
        keys: Only items under these keys are re-encrypted. ``None``: under any key that is not active.

    Raises:
        StoreError: The database refused or failed.
    """
    statuses = KeyStatuses(store, keys)
    return [_sources(store, table, statuses) for table in tables]


def _sources(store: SealedStore, table: SealedTable, statuses: KeyStatuses) -> TableSources:
    counts = count_by_key(store.datastore.engine, table)
    items: Counter[KeyStatus | None] = Counter({None: counts.pop(None, 0)})
    keys: dict[KeyStatus, list[UUID]] = {}
    named = {key_id: count for key_id, count in counts.items() if key_id is not None}
    found = statuses.of(named, table)
    for key_id, status in found.items():
        items[status] += named[key_id]
        keys.setdefault(status, []).append(key_id)
    by_key = {key_id: named[key_id] for key_id, status in found.items() if status in TO_RESEAL}
    return TableSources(table, items, keys, by_key)


def _listed(keys: Sequence[UUID]) -> tuple[UUID, ...] | None:
    # The nil id stands for bytes that are no key id, and no query finds those.
    return tuple(sorted(keys)) if len(keys) <= MOST_LISTED_KEYS and NIL_KEY_ID not in keys else None


@dataclass(frozen=True, slots=True)
class OldSources(TableSources):
    """
    A table's items that may be in an older format.

    These rows hold no envelope, or name a key that does not exist.

    Attributes:
        unknown: Key ids that rows name and the key store lacks. They are there by chance, or belong to a
            static key or another store.
        others: Envelopes of other applications, by application, in a table that belongs to this one alone.
        has_scopes: Whether items are sealed under keys of other scopes than ``application``.
    """

    unknown: tuple[UUID, ...] = ()
    others: Mapping[str, int] | None = None
    has_scopes: bool = False

    @property
    def pending(self) -> int:
        """The number of items that a pass processes."""
        return self.items.get(KeyStatus.UNREADABLE, 0)

    def selections(self, heads: tuple[bytes, ...]) -> Iterator[tuple[int, Selection]]:  # noqa: ARG002
        """Return the only phase of a pass."""
        if self.pending:
            few = self.pending <= FEW_ITEMS
            listed = _listed(self.unknown)
            yield 1, Selection(keys=listed, few=few and listed is not None, plain=True)


def old_sources(store: SealedStore, tables: Sequence[SealedTable]) -> list[OldSources]:
    """
    Count items that may be in an older format.

    This includes rows whose column and header name different keys. They are reported as failures.

    Args:
        store: The store of the items and keys.
        tables: Registered tables.

    Raises:
        StoreError: The database refused or failed.
    """
    return [_old_sources(store, table) for table in tables]


def _old_sources(store: SealedStore, table: SealedTable) -> OldSources:
    counts = count_by_key(store.datastore.engine, table)
    differing = count_differing(store.datastore.engine, table)
    plain = counts.pop(None, 0)
    named = {key_id: count for key_id, count in counts.items() if key_id is not None}
    unknown: list[UUID] = []
    others: Counter[str] = Counter()
    usual = {DEFAULT_SCOPE, store.cipher.stored_scope(DEFAULT_SCOPE)}
    has_scopes = False
    # Not all records together: with one scope for each stream, there are millions.
    for chunk in chunks(sorted(named), _CHUNK):
        records = store.key_store.get(chunk)
        unknown += [key_id for key_id in chunk if key_id not in records]
        for key_id, record in records.items():
            plain += differing.get(key_id, 0)
            if record.application != store.cipher.application:
                others[record.application] += named[key_id]
            elif record.scope not in usual:
                has_scopes = True
    shared = table.application is None
    items: Counter[KeyStatus | None] = Counter(
        {
            KeyStatus.UNREADABLE: plain + sum(named[key_id] for key_id in unknown),
            KeyStatus.FOREIGN: others.total(),
        }
    )
    return OldSources(
        table,
        items,
        {},
        {},
        unknown=tuple(unknown),
        others={} if shared else dict(others),
        has_scopes=has_scopes,
    )


def foreign(source: OldSources, application: str) -> list[WrongApplicationError]:
    """Return an error for each application whose envelopes are in another's table."""
    return [
        WrongApplicationError(
            f"{source.table.table} holds {counted(count, 'envelope')} of the application {other!r}, "
            f"not of {application!r}",
            expected=application,
            found=other,
            remedy="Register the table for every application that writes to it, or find out who wrote them.",
        )
        for other, count in sorted((source.others or {}).items())
    ]


@dataclass(frozen=True, slots=True)
class MovedSources(TableSources):
    """
    All items of a table that is moved. Key ids do not show what moved already.

    Attributes:
        is_passed: Whether a whole pass has bound each item to the new name, or found it bound.
    """

    is_passed: bool = False

    @property
    def pending(self) -> int:
        """The number of items that a pass processes."""
        wanted = () if self.is_passed else (*TO_RESEAL, KeyStatus.FITTING)
        return sum(self.items.get(status, 0) for status in wanted)

    def selections(self, heads: tuple[bytes, ...]) -> Iterator[tuple[int, Selection]]:
        """Return the phases of a pass: compromised keys first, then all others."""
        if self.is_passed:
            return
        for phase, selection in super(MovedSources, self).selections(heads):
            if phase == 0:
                yield phase, selection
        yield 1, Selection(keys=None)


def moved_sources(store: SealedStore, table: SealedTable, job: Job | None) -> list[TableSources]:
    """
    Count the items of a table that is moved.

    Args:
        store: The store of the items and keys.
        table: The table, as its record class describes it.
        job: The job that moves it. ``None``: no job does yet.
    """
    (found,) = table_sources(store, [table], None)
    is_passed = job is not None and _is_passed(store.datastore.engine, job)
    return [MovedSources(found.table, found.items, found.keys, found.by_key, is_passed)]


@reads("reading the progress of a job")
def _is_passed(connection: Connection, job: Job) -> bool:
    """
    Return whether a pass has ended in which no row changed meanwhile.

    A row that changed needs another pass.
    """
    (now,) = jobs.load_jobs(connection, job.application, job_id=job.job_id)
    totals = job_shards.load_totals(connection, now)
    changed = sum(counts["changed"] for counts in totals.by_table.values())
    return now.pass_number > 0 and not totals.open_shards and not changed
