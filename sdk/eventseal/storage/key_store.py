"""
The key store on SQLite and PostgreSQL.

It stores records with their row MACs, but neither computes nor checks a MAC.
"""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import select, update

from eventseal.errors import StoreError, StoreUnavailableError
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.store import HARD_LIMIT
from eventseal.storage.database.column_types import DatabaseClock, HoldsUUID
from eventseal.storage.database.transactions import read, write
from eventseal.storage.items.registry import register_place, registered_places
from eventseal.storage.keys.claims import claim_slots, release_slots
from eventseal.storage.keys.rows import (
    insert_records,
    insert_wrappings,
    load_records,
    orphans,
    records_by_id,
    slot_holders,
)
from eventseal.storage.keys.state_changes import (
    change_states,
    changes_since,
    find_erased,
    insert_mark,
    is_admitted,
    list_erased,
    load_mark,
    load_nodes,
    locked_mark,
    replace_active_keys,
    store_next_mark,
)
from eventseal.storage.keys.tables import encryption_keys
from eventseal.storage.keys.wrapping_rows import (
    add_wrappings,
    count_uses,
    count_wrapped_keys,
    drop_wrappings,
    mark_verified,
)
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.engine import Connection, Engine

    from eventseal.keys.records import (
        Admission,
        ChangeMark,
        Changes,
        KekUse,
        KeyRecord,
        NextMark,
        Replacement,
    )
    from eventseal.keys.store import SupportsClaims
    from eventseal.kms.adapter import WrappedKey
    from eventseal.storage.datastore import SQLAlchemyDatastore


T = TypeVar("T")

_PREPARE = (
    "Before the transaction begins, create the keys with keyring.prepare(scopes). "
    "SQLite allows one writer at a time, and the open transaction is that writer."
)


class SQLAlchemyKeyStore:
    """
    Keeps keys in a database.

    Each call is one transaction on its own connection.

    Args:
        datastore: The datastore of the key tables. Its ``setup_tables()`` creates them. With its
            ``key_settings``, they have their own database.
    """

    def __init__(self, datastore: SQLAlchemyDatastore) -> None:
        self._datastore = datastore

    def active(
        self, application: str, scopes: Collection[str], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[str, KeyRecord]:
        """Return the record in each scope's slot, even a tombstone. Scopes without one are left out."""
        return slot_holders(self._engine, application=application, purpose=purpose, scopes=scopes)

    def get(self, key_ids: Collection[UUID]) -> dict[UUID, KeyRecord]:
        """Return records by id, of any application. Missing ones are left out."""
        return records_by_id(self._engine, key_ids=key_ids)

    def of_scope(self, application: str, scope: str) -> list[KeyRecord]:
        """
        Return all keys and tombstones of a scope, in order of id.

        They are of any purpose, and come without their wrappings.
        """
        ours = encryption_keys.c.application == application, encryption_keys.c.scope == scope
        return self._read(
            lambda connection: load_records(connection, *ours, wrappings=False), "reading the keys of a scope"
        )

    def add_active(
        self, records: Sequence[KeyRecord], *, mark: ChangeMark | None = None, admit: Admission | None = None
    ) -> dict[str, KeyRecord]:
        """
        Insert new active keys, and return the record in each slot.

        A key is not inserted if another record has taken its scope's slot.
        """

        def add(connection: Connection) -> dict[str, KeyRecord]:
            if not records:
                return {}
            first, scopes = records[0], [str(record.active_scope) for record in records]
            insert_records(connection, records, change=0)
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
                        f"key id {record.key_id} is in use already, and ids are never used twice",
                        key_id=record.key_id,
                    )
            inserted = [
                record
                for record, scope in zip(records, scopes, strict=True)
                if holders[scope].key_id == record.key_id
            ]
            insert_wrappings(connection, inserted)
            if mark is not None and inserted:
                insert_mark(connection, mark)
            if admit is not None and not is_admitted(connection, first.application, admit):
                connection.rollback()
                return {}
            return slot_holders(
                connection, application=first.application, purpose=first.purpose, scopes=scopes
            )

        return self._write(add, "creating keys")

    def claim_slots(
        self, slots: Collection[bytes], *, owner: UUID, seconds: float, wait: bool = True
    ) -> set[bytes]:
        """Claim the creation of keys in slots, and return the claimed ones."""
        work = partial(claim_slots, slots=slots, owner=owner, seconds=seconds)
        self._refuse_in_transaction("creating keys")
        try:
            return self._write(work, "claiming the creation of keys", wait=wait)
        except StoreUnavailableError:
            if wait:
                raise
            return set()

    def release_slots(self, slots: Collection[bytes], *, owner: UUID) -> None:
        """End the owner's claims, without waiting for another writer."""
        work = partial(release_slots, slots=slots, owner=owner)
        self._write(work, "ending the claims of keys", wait=False)

    def replace_all_active(
        self, replacements: Sequence[Replacement], *, next_mark: NextMark, wait: bool = True
    ) -> dict[str, KeyRecord]:
        """Replace the active keys of scopes, all or none. Returns the record in the slot of each scope."""
        work = partial(replace_active_keys, replacements=replacements, next_mark=next_mark)
        many = counted(len(replacements), "key")
        keys = f"key {replacements[0].old.key_id}" if len(replacements) == 1 else many
        return self._write(work, f"replacing {keys}", wait=wait) if replacements else {}

    def set_states(
        self,
        records: Sequence[KeyRecord],
        *,
        next_mark: NextMark,
        whole_scope: str | None = None,
        left_out: Collection[UUID] = (),
        tombstones: Sequence[KeyRecord] = (),
    ) -> list[KeyRecord]:
        """Store the states that *records* carry, and insert *tombstones*, all or none."""
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
                left_out=left_out,
                again=next(attempts) > 0,
            )

        return self._write(change, "changing the states of keys", filtered=False)

    def advance(self, application: str, *, next_mark: NextMark) -> None:
        """Store the next change mark and its tree nodes. No key changes."""

        def advance(connection: Connection) -> None:
            store_next_mark(connection, locked_mark(connection, application), next_mark)

        self._write(advance, "storing the change mark")

    def revocations(
        self, application: str, paths: Collection[bytes]
    ) -> tuple[ChangeMark, dict[bytes, bytes]] | None:
        """Read an application's change mark and revocation tree nodes in one snapshot."""

        def look(connection: Connection) -> tuple[ChangeMark, dict[bytes, bytes]] | None:
            mark = load_mark(connection, application)
            if mark is None:
                return None
            return mark, load_nodes(connection, application, paths) if mark.has_tree else {}

        return self._read(look, "reading the revoked keys")

    def list_erased(self, application: str, digests: Collection[bytes]) -> None:
        """Add digests of erased items, before their scope is reopened."""
        work = partial(list_erased, application=application, digests=digests)
        self._write(work, "listing erased items")

    def find_erased(self, application: str, digests: Collection[bytes]) -> set[bytes]:
        """Return the digests that are listed as those of erased items."""
        return find_erased(self._engine, application, digests)

    def put_wrappings(self, add: Mapping[UUID, WrappedKey], *, verified: bool = False) -> set[UUID]:
        """
        Add wrappings, and return the ids of the keys that hold theirs.

        Nothing is added to destroyed keys, or to keys with a wrapping under the same KEK and version.
        """
        work = partial(add_wrappings, add=add, verified=verified)
        return self._write(work, "adding wrappings of keys") if add else set()

    def mark_wrappings_verified(self, opened: Mapping[UUID, WrappedKey], *, wait: bool = True) -> None:
        """Record that these wrappings were unwrapped and hold their keys."""
        if opened:
            self._write(partial(mark_verified, opened=opened), "recording verified wrappings", wait=wait)

    def drop_wrappings(
        self, drop: Mapping[UUID, Collection[WrappedKey]], *, keep: Mapping[UUID, WrappedKey]
    ) -> set[UUID]:
        """
        Delete wrappings of keys that have a better one.

        The better wrapping must still be stored, byte for byte. Returns the ids of the keys that have it.
        """
        work = partial(drop_wrappings, drop=drop, keep=keep)
        return self._write(work, "dropping wrappings of keys") if drop else set()

    def kek_uses(self, application: str) -> list[KekUse]:
        """Count the wrappings of an application's keys by KEK and version."""
        return count_uses(self._engine, application)

    def count_wrapped_keys(self, application: str) -> int:
        """Count an application's keys that have a wrapping."""
        return count_wrapped_keys(self._engine, application)

    def orphans(self, *, limit: int = 1000) -> list[KeyRecord]:
        """
        Return the keys that lost their wrappings or their change mark.

        A key that is not destroyed needs a wrapping. Its application needs a change mark.
        """
        return orphans(self._engine, limit=limit)

    def reserve(self, items: Mapping[UUID, int], *, limit: int = HARD_LIMIT) -> dict[UUID, int]:
        """
        Lease items under active keys, and return their new totals.

        Keys that did not grant their lease are left out.
        """

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
        """
        Read an application's change mark and the changes after counter *since*.

        If the mark's counter is *since*, only the mark is read. Both reads share one snapshot.
        """
        return changes_since(self._engine, application=application, since=since, key_ids=key_ids)

    def page(
        self, application: str, *, after: UUID | None = None, limit: int = 1000, state: KeyState | None = None
    ) -> list[KeyRecord]:
        """
        Return up to *limit* records after *after*, in order of id.

        If the id of a row was edited, the row has no place in that order. The first page begins with all such
        rows, however many.
        """
        conditions = [encryption_keys.c.application == application]
        if state is not None:
            conditions.append(encryption_keys.c.state == state)
        has_id = HoldsUUID(encryption_keys.c.key_id)

        def load(connection: Connection) -> list[KeyRecord]:
            if after is not None:
                behind = encryption_keys.c.key_id > after
                return load_records(connection, *conditions, has_id, behind, limit=limit)
            edited = load_records(connection, *conditions, ~has_id)
            return edited + load_records(connection, *conditions, has_id, limit=limit)

        return self._read(load, "listing keys", filtered=False)

    def add_place(self, application: str, name: str, collection: str) -> None:
        """Register a place that is not a registered table and holds items."""
        if name not in self.places():  # every process asks once, and a known place needs no write
            note = partial(register_place, application=application, name=name, collection=collection)
            self._write(note, f"registering {name}")

    def places(self) -> list[str]:
        """Return the names of the registered places."""
        return registered_places(self._engine)

    def now(self) -> datetime:
        """Read the database's clock, in UTC."""
        return self._read(
            lambda connection: connection.execute(select(DatabaseClock())).scalar_one(),
            "reading the database's clock",
        )

    @property
    def _engine(self) -> Engine:
        return self._datastore.key_engine

    def _read(self, work: Callable[[Connection], T], doing: str, *, filtered: bool = True) -> T:
        return read(self._engine, work, doing=doing, filtered=filtered)

    def _write(
        self, work: Callable[[Connection], T], doing: str, *, wait: bool = True, filtered: bool = True
    ) -> T:
        engine = self._engine
        self._refuse_in_transaction(doing)
        try:
            return write(engine, work, doing=doing, wait=wait, filtered=filtered)
        except StoreUnavailableError as error:
            if engine.dialect.name == "sqlite":
                error.remedy = f"{error.remedy} {_PREPARE}"
            raise

    def _refuse_in_transaction(self, doing: str) -> None:
        if self._engine is self._datastore.engine and self._datastore.holds_write_lock():
            raise StoreUnavailableError(
                f"{doing} is not possible inside the session's open write transaction", remedy=_PREPARE
            )


if TYPE_CHECKING:
    _: type[SupportsClaims] = SQLAlchemyKeyStore
