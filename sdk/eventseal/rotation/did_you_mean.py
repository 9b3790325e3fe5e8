"""Finds items, scopes and keys by name. Suggests similar scopes and keys."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import select

from eventseal.errors import ConfigurationError, ItemNotFoundError
from eventseal.items.sealed_fields import SUBJECT_KIND
from eventseal.keys.authentication.row_macs import is_digest
from eventseal.keys.states import SUBJECT_PURPOSES
from eventseal.rotation.sealed_store import registered_tables
from eventseal.storage.database.rows import chunks
from eventseal.storage.database.transactions import reads
from eventseal.storage.items.rows import ItemRow, row_at
from eventseal.storage.items.tables import ColumnKind, SealedColumn, SealedTable
from eventseal.storage.keys.tables import encryption_keys
from eventseal.wording import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.items.sealed_places import Place
    from eventseal.storage import SQLAlchemyDatastore


_READERS: dict[ColumnKind, Callable[[str], Any]] = {
    ColumnKind.UUID: UUID,
    ColumnKind.GENERIC_UUID: UUID,
    ColumnKind.INTEGER: int,
    ColumnKind.DECIMAL: Decimal,
    ColumnKind.TEXT: str,
    ColumnKind.DATABASE_TEXT: str,
}


def find_item(
    datastore: SQLAlchemyDatastore, application: str, table: str, sequence_id: str, position: str
) -> ItemRow:
    """
    Read one row.

    Args:
        datastore: The database with the items and the registry of their tables.
        application: The application that owns the item.
        table: A registered table.
        sequence_id: The sequence id as text.
        position: The position as text.

    Returns:
        The row as it is stored.

    Raises:
        ConfigurationError: The table is not registered, or a text does not fit its column's type.
        ItemNotFoundError: The table has no such row.
        StoreError: The database refused or failed.
    """
    (sealed_table,) = registered_tables(datastore, application, [table])
    place = typed_place(sealed_table, sequence_id, position)
    row = row_at(datastore.engine, sealed_table, *place)
    if row is None:
        raise ItemNotFoundError(
            f"there is no item at position {position} of sequence {sequence_id} in {table}"
        )
    return row


def typed_place(table: SealedTable, sequence_id: str, position: str) -> Place:
    """
    Read a place as a person types it: ``1.5`` means ``1.500000``.

    Args:
        table: The table's entry in the registry.
        sequence_id: The sequence id as text.
        position: The position as text.

    Raises:
        ConfigurationError: A text does not fit its column's type.
    """
    return (
        _value(table.columns["sequence_id"], sequence_id),
        _value(table.columns["position"], position),
    )


def _value(column: SealedColumn, text: str) -> Any:
    try:
        return _READERS[column.kind](text)
    except (ValueError, InvalidOperation):
        raise ConfigurationError(
            f"{text!r} does not fit column {column.name}, whose type is {column.kind}",
            remedy="Correct the value. To see how a place is written, run `eventseal inspect --help`.",
        ) from None


_COLUMNS = encryption_keys.c
_NEIGHBOURS = 500
"""
The most scopes to read on each side of the typed one.

Also the most key ids to read. An application may have millions of both.
"""


def refuse_unknown_scopes(
    datastore: SQLAlchemyDatastore,
    application: str,
    scopes: Collection[str],
    *,
    stored_as: Callable[[str], str] = str,
    guess: bool = True,
) -> None:
    """
    Refuse a scope that never had a key.

    Args:
        datastore: The database with the key tables.
        application: The application that owns the scopes.
        scopes: The scopes as a person typed them.
        stored_as: A function that returns a scope as the key tables store it.
        guess: Whether the remedy suggests a similar scope. A command that erases a subject must not
            suggest one: it would be another subject.

    Raises:
        ConfigurationError: A scope is unknown. The remedy suggests a similar one, if there is one. It never
            suggests a subject's scope, or a digest.
        StoreError: The database refused or failed.
    """
    for scope in scopes:
        stored = stored_as(scope)
        known = _neighbours(datastore.key_engine, application=application, scope=stored)
        if stored not in known:
            message = f"application {application} has no key of scope {scope!r}"
            if not guess:
                raise ConfigurationError(
                    message,
                    remedy="Check the spelling letter by letter: a similar scope is another subject. "
                    "`eventseal keys` lists the scopes that have keys. If a subject has no keys, no data "
                    "is encrypted under its scope.",
                )
            # A neighbouring digest belongs to an unrelated scope, and nobody can read which one.
            readable = [] if is_digest(stored) else [other for other in known if _may_be_shown(other)]
            otherwise = "List the scopes that have keys: eventseal keys"
            raise ConfigurationError(message, remedy=did_you_mean(scope, readable, otherwise))


def _may_be_shown(scope: str) -> bool:
    """
    Return whether a remedy may suggest a scope.

    A subject's scope names a person, and not the one that the user asked about.
    """
    return not is_digest(scope) and not scope.startswith(f"{SUBJECT_KIND}:")


_SAME_KEY = 0.85  # ids of two keys share their time and their hyphens, and are often over 0.6


def known_keys(datastore: SQLAlchemyDatastore, application: str, typed: Sequence[str]) -> list[UUID]:
    """
    Read key ids, and refuse unknown ones.

    Args:
        datastore: The database with the key tables.
        application: The application that owns the keys.
        typed: The key ids as a person typed them.

    Raises:
        ConfigurationError: A text is not a key id, or the application has no such key. The remedy
            suggests a similar key id, if there is one.
        StoreError: The database refused or failed.
    """
    asked = {text: _key_id(text) for text in typed}
    engine, named = datastore.key_engine, [key for key in asked.values() if key]
    present = _present(engine, application=application, key_ids=named)
    for text, key_id in asked.items():
        if key_id not in present:
            known = [str(key) for key in _newest(engine, application=application)]
            raise ConfigurationError(
                f"application {application} has no key {text}",
                remedy=did_you_mean(text.lower(), known, "List the keys: eventseal keys", least=_SAME_KEY),
            )
    return [key_id for key_id in asked.values() if key_id is not None]


def _key_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


@reads("looking for scopes")
def _neighbours(connection: Connection, *, application: str, scope: str) -> list[str]:
    of_items = _COLUMNS.purpose.in_(SUBJECT_PURPOSES)  # the scopes of other keys hold no items
    ours = select(_COLUMNS.scope).where(_COLUMNS.application == application, of_items).distinct()
    behind = ours.where(_COLUMNS.scope >= scope).order_by(_COLUMNS.scope)
    before = ours.where(_COLUMNS.scope < scope).order_by(_COLUMNS.scope.desc())
    return [
        found
        for query in (behind, before)
        for found in connection.execute(query.limit(_NEIGHBOURS)).scalars()
    ]


@reads("looking for keys")
def _present(connection: Connection, *, application: str, key_ids: Sequence[UUID]) -> set[UUID]:
    return {
        key_id
        for chunk in chunks(key_ids)
        for key_id in connection.execute(
            select(_COLUMNS.key_id).where(_COLUMNS.application == application, _COLUMNS.key_id.in_(chunk))
        ).scalars()
    }


@reads("looking for keys")
def _newest(connection: Connection, *, application: str) -> list[UUID]:
    query = select(_COLUMNS.key_id).where(_COLUMNS.application == application)
    return list(connection.execute(query.order_by(_COLUMNS.key_id.desc()).limit(_NEIGHBOURS)).scalars())
