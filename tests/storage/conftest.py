"""Datastores that are closed when the test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from eventseal.storage import (
    IntegerSequencedItemRecord,
    SnapshotRecord,
    SQLAlchemyDatastore,
    SQLAlchemySettings,
    TimestampSequencedItemRecord,
)

RECORD_CLASSES = (IntegerSequencedItemRecord, TimestampSequencedItemRecord, SnapshotRecord)

OpenDatastore = Callable[..., SQLAlchemyDatastore]


@pytest.fixture
def open_datastore() -> Iterator[OpenDatastore]:
    """Opens a database, as another process would have it; with ``setup=False`` its tables are left alone."""
    with ExitStack() as opened:

        def connect(
            url: str, tables: Any = RECORD_CLASSES, *, setup: bool = True, **options: Any
        ) -> SQLAlchemyDatastore:
            datastore = SQLAlchemyDatastore(SQLAlchemySettings(url, **options), tables)
            opened.callback(datastore.close)
            if setup:
                datastore.setup_tables()
            return datastore

        yield connect


@pytest.fixture
def datastore(store_url: str, open_datastore: OpenDatastore) -> SQLAlchemyDatastore:
    """A database with its tables: on SQLite, then on PostgreSQL."""
    return open_datastore(store_url)
