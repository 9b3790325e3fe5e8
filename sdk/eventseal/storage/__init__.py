"""Both paths' far end: SQLAlchemy's tables, the active record strategy and the key store."""

from eventseal.storage.database.column_types import BinaryUUID, ExactDecimal, ExactInteger, ExactText
from eventseal.storage.database.engines import SQLAlchemySettings
from eventseal.storage.datastore import SQLAlchemyDatastore
from eventseal.storage.items.registry import register, registered
from eventseal.storage.items.rows import ItemRow, count_by_key
from eventseal.storage.items.tables import (
    ActiveRecord,
    IntegerSequencedColumns,
    IntegerSequencedItemRecord,
    SealedColumn,
    SealedColumns,
    SealedTable,
    SnapshotRecord,
    TimestampSequencedColumns,
    TimestampSequencedItemRecord,
)
from eventseal.storage.key_store import SQLAlchemyKeyStore
from eventseal.storage.strategy import SQLAlchemyActiveRecordStrategy
from eventseal.storage.unregistered import unregistered_tables

__all__ = [
    "ActiveRecord",
    "BinaryUUID",
    "ExactDecimal",
    "ExactInteger",
    "ExactText",
    "IntegerSequencedColumns",
    "IntegerSequencedItemRecord",
    "ItemRow",
    "SQLAlchemyActiveRecordStrategy",
    "SQLAlchemyDatastore",
    "SQLAlchemyKeyStore",
    "SQLAlchemySettings",
    "SealedColumn",
    "SealedColumns",
    "SealedTable",
    "SnapshotRecord",
    "TimestampSequencedColumns",
    "TimestampSequencedItemRecord",
    "count_by_key",
    "register",
    "registered",
    "unregistered_tables",
]
