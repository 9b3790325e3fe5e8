"""The tables of sequenced items, as declarative record classes, and what a user's own are made of."""

from __future__ import annotations

from decimal import Decimal  # noqa: TC003 - SQLAlchemy reads the annotations
from typing import Any, ClassVar
from uuid import UUID  # noqa: TC003 - SQLAlchemy reads the annotations

from sqlalchemy import LargeBinary
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventseal.items.item import EVENTS, TIMED_EVENTS
from eventseal.storage.types import BinaryUUID, ExactDecimal, ExactInteger, ExactText


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
