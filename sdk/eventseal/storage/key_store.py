"""The key store on SQLite and PostgreSQL: stores complete, sealed records; makes no seal and checks none."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import select, update

from eventseal.errors import StoreError, StoreUnavailableError
from eventseal.keys.records import Replacement
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.store import HARD_LIMIT
from eventseal.storage.changed_keys import changes_since
from eventseal.storage.key_queries import records_by_id, slot_holders
from eventseal.storage.key_rows import (
    insert_mark,
    insert_records,
    insert_wrappings,
    load_mark,
    load_records,
)
from eventseal.storage.key_tables import encryption_keys
from eventseal.storage.registry import register_place, registered_places
from eventseal.storage.replacements import replace_active_keys
from eventseal.storage.state_changes import change_states
from eventseal.storage.transactions import read, write
from eventseal.storage.types import DatabaseClock
from eventseal.storage.wrapping_rows import (
    add_wrappings,
    count_dependents,
    count_uses,
    drop_wrappings,
    mark_verified,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.keys.records import ChangeMark, Changes, KekUse, KeyRecord, NextMark
    from eventseal.keys.store import KeyStore
    from eventseal.kms.adapter import WrappedKey
    from eventseal.storage.datastore import SQLAlchemyDatastore

T = TypeVar("T")

_PREPARE = (
    "Make the keys before the transaction begins: keyring.prepare(scopes). "
    "SQLite has one writer at a time, and the open transaction is it."
)


class SQLAlchemyKeyStore:
    """
    Keeps keys in a database. Each call is one transaction of its own, on a connection of its own.

    Args:
        datastore: Its ``setup_tables()`` makes the tables; ``key_settings`` may name a database of their own.
    """

    def __init__(self, datastore: SQLAlchemyDatastore) -> None:
        self._datastore = datastore

    def active(
        self, application: str, scopes: Collection[str], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[str, KeyRecord]:
        """Give the record that holds each scope's slot, also a tombstone; absent ones are left out."""
        holders = partial(slot_holders, application=application, purpose=purpose, scopes=scopes)
        return self._read(holders, "reading active keys")

    def get(self, key_ids: Collection[UUID]) -> dict[UUID, KeyRecord]:
        """Give records by id, of whatever application; absent ones are left out."""
        return self._read(partial(records_by_id, key_ids=key_ids), "reading keys")

    def of_scope(self, application: str, scope: str) -> list[KeyRecord]:
        """Give every key and tombstone of a scope, of whatever purpose, in order of id, without wrappings."""
        ours = encryption_keys.c.application == application, encryption_keys.c.scope == scope
        return self._read(
            lambda connection: load_records(connection, *ours, wrappings=False), "reading the keys of a scope"
        )

    def add_active(
        self, records: Sequence[KeyRecord], *, mark: ChangeMark | None = None
    ) -> dict[str, KeyRecord]:
        """Insert new active keys, each unless its scope's slot is taken; give the holders."""

        def add(connection: Connection) -> dict[str, KeyRecord]:
            if not records:
                return {}
            first, scopes = records[0], [str(record.active_scope) for record in records]
            current = load_mark(connection, first.application)
            insert_records(connection, records, change=0 if current is None else current.counter)
            holders = slot_holders(
                connection,
                application=first.application,
                purpose=first.purpose,
                scopes=scopes,
                wrappings=False,
            )
            for record, scope in zip(records, scopes, strict=True):
                if scope not in holders:
                    raise StoreError(
                        f"key id {record.key_id} is taken; ids are never used again", key_id=record.key_id
                    )
            inserted = [
                record
                for record, scope in zip(records, scopes, strict=True)
                if holders[scope].key_id == record.key_id
            ]
            insert_wrappings(connection, inserted)
            if mark is not None and inserted:
                insert_mark(connection, mark)
            return slot_holders(
                connection, application=first.application, purpose=first.purpose, scopes=scopes
            )

        return self._write(add, "making keys")

    def replace_active(
        self, old: KeyRecord, closed: KeyRecord, new: KeyRecord, *, next_mark: NextMark, wait: bool = True
    ) -> KeyRecord:
        """Close a scope's active key and make another, unless somebody was first; give the holder."""
        replacement = Replacement(old, closed, new)
        work = partial(replace_active_keys, replacements=[replacement], next_mark=next_mark)
        return replacement.holder(self._write(work, f"replacing key {old.key_id}", wait=wait))

    def replace_all_active(
        self, replacements: Sequence[Replacement], *, next_mark: NextMark
    ) -> dict[str, KeyRecord]:
        """Close the active keys of scopes and make others, all or none; give the holders."""
        work = partial(replace_active_keys, replacements=replacements, next_mark=next_mark)
        return self._write(work, f"replacing {len(replacements)} keys") if replacements else {}

    def set_states(
        self,
        records: Sequence[KeyRecord],
        *,
        next_mark: NextMark,
        whole_scope: str | None = None,
        tombstones: Sequence[KeyRecord] = (),
    ) -> list[KeyRecord]:
        """Move keys to the states that *records* carry, and insert *tombstones*, all or none."""
        if not records and not tombstones:
            return []
        attempts = count()

        def change(connection: Connection) -> list[KeyRecord]:
            return change_states(
                connection,
                application=(*records, *tombstones)[0].application,
                records=records,
                tombstones=tombstones,
                next_mark=next_mark,
                whole_scope=whole_scope,
                again=next(attempts) > 0,
            )

        return self._write(change, "changing the states of keys")

    def put_wrappings(self, add: Mapping[UUID, WrappedKey], *, verified: bool = False) -> set[UUID]:
        """Add a wrapping to each key that lives and has none of that KEK and version; give their ids."""
        work = partial(add_wrappings, add=add, verified=verified)
        return self._write(work, "adding wrappings of keys") if add else set()

    def mark_wrappings_verified(self, opened: Mapping[UUID, WrappedKey], *, wait: bool = True) -> None:
        """Note that these wrappings were unwrapped and hold their keys."""
        if opened:
            self._write(partial(mark_verified, opened=opened), "noting verified wrappings", wait=wait)

    def drop_wrappings(
        self, drop: Mapping[UUID, Collection[WrappedKey]], *, keep: Mapping[UUID, WrappedKey]
    ) -> set[UUID]:
        """Delete wrappings of keys that have a better one, which was verified; give the ids of those keys."""
        work = partial(drop_wrappings, drop=drop, keep=keep)
        return self._write(work, "dropping wrappings of keys") if drop else set()

    def kek_uses(self, application: str) -> list[KekUse]:
        """Count the wrappings of live keys by KEK and version."""
        return self._read(partial(count_uses, application=application), "counting wrappings")

    def count_dependents(
        self,
        application: str,
        kek_uris: Collection[str],
        *,
        kek_version: str | None = None,
        elsewhere: Collection[str],
    ) -> int:
        """Count the live keys that open under a KEK and, as far as anybody has tried, nowhere else."""
        count = partial(
            count_dependents,
            application=application,
            kek_uris=kek_uris,
            kek_version=kek_version,
            elsewhere=elsewhere,
        )
        return self._read(count, "counting what hangs on a KEK")

    def reserve(self, items: Mapping[UUID, int], *, limit: int = HARD_LIMIT) -> dict[UUID, int]:
        """Lease items under active keys; gives the new totals of those that were granted."""

        def lease(connection: Connection) -> dict[UUID, int]:
            totals = {}
            for key_id, wanted in sorted(items.items()):
                reserved = encryption_keys.c.items_reserved + wanted
                leased = (
                    update(encryption_keys)
                    .where(encryption_keys.c.key_id == key_id, encryption_keys.c.state == KeyState.ACTIVE)
                    .where(reserved <= limit)
                    .values(items_reserved=reserved)
                    .returning(encryption_keys.c.items_reserved)
                )
                total = connection.execute(leased).scalar_one_or_none()
                if total is not None:
                    totals[key_id] = total
            return totals

        return self._write(lease, "leasing items under keys") if items else {}

    def changes(self, application: str, since: int, key_ids: Collection[UUID]) -> Changes | None:
        """Read the application's mark and, unless its counter is *since*, what changed, in one snapshot."""
        look = partial(changes_since, application=application, since=since, key_ids=key_ids)
        return self._read(look, "reading what changed of the keys")

    def page(
        self, application: str, *, after: UUID | None = None, limit: int = 1000, state: KeyState | None = None
    ) -> list[KeyRecord]:
        """Give up to *limit* records in order of id, those behind *after*."""
        conditions = [encryption_keys.c.application == application]
        if after is not None:
            conditions.append(encryption_keys.c.key_id > after)
        if state is not None:
            conditions.append(encryption_keys.c.state == state)
        return self._read(
            lambda connection: load_records(connection, *conditions, limit=limit), "listing keys"
        )

    def add_place(self, application: str, name: str, collection: str) -> None:
        """Note that a place beside the registered tables holds items."""
        if name not in self.places():  # no write where it is known: every process asks once
            note = partial(register_place, application=application, name=name, collection=collection)
            self._write(note, f"registering {name}")

    def places(self) -> list[str]:
        """Name the places that were noted."""
        return self._read(registered_places, "reading the registry of places")

    def now(self) -> datetime:
        """Read the database's clock, UTC."""
        return self._read(
            lambda connection: connection.execute(select(DatabaseClock())).scalar_one(), "asking the time"
        )

    def _read(self, work: Callable[[Connection], T], doing: str) -> T:
        return read(self._datastore.key_engine, work, doing=doing)

    def _write(self, work: Callable[[Connection], T], doing: str, *, wait: bool = True) -> T:
        engine = self._datastore.key_engine
        if engine is self._datastore.engine and self._datastore.holds_write_lock():
            raise StoreUnavailableError(
                f"{doing} inside the session's open write transaction", remedy=_PREPARE
            )
        try:
            return write(engine, work, doing=doing, wait=wait)
        except StoreUnavailableError as error:
            if engine.dialect.name == "sqlite":
                error.remedy = f"{error.remedy} {_PREPARE}"
            raise


if TYPE_CHECKING:
    _: type[KeyStore] = SQLAlchemyKeyStore
