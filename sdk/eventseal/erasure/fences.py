"""The fences of keys that were shredded, and the items that stay unreadable under them."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.cipher import ItemContext
from eventseal.errors import IntegrityError, SerializationError, StoreError
from eventseal.items.field_reading import SEALED_BYTES
from eventseal.items.fields import PersonalFields
from eventseal.items.item_fields import StoredItem
from eventseal.items.json import JSONTranscoder
from eventseal.items.places import UnknownPlaceNames
from eventseal.keys.states import KeyPurpose
from eventseal.rotation.closing import close_and_count
from eventseal.rotation.results import Failure
from eventseal.storage.item_rows import pages
from eventseal.storage.key_counts import count_under
from eventseal.storage.transactions import read
from eventseal.suites.envelope import HEADER_SIZE, envelope_problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from eventseal.keys import KeyRecord
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.sealed_table import SealedTable

_BATCH_SIZE = 100


@dataclass(frozen=True, slots=True)
class ErasedItems:
    """
    What is under keys that were shredded.

    Attributes:
        by_table: Items by table, as ``erased``.
        by_key: Items by key.
        failures: One for each key whose fence is open still.
    """

    by_table: dict[str, Counter[str]] = field(default_factory=dict)
    by_key: dict[UUID, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, counts: Mapping[UUID, Counter[str]]) -> None:
        """Add the items of some keys, by key and by table."""
        for key_id, items in counts.items():
            self.by_key[key_id] = items.total()
            for table, count in items.items():
                self.by_table.setdefault(table, Counter())["erased"] += count


def close_scope_fences(
    store: SealedStore, tables: Sequence[SealedTable], shredded: Iterable[KeyRecord]
) -> ErasedItems:
    """
    Close the fences of keys that were shredded, as many as can be, and count what is under them.

    Args:
        store: Has the items' database.
        tables: Every one that may hold items under the keys.
        shredded: The keys.
    """
    found = ErasedItems()
    for key_ids in batches(shredded):
        try:
            closing = close_and_count(store.datastore.engine, tables, key_ids, even_if_needed=True)
        except StoreError as error:  # the keys are destroyed all the same
            found.failures.extend([Failure.of_key("key_fences", key_id, error) for key_id in key_ids])
            continue
        found.failures.extend(
            [Failure.of_key("key_fences", key_id, error) for key_id, error in closing.held.items()]
        )
        found.add(closing.closed)
    return found


def erased_items(store: SealedStore, tables: Sequence[SealedTable], keys: Iterable[KeyRecord]) -> ErasedItems:
    """
    Count what is under keys, and close no fence; see :func:`close_scope_fences`.

    Raises:
        StoreError: The items' database refused or failed.
    """
    found = ErasedItems()
    for key_ids in batches(keys):
        count = partial(count_under, tables=tables, key_ids=key_ids)
        counts = read(store.datastore.engine, count, doing="counting items of a scope")
        found.add({key_id: counts.get(key_id, Counter()) for key_id in key_ids})
    return found


def list_erased(store: SealedStore, tables: Sequence[SealedTable], keys: Iterable[KeyRecord]) -> int:
    """
    Note every item that is under keys as erased: what names them afterwards, and is not listed, is tampering.

    So it does with fields in items that are not encrypted.

    Args:
        store: Has the items' database and the list.
        tables: Every one that may hold items under the keys.
        keys: That were shredded, of a scope that is about to be reopened.

    Returns:
        How many items and fields.

    Raises:
        StoreError: A database refused or failed.
    """
    keys = list(keys)
    listed = _list_fields(store, tables, {key.key_id for key in keys if key.purpose is KeyPurpose.FIELD})
    for key_ids in batches(keys):
        for table in tables:
            for page in pages(store.datastore.engine, table, key_ids=key_ids):
                items: list[tuple[bytes, bytes]] = []
                for row in page:
                    context = ItemContext(row.sequence_id, row.position, row.topic, table.collection)
                    with suppress(SerializationError):  # no reader takes an item in such a place
                        items += store.cipher.bind_many([(row.data, context)])
                store.keyring.list_erased(items)
                listed += len(items)
    return listed


def _list_fields(store: SealedStore, tables: Sequence[SealedTable], key_ids: Collection[UUID]) -> int:
    """List the fields under erased keys in items that are not encrypted: of those nothing else tells."""
    listed = 0
    for table in tables if key_ids else ():
        fields = PersonalFields(store.cipher, JSONTranscoder(), UnknownPlaceNames(), table.collection)
        for page in pages(store.datastore.engine, table, key_ids=[None]) if table.has_key_ids else ():
            found: list[tuple[bytes, bytes]] = []
            for row in page:
                data: Any = row.data  # an edit may have put anything there
                if isinstance(data, bytes) and SEALED_BYTES in data:
                    with suppress(IntegrityError, SerializationError):  # no reader takes such an item
                        sealed = fields.sealed_in(StoredItem(*row), data)
                        whole = [each for each in sealed if envelope_problem(each[0]) is None]
                        erased = [each for each in whole if UUID(bytes=each[0][3:HEADER_SIZE]) in key_ids]
                        found += store.cipher.bind_fields(erased)
            store.keyring.list_erased(found)
            listed += len(found)
    return listed


def batches(records: Iterable[KeyRecord]) -> list[list[UUID]]:
    """Give the keys under which items may be written, a few at a time: others are nested inside those."""
    key_ids = [record.key_id for record in records if record.purpose is KeyPurpose.DATA]
    return [key_ids[start : start + _BATCH_SIZE] for start in range(0, len(key_ids), _BATCH_SIZE)]
