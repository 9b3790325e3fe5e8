"""The steps of ``eventseal upgrade``, for a store of an earlier release."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from eventseal.configuration.assembly import EventSeal
from eventseal.configuration.loading import load_settings
from eventseal.erasure import DatabaseLedger
from eventseal.erasure.ledger.lines import ledger_metadata
from eventseal.erasure.reopening import upgrade_key_tables
from eventseal.errors import ConfigurationError
from eventseal.rotation.table_checks import has_old_key_tables
from eventseal.storage.database.layout import Layout
from eventseal.storage.database.table_setup import layout_of_database
from eventseal.storage.database.transactions import read, reads, write
from eventseal.storage.items.fences import has_fence_triggers
from eventseal.storage.items.key_id_indexes import has_key_id_indexes
from eventseal.storage.jobs.tables import job_metadata
from eventseal.storage.keys.tables import fence_metadata, key_metadata
from eventseal.storage.renaming import rename_statements, rename_tables
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection, Engine

    from eventseal.storage.items.tables import SealedTable


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupStep:
    """
    One step of ``eventseal init`` or ``eventseal upgrade``.

    Attributes:
        name: Of ``init``: ``settings``, ``kek``, ``kms``, ``tables``, ``eventsourcing``, ``keys`` or
            ``ledger``. Of ``upgrade``: ``names``, ``columns``, ``tables``, ``indexes`` or ``keys``.
        changed: Whether the step changed something, or would change it in a dry run.
        detail: The thing that the step created or changed, or that existed already.
    """

    name: str
    changed: bool
    detail: str


def own_tables() -> list[Table]:
    """Return EventSeal's own tables, in an order for their creation."""
    every = (key_metadata, fence_metadata, job_metadata, ledger_metadata)
    return [table for metadata in every for table in metadata.sorted_tables]


def upgrade(path: str | Path | None = None, *, dry_run: bool = False) -> list[SetupStep]:
    """
    Bring the tables of an earlier release up to date.

    Run it again if it was interrupted. If there is nothing to do, it changes nothing. The steps are:

    - Give EventSeal's own tables their current names: in the database of the keys, then in that of the items,
      then in that of the ledger. Each is one short transaction.
    - Add missing columns.
    - Create missing tables.
    - Create missing indexes. On PostgreSQL, applications can write meanwhile.
    - Upgrade the key tables of a release before the revocation tree.

    Args:
        path: The settings file. If it is ``None``: the file that ``EVENTSEAL_CONFIG`` names, else
            ``eventseal.toml`` if it exists.
        dry_run: Only report what would be changed.

    Returns:
        The steps, in order.

    Raises:
        ConfigurationError: A setting is missing or wrong, a table belongs to another program, or there is no
            store.
        KmsError: The KMS refused or failed.
        StoreUnavailableError: A database does not answer, or a transaction uses a table for longer than 2
            seconds. Run it again.
        StoreError: A database refused or failed.
    """
    with EventSeal(load_settings(path)) as seal, closing(_Upgrade(seal)) as steps:
        steps.check()
        return list(steps.report() if dry_run else steps.take())


class _Upgrade:
    """
    Takes the steps of the upgrade.

    Args:
        seal: The store.
    """

    def __init__(self, seal: EventSeal) -> None:
        self._seal = seal
        self._datastore = seal.datastore
        seal.datastore.layout.is_being_upgraded = True
        # The keys come first. Every program reads them, so none continues while this is interrupted.
        self._databases = {"keys": seal.datastore.key_engine, "items": seal.datastore.engine}
        if seal.datastore.engine is seal.datastore.key_engine:
            self._databases = {"items and keys": seal.datastore.engine}
        if isinstance(seal.ledger, DatabaseLedger) and seal.ledger.settings.is_there:
            self._databases["ledger"] = seal.ledger.engine

    def close(self) -> None:
        """Let the store's databases be compared again."""
        self._datastore.layout.is_being_upgraded = False

    def check(self) -> None:
        """
        Check everything, and change nothing.

        Raises:
            ConfigurationError: A table belongs to another program, or there is no store.
        """
        if not self._seal.stores.are_present():
            raise self._seal.stores.missing_file()
        self._datastore.compared_tables()
        if self._seal.ledger is not None:
            self._seal.ledger.check_place()
        self._datastore.tables_to_register(self._seal.settings.application)
        self._theirs()
        if not self._has_keys() and not self._lacking():
            raise ConfigurationError(
                "there is no store to upgrade: the key tables do not exist", remedy="Run `eventseal init`."
            )

    def report(self) -> Iterator[SetupStep]:
        """Yield the steps of a dry run."""
        statements = {what: self._statements(engine) for what, engine in self._databases.items()}
        yield _renamed([what for what, found in statements.items() if found])
        yield _step("columns", "missing columns in", self._lacking(), "columns")
        if not self._has_keys():
            return
        yield _step("tables", "tables", self._missing(), "tables")
        yield _step("indexes", "indexes and triggers of", self._unindexed(), "indexes and triggers")
        is_old = has_old_key_tables(self._seal.key_store, self._seal.settings.application)
        detail = "key tables of an earlier release" if is_old else "key tables"
        yield SetupStep(name="keys", changed=is_old, detail=detail)

    def take(self) -> Iterator[SetupStep]:
        """Take one step after the other."""
        rename = partial(rename_tables, tables=own_tables())
        yield _renamed(
            [
                what
                for what, engine in self._databases.items()
                if write(engine, rename, doing=f"renaming the tables of the {what}")
            ]
        )
        yield _step("columns", "missing columns in", self._datastore.add_columns(), "columns")
        if not self._has_keys():
            return
        missing, unindexed = self._missing(), self._unindexed()
        self._datastore.setup_tables(application=self._seal.settings.application)
        self._datastore.index_key_ids()
        yield _step("tables", "tables", missing, "tables")
        yield _step("indexes", "indexes and triggers of", unindexed, "indexes and triggers")
        yield self._upgrade_keys()

    def _has_keys(self) -> bool:
        return layout_of_database(self._datastore.key_engine) is not Layout.EMPTY

    def _statements(self, engine: Engine) -> list[str]:
        look = partial(rename_statements, tables=own_tables())
        return read(engine, look, doing="looking for tables of earlier releases")

    def _lacking(self) -> list[str]:
        """Return the names of the tables that lack columns."""
        return sorted({column.table.fullname for column in self._datastore.compared_tables().additions})

    def _missing(self) -> list[str]:
        return sorted(table.fullname for table in self._datastore.compared_tables().missing)

    def _unindexed(self) -> list[str]:
        ours = [table.table for table in self._datastore.unindexed_tables()]
        return sorted([*ours, *unprepared_tables(self._datastore.engine, self._theirs())])

    def _theirs(self) -> list[SealedTable]:
        application = self._seal.settings.application
        return self._datastore.described_eventsourcing_tables(application=application)

    def _upgrade_keys(self) -> SetupStep:
        """Upgrade the key tables of a release before the revocation tree."""
        upgraded = None
        if has_old_key_tables(self._seal.key_store, self._seal.settings.application):
            upgraded = upgrade_key_tables(self._seal)
        if upgraded is None:
            return SetupStep(name="keys", changed=False, detail="key tables")
        listed = (
            f". Without proof, {counted(upgraded.erased, 'item')} of reopened scopes were recorded as erased"
        )
        edited = f". Edited rows that were left out: {upgraded.edited:,}"
        keys = counted(upgraded.keys, "compromised or destroyed key")
        return SetupStep(
            name="keys",
            changed=True,
            detail=f"new key tables, with {keys}{listed * bool(upgraded.erased)}"
            f"{edited * bool(upgraded.edited)}. To refuse old copies, set key_tables = 2",
        )


@reads("looking at triggers and indexes")
def unprepared_tables(connection: Connection, tables: Sequence[SealedTable]) -> list[str]:
    """Return the eventsourcing library's tables that lack their triggers or their index."""
    return [
        table.table
        for table in tables
        if not (has_key_id_indexes(connection, table) and has_fence_triggers(connection, table))
    ]


def _renamed(databases: Sequence[str]) -> SetupStep:
    detail = f"tables of the {', '.join(databases)}, with names that begin with eventseal_"
    return SetupStep(name="names", changed=bool(databases), detail=detail if databases else "names of tables")


def _step(name: str, what: str, found: Sequence[str], otherwise: str) -> SetupStep:
    detail = f"{what} {', '.join(found)}" if found else otherwise
    return SetupStep(name=name, changed=bool(found), detail=detail)
