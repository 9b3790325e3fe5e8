"""Records one erasure in the ledger: the intent before anything is destroyed, and the end after it."""

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
    Writes one erasure into the ledger.

    Args:
        store: Whose application and KEKs.
        scope: What is erased.
        ledger: The application's.
    """

    def __init__(self, store: SealedStore, scope: str, ledger: Ledger) -> None:
        self._store = store
        self._scope = scope
        self._ledger = ledger
        self._intents: list[LedgerEntry] = []

    def intend(self, rows: Sequence[KeyRecord]) -> None:
        """
        Note durably which keys are meant.

        Each time that the rows were read: an intent of this erasure may be done with by now, since another
        erasure of the scope was, and the scope may have been reopened behind it.

        Args:
            rows: Every key that the scope ever had.

        Raises:
            EventSealError: It cannot be noted: nothing may be destroyed.
        """
        if not self._intents:
            prepare_ledger(self._store, self._ledger)
        # Each time, also if it names no other keys than the one before (docs/decisions/0016).
        entry = self._ledger.append(self._store, INTENT, scope=self._scope, keys=_purposes(rows))
        self._intents.append(entry)

    def finish(
        self, rows: Iterable[KeyRecord], *, destroyed: int, by_table: Mapping[str, Mapping[str, int]]
    ) -> Receipt:
        """
        Note what was done, and give the receipt.

        Args:
            rows: Every key of the scope, as it is now.
            destroyed: How many of them this run has destroyed.
            by_table: The items that are unreadable now.

        Raises:
            EventSealError: It cannot be noted; run the shred again.
        """
        keys = _purposes(rows)
        # This run has not destroyed what was meant later (docs/decisions/0016).
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
    Make the ledger at the first erasure.

    Raises:
        ConfigurationError: It is not there, although something was erased before.
        EventSealError: It cannot be made.
    """
    application = store.keyring.application
    if ledger.exists(application):
        return
    if next(shredded_keys(store), None) is not None:
        # Made again, a ledger that was lost would hide what was shredded (docs/decisions/0013).
        if ledger.exists(application):  # made meanwhile, before that key was shredded
            return
        raise ConfigurationError(
            f"{ledger.name} has no entry of application {application!r}, although keys were shredded before",
            remedy="Put the ledger back from its copy. If there never was one, run `eventseal init`, which "
            "makes one that names what was shredded so far.",
        )
    ledger.create(store)


def adopt(store: SealedStore, ledger: Ledger) -> int:
    """
    Make a ledger where there is none, and note in it what was shredded without one.

    Args:
        store: An ``EventSeal``, or any object with its four.
        ledger: Stays as it is if it is there.

    Returns:
        How many scopes were noted; 0 if the ledger was there.

    Raises:
        EventSealError: It cannot be written.
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
            ledger.append(store, REOPEN, scope=scope, keys=keys)  # it was reopened without a ledger, too
    return len(scopes)


def shredded_keys(store: SealedStore) -> Iterator[KeyRecord]:
    """Give every tombstone that says ``shredded``, in order of id; as the key store has them, not checked."""
    for page in key_pages(store.key_store, store.keyring.application, state=KeyState.DESTROYED):
        yield from (record for record in page if record.destroyed_by == "shredded")


def intents_fulfilled(
    scope: str, keys: Mapping[UUID, KeyPurpose], open_intents: Iterable[LedgerEntry]
) -> list[int]:
    """Give the intents that are done with when these keys of the scope are gone."""
    return [entry.number for entry in open_intents if entry.scope == scope and set(entry.keys) <= set(keys)]


def _purposes(rows: Iterable[KeyRecord]) -> dict[UUID, KeyPurpose]:
    return {record.key_id: record.purpose for record in rows}
