"""Tables of sequenced items: their record classes, their columns, and what their readers accept."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal  # noqa: TC003 - SQLAlchemy reads the annotations
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID  # noqa: TC003 - SQLAlchemy reads the annotations

from sqlalchemy import LargeBinary, Uuid
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventseal.items.item import EVENTS, TIMED_EVENTS
from eventseal.storage.database.column_types import (
    BinaryUUID,
    DatabaseText,
    ExactDecimal,
    ExactInteger,
    ExactText,
)
from eventseal.storage.database.table_setup import KEY_ID
from eventseal.storage.items.columns import ROLES, is_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.engine import Dialect
    from sqlalchemy.types import TypeEngine

    from eventseal.storage.items.columns import ItemColumns


class ActiveRecord(DeclarativeBase):
    """The base of the record classes that come with EventSeal. A user's own classes may have any base."""


class SealedColumns:
    """
    The columns that every table of sealed items has; a mixin.

    ``__collection__`` is the table's logical name, bound to each item: a renamed table opens, an item moved
    to another collection does not. Give each class a name of its own: two tables cannot have the same one.
    If you rename it, say the name before as ``__former_collection__``: items that are bound to that one open
    until ``eventseal reencrypt --to-collection`` has moved them.
    """

    __collection__: ClassVar[str] = EVENTS
    __former_collection__: ClassVar[str | None] = None

    topic: Mapped[str] = mapped_column(ExactText())
    data: Mapped[bytes] = mapped_column(LargeBinary())
    key_id: Mapped[UUID | None] = mapped_column(BinaryUUID())


class IntegerSequencedColumns(SealedColumns):
    """The columns of a sequence that is counted: a mixin for a record class of one's own."""

    sequence_id: Mapped[Any] = mapped_column(BinaryUUID(), primary_key=True, sort_order=-2)
    position: Mapped[int] = mapped_column(
        ExactInteger(), primary_key=True, autoincrement=False, sort_order=-1
    )


class TimestampSequencedColumns(SealedColumns):
    """The columns of a sequence in time: a mixin for a record class of one's own."""

    sequence_id: Mapped[Any] = mapped_column(BinaryUUID(), primary_key=True, sort_order=-2)
    position: Mapped[Decimal] = mapped_column(
        ExactDecimal(), primary_key=True, autoincrement=False, sort_order=-1
    )


class IntegerSequencedItemRecord(IntegerSequencedColumns, ActiveRecord):
    """Events by the version of their entity."""

    __tablename__ = "integer_sequenced_items"


class TimestampSequencedItemRecord(TimestampSequencedColumns, ActiveRecord):
    """Events by their time, in seconds with 6 places."""

    __tablename__ = "timestamp_sequenced_items"
    __collection__ = TIMED_EVENTS
    __former_collection__ = EVENTS


class SnapshotRecord(IntegerSequencedColumns, ActiveRecord):
    """Snapshots by the version of their entity."""

    __tablename__ = "snapshots"
    __collection__ = "snapshots"


OWN_RECORDS: tuple[type[Any], ...] = (
    IntegerSequencedItemRecord,
    TimestampSequencedItemRecord,
    SnapshotRecord,
)
"""EventSeal's own record classes."""

DEFAULT_DATABASE = "items"
"""The logical name of the database that is configured for the items."""


class ColumnKind(StrEnum):
    """
    How a column holds its values; the registry's word for a type.

    ``GENERIC_UUID`` is SQLAlchemy's own: native on PostgreSQL, 32 hexadecimal digits elsewhere.
    ``DATABASE_TEXT`` is text that is compared byte for byte, but sorted as the database sorts it.
    """

    UUID = "uuid"
    GENERIC_UUID = "generic-uuid"
    TEXT = "text"
    DATABASE_TEXT = "database-text"
    INTEGER = "integer"
    DECIMAL = "decimal"
    BINARY = "binary"

    @property
    def type(self) -> TypeEngine[Any]:
        """SQLAlchemy's type that reads and writes such a column."""
        return _TYPES[self]

    @classmethod
    def of(cls, kind: TypeEngine[Any]) -> ColumnKind:
        """Name the kind of a column type that items may have."""
        for name, known in ((cls.UUID, BinaryUUID), (cls.GENERIC_UUID, Uuid), (cls.DECIMAL, ExactDecimal)):
            if isinstance(kind, known):
                return name
        if isinstance(kind, LargeBinary):
            return cls.BINARY
        return cls.TEXT if is_text(kind) else cls.INTEGER


_TYPES: Mapping[ColumnKind, TypeEngine[Any]] = MappingProxyType(
    {
        ColumnKind.UUID: BinaryUUID(),
        ColumnKind.GENERIC_UUID: Uuid(),
        ColumnKind.TEXT: ExactText(),
        ColumnKind.DATABASE_TEXT: DatabaseText(),
        ColumnKind.INTEGER: ExactInteger(),
        ColumnKind.DECIMAL: ExactDecimal(),
        ColumnKind.BINARY: LargeBinary(),
    }
)


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """A column of a registered table: its name in the database, and how it holds its values."""

    name: str
    kind: ColumnKind


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedTable:
    """
    A table that holds sealed items.

    Attributes:
        application: Whose; ``None``: of every application that writes there.
        database: The logical name of the database it is in.
        table: Its name, with its schema before a dot if it has one.
        collection: The logical name that is bound to its items.
        columns: By role: ``sequence_id``, ``position``, ``topic``, ``data``, ``key_id``. A table without the
            last is one that another program writes: the id of a row's key is read from its envelope's header.
        old_formats: What its readers accept beside envelopes, while a migration lasts.
        is_migrated: Whether a migration has ended: every row must be an envelope.
        former_collection: Another name that items of this table may still be bound to. The record class says
            it, and the registry has it until they are moved; what is sealed now is bound to ``collection``.
        is_others: Whether only other applications registered it.
    """

    application: str | None = None
    database: str = DEFAULT_DATABASE
    table: str
    collection: str
    columns: Mapping[str, SealedColumn] = field(hash=False)
    old_formats: tuple[str, ...] = ()
    is_migrated: bool = False
    former_collection: str | None = None
    is_others: bool = False

    @property
    def schema(self) -> str | None:
        """The schema that its name says, if any."""
        return self.table.rpartition(".")[0] or None

    @property
    def name(self) -> str:
        """Its name without the schema."""
        return self.table.rpartition(".")[2]

    def quoted(self, dialect: Dialect) -> str:
        """Write its name as SQL has it."""
        return ".".join(map(dialect.identifier_preparer.quote, self.table.rsplit(".", 1)))

    @property
    def has_key_ids(self) -> bool:
        """Whether a column names the key of each row; if not, its envelope's header alone does."""
        return KEY_ID in self.columns

    def bound_to(self, columns: ItemColumns) -> SealedTable:
        """Describe it with the collection that its record class says, and the one that it says it had."""
        # The registry alone accepts no other name: whoever can edit it would choose which.
        still = self.collection if self.collection == columns.former_collection else None
        former = None if still == columns.collection else still
        return replace(self, collection=columns.collection, former_collection=former)

    def shares_collection_with(self, other: SealedTable) -> bool:
        """Whether an item of one application that is copied from the one table to the other would open."""
        return (
            self.collection == other.collection
            and (self.database, self.table) != (other.database, other.table)
            and self.has_key_ids
            and other.has_key_ids
            and (self.application == other.application or None in {self.application, other.application})
        )

    def takes_plain(self, *, always_encrypt: bool) -> bool:
        """
        Whether readers take rows that are not encrypted, whatever is left to be migrated.

        Another program's mapper never does, and none does after a migration has ended.

        Args:
            always_encrypt: The setting.
        """
        return self.has_key_ids and not always_encrypt and not self.is_migrated

    def accepts_plain(self, *, always_encrypt: bool) -> bool:
        """
        Whether a row that is no envelope may be here: as it is, or since a migration of it has begun.

        What other applications alone have registered is theirs to judge.

        Args:
            always_encrypt: The setting.
        """
        return self.is_others or bool(self.old_formats) or self.takes_plain(always_encrypt=always_encrypt)

    @classmethod
    def of(
        cls, columns: ItemColumns, application: str | None, *, database: str = DEFAULT_DATABASE
    ) -> SealedTable:
        """
        Describe the table of a record class.

        Args:
            columns: Of a table with a ``key_id``.
            application: Whose items; ``None``: of every application.
            database: The logical name of the database it is in.
        """
        by_role = dict(zip((*ROLES, KEY_ID), (*columns.columns[: len(ROLES)], columns.key_id), strict=True))
        return cls(
            application=application,
            database=database,
            table=columns.table.fullname,
            collection=columns.collection,
            columns={
                role: SealedColumn(column.name, ColumnKind.of(column.type))
                for role, column in by_role.items()
                if column is not None
            },
        )
