"""Both paths' far end: SQLAlchemy's tables, the active record strategy and the key store."""

from eventseal.storage.datastore import SQLAlchemyDatastore
from eventseal.storage.engines import SQLAlchemySettings
from eventseal.storage.item_rows import ItemRow, count_by_key
from eventseal.storage.item_strategy import SQLAlchemyActiveRecordStrategy
from eventseal.storage.item_tables import (
    ActiveRecord,
    IntegerSequencedColumns,
    IntegerSequencedItemRecord,
    SealedColumns,
    SnapshotRecord,
    TimestampSequencedColumns,
    TimestampSequencedItemRecord,
)
from eventseal.storage.key_store import SQLAlchemyKeyStore
from eventseal.storage.registry import register, registered
from eventseal.storage.sealed_table import SealedColumn, SealedTable
from eventseal.storage.types import BinaryUUID, ExactDecimal, ExactInteger, ExactText
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
