"""Items and keys in SQLite and PostgreSQL."""

from eventseal.storage.database.column_types import BinaryUUID, ExactDecimal, ExactInteger, ExactText
from eventseal.storage.database.engines import SQLAlchemySettings
from eventseal.storage.datastore import SQLAlchemyDatastore
from eventseal.storage.items.tables import (
    ActiveRecord,
    IntegerSequencedColumns,
    IntegerSequencedItemRecord,
    SealedColumns,
    SnapshotRecord,
    TimestampSequencedColumns,
    TimestampSequencedItemRecord,
)
from eventseal.storage.key_store import SQLAlchemyKeyStore
from eventseal.storage.strategy import SQLAlchemyActiveRecordStrategy

__all__ = [
    "ActiveRecord",
    "BinaryUUID",
    "ExactDecimal",
    "ExactInteger",
    "ExactText",
    "IntegerSequencedColumns",
    "IntegerSequencedItemRecord",
    "SQLAlchemyActiveRecordStrategy",
    "SQLAlchemyDatastore",
    "SQLAlchemyKeyStore",
    "SQLAlchemySettings",
    "SealedColumns",
    "SnapshotRecord",
    "TimestampSequencedColumns",
    "TimestampSequencedItemRecord",
]
