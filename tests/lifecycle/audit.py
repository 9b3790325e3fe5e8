"""What really is in the database, read past every client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import func, select
from tests.lifecycle.client import TABLES, Noted
from tests.lifecycle.ledgers import ended_versions
from tests.lifecycle.site import APPLICATION, Outbox

from eventseal.cipher import AESCipher, ItemContext, Opened
from eventseal.items import SequencedItem, SequencedItemMapper
from eventseal.keys import KeyPurpose, Keyring, KeyState
from eventseal.storage import SQLAlchemyKeyStore
from eventseal.storage.keys.tables import encryption_keys, key_changes, key_fences, key_wrappings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from tests.lifecycle.site import Site

    from eventseal.errors import EventSealError
    from eventseal.keys import InMemoryKeyStore, KeyStore
    from eventseal.testing import FakeKms


class Place(NamedTuple):
    """Where an item is."""

    table: str
    sequence_id: UUID
    position: int


class KeyRow(NamedTuple):
    """A key's row, as far as it matters here."""

    key_id: UUID
    scope: str
    purpose: str
    state: str
    active_scope: str | None
    destroyed_by: str | None
    items_reserved: int
    row_version: int
    wrappings: int


@dataclass(frozen=True)
class Found:
    """All of the database at one moment."""

    keys: Mapping[UUID, KeyRow] = field(default_factory=dict)
    items: Mapping[Place, SequencedItem] = field(default_factory=dict)
    fences: Mapping[UUID, str] = field(default_factory=dict)
    outbox: frozenset[str] = frozenset()
    counter: int = -1


class Auditor:
    """
    Reads the database, and opens its items with a fresh keyring: what a process that starts now would see.

    Args:
        site: The database.
        kms: The KMS, past all faults.
        memory: The key store, if it is in memory.
    """

    def __init__(self, site: Site, kms: list[FakeKms], memory: InMemoryKeyStore | None) -> None:
        engine = site.auditor.engine
        self._snapshots = (
            engine if site.is_sqlite else engine.execution_options(isolation_level="REPEATABLE READ")
        )
        self._kms = kms
        self._memory = memory
        self.store: KeyStore = memory or SQLAlchemyKeyStore(site.auditor)
        self._opened: tuple[Any, dict[Place, Noted | EventSealError]] = (None, {})

    def found(self) -> Found:
        with self._snapshots.connect() as connection:
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN")
            keys, counter = (
                self._keys_in_memory() if self._memory else (_keys(connection), _counter(connection))
            )
            items = {
                Place(name, row.sequence_id, row.position): SequencedItem(
                    row.sequence_id, row.position, row.topic, row.data, row.key_id
                )
                for name in TABLES
                for row in connection.execute(_ITEMS[name])
            }
            fences = {row.key_id: row.state for row in connection.execute(_FENCES)}
            outbox = frozenset(connection.execute(_OUTBOX).scalars())
        return Found(keys, items, fences, outbox, counter)

    def opened(self, found: Found) -> dict[Place, Noted | EventSealError]:
        """What each item says to somebody who starts now, or why it says nothing."""
        seen = (found.keys, found.items, ended_versions(self._kms))
        if self._opened[0] != seen:
            self._opened = (seen, self.open_anew(found))
        return self._opened[1]

    def check_without(self, kek: int, found: Found) -> None:
        """
        Check that every key opens although one KEK is gone.

        Raises:
            AssertionError: One does not.
        """
        keyring = Keyring(
            [kms for number, kms in enumerate(self._kms) if number != kek],
            self.store,
            application=APPLICATION,
        )
        live = [row.key_id for row in found.keys.values() if row.purpose == DATA and row.state != DESTROYED]
        for key_id, outcome in keyring.opening_keys(live).items():
            assert not isinstance(outcome, Exception), f"key {key_id} needs {self._kms[kek].uri}: {outcome!r}"

    def open_anew(self, found: Found) -> dict[Place, Noted | EventSealError]:
        """What each item says to somebody who starts now, whatever it said before."""
        keyring = Keyring(self._kms, self.store, application=APPLICATION)
        cipher = AESCipher(keyring)
        contexts = [
            ItemContext(place.sequence_id, place.position, item.topic, TABLES[place.table].__collection__)
            for place, item in found.items.items()
        ]
        outcomes = cipher.open_many(
            [(item.data, context) for item, context in zip(found.items.values(), contexts, strict=True)]
        )
        mappers = {
            name: SequencedItemMapper(
                cipher=cipher, key_scope=lambda event: event.scope, collection=record.__collection__
            )
            for name, record in TABLES.items()
        }
        return {
            place: mappers[place.table].from_sequenced_item(item) if isinstance(outcome, Opened) else outcome
            for (place, item), outcome in zip(found.items.items(), outcomes, strict=True)
        }

    def _keys_in_memory(self) -> tuple[dict[UUID, KeyRow], int]:
        assert self._memory is not None
        mark = self._memory._marks.get(APPLICATION)
        records = self._memory.page(APPLICATION, limit=1_000_000)
        return {
            record.key_id: KeyRow(
                record.key_id,
                record.scope,
                str(record.purpose),
                str(record.state),
                record.active_scope,
                record.destroyed_by,
                record.items_reserved,
                record.row_version,
                len(record.wrappings),
            )
            for record in records
        }, -1 if mark is None else mark.counter


def _keys(connection: Any) -> dict[UUID, KeyRow]:
    wrappings = {row.key_id: row.wrappings for row in connection.execute(_WRAPPINGS)}
    return {row.key_id: KeyRow(*row, wrappings.get(row.key_id, 0)) for row in connection.execute(_KEYS)}


def _counter(connection: Any) -> int:
    counter = connection.execute(_COUNTER).scalar_one_or_none()
    return -1 if counter is None else counter


# Built once: a world is looked at after each step.
_ITEMS = {name: select(record.__table__) for name, record in TABLES.items()}
_FENCES = select(key_fences)
_OUTBOX = select(Outbox.note)
_COUNTER = select(key_changes.c.counter)
_WRAPPINGS = select(key_wrappings.c.key_id, func.count().label("wrappings")).group_by(key_wrappings.c.key_id)
_KEYS = select(*(encryption_keys.c[name] for name in KeyRow._fields[:-1]))

ACTIVE, DEACTIVATED, COMPROMISED, DESTROYED = (str(state) for state in KeyState)
DATA = str(KeyPurpose.DATA)
BRANCH = str(KeyPurpose.BRANCH)
