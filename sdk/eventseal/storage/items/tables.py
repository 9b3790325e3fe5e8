"""Tables of sequenced items: record classes, columns, and accepted formats."""

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

    from sqlalchemy.types import TypeEngine

    from eventseal.storage.items.columns import ItemColumns


class ActiveRecord(DeclarativeBase):
    """The base of EventSeal's own record classes. Your own classes may have any base."""


class SealedColumns:
    """
    A mixin with the columns that every table of sealed items has.

    ``__collection__`` is the table's logical name, which is bound to each item. An item still opens after its
    table was renamed, but not after it was moved to another collection. Each class needs its own name: two
    tables cannot have the same one. If you rename a collection, declare the previous name as
    ``__former_collection__``. Items that are bound to the previous name then open until
    ``eventseal reencrypt --to-collection`` has re-encrypted them.
    """

    __collection__: ClassVar[str] = EVENTS
    __former_collection__: ClassVar[str | None] = None

    topic: Mapped[str] = mapped_column(ExactText())
    data: Mapped[bytes] = mapped_column(LargeBinary())
    key_id: Mapped[UUID | None] = mapped_column(BinaryUUID())


class IntegerSequencedColumns(SealedColumns):
    """A mixin for record classes whose positions count events."""

    sequence_id: Mapped[Any] = mapped_column(BinaryUUID(), primary_key=True, sort_order=-2)
    position: Mapped[int] = mapped_column(
        ExactInteger(), primary_key=True, autoincrement=False, sort_order=-1
    )


class TimestampSequencedColumns(SealedColumns):
    """A mixin for record classes whose positions are times."""

    sequence_id: Mapped[Any] = mapped_column(BinaryUUID(), primary_key=True, sort_order=-2)
    position: Mapped[Decimal] = mapped_column(
        ExactDecimal(), primary_key=True, autoincrement=False, sort_order=-1
    )


class IntegerSequencedItemRecord(IntegerSequencedColumns, ActiveRecord):
    """Events with the version of their entity as position."""

    __tablename__ = "integer_sequenced_items"


class TimestampSequencedItemRecord(TimestampSequencedColumns, ActiveRecord):
    """Events with their time as position, in seconds with 6 decimal places."""

    __tablename__ = "timestamp_sequenced_items"
    __collection__ = TIMED_EVENTS
    __former_collection__ = EVENTS


class SnapshotRecord(IntegerSequencedColumns, ActiveRecord):
    """Snapshots with the version of their entity as position."""

    __tablename__ = "snapshots"
    __collection__ = "snapshots"


OWN_RECORDS: tuple[type[Any], ...] = (
    IntegerSequencedItemRecord,
    TimestampSequencedItemRecord,
    SnapshotRecord,
)
"""EventSeal's own record classes."""

DEFAULT_DATABASE = "items"
"""The logical name of the configured database of items."""


class ColumnKind(StrEnum):
    """
    How a column holds its values: the registry's names for column types.

    ``GENERIC_UUID`` is SQLAlchemy's own type: native on PostgreSQL, 32 hexadecimal digits elsewhere.
    The kind ``DATABASE_TEXT`` is text that is compared byte for byte, but sorted in the database's order.
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
        """The SQLAlchemy type that reads and writes such a column."""
        return _TYPES[self]

    @classmethod
    def of(cls, kind: TypeEngine[Any]) -> ColumnKind:
        """Return the kind of a column type that items may have."""
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
    """A column of a registered table: its name and its kind."""

    name: str
    kind: ColumnKind


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedTable:
    """
    A table that holds sealed items.

    Attributes:
        application: The application that owns the items. ``None`` means every application that writes there.
        database: The logical name of the table's database.
        table: The table's name, after its schema and a dot if it has one.
        collection: The logical name that is bound to its items.
        columns: By role: ``sequence_id``, ``position``, ``topic``, ``data``, ``key_id``. Tables of other
            programs have no ``key_id``. There only the header of a row's envelope names its key.
        old_formats: The older formats that readers accept while a migration lasts.
        is_migrated: Whether a migration has ended. Then every row must be an envelope.
        former_collection: Another name that items of this table may still be bound to. The record class
            declares it, and the registry has it until the items are re-encrypted. New items are bound to
            ``collection``.
        is_others: Whether only other applications registered the table.
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
        """The schema in the table's name, if any."""
        return self.table.rpartition(".")[0] or None

    @property
    def name(self) -> str:
        """The table's name without the schema."""
        return self.table.rpartition(".")[2]

    @property
    def has_key_ids(self) -> bool:
        """Whether a column names the key of each row. If not, only the header of its envelope does."""
        return KEY_ID in self.columns

    def bound_to(self, columns: ItemColumns) -> SealedTable:
        """
        Return the table with the collections of its record class.

        These are the current and the former collection that the class declares.
        """
        # The registry alone cannot add a name: an attacker who can edit it would choose the name.
        still = self.collection if self.collection == columns.former_collection else None
        former = None if still == columns.collection else still
        return replace(self, collection=columns.collection, former_collection=former)

    def shares_collection_with(self, other: SealedTable) -> bool:
        """
        Return whether an item would open after a copy between the tables.

        The item belongs to one application.
        """
        return (
            self.collection == other.collection
            and (self.database, self.table) != (other.database, other.table)
            and self.has_key_ids
            and other.has_key_ids
            and (self.application == other.application or None in {self.application, other.application})
        )

    def takes_plain(self, *, always_encrypt: bool) -> bool:
        """
        Return whether readers accept plaintext rows, whatever is left to migrate.

        The mapper of another program never does, and no mapper does after a migration has ended.

        Args:
            always_encrypt: The setting.
        """
        return self.has_key_ids and not always_encrypt and not self.is_migrated

    def accepts_plain(self, *, always_encrypt: bool) -> bool:
        """
        Return whether a row may be something else than an envelope.

        It may be there as it is, or because a migration of it has begun. If only other applications
        registered the table, they decide.

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
            columns: The columns of a table with a ``key_id``.
            application: The application whose items the table holds. With ``None``, every application's.
            database: The logical name of the table's database.
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
