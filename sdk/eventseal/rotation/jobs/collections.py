"""Move a table to its own collection. A job binds its items to the new name."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eventseal.cipher import ItemContext, Opened
from eventseal.cipher.aes import FormerCollection
from eventseal.cipher.envelopes import FieldContext
from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KmsError,
    SerializationError,
    StoreError,
)
from eventseal.items.item import UnknownPlaceNames
from eventseal.items.json import JSONTranscoder
from eventseal.items.sealed_fields import SEALED_BYTES, stored_fields
from eventseal.rotation.results import Failure
from eventseal.storage.items.registry import move_collection, refuse_taken_collections
from eventseal.storage.items.rows import pages
from eventseal.suites.envelope import CompressionId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.cipher.context import StoredItems
    from eventseal.items.sealed_fields import StoredField
    from eventseal.rotation.results import JobResult
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable


_JSON = JSONTranscoder()
_PLACES = UnknownPlaceNames()


def refuse_move(store: SealedStore, table: SealedTable, collection: str) -> None:
    """
    Refuse to move a table to the wrong collection.

    It is wrong if the table's record class names another one, or if another table already has it.

    Args:
        store: The store whose record classes name the new collections.
        table: The registered table, as its record class describes it.
        collection: The collection that the caller named.

    Raises:
        ConfigurationError: The collection is wrong, or another library created the table. Nothing was
            changed.
        StoreError: The database refused or failed.
    """
    if not table.has_key_ids:
        raise ConfigurationError(
            f"{table.table} belongs to another library. Its mapper decides what items are bound to",
            remedy="Leave the table as it is.",
        )
    if table.collection != collection:
        raise ConfigurationError(
            f"the record class of {table.table} has the collection {table.collection!r}, not {collection!r}",
            remedy=f"Set __collection__ = {collection!r} and __former_collection__ = {table.collection!r} in "
            "the class, list the class in `tables`, and restart every process that uses it. Then run this "
            "again.",
        )
    others = [other for other in store.datastore.registry().tables if other.table != table.table]
    refuse_taken_collections(others, [table])


def finish_move(store: SealedStore, table: SealedTable, result: JobResult) -> JobResult:
    """
    End a complete move, so that readers accept only the new name.

    Args:
        store: The store that the job works on.
        table: The table, as its record class describes it.
        result: The result of the job.

    Returns:
        The result. If plaintext items hold fields that are still bound to the former name, they are added as
        failures, and the move does not end.
    """
    if not result.complete:
        return result
    failures = _plain_with_fields(store, table) if result.by_table[table.table]["plain"] else []
    if failures:
        return result.with_failures(failures, len(failures))
    if not result.failed:
        move_collection(store.datastore.key_engine, table, application=store.cipher.application)
    return result


def moved(store: SealedStore, table: SealedTable, items: StoredItems) -> FormerCollection | None:
    """Describe how to re-encrypt items that may have a former collection."""
    if table.former_collection is None:
        return None
    return FormerCollection(
        table.former_collection,
        lambda number, plaintext: rewritten(
            store,
            table,
            plaintext,
            place=(items.sequence_ids[number], items.positions[number], items.topics[number]),
        ),
    )


def rewritten(
    store: SealedStore, table: SealedTable, plaintext: bytes, *, place: tuple[Any, Any, Any]
) -> bytes | EventSealError:
    """
    Re-encrypt those fields of an item that have the former collection.

    Args:
        store: The store whose cipher opens and seals.
        table: The table, as its record class describes it.
        plaintext: The item's plaintext.
        place: The item's sequence id, position and topic.

    Returns:
        The item's new plaintext, or the same object if no field needs to be encrypted again. If a field does
        not open, the error that says why.

    Raises:
        KmsError: The KMS refused or failed.
        StoreError: The database refused or failed.
    """
    if SEALED_BYTES not in plaintext or table.former_collection is None:
        return plaintext
    try:
        raw = _JSON.parse(plaintext)
        fields = stored_fields(raw, _PLACES.whole(raw, *place)) if type(raw) is dict else []
        found, old = (
            store.cipher.open_fields([(field.envelope, _context(field, place, name)) for field in fields])
            for name in (table.collection, table.former_collection)
        )
        bound: list[tuple[StoredField, Opened]] = []
        for field, outcome, before in zip(fields, found, old, strict=True):
            if isinstance(outcome, Opened) or is_erased(outcome):
                continue
            if not isinstance(before, Opened):
                raise before
            bound.append((field, before))
        return _with_fields(store, table, plaintext, bound, place)
    except (KmsError, StoreError):
        raise
    except EventSealError as error:
        return error


def _with_fields(
    store: SealedStore,
    table: SealedTable,
    plaintext: bytes,
    bound: Sequence[tuple[StoredField, Opened]],
    place: tuple[Any, Any, Any],
) -> bytes:
    envelopes = store.cipher.seal_fields(
        [(opened.plaintext, _context(field, place, table.collection)) for field, opened in bound],
        compress=[field.envelope[2] != CompressionId.NONE for field, _ in bound],
    )
    for (field, _), envelope in zip(bound, envelopes, strict=True):
        before = b64encode(field.envelope)
        if plaintext.count(before) != 1:
            raise SerializationError("an encrypted field of the item does not occur in it exactly once")
        plaintext = plaintext.replace(before, b64encode(envelope))
    return plaintext


def in_place(store: SealedStore, table: SealedTable, items: StoredItems) -> set[int]:
    """Return the numbers of items already fully bound to the new collection."""
    return {
        number
        for number, (context, outcome) in enumerate(opened_page(store, items, table.collection))
        if isinstance(outcome, Opened)
        and rewritten(
            store, table, outcome.plaintext, place=(context.sequence_id, context.position, context.topic)
        )
        is outcome.plaintext
    }


def opened_page(
    store: SealedStore, items: StoredItems, collection: str
) -> list[tuple[ItemContext, Opened | EventSealError]]:
    """Open stored items of one collection. Return each one's place and outcome."""
    places = zip(items.sequence_ids, items.positions, items.topics, strict=True)
    contexts = [ItemContext(*place, collection) for place in places]
    outcomes = store.cipher.open_many(list(zip(items.envelopes, contexts, strict=True)))
    return list(zip(contexts, outcomes, strict=True))


def open_former(
    store: SealedStore,
    table: SealedTable,
    items: Sequence[tuple[bytes, ItemContext]],
    outcomes: list[Opened | EventSealError],
) -> set[int]:
    """
    Open items that are bound to a table's former collection.

    It replaces their outcomes in *outcomes*.

    Args:
        store: The store whose cipher opens.
        table: The registered table, as its record class describes it.
        items: The items, which were opened in the table's new collection.
        outcomes: The results of that, which this function changes.

    Returns:
        The numbers of the items that now opened.
    """
    if table.former_collection is None:
        return set()
    refused = [number for number, found in enumerate(outcomes) if isinstance(found, IntegrityError)]
    again = [
        (items[number][0], replace(items[number][1], collection=table.former_collection))
        for number in refused
    ]
    opened = {
        number: outcome
        for number, outcome in zip(refused, store.cipher.open_many(again), strict=True)
        if isinstance(outcome, Opened)
    }
    for number, outcome in opened.items():
        outcomes[number] = outcome
    return set(opened)


def _plain_with_fields(store: SealedStore, table: SealedTable) -> list[Failure]:
    """Find plaintext items with fields bound to the former name. Re-encryption skips them."""
    failures: list[Failure] = []
    for page in pages(store.datastore.engine, table):
        for row in page:
            if row.key_id is not None or type(row.data) is not bytes or SEALED_BYTES not in row.data:
                continue
            if rewritten(store, table, row.data, place=row[:3]) is row.data:
                continue
            error = IntegrityError(
                f"the item is plaintext, and its fields are still bound to {table.former_collection!r}",
                remedy="First encrypt the table's plaintext items: name plain-json in old_formats, and run "
                "`eventseal migrate`. Then run this again.",
            )
            failures.append(Failure.of_item(table.table, row[:2], None, error))
    return failures


def _context(field: StoredField, place: tuple[Any, Any, Any], collection: str) -> FieldContext:
    return FieldContext(ItemContext(*place, collection), field.path, field.scope)


def is_erased(outcome: object) -> bool:
    """Return whether an item or field is erased: its key was shredded."""
    return isinstance(outcome, KeyDestroyedError) and outcome.destroyed_by == "shredded"
