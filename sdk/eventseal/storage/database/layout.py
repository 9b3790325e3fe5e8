"""
The names of EventSeal's own tables, and of their schema.

Earlier releases gave the tables names without ``eventseal_``. Where a database still has those names, every
statement gets them just before it is sent (docs/decisions/0033).
"""

from __future__ import annotations

import re
import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

PREFIX = "eventseal_"

OLDER_NAMES = (
    "compromised_marks",
    "encryption_keys",
    "epochs",
    "erased_items",
    "erasure_ledger",
    "kek_fences",
    "key_changes",
    "key_fences",
    "key_wrappings",
    "marked_envelopes",
    "reencrypted_keys",
    "reencryption_failures",
    "reencryption_jobs",
    "reencryption_shards",
    "replaced_envelopes",
    "revocation_nodes",
    "sealed_tables",
)
"""The names of the tables in earlier releases. A table that a later release adds never had such a name."""

_NAME = re.compile(rf"\b{PREFIX}({'|'.join(OLDER_NAMES)})\b")

# One table for each kind of database: keys, items, ledger. Other programs may have tables of these names, but
# hardly with exactly these columns.
_SIGNS: Mapping[str, frozenset[str]] = {
    "encryption_keys": frozenset(
        (
            *("key_id", "application", "scope", "purpose", "state", "active_scope", "binding", "seal"),
            *("items_reserved", "created_at", "deactivated_at", "compromised_at", "destroyed_at"),
            *("destroyed_by", "row_version", "change"),
        )
    ),
    "key_fences": frozenset({"key_id", "state"}),
    "erasure_ledger": frozenset({"application", "number", "line"}),
}
_SIGN_NAMES = [*_SIGNS, *(f"{PREFIX}{name}" for name in _SIGNS)]

_IN_FILE = (
    "SELECT found.name, columns.name FROM sqlite_master AS found, pragma_table_info(found.name) AS columns "
    "WHERE found.type = 'table' AND found.name IN ({tables})"
)
_ON_SERVER = (
    "SELECT relname, attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid "
    "WHERE attnum > 0 AND NOT attisdropped AND attrelid IN ({tables})"
)

UPGRADE = "eventseal upgrade"
_OPTION = "eventseal_names"


class Layout(StrEnum):
    """Which names the tables of a database have."""

    EMPTY = "empty"
    OLDER = "older"
    CURRENT = "current"


class StoreLayout:
    """
    The databases of one store.

    Their tables have the same names. If not, an ``eventseal upgrade`` was interrupted.

    Attributes:
        is_being_upgraded: Whether the names may differ, because this process makes them equal.
    """

    def __init__(self) -> None:
        self._databases: list[_Names] = []
        self.is_being_upgraded = False

    def add(self, engine: Engine) -> Engine:
        """Add the engine of a database of the store, and return it."""
        names = _names_of(engine)
        if names is not None:
            names.store = self
            self._databases.append(names)
        return engine

    def refuse_half_way(self, names: _Names, layout: Layout) -> None:
        """Refuse a database whose layout differs from that of another database."""
        if self.is_being_upgraded:
            return
        for other in self._databases:
            if other is names or layout is Layout.EMPTY or other.layout in {Layout.EMPTY, layout}:
                continue
            if other.layout is Layout.OLDER:  # maybe it was upgraded since
                with other.engine.connect():
                    pass
            if other.layout is not layout:
                raise ConfigurationError(
                    "the tables of one database of this store were renamed, but not those of another: an "
                    f"`{UPGRADE}` is running, or was interrupted",
                    remedy=f"Run `{UPGRADE}`. It continues where it was interrupted.",
                )


class _Names:
    """The names in one engine's database."""

    def __init__(self, engine: Engine, schema: str | None) -> None:
        self.engine = engine
        self.layout = Layout.EMPTY
        self.store: StoreLayout | None = None
        self._query = _signs_query(engine, schema)
        self._listens = False
        self._lock = threading.Lock()

    def look(self, connection: DBAPIConnection, *_: object) -> None:
        """Find out the names, on a connection that the pool lends. Current names do not change again."""
        if self.layout is Layout.CURRENT:
            return
        found = _layout(_signs(connection, self._query, in_file=self.engine.dialect.name == "sqlite"))
        if found is Layout.OLDER:
            self._listen()
        # Before the comparison, in which another database may look here.
        before, self.layout = self.layout, found
        if self.store is not None:
            try:
                self.store.refuse_half_way(self, found)
            except BaseException:
                self.layout = before
                raise

    def _listen(self) -> None:
        with self._lock:
            if not self._listens:
                event.listen(self.engine, "before_cursor_execute", self._translate, retval=True)
                self._listens = True

    def _translate(
        self, connection: Connection, _cursor: object, statement: str, parameters: Any, *_: object
    ) -> tuple[str, Any]:
        is_as_written = _names_of(connection) is None
        return statement if is_as_written else self.translated(statement), parameters

    def translated(self, text: str) -> str:
        """Return SQL, or a name, as this database needs it."""
        return _NAME.sub(r"\1", text) if self.layout is Layout.OLDER else text


def follow_layout(engine: Engine, *, schema: str | None) -> None:
    """
    Let an engine use the names that its database has.

    Args:
        engine: A new engine.
        schema: The schema of EventSeal's own tables, if it is not the default schema.
    """
    names = _Names(engine, schema)
    engine.update_execution_options(**{_OPTION: names})
    event.listen(engine, "checkout", names.look)


def follow_layout_of(engine: Engine) -> None:
    """Call :func:`follow_layout` for an engine that EventSeal did not create."""
    if _names_of(engine) is None:
        chosen = engine.get_execution_options().get("schema_translate_map", {})
        follow_layout(engine, schema=chosen.get(None))


def unchanged_names(connection: Connection) -> None:
    """Send the statements of a connection as they are written."""
    connection.execution_options(**{_OPTION: None})


def layout_of(connection: Connection) -> Layout:
    """Return which names the tables of a connection's database have."""
    names = _names_of(connection)
    return Layout.CURRENT if names is None else names.layout


def own_name(database: Engine | Connection, name: str) -> str:
    """Return the name of one of EventSeal's own tables in a database."""
    names = _names_of(database)
    return name if names is None else names.translated(name)


def is_newer(name: str) -> bool:
    """Return whether no earlier release has a table. ``eventseal upgrade`` creates it."""
    return name.startswith(PREFIX) and name.removeprefix(PREFIX) not in OLDER_NAMES


def schema_of(connection: Engine | Connection, schema: str | None) -> str | None:
    """Return the schema of tables that name *schema*, or none. ``None``: the default schema."""
    chosen: Mapping[str | None, str] = connection.get_execution_options().get("schema_translate_map", {})
    return chosen.get(schema, schema)


def quoted_name(connection: Engine | Connection, name: str, schema: str | None = None) -> str:
    """
    Return a table's name for SQL text, quoted, with its schema.

    Args:
        connection: A connection to the table's database.
        name: The table's name. Of EventSeal's own tables, it is the name that this release gives them.
        schema: The schema that the table names, if any.
    """
    quote = connection.dialect.identifier_preparer.quote
    parts = schema_of(connection, schema), own_name(connection, name)
    return ".".join(map(quote, filter(None, parts)))


def _names_of(database: Engine | Connection) -> _Names | None:
    names: _Names | None = database.get_execution_options().get(_OPTION)
    return names


def _signs_query(engine: Engine, schema: str | None) -> str:
    if engine.dialect.name == "sqlite":
        return _IN_FILE.format(tables=", ".join(map(repr, _SIGN_NAMES)))
    quote = engine.dialect.identifier_preparer.quote
    named = [".".join(map(quote, filter(None, (schema, name)))) for name in _SIGN_NAMES]
    literals = ["to_regclass('{}')".format(name.replace("'", "''")) for name in named]
    return _ON_SERVER.format(tables=", ".join(literals))


def _signs(connection: DBAPIConnection, query: str, *, in_file: bool) -> dict[str, set[str]]:
    cursor = connection.cursor()
    try:
        cursor.execute(query)
        rows = cursor.fetchall()
    finally:
        cursor.close()
    if not in_file:  # the query began a transaction
        connection.rollback()
    found: dict[str, set[str]] = {}
    for table, column in rows:
        found.setdefault(table, set()).add(column)
    return found


def _layout(found: Mapping[str, set[str]]) -> Layout:
    older = [name for name, columns in _SIGNS.items() if found.get(name, set()) == columns]
    current = [name for name, columns in _SIGNS.items() if found.get(f"{PREFIX}{name}", set()) >= columns]
    if older and current:
        raise ConfigurationError(
            f"a database has both the table {older[0]} and the table {PREFIX}{current[0]}: tables of an "
            "earlier release, and tables of this one",
            remedy=f"Find out which of them hold the store. If the {PREFIX}... tables are empty, drop them, "
            f"then run `{UPGRADE}`. If the `init` of an earlier release created the other tables after the "
            "upgrade, drop those.",
        )
    if older:
        return Layout.OLDER
    return Layout.CURRENT if current else Layout.EMPTY
