"""A store of sealed items under a fake KMS, on each database."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from tests.fixtures.eventsourcing_store import LibraryStore, Placed

from eventseal.cipher import ItemContext
from eventseal.configuration import EventSeal, Settings
from eventseal.items import SequencedItem, register_alias
from eventseal.storage import (
    IntegerSequencedItemRecord,
    SQLAlchemyActiveRecordStrategy,
    TimestampSequencedItemRecord,
)
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "the-secret-of-the-item"
register_alias("shop:Placed", Placed)


class Shop:
    """A store, and short ways to fill and to damage it."""

    def __init__(self, url: str, kms: FakeKms, **settings: Any) -> None:
        self.url = url
        self.kms = kms
        self.others: list[Shop] = []
        self.seal = EventSeal(Settings(store_url=url, **{"application": "shop", **settings}), kms=kms)

    def again(self, **settings: Any) -> Shop:
        """Another process on the same store."""
        other = Shop(self.url, self.kms, **settings)
        self.others.append(other)
        return other

    def again_open(self) -> EventSeal:
        """What a worker opens: it closes it."""
        return EventSeal(self.seal.settings, kms=self.kms)

    def close(self) -> None:
        for shop in (self, *self.others):
            shop.seal.close()

    def append(
        self,
        count: int = 1,
        *,
        record: type[Any] = IntegerSequencedItemRecord,
        sequence_id: UUID | None = None,
        scope: str = "application",
    ) -> list[SequencedItem]:
        """Seal and append items at positions 0, 1, ..."""
        sequence_id = sequence_id or uuid4()
        decimal = record is TimestampSequencedItemRecord
        places = [Decimal(f"{n}.5") if decimal else n for n in range(count)]
        contexts = [ItemContext(sequence_id, place, "shop:Placed", record.__collection__) for place in places]
        sealed = self.seal.cipher.encrypt_many(
            [(SECRET.encode(), context) for context in contexts], scopes=scope
        )
        key = self.seal.keyring.sealing_keys({scope: 0})[scope]
        items = [
            SequencedItem(sequence_id, place, "shop:Placed", data, key.key_id)
            for place, data in zip(places, sealed, strict=True)
        ]
        self.strategy(record).append(items)
        return items

    def append_plain(self, count: int = 1, data: bytes = b'{"amount":5}') -> None:
        sequence_id = uuid4()
        self.strategy().append([SequencedItem(sequence_id, n, "shop:Placed", data) for n in range(count)])

    def strategy(self, record: type[Any] = IntegerSequencedItemRecord) -> SQLAlchemyActiveRecordStrategy:
        return SQLAlchemyActiveRecordStrategy(record, self.seal.datastore.session)

    def execute(self, sql: str, **parameters: Any) -> Any:
        with self.seal.datastore.engine.begin() as connection:
            found = connection.execute(text(sql), parameters)
            return found.fetchall() if found.returns_rows else found.rowcount

    def edit(self, item: SequencedItem, table: str = "integer_sequenced_items", **columns: Any) -> None:
        """Change columns of one item behind everybody's back."""
        raw = {name: self.raw(value) for name, value in columns.items()}
        assignments = ", ".join(f"{name} = :{name}" for name in raw)
        changed = self.execute(
            f"UPDATE {table} SET {assignments} WHERE sequence_id = :where_id AND position = :where_position",
            **raw,
            where_id=self.raw(item.sequence_id),
            where_position=item.position,
        )
        assert changed == 1

    def raw(self, value: Any) -> Any:
        """As the database's driver takes it."""
        if isinstance(value, UUID) and self.url.startswith("sqlite"):
            return value.bytes
        return value


@pytest.fixture
def open_shop() -> Iterator[Callable[..., Shop]]:
    opened: list[Shop] = []

    def open_one(url: str, kms: FakeKms | None = None, **settings: Any) -> Shop:
        shop = Shop(url, kms or FakeKms(), **settings)
        shop.seal.datastore.setup_tables(application=shop.seal.cipher.application)
        opened.append(shop)
        return shop

    yield open_one
    for shop in opened:
        shop.close()


@pytest.fixture
def shop(open_shop, store_url) -> Shop:
    """An empty store on each database."""
    return open_shop(store_url)


@pytest.fixture
def sqlite_shop(open_shop, sqlite_url) -> Shop:
    """An empty store on SQLite, for what has nothing to do with the database."""
    return open_shop(sqlite_url)


@pytest.fixture
def postgres_shop(open_shop, postgres_url) -> Shop:
    """An empty store on PostgreSQL, for tests of its row locks."""
    return open_shop(postgres_url)


@pytest.fixture
def open_library() -> Iterator[Callable[..., LibraryStore]]:
    """Opens a database of the eventsourcing library; with ``made=False`` its tables are not made yet."""
    opened: list[LibraryStore] = []

    def open_one(url: str, *, made: bool = True, **options: Any) -> LibraryStore:
        opened.append(LibraryStore(url, FakeKms(), **options))
        return opened[-1].make() if made else opened[-1]

    yield open_one
    for store in opened:
        store.close()
