"""
Find the backup's rows that may replace rows that do not open.

These rows are encrypted again under today's keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

from eventseal.cipher import ItemContext, Opened
from eventseal.erasure.backup import BackupKeys
from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    KmsError,
    StoreError,
)
from eventseal.items.sealed_places import Page
from eventseal.storage.jobs.compromised_items import recorded
from eventseal.suites.envelope import KEY_ID_IN_HEADER, envelope_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventseal.cipher.aes import Outcome
    from eventseal.erasure.backup import Backup
    from eventseal.items.sealed_places import Place
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.rows import ItemRow
    from eventseal.storage.items.tables import SealedTable

T = TypeVar("T")

SNAPSHOTS = "snapshots"
"""The collection whose rows are rebuilt, not repaired."""


class Encrypted(NamedTuple):
    """
    A row of the backup, and its replacement under today's keys.

    Attributes:
        found: The row in the backup.
        new: The row after the repair.
        is_suspect: Whether the key of *found* was ever compromised.
    """

    found: ItemRow
    new: ItemRow
    is_suspect: bool


class BackupRows:
    """
    Checks rows of a backup and encrypts them under today's keys.

    Args:
        store: The store with today's items and keys.
        backup: A backup of the store. ``None``: there is no backup, so no row may be used.
    """

    def __init__(self, store: SealedStore, backup: Backup | None) -> None:
        self._engine = store.datastore.engine
        self._backup = backup
        self._keys = BackupKeys(store.keyring, store.keyring if backup is None else backup.keyring)
        self._cipher = store.cipher.with_keys(self._keys)

    def open(self, table: SealedTable, places: Sequence[Place]) -> list[EventSealError | None]:
        """
        Return why the backup cannot repair each row, else ``None``.

        Nothing is encrypted.

        Args:
            table: The table, as today's registry describes it.
            places: The places of rows that do not open.

        Raises:
            KmsError: The KMS rejects the request or fails.
            StoreError: A database rejects the request or fails.
        """
        usable = self._usable(table, places)
        envelopes = [row for row in usable if not isinstance(row, EventSealError)]

        def opened(rows: Sequence[ItemRow], collection: str) -> list[Opened | EventSealError]:
            contexts = [ItemContext(row.sequence_id, row.position, row.topic, collection) for row in rows]
            return self._cipher.open_many([(row.data, at) for row, at in zip(rows, contexts, strict=True)])

        outcomes = iter(_in_collections(table, envelopes, opened))
        return [row if isinstance(row, EventSealError) else _why_not(next(outcomes)) for row in usable]

    def encrypt(self, table: SealedTable, places: Sequence[Place]) -> list[Encrypted | EventSealError]:
        """
        Encrypt the backup's version of each row.

        The arguments and errors are those of :meth:`open`.

        Returns:
            For each row, its replacement or the error that explains why there is none.
        """
        usable = self._usable(table, places)
        envelopes = [row for row in usable if not isinstance(row, EventSealError)]

        def resealed(rows: Sequence[ItemRow], collection: str) -> list[Outcome]:
            return self._cipher.reseal_many(page_of(rows), collection)

        encrypted = iter(_in_collections(table, envelopes, resealed))
        changes: list[Encrypted | EventSealError] = []
        for found in usable:
            if isinstance(found, EventSealError):
                changes.append(found)
                continue
            outcome = next(encrypted)
            if isinstance(outcome, bytes):
                new = found._replace(data=outcome, key_id=UUID(bytes=outcome[KEY_ID_IN_HEADER]))
                changes.append(Encrypted(found, new, self._keys.is_suspect(_key_of(found))))
            else:
                changes.append(_why_not(outcome) or _no_active_key())
        return changes

    def _usable(self, table: SealedTable, places: Sequence[Place]) -> list[ItemRow | EventSealError]:
        """Return the backup's usable rows, with an error for each other row."""
        if table.collection == SNAPSHOTS or self._backup is None:
            return [_snapshot() if table.collection == SNAPSHOTS else _no_backup() for _ in places]
        found = [_envelope_in(row) for row in self._backup.rows(table, places)]
        named = {_key_of(row) for row in found if not isinstance(row, EventSealError)}
        keys = self._keys.opening_keys(named) if named else {}
        usable: list[ItemRow | EventSealError] = []
        suspect: dict[int, ItemRow] = {}
        for number, row in enumerate(found):
            key = row if isinstance(row, EventSealError) else keys[_key_of(row)]
            if isinstance(key, EventSealError):
                usable.append(_of_key(key))
                continue
            usable.append(row)
            if not isinstance(row, EventSealError) and self._keys.is_suspect(key.key_id):
                suspect[number] = row
        if suspect:
            kept = recorded(self._engine, table.table, page_of(list(suspect.values())))
            for index, (number, row) in enumerate(suspect.items()):
                if index not in kept:
                    usable[number] = _suspected(_key_of(row))
        return usable


def _in_collections(
    table: SealedTable,
    rows: Sequence[ItemRow],
    work: Callable[[Sequence[ItemRow], str], list[T]],
) -> list[T]:
    """
    Do *work* under the table's collection, then under its former one.

    The former collection is tried only for rows that fail under the current one. Rows that are bound to the
    former name stay bound to it: the job that moves the table moves them.
    """
    outcomes = work(rows, table.collection)
    if table.former_collection is not None:
        refused = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, IntegrityError)]
        again = work([rows[number] for number in refused], table.former_collection)
        for number, outcome in zip(refused, again, strict=True):
            outcomes[number] = outcome
    return outcomes


def page_of(rows: Sequence[ItemRow]) -> Page:
    """Return rows that hold envelopes, column by column."""
    return Page(
        sequence_ids=[row.sequence_id for row in rows],
        positions=[row.position for row in rows],
        topics=[row.topic for row in rows],
        envelopes=[row.data for row in rows],
        key_ids=[row.data[KEY_ID_IN_HEADER] for row in rows],
    )


def _key_of(row: ItemRow) -> UUID:
    return UUID(bytes=row.data[KEY_ID_IN_HEADER])


def _envelope_in(row: ItemRow | None) -> ItemRow | EventSealError:
    """Return a backup's row if it holds an envelope, else an error."""
    if row is None:
        return IntegrityError(
            "the backup has no row at this place",
            remedy=f"Use a backup that was taken after the event was written. {_GIVE_UP}",
        )
    data: Any = row.data
    if not isinstance(data, bytes) or envelope_problem(data) is not None:
        return IntegrityError(
            "the backup's row is not an envelope: it is damaged too, or was not encrypted at that time",
            remedy=f"Use another backup. {_GIVE_UP}",
        )
    return row


def _of_key(error: EventSealError) -> EventSealError:
    """Raise errors that say nothing about a key. Return the others, with what to do next."""
    if isinstance(error, KmsError | StoreError):
        raise error
    if isinstance(error, KeyDestroyedError) and error.destroyed_by == "shredded":
        return KeyDestroyedError(
            f"{error}: the backup's row holds erased data",
            remedy=f"Erased data cannot be restored. {_GIVE_UP}",
            key_id=error.key_id,
            scope=error.scope,
            destroyed_by="shredded",
        )
    return error


def _why_not(outcome: object) -> EventSealError | None:
    """Return the error if a row of the backup does not open."""
    if not isinstance(outcome, EventSealError):
        return None
    if isinstance(outcome, IntegrityError) and str(outcome) != OPAQUE_INTEGRITY_MESSAGE:
        return outcome
    return _damaged_too() if isinstance(outcome, IntegrityError) else _of_key(outcome)


def _damaged_too() -> IntegrityError:
    return IntegrityError(
        "the backup's row does not open either: it is damaged too, or belongs to another place",
        remedy=f"Use an older backup. {_GIVE_UP}",
    )


def _suspected(key_id: UUID) -> IntegrityError:
    return IntegrityError(
        f"the backup's row is under key {key_id}, which was compromised. No digest shows that the row is "
        "older than that, so it may be forged",
        remedy=f"Use a backup in which the row is under another key. {_GIVE_UP}",
        key_id=key_id,
    )


def _no_backup() -> IntegrityError:
    return IntegrityError(
        "the row does not open, and no backup was named",
        remedy="Run `eventseal repair --from-backup URL` with the URL of a database that holds a backup.",
    )


def _snapshot() -> IntegrityError:
    return IntegrityError(
        "a snapshot does not open. Snapshots are not repaired",
        remedy="Delete the row: the application reads the events instead, and takes a new snapshot.",
    )


def _no_active_key() -> KeyNotFoundError:
    return KeyNotFoundError(
        "the row's scope has no active key to encrypt it with",
        remedy="Run `eventseal rotate`, which creates one. Then run the repair again.",
    )


_GIVE_UP = "If no backup has the row, run `eventseal set-aside`: the other checks then pass without it."
