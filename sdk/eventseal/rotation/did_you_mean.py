"""Finds the item that a person named, and suggests the nearest scopes and keys where there is none."""

from __future__ import annotations

import difflib
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import select

from eventseal.errors import ConfigurationError, ItemNotFoundError
from eventseal.keys.authentication.row_macs import is_digest
from eventseal.keys.states import SUBJECT_PURPOSES
from eventseal.rotation.sealed_store import registered_tables
from eventseal.storage.database.rows import chunks
from eventseal.storage.database.transactions import reads
from eventseal.storage.items.rows import ItemRow, row_at
from eventseal.storage.items.tables import ColumnKind, SealedColumn, SealedTable
from eventseal.storage.keys.tables import encryption_keys

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
        datastore: Has the items, and the registry of their tables.
        application: Whose item.
        table: A registered table.
        sequence_id: As text.
        position: As text.

    Returns:
        The row as it is stored.

    Raises:
        ConfigurationError: The table is not registered, or a text is not of the column's kind.
        ItemNotFoundError: There is no such row.
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
    Read a place as a person types it; ``1.5`` is ``1.500000``.

    Args:
        table: From the registry.
        sequence_id: As text.
        position: As text.

    Raises:
        ConfigurationError: A text is not of the column's kind.
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
            f"{text!r} is not of the kind of column {column.name}: {column.kind}"
        ) from None


_COLUMNS = encryption_keys.c
_NEIGHBOURS = 500
"""Looked at on each side in the order of the index: an application may have ten million."""


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
        datastore: Has the key tables.
        application: Whose.
        scopes: As somebody typed them.
        stored_as: Gives a scope as the key tables have it.
        guess: Whether the remedy names the nearest scope that is known; not where it would be taken for
            somebody who is to be erased.

    Raises:
        ConfigurationError: One is unknown; the remedy names the nearest that is known, except of digests.
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
                    remedy="Check how it is spelled, letter for letter: the next one is somebody else. "
                    "`eventseal keys` lists the scopes that have keys. A subject without keys has nothing "
                    "sealed under one.",
                )
            # The digest next to one is anybody's, and one that nobody can tell from the one that is meant.
            readable = [] if is_digest(stored) else [other for other in known if not is_digest(other)]
            raise _unknown(message, scope, readable)


def known_keys(datastore: SQLAlchemyDatastore, application: str, typed: Sequence[str]) -> list[UUID]:
    """
    Read key ids, and refuse those that the application does not have.

    Args:
        datastore: Has the key tables.
        application: Whose.
        typed: As somebody typed them.

    Raises:
        ConfigurationError: One is no key id, or unknown; the remedy names the nearest that is known.
        StoreError: The database refused or failed.
    """
    asked = {text: _key_id(text) for text in typed}
    engine, named = datastore.key_engine, [key for key in asked.values() if key]
    present = _present(engine, application=application, key_ids=named)
    for text, key_id in asked.items():
        if key_id not in present:
            known = [str(key) for key in _newest(engine, application=application)]
            raise _unknown(f"application {application} has no key {text}", text.lower(), known)
    return [key_id for key_id in asked.values() if key_id is not None]


def _unknown(message: str, typed: str, known: Sequence[str]) -> ConfigurationError:
    matches = difflib.get_close_matches(typed, known, n=1, cutoff=0.0)
    return ConfigurationError(
        message, remedy=f"Did you mean {matches[0]}?" if matches else "See: eventseal keys"
    )


def _key_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


@reads("looking for scopes")
def _neighbours(connection: Connection, *, application: str, scope: str) -> list[str]:
    of_items = _COLUMNS.purpose.in_(SUBJECT_PURPOSES)  # and not those of branches and of the store key
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
