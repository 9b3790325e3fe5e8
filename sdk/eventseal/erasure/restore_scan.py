"""What a restore of the key tables has undone, as the ledger's verified entries tell it. Only reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from eventseal.erasure.ledger.entries import DONE, INTENT, REOPEN
from eventseal.erasure.ledger.recording import shredded_keys
from eventseal.keys.states import SUBJECT_PURPOSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from uuid import UUID

    from eventseal.erasure.ledger.entries import LedgerEntry
    from eventseal.erasure.ledger.ledger import Ledger
    from eventseal.keys import KeyPurpose, KeyRecord
    from eventseal.rotation.sealed_store import SealedStore

_CHUNK = 500


@dataclass(slots=True)
class Undone:
    """
    A scope that is not as the ledger says.

    Attributes:
        scope: The scope.
        keys: The keys that are to be gone, with their purposes.
        closed: Whether it is to be closed: it was not reopened since.
        intent_open: Whether a shred of it was begun and is not done.
    """

    scope: str
    keys: dict[UUID, KeyPurpose] = field(default_factory=dict)
    closed: bool = False
    intent_open: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """
    A ledger that was read from its first entry to its last, and verified.

    Attributes:
        entries: How many there are.
        reopened: For each scope that ever was, the number of the last reopening.
        open_scopes: The scopes of intents that are not done.
    """

    entries: int
    reopened: Mapping[str, int]
    open_scopes: frozenset[str]

    @classmethod
    def of(cls, store: SealedStore, ledger: Ledger) -> Reading:
        """
        Read and verify a ledger.

        Raises:
            EventSealError: As :meth:`eventseal.erasure.Ledger.entries` raises.
        """
        reopened: dict[str, int] = {}
        intents: dict[int, str] = {}
        entries = 0
        for entry in ledger.entries(store):
            entries = entry.number
            if entry.scope is not None and entry.kind == REOPEN:
                reopened[entry.scope] = entry.number
            if entry.scope is not None and entry.kind == INTENT:
                intents[entry.number] = entry.scope
            intents = {number: intents[number] for number in entry.open_intents if number in intents}
        return cls(entries, reopened, frozenset(intents.values()))


def undone_scopes(
    store: SealedStore, ledger: Ledger, reading: Reading, *, progress: Callable[[int], object]
) -> dict[str, Undone]:
    """
    Look in the key tables for what the ledger says is gone.

    Args:
        store: Has the key tables.
        ledger: Is read once more, and verified as it is read.
        reading: Of the same ledger.
        progress: Called with the number of the last entry that was looked at.

    Returns:
        By scope what is not as it should be, and what was begun and not done.

    Raises:
        EventSealError: As :meth:`eventseal.erasure.Ledger.entries` raises; or the key store fails.
    """
    found: dict[str, Undone] = {}
    told = (entry for entry in ledger.entries(store) if entry.kind in {INTENT, DONE} and entry.scope)
    while chunk := list(islice(told, _CHUNK)):
        tables = _Tables(store, chunk, reading)
        for entry in chunk:
            scope = str(entry.scope)
            is_open = scope in reading.open_scopes
            if is_open or not tables.agree(entry):
                undone = found.setdefault(scope, Undone(scope, intent_open=is_open))
                undone.keys.update(entry.keys)
                undone.closed |= _says_closed(entry, reading)
        progress(chunk[-1].number)
    return found


def unrecorded_keys(store: SealedStore, ledger: Ledger) -> list[KeyRecord]:
    """
    Find keys that were shredded and that the ledger does not name: it was cut, or was not there yet.

    Args:
        store: Has the key tables.
        ledger: Is read and verified.

    Raises:
        EventSealError: As :meth:`eventseal.erasure.Ledger.entries` raises; or the key store fails.
    """
    shredded = {record.key_id: record for record in shredded_keys(store)}
    for entry in ledger.entries(store):
        for key_id in entry.keys:
            shredded.pop(key_id, None)
    return list(shredded.values())


class _Tables:
    """What the key tables say of some entries, read for all of them at once."""

    def __init__(self, store: SealedStore, entries: Sequence[LedgerEntry], reading: Reading) -> None:
        self._reading = reading
        key_ids = {key_id for entry in entries for key_id in entry.keys}
        self._rows = store.key_store.get(key_ids)
        closed = {str(entry.scope) for entry in entries if _says_closed(entry, reading)}
        self._holders = list(_holders(store, closed)) if closed else []

    def agree(self, entry: LedgerEntry) -> bool:
        """Whether every key is a tombstone, and, if the scope is to be closed, every slot is taken by one."""
        for key_id in entry.keys:
            row = self._rows.get(key_id)
            if row is None or row.state.opens:
                return False
        return not _says_closed(entry, self._reading) or all(
            (holder := held.get(str(entry.scope))) is not None and not holder.state.opens
            for held in self._holders
        )


def _holders(store: SealedStore, scopes: Iterable[str]) -> Iterator[dict[str, KeyRecord]]:
    for purpose in SUBJECT_PURPOSES:
        yield store.key_store.active(store.keyring.application, list(scopes), purpose=purpose)


def _says_closed(entry: LedgerEntry, reading: Reading) -> bool:
    """Whether the shred of which an entry tells was after the scope's last reopening."""
    told_by = [entry.number] if entry.kind == INTENT else entry.details.get("intents", [])
    return max(told_by, default=0) > reading.reopened.get(str(entry.scope), 0)
