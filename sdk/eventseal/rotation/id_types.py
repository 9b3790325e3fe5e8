"""
Whether ids are of the type that ``originator_id_type`` says.

On SQLite the eventsourcing library keeps a UUID as 32 digits of text. Sealed under the wrong one of the two,
an item opens to nobody but the verbs, which are as wrong: so what the application itself has sealed is asked.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.cipher import ItemContext, Opened
from eventseal.errors import ConfigurationError
from eventseal.items.sealed_places import Selection
from eventseal.storage.sealed_table import ColumnKind
from eventseal.storage.swapping import item_swaps
from eventseal.storage.transactions import read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.items.sealed_places import Page
    from eventseal.rotation.old_items import OldSources
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.sealed_table import SealedTable

_ROWS = 100
_DIGITS = re.compile("[0-9a-f]{32}")


def refuse_wrong_id_types(store: SealedStore, sources: Sequence[OldSources]) -> None:
    """
    Refuse ids that are, or may well be, of the other type than the registry says.

    Args:
        store: Its items and keys.
        sources: What the tables hold.

    Raises:
        ConfigurationError: What is sealed there is bound to ids of the other type; or ids that are said to be
            text are the digits of UUIDs, and nothing is sealed there yet that says which.
        StoreError: The database refused or failed.
    """
    if store.datastore.engine.dialect.name != "sqlite":
        return
    tables = [source.table for source in sources if not source.table.has_key_ids]
    shown = [_is_shown(store, table) for table in tables]  # each: one may be wrong
    if any(shown):
        return
    for source in sources:
        if source.moving and source.table in tables:
            _refuse_digits_as_text(store, source.table)


def _is_shown(store: SealedStore, table: SealedTable) -> bool:
    """Whether something that is sealed there opens."""
    sealed = _rows(store, table, Selection(keys=None))
    places = [
        ItemContext(*place, table.collection)
        for place in zip(sealed.sequence_ids, sealed.positions, sealed.topics, strict=True)
    ]
    if _open(store, sealed, places):
        return True
    if _open(store, sealed, [_of_the_other_type(place) for place in places]):
        other = "uuid" if _has_text(table) else "text"
        raise ConfigurationError(
            f"what is sealed in {table.table} is bound to ids of another type than originator_id_type says. "
            "Nothing was written",
            remedy=f'Set originator_id_type = "{other}", as the application has ORIGINATOR_ID_TYPE; then '
            "run: eventseal init",
        )
    return False


def _refuse_digits_as_text(store: SealedStore, table: SealedTable) -> None:
    if not _has_text(table):
        return
    ids = _rows(store, table, Selection(keys=None, plain=True)).sequence_ids
    if all(isinstance(an_id, str) and _DIGITS.fullmatch(an_id) for an_id in ids):
        raise ConfigurationError(
            f"the ids of {table.table} look like UUIDs, and originator_id_type says text. "
            "Nothing was written",
            remedy='If the application has no ORIGINATOR_ID_TYPE=text, set originator_id_type = "uuid" and '
            "run: eventseal init. If it has, let it write a sealed event first, which says so.",
        )


def _has_text(table: SealedTable) -> bool:
    return table.columns["sequence_id"].kind is ColumnKind.DATABASE_TEXT


def _rows(store: SealedStore, table: SealedTable, selection: Selection) -> Page:
    engine = store.datastore.engine
    page = partial(item_swaps(engine, table).page, selection=selection, after=None, upto=None, limit=_ROWS)
    return read(engine, page, doing=f"reading a sample of {table.table}")


def _open(store: SealedStore, page: Page, places: Sequence[ItemContext]) -> bool:
    """Whether any of them opens there."""
    outcomes = store.cipher.open_many(list(zip(page.envelopes, places, strict=True)))
    return any(isinstance(outcome, Opened) for outcome in outcomes)


def _of_the_other_type(place: ItemContext) -> ItemContext:
    found: Any = place.sequence_id  # what an edit put there, too
    if isinstance(found, UUID):
        return replace(place, sequence_id=found.hex)
    if isinstance(found, str) and _DIGITS.fullmatch(found):
        return replace(place, sequence_id=UUID(found))
    return place
