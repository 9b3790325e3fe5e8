"""Rows exactly as their database has them, and damaged ones that give way to a backup."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, select, type_coerce, update
from sqlalchemy.types import NullType

from eventseal.storage.database.table_setup import KEY_ID
from eventseal.storage.database.transactions import reads
from eventseal.storage.items.rows import described
from eventseal.suites.hkdf import length_prefixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Select
    from sqlalchemy.engine import Connection

    from eventseal.items.sealed_places import Place
    from eventseal.storage.items.rows import ItemRow
    from eventseal.storage.items.tables import SealedTable


_PLACE = ("sequence_id", "position")


class StoredRow(NamedTuple):
    """
    One row. The first three values are the driver's own, since an edit may have put anything there.

    Attributes:
        topic: Of its event.
        data: Its envelope, or whatever is there.
        key_id: What is in the column of key ids; ``None`` where there is no such column.
        header_key: The key that the envelope's header names; ``None``: the data is no envelope.
        named_key: The key that readers take: the column's, where there is one.
        differs: Whether the column says something else than the header.
    """

    topic: Any
    data: Any
    key_id: Any
    header_key: UUID | None
    named_key: UUID | None
    differs: bool

    @property
    def digest(self) -> str:
        """SHA-256 over topic, data and key id with their types, in hex: any change of them changes it."""
        return digest_of(self.topic, self.data, self.key_id)

    def is_still(self, row: ItemRow) -> bool:
        """Whether it says what it said when *row* was read."""
        return (self.topic, self.data, self.named_key) == (row.topic, row.data, row.key_id)

    @property
    def keys(self) -> frozenset[UUID]:
        """The keys for whose sake ``count_needed`` counts the row."""
        named = {self.header_key, self.named_key} if self.differs else {self.header_key}
        return frozenset(key_id for key_id in named if key_id is not None)


def digest_of(topic: Any, data: Any, key_id: Any) -> str:
    """Give the digest of a row that has these values; see :attr:`StoredRow.digest`."""
    parts = [part for value in (topic, data, key_id) for part in _typed(value)]
    return sha256(length_prefixed(b"eventseal row", *parts)).hexdigest()


@reads("reading {table.table}")
def stored_row(
    connection: Connection, table: SealedTable, place: Place, *, lock: bool = False
) -> StoredRow | None:
    """
    Read one row, if it is there.

    Args:
        connection: To the database that the table is in.
        table: From the registry.
        place: As pages give it.
        lock: Whether nobody else changes it before the transaction ends. SQLite's write lock sees to that.
    """
    sequence_id, position = place
    parameters = {"at_sequence_id": sequence_id, "at_position": position}
    query = _query(table).with_for_update() if lock else _query(table)
    found = connection.execute(query, parameters).first()
    if found is None:
        return None
    row = StoredRow._make(found)
    return row if table.has_key_ids else row._replace(key_id=None)


@lru_cache(maxsize=64)
def _query(table: SealedTable) -> Select[Any]:
    """Write the query of a table once: to compile it takes longer than to read a row."""
    columns = described(table)
    wanted: list[Any] = [type_coerce(columns[role], NullType()) for role in ("topic", "data", KEY_ID)]
    wanted += [columns.key_id, columns[KEY_ID], columns.differs]
    places = [columns[role] == bindparam(f"at_{role}", type_=columns[role].type) for role in _PLACE]
    return select(*wanted).where(*places)


def _typed(value: Any) -> tuple[bytes, bytes]:
    """Give a value with its type. A UUID is its 16 bytes, so that a row is the same on each database."""
    if value is None:
        return b"null", b""
    if isinstance(value, UUID):
        return b"bytes", value.bytes
    if isinstance(value, bytes | memoryview):
        return b"bytes", bytes(value)
    if isinstance(value, str):
        return b"text", value.encode("utf-8", "surrogatepass")
    return b"number", repr(value).encode()  # of SQLite: a whole number, or one with a point


class RowChange(NamedTuple):
    """
    A row that is to be replaced.

    Attributes:
        place: Its sequence id and position.
        old: Its digest as it was read; see ``StoredRow.digest``.
        new: What is to be in its place.
    """

    place: Place
    old: str
    new: ItemRow

    def new_digest(self, table: SealedTable) -> str:
        """Give the digest that the row is to have."""
        return digest_of(self.new.topic, self.new.data, self.new.key_id if table.has_key_ids else None)


def replace_rows(connection: Connection, table: SealedTable, changes: Sequence[RowChange]) -> list[int]:
    """
    Replace rows as a whole, each only if it is still exactly as it was read.

    Args:
        connection: In a transaction that holds the fences of the new keys; on SQLite also the write lock.
        table: From the registry.
        changes: At places that differ.

    Returns:
        The numbers of those that hold the new row now.
    """
    columns = described(table)
    replaced: list[int] = []
    for number, change in enumerate(changes):
        # Compared here and not in SQL: an edit may have put anything into the columns.
        found = stored_row(connection, table, change.place, lock=True)
        digest = None if found is None else found.digest
        if digest == change.old:
            values: dict[Any, Any] = {"topic": change.new.topic, "data": change.new.data}
            if table.has_key_ids:
                values[KEY_ID] = change.new.key_id
            at = [column == value for column, value in zip(columns.place, change.place, strict=True)]
            connection.execute(update(columns.table).where(*at).values(values))
        # It is there already if an earlier COMMIT of this transaction was not answered.
        if digest in {change.old, change.new_digest(table)}:
            replaced.append(number)
    return replaced
