"""
Read-only access to a backup of the items and the key tables.

EventSeal uses only those parts of a backup that authenticate.
"""

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
    A backup of a store, which EventSeal never writes to.

    It is a context manager that closes its connections.

    Args:
        store: The store that was backed up. Its KEKs unwrap the backup's keys.
        url: The SQLAlchemy URL of the database with the backup's items. A secret.
        keys_url: The URL of the database with the backup's key tables. ``None``: the database of the items.
        renamed: The names of tables in the backup, by their current names.

    Raises:
        ConfigurationError: A URL is invalid, or names the store's own database.
    """

    def __init__(
        self,
        store: SealedStore,
        url: str,
        *,
        keys_url: str | None = None,
        renamed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        pooler = store.datastore.settings.pooler
        items = SQLAlchemySettings(url, pooler=pooler)
        if database_identity(items.url) == database_identity(store.datastore.settings.url):
            raise ConfigurationError(
                "the backup is the store's own database", remedy="Pass the URL of the backup's database."
            )
        known = {table.table for table in store.datastore.registry().tables}
        for name in renamed:
            if name not in known:
                raise ConfigurationError(
                    f"no table {name} is registered, so it cannot have another name in the backup",
                    remedy="Write the current name of the table first: --renamed TABLE=NAME. To list the "
                    "registered tables, run `eventseal doctor`.",
                )
        self.name = redacted(items.url)
        keys = None if keys_url is None else _at_rest(SQLAlchemySettings(keys_url, pooler=pooler))
        items = _at_rest(items)
        self._renamed = dict(renamed)
        self._tables: dict[str, SealedTable] = {}
        self._datastore = SQLAlchemyDatastore(items, key_settings=keys, reads_only=True)
        self._key_store = SQLAlchemyKeyStore(self._datastore)
        self._application = store.keyring.application
        self.keyring = store.keyring.over(self._key_store)

    def identity(self) -> dict[str, Any]:
        """
        Return the database of this backup and its key change counter.

        Together they distinguish this backup from others. The counter says how often keys had changed.

        Raises:
            StoreError: The database rejects the request or fails.
        """
        try:
            changes = self._key_store.changes(self._application, -1, [])
        except ConfigurationError:  # a backup of the items alone
            changes = None
        except StoreError as error:
            raise type(error)(
                f"the backup {self.name} cannot be read: {error}",
                remedy="Nothing was changed. Pass the URL of a database that its user can read.",
            ) from error
        return {"database": self.name, "key_changes": None if changes is None else changes.mark.counter}

    def rows(self, table: SealedTable, places: Sequence[Place]) -> list[ItemRow | None]:
        """
        Return the rows at some places, with ``None`` for missing rows.

        Args:
            table: The table, as today's registry describes it.
            places: Sequence ids and positions.

        Raises:
            ConfigurationError: The backup has no such table.
            StoreError: The database rejects the request or fails.
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
        # The envelope's header names the key, so the key id column, which the backup may lack, is not needed.
        columns = {role: column for role, column in table.columns.items() if role != KEY_ID}
        there = replace(table, table=self._renamed.get(table.table, table.table), columns=columns)

        def look(connection: Connection) -> list[str] | None:
            return None if has_table(connection, there.table) else table_names(connection)

        names = read(self._datastore.engine, look, doing="looking for the tables of the backup")
        if names is not None:
            others = ", ".join(sorted(names)[:_SHOWN_TABLES]) or "none"
            raise ConfigurationError(
                f"the backup has no table {there.table}. Its tables: {others}",
                remedy=f"If the table had another name in the backup, add --renamed {table.table}=NAME. To "
                "repair only other tables, name them with --table.",
            )
        return there

    def close(self) -> None:
        """Remove the keys from memory and close the connections."""
        self.keyring.close()
        self._datastore.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_SHOWN_TABLES = 20


def _at_rest(settings: SQLAlchemySettings) -> SQLAlchemySettings:
    """
    Return settings that read a SQLite backup without creating files.

    They also work in a read-only folder. A write-ahead log next to the file is part of the backup. SQLite
    may need to write there only if there is such a log.

    Raises:
        ConfigurationError: The file does not exist.
    """
    file = settings.file
    if file is None:
        return settings
    if not file.is_file():
        raise ConfigurationError(
            f"there is no backup {file}. Nothing was changed", remedy="Correct the URL of the backup."
        )
    log = file.with_name(f"{file.name}-wal")
    if log.exists() and log.stat().st_size:
        return settings
    query = {"mode": "ro", "immutable": "1", "uri": "true"}
    uri = settings.url.set(database=f"file:{quote(str(file))}").update_query_dict(query)
    return SQLAlchemySettings(uri.render_as_string(hide_password=False))


class BackupKeys:
    """
    A key source that opens a backup and seals under today's keys.

    An attacker may have written the backup. So today's key tables decide what each key may do. A key that is
    not destroyed today opens without the backup. Of the backup's keys, only keys that were retired since the
    backup are used. Each of them must be the very key that today's tombstone was created for.

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
        """The application that owns the keys."""
        return self._today.application

    def sealing_keys(
        self, items_by_scope: Mapping[str, int], *, make: bool = True, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[str, DataKey]:
        """Return each scope's active key from today's tables. See ``KeySource``."""
        return self._today.sealing_keys(items_by_scope, make=make, purpose=purpose)

    def opening_keys(
        self, key_ids: Collection[UUID], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[UUID, DataKey | EventSealError]:
        """
        Return each key, or the error that explains its absence. See ``KeySource``.

        A retired key is refused if its scope was ever shredded: the items under it may have been erased.
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
        """Whether a key from :meth:`opening_keys` is compromised, or was when retired."""
        return key_id in self._suspect

    def are_listed_as_erased(self, items: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Return which items were erased before a scope was reopened. See ``KeySource``."""
        return self._today.are_listed_as_erased(items)

    def stored_scope(self, scope: str) -> str:
        """Return a scope in the form that key rows use. See ``KeySource``."""
        return self._today.stored_scope(scope)

    def add_place(self, name: str, collection: str) -> None:
        """Register a place that holds items. See ``KeySource``."""
        self._today.add_place(name, collection)

    def refresh(self) -> None:
        """Read changed key states immediately."""
        self._today.refresh()

    def _retired(self, key_ids: Sequence[UUID]) -> dict[UUID, DataKey | EventSealError]:
        tombstones = self._today.tables.retired_keys(key_ids)
        # Items under such a key may have been erased, and nothing records which (docs/decisions/0026).
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


_OTHER_BACKUP = "Use another backup, and find out who changed this one."


def _of_backup(error: EventSealError) -> EventSealError:
    """Mark an error as the backup's, unless the KMS caused it."""
    if isinstance(error, KmsError | KekNotConfiguredError):
        return error
    told = copy(error)
    told.args = (f"in the backup: {error}",)
    told.remedy = _OTHER_BACKUP
    return told


def _erased(scope: str, key_id: UUID) -> KeyDestroyedError:
    return KeyDestroyedError(
        f"key {key_id} was retired, and its scope {scope!r} was shredded at some time. The backup's items "
        "under this key may have been erased",
        remedy="Erased data cannot be restored. To continue without the row, run `eventseal set-aside`.",
        key_id=key_id,
        scope=scope,
        destroyed_by="shredded",
    )


def _another_key(key_id: UUID) -> IntegrityError:
    return IntegrityError(
        f"the backup's key {key_id} is not the key that the store retired: the backup was edited or forged",
        remedy=_OTHER_BACKUP,
        key_id=key_id,
    )
