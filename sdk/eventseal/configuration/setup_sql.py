"""The SQL that creates what a store lacks."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eventseal.configuration.assembly import Stores, configured_ledger
from eventseal.configuration.initialise import settings_with
from eventseal.configuration.loading import DEFAULT_FILE, settings_file, with_urls_hidden
from eventseal.erasure import DatabaseLedger
from eventseal.erasure.ledger.lines import erasure_ledger
from eventseal.storage.database.engines import SQLAlchemySettings, make_engine, redacted
from eventseal.storage.database.table_setup import compare_tables, creation_sql, older_store
from eventseal.storage.database.transactions import read
from eventseal.storage.items.fences import missing_fence_triggers
from eventseal.storage.items.key_id_indexes import concurrently_word, missing_key_id_indexes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection

    from eventseal.storage.items.tables import SealedTable


def setup_sql(path: str | Path | None = None, **options: Any) -> dict[str, list[str]]:
    """
    Return the statements that create what the databases lack. Nothing is changed.

    No KMS is called. A SQLite file that does not exist is not created. If an administrator has run the
    statements, ``eventseal init`` needs no right to create anything.

    Args:
        path: The settings file, as for :func:`eventseal.configuration.initialise.initialise`.
        options: Settings by name, as for that function.

    Returns:
        The statements by database, in order. The database is named by its content and its URL, without the
        password. The list of a complete database is empty.

    Raises:
        ConfigurationError: A setting is missing or wrong, a table belongs to another program, or an earlier
            release created the store.
        StoreError: A database refused or failed.
    """
    settings, _ = settings_with(settings_file(path) or Path(DEFAULT_FILE), with_urls_hidden(options))
    stores = Stores(settings)
    with closing(stores):
        datastore = stores.datastore
        ledger = configured_ledger(settings, datastore.layout)
        if stores.are_present() and datastore.is_older():
            raise older_store()
        items, keys = datastore.needed_tables()
        sealed, theirs = datastore.tables_to_register(settings.application), []
        if datastore.settings.is_there:
            theirs = datastore.described_eventsourcing_tables(application=settings.application)
        if datastore.key_settings is datastore.settings:
            parts = [_Part("items and keys", datastore.settings, [*items, *keys], sealed, theirs)]
        else:
            parts = [
                _Part("items", datastore.settings, items, sealed, theirs),
                _Part("keys", datastore.key_settings, keys),
            ]
        if isinstance(ledger, DatabaseLedger):
            parts.append(_Part("ledger", ledger.settings, [erasure_ledger]))
        return {f"{part.holds}: {redacted(part.settings.url)}": part.missing() for part in parts}


class _Part(NamedTuple):
    """One database, and what it must hold."""

    holds: str
    settings: SQLAlchemySettings
    tables: Sequence[Table]
    sealed: Sequence[SealedTable] = ()
    theirs: Sequence[SealedTable] = ()

    def missing(self) -> list[str]:
        """Return the statements that create what is missing."""
        # In place of a SQLite file that does not exist, an empty database.
        engine = make_engine(self.settings if self.settings.is_there else SQLAlchemySettings())
        try:
            return read(engine, self._statements, doing="comparing tables")
        finally:
            engine.dispose()

    def _statements(self, connection: Connection) -> list[str]:
        compared = compare_tables(connection, self.tables)
        compared.refuse_additions()
        created = {table.fullname for table in compared.missing}
        statements = [sql for table in compared.missing for sql in creation_sql(connection, table)]
        for table in self.theirs:
            statements += missing_fence_triggers(connection, table)
        for table in (*self.sealed, *self.theirs):
            word = "" if table.table in created else concurrently_word(connection, table.name, table.schema)
            statements += missing_key_id_indexes(connection, table, word)
        return statements
