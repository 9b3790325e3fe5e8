"""When every process is sure to have noticed the last change of keys, by the key store's clock."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from eventseal.keys.states import KeyState
from eventseal.rotation.status.key_totals import last_stop
from eventseal.storage.database.transactions import read
from eventseal.storage.key_store import SQLAlchemyKeyStore

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime
    from uuid import UUID

    from eventseal.keys.records import KeyRecord
    from eventseal.rotation.sealed_store import SealedStore

_NO_COUNTER = 2**62
"""No change mark gets there: nothing has changed since."""

_CHUNK = 500


def settles_at(store: SealedStore, keys: Collection[UUID] | None) -> datetime | None:
    """
    Say until when items may still be appended under keys that seal no more.

    Args:
        store: Its keys.
        keys: The keys in question; ``None``: every data key of the application.

    Returns:
        When the last of them stopped sealing, and ``refresh_interval`` later; ``None`` if that is past.

    Raises:
        StoreError: The key store refused or failed.
    """
    changes = store.key_store.changes(store.cipher.application, _NO_COUNTER, ())
    stopped = _last_stop(store, keys)
    if changes is None or stopped is None:
        return None
    settled = stopped + timedelta(seconds=changes.refresh_interval)
    return settled if settled > changes.now else None


def _last_stop(store: SealedStore, keys: Collection[UUID] | None) -> datetime | None:
    if keys is None and isinstance(store.key_store, SQLAlchemyKeyStore):
        return read(
            store.datastore.key_engine,
            partial(last_stop, application=store.cipher.application),
            doing="reading when keys were rotated",
        )
    records = _closed_keys(store) if keys is None else _records(store, keys)
    times = [time for record in records for time in (record.deactivated_at, record.compromised_at) if time]
    return max(times, default=None)


def _records(store: SealedStore, keys: Collection[UUID]) -> Iterable[KeyRecord]:
    wanted = sorted(keys)
    for start in range(0, len(wanted), _CHUNK):
        yield from store.key_store.get(wanted[start : start + _CHUNK]).values()


def _closed_keys(store: SealedStore) -> Iterable[KeyRecord]:
    for state in (KeyState.DEACTIVATED, KeyState.COMPROMISED):
        after = None
        while page := store.key_store.page(store.cipher.application, after=after, state=state):
            yield from page
            after = page[-1].key_id
