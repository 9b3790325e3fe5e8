"""What a re-encryption would do, and how long it would take: counted, and measured on a sample."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING

from eventseal.cipher import ItemContext
from eventseal.rotation.outcomes import by_table
from eventseal.rotation.results import JobResult
from eventseal.storage.swapping import item_swaps
from eventseal.storage.transactions import read

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.items.sealed_places import Page
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.rotation.sources import TableSources

_SAMPLE = 1000
_WHOLE = 4
"""How often opening a page, and how often reading it, stands for all of the work: an item is opened, sealed,
opened again; its row is read, found again, written, and indexed twice. Cautious on the machines measured."""


def estimate(
    store: SealedStore, sources: Sequence[TableSources], *, workers: int, items_per_second: float | None
) -> JobResult:
    """
    Count what would be moved, and open a sample of it; nothing is changed.

    Args:
        store: Its items and keys.
        sources: What each table holds.
        workers: That would share the work.
        items_per_second: The throttle.
    """
    started = time.monotonic()
    items = sum(source.moving for source in sources)
    seconds = sum(_seconds_each(store, source) * source.moving for source in sources if source.moving)
    seconds /= min(workers, os.cpu_count() or 1)
    if items_per_second is not None:
        seconds = max(seconds, items / items_per_second)
    by_key: Counter[UUID] = Counter()
    for source in sources:
        by_key.update(source.by_key)
    return JobResult(
        verb="reencrypt",
        complete=True,
        done=0,
        left=items,
        failed=0,
        seconds=time.monotonic() - started,
        by_table=by_table({}, [source.table for source in sources], sources),
        by_key=dict(by_key),
        estimated_seconds=seconds,
    )


def _seconds_each(store: SealedStore, source: TableSources) -> float:
    swaps = item_swaps(store.datastore.engine, source.table)
    selection = next(iter(source.selections(())))[1]

    def look(connection: Connection) -> Page:
        return swaps.page(connection, selection, after=None, upto=None, limit=_SAMPLE)

    store.keyring.opening_keys(list(source.by_key)[:_SAMPLE])  # the KMS is asked once, not for each item
    started = time.perf_counter()
    page = read(store.datastore.engine, look, doing=f"reading a sample of {source.table.table}")
    if not page:
        return 0.0
    collection = source.table.collection
    places = zip(page.sequence_ids, page.positions, page.topics, strict=True)
    contexts = [ItemContext(*place, collection) for place in places]
    store.cipher.open_many(list(zip(page.envelopes, contexts, strict=True)))
    return _WHOLE * (time.perf_counter() - started) / len(page)
