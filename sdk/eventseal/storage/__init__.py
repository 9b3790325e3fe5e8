"""Items and keys in SQLite and PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.lazy_names import lazy_names

_HOMES = {
    "ActiveRecord": "items.tables",
    "BinaryUUID": "database.column_types",
    "ExactDecimal": "database.column_types",
    "ExactInteger": "database.column_types",
    "ExactText": "database.column_types",
    "IntegerSequencedColumns": "items.tables",
    "IntegerSequencedItemRecord": "items.tables",
    "SQLAlchemyActiveRecordStrategy": "strategy",
    "SQLAlchemyDatastore": "datastore",
    "SQLAlchemyKeyStore": "key_store",
    "SQLAlchemySettings": "database.engines",
    "SealedColumns": "items.tables",
    "SnapshotRecord": "items.tables",
    "TimestampSequencedColumns": "items.tables",
    "TimestampSequencedItemRecord": "items.tables",
}

if TYPE_CHECKING:
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
else:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)

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
