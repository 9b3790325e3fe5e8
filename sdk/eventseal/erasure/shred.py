"""Shred: what was sealed for one scope is never opened again."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from eventseal.errors import StoreError
from eventseal.keys.states import KeyPurpose
from eventseal.rotation.closing import close_and_count
from eventseal.rotation.results import Failure, JobResult
from eventseal.rotation.sealed_store import refuse_unregistered_tables, registered_tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from eventseal.keys.records import KeyRecord
    from eventseal.rotation.sealed_store import SealedStore

_BATCH_SIZE = 100


def shred(store: SealedStore, scope: str) -> JobResult:
    """
    Destroy every key of a scope and close the scope. Nothing brings the keys back but a backup of them.

    In one transaction every wrapping goes, and tombstones keep the scope's slots, so that nobody makes a key
    for it, on purpose or by a rotation in flight. Other processes stop opening within ``refresh_interval``.
    Then the keys' fences are closed: a stale writer's append is refused, instead of written unreadable.

    Args:
        store: An ``EventSeal``, or any object with its four.
        scope: One that has had a key. Shredded again, it stays closed, and its fences are tried again.

    Returns:
        ``done`` counts the keys that were destroyed now; ``by_key`` gives the items under each key of the
        scope that was ever shredded, ``by_table`` the same by table, as ``erased``. ``failed`` counts fences
        that are open still, and ``complete`` says that there is none: else run it again.

    Raises:
        ConfigurationError: No key of the scope was ever made, or it is ``application``; nothing was done. Or
            a table that looks sealed is not registered, or a registered one is not there.
        IntegrityError: A row of the scope is not what a keyring sealed; nothing was destroyed.
        StoreError: The key store refused or failed; nothing was destroyed, or it is known when this is run
            again.
    """
    started = time.monotonic()
    refuse_unregistered_tables(store)
    tables = registered_tables(store.datastore, store.cipher.application)
    ended = store.keyring.shred(scope)
    by_table: dict[str, Counter[str]] = {}
    by_key: dict[UUID, int] = {}
    failures: list[Failure] = []
    for key_ids in _batches(ended.shredded):
        try:
            closing = close_and_count(store.datastore.engine, tables, key_ids, even_if_needed=True)
        except StoreError as error:  # the keys are destroyed all the same
            failures += [Failure.of_key("key_fences", key_id, error) for key_id in key_ids]
            continue
        failures += [Failure.of_key("key_fences", key_id, error) for key_id, error in closing.held.items()]
        for key_id, items in closing.closed.items():
            by_key[key_id] = items.total()
            for table, count in items.items():
                by_table.setdefault(table, Counter())["erased"] += count
    return JobResult(
        verb="shred",
        complete=not failures,
        done=len(ended.destroyed),
        left=0,
        failed=len(failures),
        seconds=time.monotonic() - started,
        by_table={table: dict(counts) for table, counts in by_table.items()},
        by_key=by_key,
        failures=tuple(failures),
    )


def reopen(store: SealedStore, scope: str) -> JobResult:
    """
    Let a scope that was shredded have keys again. What was shredded stays so.

    First the fences that the shred had to leave open are closed: a transaction that has written under a
    shredded key, and is open still, would else commit what nobody can read into a scope that is open.

    Args:
        store: An ``EventSeal``, or any object with its four.
        scope: One that is closed; nothing is done to one that is not.

    Returns:
        ``done`` is 1 if the scope was closed until now, else 0.

    Raises:
        ConfigurationError: No key of the scope was ever made.
        IntegrityError: A row of the scope is not what a keyring sealed; nothing was done.
        StoreUnavailableError: A transaction that wrote under a shredded key goes on for more than 2 seconds,
            or a database is away. The scope stays closed.
        StoreError: The key store refused or failed.
    """
    started = time.monotonic()

    def close_fences(shredded: Sequence[KeyRecord]) -> None:
        for key_ids in _batches(shredded):
            closing = close_and_count(store.datastore.engine, (), key_ids, even_if_needed=True)
            for error in closing.held.values():
                raise error

    freed = store.keyring.reopen(scope, first=close_fences)
    return JobResult(
        verb="reopen",
        complete=True,
        done=int(bool(freed)),
        left=0,
        failed=0,
        seconds=time.monotonic() - started,
    )


def _batches(records: Sequence[KeyRecord]) -> list[list[UUID]]:
    """Give the keys under which items may be written: others are nested inside those."""
    key_ids = [record.key_id for record in records if record.purpose is KeyPurpose.DATA]
    return [key_ids[start : start + _BATCH_SIZE] for start in range(0, len(key_ids), _BATCH_SIZE)]
