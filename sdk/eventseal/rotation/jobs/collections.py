"""Move a table to a collection of its own: its items are bound to the new name, by a job like any other."""

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
    Refuse to move a table to a collection that its record class does not say, or that another table has.

    Args:
        store: Whose record classes say what is bound from now on.
        table: From the registry, as its record class describes it.
        collection: That somebody named.

    Raises:
        ConfigurationError: One of these; nothing was done.
        StoreError: The database refused or failed.
    """
    if not table.has_key_ids:
        raise ConfigurationError(
            f"{table.table} is a table of another library, whose mapper chooses what items are bound to",
            remedy="Leave the table as it is.",
        )
    if table.collection != collection:
        raise ConfigurationError(
            f"the record class of {table.table} says the collection {table.collection!r}, not {collection!r}",
            remedy=f"Set __collection__ = {collection!r} and __former_collection__ = {table.collection!r} in "
            "the class, list the class in `tables`, and restart every process that uses it; then run this "
            "again.",
        )
    others = [other for other in store.datastore.registry().tables if other.table != table.table]
    refuse_taken_collections(others, [table])


def finish_move(store: SealedStore, table: SealedTable, result: JobResult) -> JobResult:
    """
    End a move that left nothing behind: from then on readers accept the new name alone.

    Args:
        store: What the job works on.
        table: As its record class describes it.
        result: Of the job.

    Returns:
        The result, with the items in plain that hold fields which are still bound to the former name.
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
    """Give what re-sealing must know of a table whose items may be bound to a former collection."""
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
    Seal the fields inside an item again that are bound to the table's former collection.

    Args:
        store: Its cipher opens and seals.
        table: As its record class describes it.
        plaintext: The item's.
        place: Its sequence id, position and topic.

    Returns:
        The item's new plaintext, the same object if no field is to be sealed again; or why one does not open.

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
            raise SerializationError("a sealed field of the item is not in it once as it was written")
        plaintext = plaintext.replace(before, b64encode(envelope))
    return plaintext


def in_place(store: SealedStore, table: SealedTable, items: StoredItems) -> set[int]:
    """Number the items that are bound to the new collection already, with all that is inside of them."""
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
    """Open stored items of one collection: give the place of each, and what came of it."""
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
    Open what is bound to a table's former collection, and put it among the outcomes.

    Args:
        store: Its cipher opens.
        table: From the registry, as its record class describes it.
        items: That were opened in its collection.
        outcomes: What came of it; changed.

    Returns:
        The numbers of those that opened now.
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
    """Find items in plain whose fields are bound to the former name: nothing seals those again."""
    failures: list[Failure] = []
    for page in pages(store.datastore.engine, table):
        for row in page:
            if row.key_id is not None or type(row.data) is not bytes or SEALED_BYTES not in row.data:
                continue
            if rewritten(store, table, row.data, place=row[:3]) is row.data:
                continue
            error = IntegrityError(
                f"the item is in plain, and fields inside it are bound to {table.former_collection!r} still",
                remedy="Seal the table's plain items first: name plain-json in old_formats, then run "
                "`eventseal migrate`; then run this again.",
            )
            failures.append(Failure.of_item(table.table, row[:2], None, error))
    return failures


def _context(field: StoredField, place: tuple[Any, Any, Any], collection: str) -> FieldContext:
    return FieldContext(ItemContext(*place, collection), field.path, field.scope)


def is_erased(outcome: object) -> bool:
    """Whether what was to be opened is erased: its key was shredded."""
    return isinstance(outcome, KeyDestroyedError) and outcome.destroyed_by == "shredded"
