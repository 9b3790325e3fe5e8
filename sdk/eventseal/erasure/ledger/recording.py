"""Records an erasure in the ledger: first its intent, then its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.erasure.ledger.entries import DONE, INTENT, REOPEN
from eventseal.erasure.receipts import Receipt
from eventseal.errors import ConfigurationError
from eventseal.keys.states import KeyState
from eventseal.rotation.sealed_store import key_pages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from uuid import UUID

    from eventseal.erasure.ledger.entries import LedgerEntry
    from eventseal.erasure.ledger.ledger import Ledger
    from eventseal.keys import KeyPurpose, KeyRecord
    from eventseal.rotation.sealed_store import SealedStore


class Recording:
    """
    Records one erasure in the ledger.

    Args:
        store: The store with the application and its KEKs.
        scope: The scope that is erased.
        ledger: The application's ledger.
    """

    def __init__(self, store: SealedStore, scope: str, ledger: Ledger) -> None:
        self._store = store
        self._scope = scope
        self._ledger = ledger
        self._intents: list[LedgerEntry] = []

    def intend(self, rows: Sequence[KeyRecord]) -> None:
        """
        Record durably which keys will be destroyed.

        Call it each time that the rows were read. Another erasure of the scope may have closed the earlier
        intent of this one meanwhile, and the scope may have been reopened after that.

        Args:
            rows: Every key that the scope ever had.

        Raises:
            EventSealError: The intent cannot be recorded, so nothing may be destroyed.
        """
        if not self._intents:
            prepare_ledger(self._store, self._ledger)
        # Each time, even if it names the same keys as the intent before (docs/decisions/0016).
        entry = self._ledger.append(self._store, INTENT, scope=self._scope, keys=_purposes(rows))
        self._intents.append(entry)

    def finish(
        self, rows: Iterable[KeyRecord], *, destroyed: int, by_table: Mapping[str, Mapping[str, int]]
    ) -> Receipt:
        """
        Record the end of the erasure, and return its receipt.

        Args:
            rows: Every key of the scope, as it is now.
            destroyed: How many of these keys this run destroyed.
            by_table: How many items are unreadable now, by table.

        Raises:
            EventSealError: The end cannot be recorded. Run the shred again.
        """
        keys = _purposes(rows)
        # This run did not destroy the keys of later intents (docs/decisions/0016).
        last = self._intents[-1].number
        open_intents = [entry for entry in self._ledger.open_intents(self._store) if entry.number <= last]
        done = self._ledger.append(
            self._store,
            DONE,
            scope=self._scope,
            keys=keys,
            details={
                "destroyed": destroyed,
                "items": by_table,
                "intents": [entry.number for entry in self._intents],
            },
            closes=intents_fulfilled(self._scope, keys, open_intents),
        )
        return Receipt.of(self._ledger.name, self._intents[0], done)


def prepare_ledger(store: SealedStore, ledger: Ledger) -> None:
    """
    Create the ledger before the first erasure.

    Raises:
        ConfigurationError: The ledger is missing, although something was erased before.
        EventSealError: The ledger cannot be created.
    """
    application = store.keyring.application
    if ledger.exists(application):
        return
    if next(shredded_keys(store), None) is not None:
        # A new ledger in place of a lost one would hide the earlier erasures (docs/decisions/0013).
        if ledger.exists(application):  # created meanwhile, before that key was shredded
            return
        raise ConfigurationError(
            f"{ledger.name} has no entry of application {application!r}, although keys were shredded before",
            remedy="Restore the ledger from its newest copy. If it never existed, run `eventseal init`, "
            "which creates one that names all keys shredded so far.",
        )
    ledger.create(store)


def adopt(store: SealedStore, ledger: Ledger) -> int:
    """
    Create a missing ledger, and record earlier erasures in it.

    Args:
        store: An ``EventSeal``, or another ``SealedStore``.
        ledger: The ledger to create. If it exists, it stays as it is.

    Returns:
        How many shredded scopes were recorded. 0 if the ledger existed.

    Raises:
        EventSealError: The ledger cannot be written.
    """
    if not ledger.create(store):
        return 0
    scopes = sorted({record.scope for record in shredded_keys(store)})
    for scope in scopes:
        rows = store.key_store.of_scope(store.keyring.application, scope)
        keys = _purposes(row for row in rows if row.destroyed_by == "shredded")
        intent = ledger.append(store, INTENT, scope=scope, keys=keys)
        details = {"destroyed": 0, "items": {}, "intents": [intent.number], "before_the_ledger": True}
        ledger.append(store, DONE, scope=scope, keys=keys, details=details, closes=[intent.number])
        if not any(row.active_scope is not None and not row.state.opens for row in rows):
            ledger.append(store, REOPEN, scope=scope, keys=keys)  # it was also reopened without a ledger
    return len(scopes)


def shredded_keys(store: SealedStore) -> Iterator[KeyRecord]:
    """
    Yield every tombstone that says ``shredded``, in order of id.

    They are the rows of the key store, without authentication.
    """
    for page in key_pages(store.key_store, store.keyring.application, state=KeyState.DESTROYED):
        yield from (record for record in page if record.destroyed_by == "shredded")


def intents_fulfilled(
    scope: str, keys: Mapping[UUID, KeyPurpose], open_intents: Iterable[LedgerEntry]
) -> list[int]:
    """Return the intents that are done once these keys are destroyed."""
    return [entry.number for entry in open_intents if entry.scope == scope and set(entry.keys) <= set(keys)]


def _purposes(rows: Iterable[KeyRecord]) -> dict[UUID, KeyPurpose]:
    return {record.key_id: record.purpose for record in rows}
