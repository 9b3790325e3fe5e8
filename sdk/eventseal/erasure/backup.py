"""A backup of the items and the key tables: only read, and believed where it authenticates."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KekNotConfiguredError,
    KeyDestroyedError,
    KmsError,
    StoreError,
)
from eventseal.keys.data_key import is_bound
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.storage.database.engines import database_identity, redacted
from eventseal.storage.database.table_setup import KEY_ID, has_table, table_names
from eventseal.storage.database.transactions import read
from eventseal.storage.items.rows import ItemRow, stored_rows

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Self
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.items.sealed_places import Place
    from eventseal.keys import Keyring
    from eventseal.keys.data_key import DataKey
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable


class Backup:
    """
    A backup of a store. It is never written to, and a context manager that closes its connections.

    Args:
        store: The store that it is a backup of. Its KEKs unwrap the backup's keys.
        url: The database with the backup's items, as SQLAlchemy has it. A secret.
        keys_url: The database with the backup's key tables; ``None``: that of the items.
        renamed: What tables are called in the backup, by the names that they have today.

    Raises:
        ConfigurationError: A URL is none, or names the store's own database.
    """

    def __init__(
        self,
        store: SealedStore,
        url: str,
        *,
        keys_url: str | None = None,
        renamed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        items = SQLAlchemySettings(url)
        if database_identity(items.url) == database_identity(store.datastore.settings.url):
            raise ConfigurationError(
                "the backup is the store's own database", remedy="Name the database that holds the backup."
            )
        known = {table.table for table in store.datastore.registry().tables}
        for name in renamed:
            if name not in known:
                raise ConfigurationError(
                    f"there is no registered table {name}, so it has no other name in the backup",
                    remedy="Give the name that the table has today first: --renamed TABLE=NAME",
                )
        self.name = redacted(items.url)
        keys = None if keys_url is None else _at_rest(SQLAlchemySettings(keys_url))
        items = _at_rest(items)
        self._renamed = dict(renamed)
        self._tables: dict[str, SealedTable] = {}
        self._datastore = SQLAlchemyDatastore(items, key_settings=keys, reads_only=True)
        self._key_store = SQLAlchemyKeyStore(self._datastore)
        self._application = store.keyring.application
        self.keyring = store.keyring.over(self._key_store)

    def identity(self) -> dict[str, Any]:
        """
        Give what tells this backup from others: its database, and how often its keys had changed by then.

        Raises:
            StoreError: The database refused or failed.
        """
        try:
            changes = self._key_store.changes(self._application, -1, [])
        except ConfigurationError:  # a backup of the items alone
            changes = None
        except StoreError as error:
            raise type(error)(
                f"the backup {self.name} cannot be read: {error}",
                remedy="Name a database that this user may read. Nothing was changed.",
            ) from error
        return {"database": self.name, "key_changes": None if changes is None else changes.mark.counter}

    def rows(self, table: SealedTable, places: Sequence[Place]) -> list[ItemRow | None]:
        """
        Read the rows at some places of a table; ``None`` stands for one that is not there.

        Args:
            table: From today's registry.
            places: Sequence ids and positions.

        Raises:
            ConfigurationError: The backup has no such table.
            StoreError: The database refused or failed.
        """
        if table.table not in self._tables:
            self._tables[table.table] = self._table(table)
        there = self._tables[table.table]
        look = partial(stored_rows, table=there, places=places)
        found = read(self._datastore.engine, look, doing=f"reading {there.table} of the backup")
        return [
            None if row is None else ItemRow(*place, row.topic, row.data, row.header_key)
            for place, row in zip(places, found, strict=True)
        ]

    def _table(self, table: SealedTable) -> SealedTable:
        # The envelope's header names the key: nobody needs a column beside it, which the backup may lack.
        columns = {role: column for role, column in table.columns.items() if role != KEY_ID}
        there = replace(table, table=self._renamed.get(table.table, table.table), columns=columns)

        def look(connection: Connection) -> list[str] | None:
            return None if has_table(connection, there.table) else table_names(connection)

        names = read(self._datastore.engine, look, doing="looking for the tables of the backup")
        if names is not None:
            others = ", ".join(sorted(names)[:_SHOWN_TABLES]) or "none"
            raise ConfigurationError(
                f"the backup has no table {there.table}; it has: {others}",
                remedy=f"If the table had another name: --renamed {table.table}=NAME. To repair other tables "
                "only, name them with --table.",
            )
        return there

    def close(self) -> None:
        """Forget the keys and close the connections."""
        self.keyring.close()
        self._datastore.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_SHOWN_TABLES = 10


def _at_rest(settings: SQLAlchemySettings) -> SQLAlchemySettings:
    """
    Name a SQLite file so that reading it leaves no file beside it, and works in a folder that is read-only.

    A write-ahead log beside the file is part of the backup. Only then SQLite may need to write there.

    Raises:
        ConfigurationError: There is no such file.
    """
    file = settings.file
    if file is None:
        return settings
    if not file.is_file():
        raise ConfigurationError(
            f"there is no backup {file}", remedy="Correct the URL of the backup. Nothing was changed."
        )
    log = file.with_name(f"{file.name}-wal")
    if log.exists() and log.stat().st_size:
        return settings
    query = {"mode": "ro", "immutable": "1", "uri": "true"}
    uri = settings.url.set(database=f"file:{quote(str(file))}").update_query_dict(query)
    return SQLAlchemySettings(uri.render_as_string(hide_password=False))


class BackupKeys:
    """
    Opens what a backup holds, and seals under today's keys. It is a key source for a cipher.

    A backup is bytes that somebody may have made. So what a key may do, today's key tables say: one that
    lives opens by itself, and of the backup's keys only those are used that were retired since. Each of them
    must be the very key that today's tombstone was made for.

    Args:
        today: The store's keyring.
        backup: A keyring over the backup's key tables.
    """

    def __init__(self, today: Keyring, backup: Keyring) -> None:
        self._today = today
        self._backup = backup
        self._suspect: set[UUID] = set()

    @property
    def application(self) -> str:
        """The application whose keys these are."""
        return self._today.application

    def sealing_keys(
        self, items_by_scope: Mapping[str, int], *, make: bool = True, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[str, DataKey]:
        """Give each scope's active key as it is today; see ``KeySource``."""
        return self._today.sealing_keys(items_by_scope, make=make, purpose=purpose)

    def opening_keys(
        self, key_ids: Collection[UUID], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[UUID, DataKey | EventSealError]:
        """
        Give each key, or why there is none; see ``KeySource``.

        A retired key of a scope that was ever shredded is refused: what it opens may have been erased.
        """
        found = self._today.opening_keys(key_ids, purpose=purpose)
        retired = [key_id for key_id, outcome in found.items() if _is_retired(outcome)]
        if retired:
            found |= self._retired(retired)
        self._suspect |= {
            key_id
            for key_id, outcome in found.items()
            if not isinstance(outcome, EventSealError) and outcome.state is KeyState.COMPROMISED
        }
        return found

    def is_suspect(self, key_id: UUID) -> bool:
        """Whether a key that :meth:`opening_keys` gave is compromised, or was before it was retired."""
        return key_id in self._suspect

    def are_listed_as_erased(self, items: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Say what was erased before a scope was reopened; see ``KeySource``."""
        return self._today.are_listed_as_erased(items)

    def stored_scope(self, scope: str) -> str:
        """Give a scope as keys name it; see ``KeySource``."""
        return self._today.stored_scope(scope)

    def add_place(self, name: str, collection: str) -> None:
        """Note that a place holds items; see ``KeySource``."""
        self._today.add_place(name, collection)

    def refresh(self) -> None:
        """Look at once for keys whose state changed."""
        self._today.refresh()

    def _retired(self, key_ids: Sequence[UUID]) -> dict[UUID, DataKey | EventSealError]:
        tombstones = self._today.tables.retired_keys(key_ids)
        # What such a key sealed may have been erased, and nothing tells (docs/decisions/0026).
        erased = [key_id for key_id, retired in tombstones.items() if retired.scope_was_shredded]
        found: dict[UUID, DataKey | EventSealError] = {
            key_id: _erased(tombstones[key_id].record.scope, key_id) for key_id in erased
        }
        wanted = [key_id for key_id in tombstones if key_id not in found]
        for key_id, outcome in self._backup.opening_keys(wanted).items() if wanted else ():
            if isinstance(outcome, EventSealError):
                found[key_id] = _of_backup(outcome)
            elif is_bound(outcome, tombstones[key_id].record):
                found[key_id] = outcome
            else:
                found[key_id] = _another_key(key_id)
            if tombstones[key_id].was_compromised:
                self._suspect.add(key_id)
        return found


def _is_retired(outcome: DataKey | EventSealError) -> bool:
    return isinstance(outcome, KeyDestroyedError) and outcome.destroyed_by == "retired"


def _of_backup(error: EventSealError) -> EventSealError:
    """Say that it is the backup's key tables that are not in order, if it is they."""
    if isinstance(error, KmsError | KekNotConfiguredError):
        return error
    told = copy(error)
    told.args = (f"in the backup: {error}",)
    told.remedy = "Use another backup, and find out who changed this one."
    return told


def _erased(scope: str, key_id: UUID) -> KeyDestroyedError:
    return KeyDestroyedError(
        f"key {key_id} was retired, and its scope {scope!r} was shredded at some time: what the backup holds "
        "under the key may have been erased",
        remedy="Nothing brings erased data back. To go on without the row: eventseal set-aside",
        key_id=key_id,
        scope=scope,
        destroyed_by="shredded",
    )


def _another_key(key_id: UUID) -> IntegrityError:
    return IntegrityError(
        f"the backup's key {key_id} is not the key that the store retired: the backup was edited or forged",
        remedy="Use another backup, and find out who changed this one.",
        key_id=key_id,
    )
