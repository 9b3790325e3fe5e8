"""
The roles of a store, and the rights that each needs.

The rights of a role are exactly those that its operations use: a test tries each operation as each role, and
takes each right away once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import MetaData, Table
from sqlalchemy.dialects import postgresql

from eventseal.configuration.assembly import configured_keks, configured_ledger
from eventseal.erasure import DatabaseLedger, FileLedger
from eventseal.erasure.ledger.lines import erasure_ledger, ledger_metadata
from eventseal.kms import KmsUse
from eventseal.storage.foreign_tables import holds_snapshots
from eventseal.storage.items.columns import sealed_columns
from eventseal.storage.jobs.tables import (
    compromised_marks,
    job_metadata,
    marked_envelopes,
    reencrypted_keys,
    reencryption_failures,
    reencryption_jobs,
    reencryption_shards,
    replaced_envelopes,
)
from eventseal.storage.keys.tables import (
    encryption_keys,
    epochs,
    erased_items,
    fence_metadata,
    kek_fences,
    key_changes,
    key_claims,
    key_fences,
    key_metadata,
    key_wrappings,
    revocation_nodes,
    sealed_tables,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from eventseal.configuration.assembly import Stores
    from eventseal.configuration.settings import Settings
    from eventseal.storage import SQLAlchemySettings


class Role(StrEnum):
    """
    A part in the work with a store.

    - ``WRITER``: appends events and snapshots, and reads them.
    - ``READER``: reads events, and writes nothing.
    - ``ROTATOR``: rotates and retires data keys, and moves items and wrappings to the new keys.
    - ``CUSTODIAN``: destroys: it shreds, repairs, sets rows aside, ends KMS keys and writes the ledger.
    - ``AUDITOR``: verifies the store and reports on it, and writes nothing.

    The owner of the tables runs ``init``, ``migrate`` and ``reencrypt --to-collection``, which change the
    tables or their registry.
    """

    WRITER = "writer"
    READER = "reader"
    ROTATOR = "rotator"
    CUSTODIAN = "custodian"
    AUDITOR = "auditor"

    @property
    def reads_all(self) -> bool:
        """Whether the role may read everything that `doctor` checks."""
        return self in {Role.ROTATOR, Role.CUSTODIAN, Role.AUDITOR}

    @property
    def writes(self) -> bool:
        """Whether the role writes to the databases."""
        return self not in {Role.READER, Role.AUDITOR}


_CREATES_KEYS = frozenset({Role.WRITER, Role.ROTATOR, Role.CUSTODIAN})
_USES: Mapping[Role, frozenset[KmsUse]] = {
    Role.WRITER: frozenset({KmsUse.UNWRAP}),
    Role.READER: frozenset({KmsUse.UNWRAP}),
    Role.ROTATOR: frozenset({KmsUse.UNWRAP, KmsUse.REWRAP, KmsUse.DESCRIBE}),
    Role.CUSTODIAN: frozenset(KmsUse),
    Role.AUDITOR: frozenset({KmsUse.UNWRAP, KmsUse.DESCRIBE}),
}
"""The uses of every KEK. A role that creates keys also creates them under the first, and wraps the rest."""

Privileges = tuple[str, ...]
_READ = ("SELECT",)
_ADD = ("SELECT", "INSERT")
# On PostgreSQL, SELECT ... FOR SHARE needs UPDATE too.
_LOCK = ("SELECT", "UPDATE")
_WRITE = ("SELECT", "INSERT", "UPDATE")
_ALL = ("SELECT", "INSERT", "UPDATE", "DELETE")
_DROP = ("SELECT", "DELETE")

_TO_OPEN: Mapping[Table, Privileges] = dict.fromkeys(
    (encryption_keys, key_wrappings, key_changes, revocation_nodes, erased_items, sealed_tables), _READ
)
_TO_REPORT: Mapping[Table, Privileges] = {
    **_TO_OPEN,
    **dict.fromkeys(
        (key_fences, compromised_marks, reencryption_jobs, reencryption_shards, reencrypted_keys), _READ
    ),
    erasure_ledger: _READ,
}
_TO_CREATE_KEYS: Mapping[Table, Privileges] = {
    encryption_keys: _WRITE,
    key_wrappings: _WRITE,
    key_changes: _LOCK,
    kek_fences: _READ,
    key_fences: _WRITE,
}
_TO_DESTROY_KEYS: Mapping[Table, Privileges] = {
    **_TO_CREATE_KEYS,
    key_wrappings: _ALL,
    revocation_nodes: _WRITE,
    compromised_marks: _DROP,
    marked_envelopes: _DROP,
}
_ON_TABLES: Mapping[Role, Mapping[Table, Privileges]] = {
    Role.WRITER: {**_TO_OPEN, **_TO_CREATE_KEYS, key_claims: _WRITE},
    Role.READER: _TO_OPEN,
    Role.ROTATOR: {
        **_TO_REPORT,
        **_TO_DESTROY_KEYS,
        key_claims: _WRITE,
        compromised_marks: _ALL,
        replaced_envelopes: _ADD,
        reencryption_jobs: _WRITE,
        reencryption_shards: _WRITE,
        reencrypted_keys: _WRITE,
        reencryption_failures: ("SELECT", "INSERT", "DELETE"),
    },
    Role.CUSTODIAN: {
        **_TO_REPORT,
        **_TO_DESTROY_KEYS,
        replaced_envelopes: _ADD,
        kek_fences: _ADD,
        epochs: _WRITE,
        erased_items: _ADD,
        # LOCK TABLE needs UPDATE too. The lines authenticate each other, so that an edited one is noticed.
        erasure_ledger: _WRITE,
    },
    Role.AUDITOR: _TO_REPORT,
}
_ON_ITEMS: Mapping[Role, Privileges] = {
    Role.WRITER: _ADD,
    Role.READER: _READ,
    Role.ROTATOR: _LOCK,
    Role.CUSTODIAN: _LOCK,
    Role.AUDITOR: _READ,
}
_SERIAL = "notification_id"
"""The serial column of the eventsourcing library's tables of events."""

_PREPARER = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call]


def quoted(name: str) -> str:
    """Return the name of a role or schema for SQL."""
    return str(_PREPARER.quote(name))


def kek_uses(settings: Settings, role: Role) -> dict[str, frozenset[KmsUse]]:
    """
    Return the uses that a role needs of each configured KEK.

    Args:
        settings: The settings that name the KEKs.
        role: The role.

    Raises:
        ConfigurationError: No KEK is configured, or fewer than ``wrap_quorum``.
    """
    uris = configured_keks(settings)
    # Below the quorum, any KEK may be the one that answers first and creates the key.
    any_creates = settings.wrap_quorum is not None and settings.wrap_quorum < len(uris)
    uses = {}
    for number, uri in enumerate(uris):
        uses[uri] = _USES[role]
        if role in _CREATES_KEYS and (number == 0 or any_creates):
            uses[uri] |= {KmsUse.GENERATE}
        if role in _CREATES_KEYS and (number > 0 or any_creates):
            uses[uri] |= {KmsUse.WRAP}
    return uses


class Grant(NamedTuple):
    """
    The privileges of a role on one object of a PostgreSQL database.

    Attributes:
        kind: ``TABLE``, ``SEQUENCE`` or ``SCHEMA``.
        name: The object's name, quoted for SQL.
        privileges: The privileges, as SQL names them.
    """

    kind: str
    name: str
    privileges: Privileges

    def statement(self, to: str) -> str:
        """
        Return the statement that grants the privileges.

        Args:
            to: The database's role, quoted for SQL.
        """
        on = self.name if self.kind == "TABLE" else f"{self.kind} {self.name}"
        return f"GRANT {', '.join(self.privileges)} ON {on} TO {to};"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePolicy:
    """
    The rights of a role on one database or ledger.

    Attributes:
        holds: The content: ``items``, ``keys``, ``items and keys`` or ``ledger``.
        grants: The privileges of the role.
        files: The files whose rights decide, if it is not a database on a server.
        settings: The connection settings of the database. ``None`` for a file of lines.
    """

    holds: str
    grants: tuple[Grant, ...]
    files: tuple[Path, ...] = ()
    settings: SQLAlchemySettings | None = field(default=None, repr=False)

    @property
    def is_on_server(self) -> bool:
        """Whether it is a database on a server, where grants decide."""
        return self.settings is not None and self.settings.url.get_backend_name() == "postgresql"

    def statements(self, to: str) -> list[str]:
        """
        Return the SQL that grants the rights. For files, return a comment.

        Args:
            to: The name of the database's role.
        """
        if self.is_on_server:
            return [grant.statement(quoted(to)) for grant in self.grants]
        if not self.files:
            return ["-- The database is in memory, and ends with its process."]
        writes = any(grant.privileges != _READ for grant in self.grants)
        rights = "read and write" if writes else "read"
        names = ", ".join(map(str, self.files))
        return [f"-- The rights on files decide here. Let the role's user {rights} these: {names}"]


def store_policies(stores: Stores, role: Role) -> list[StorePolicy]:
    """
    Return the rights of a role on each database and ledger.

    It opens no database. A table that the role does not need is left out.

    Args:
        stores: The databases, and the settings.
        role: The role.

    Raises:
        ConfigurationError: The setting of the ledger names none.
    """
    datastore = stores.datastore
    schema = stores.settings.database_schema
    keys = _granted(role, key_metadata, schema)
    items = [
        *_on_items(stores, role),
        *_granted(role, fence_metadata, schema),
        *_granted(role, job_metadata, schema),
    ]
    if datastore.key_settings is datastore.settings:
        policies = [_policy("items and keys", datastore.settings, items + keys)]
    else:
        policies = [
            _policy("items", datastore.settings, items),
            _policy("keys", datastore.key_settings, keys),
        ]
    ledger, lines = configured_ledger(stores.settings), _granted(role, ledger_metadata, schema)
    if isinstance(ledger, DatabaseLedger) and lines:
        policies.append(_policy("ledger", ledger.settings, lines))
    elif isinstance(ledger, FileLedger) and lines:
        policies.append(StorePolicy(holds="ledger", grants=tuple(lines), files=(ledger.path,)))
    return policies


def _policy(holds: str, settings: SQLAlchemySettings, grants: Sequence[Grant]) -> StorePolicy:
    file = settings.file
    files = () if file is None else (file, *[file.with_name(f"{file.name}{end}") for end in ("-wal", "-shm")])
    used = () if settings.schema is None else (Grant("SCHEMA", quoted(settings.schema), ("USAGE",)),)
    return StorePolicy(holds=holds, grants=(*used, *grants), files=files, settings=settings)


def _granted(role: Role, metadata: MetaData, schema: str | None) -> list[Grant]:
    return [
        _grant(table, privileges, schema)
        for table, privileges in _ON_TABLES[role].items()
        if table.metadata is metadata
    ]


def _on_items(stores: Stores, role: Role) -> list[Grant]:
    """Return the grants on item tables, with their schemas and sequences."""
    schema = stores.settings.database_schema
    needed = [record for record in stores.datastore.tables if record not in stores.datastore.only_if_there]
    own = [columns.table for columns in map(sealed_columns, needed) if columns is not None]
    foreign = [_foreign_table(name) for name in stores.datastore.eventsourcing_tables]
    schemas = {table.schema for table in own + foreign if table.schema is not None}
    grants = [Grant("SCHEMA", quoted(schema), ("USAGE",)) for schema in sorted(schemas)]
    grants += [_grant(table, _ON_ITEMS[role], schema) for table in own]
    for table in foreign:
        if role is Role.WRITER and not holds_snapshots(table.name):
            # The library locks its table before it inserts numbered events, which needs UPDATE.
            grants.append(_grant(table, _WRITE, schema))
            grants.append(Grant("SEQUENCE", _table_name(_sequence(table), schema), ("USAGE",)))
        else:
            grants.append(_grant(table, _ON_ITEMS[role], schema))
    return grants


def _foreign_table(name: str) -> Table:
    schema, _, table = name.rpartition(".")
    return Table(table, MetaData(), schema=schema or None)


def _sequence(table: Table) -> Table:
    """Return the sequence of the serial column, as PostgreSQL names it."""
    return Table(f"{table.name}_{_SERIAL}_seq", MetaData(), schema=table.schema)


def _grant(table: Table, privileges: Privileges, schema: str | None) -> Grant:
    return Grant("TABLE", _table_name(table, schema), privileges)


def _table_name(table: Table, schema: str | None) -> str:
    """
    Return the name of a table or sequence for SQL.

    If the table names no schema, it is in *schema*.
    """
    parts = table.schema or schema, table.name
    return ".".join(map(quoted, filter(None, parts)))
