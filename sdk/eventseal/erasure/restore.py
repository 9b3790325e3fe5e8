"""After a restore of the key tables: what was shredded since the backup is shredded again, by the ledger."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from eventseal.erasure.ledger.entries import DONE, INTENT, REOPEN
from eventseal.erasure.ledger.recording import shredded_keys
from eventseal.erasure.reopening import list_erased
from eventseal.erasure.shredding import SubjectErased, close_scope_fences, own_ledger, shred
from eventseal.errors import ConfigurationError, EventSealError, IntegrityError, JobError
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.keys.states import SUBJECT_PURPOSES
from eventseal.rotation.key_rotation import KEY_TABLE
from eventseal.rotation.results import Failure, JobResult, Run
from eventseal.rotation.sealed_store import registered_tables
from eventseal.rotation.table_checks import refuse_unregistered_tables
from eventseal.storage.keys.wrapping_rows import overwrite_deleted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from uuid import UUID

    from eventseal.erasure.ledger.entries import LedgerEntry
    from eventseal.erasure.ledger.ledger import Ledger
    from eventseal.keys import KeyPurpose, KeyRecord
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable


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
        unrecorded: Keys that were shredded and that no entry names: the ledger was cut, or was not there yet.
    """

    entries: int
    reopened: Mapping[str, int]
    open_scopes: frozenset[str]
    unrecorded: tuple[KeyRecord, ...]

    @classmethod
    def of(cls, store: SealedStore, ledger: Ledger) -> Reading:
        """
        Read and verify a ledger.

        Raises:
            EventSealError: As :meth:`eventseal.erasure.Ledger.entries` raises; or the key store fails.
        """
        # The key tables first: a shred that goes on writes its intent before it destroys a key.
        shredded = {record.key_id: record for record in shredded_keys(store)}
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
            for key_id in entry.keys:
                shredded.pop(key_id, None)
        return cls(entries, reopened, frozenset(intents.values()), tuple(shredded.values()))


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
    # By its intents, not by itself: the scope may have been reopened before it was noted as done
    # (docs/decisions/0016).
    told_by = [entry.number] if entry.kind == INTENT else entry.details.get("intents", [])
    return max(told_by, default=0) > reading.reopened.get(str(entry.scope), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredScope:
    """
    A scope that was not as the ledger says.

    Attributes:
        scope: The scope.
        closed: Whether it is closed afterwards; ``False``: it was reopened, and stays open.
        intent_open: Whether a shred of it had been begun and was not done.
        alive: The keys that the restore brought back, and that are destroyed by this.
        lost: The keys whose tombstones the restore took, and that are put back by this.
        strangers: Live keys of a closed scope of which the ledger knows nothing. They are not touched.
    """

    scope: str
    closed: bool
    intent_open: bool
    alive: tuple[UUID, ...]
    lost: tuple[UUID, ...]
    strangers: tuple[UUID, ...]

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        keys = {name: list(map(str, getattr(self, name))) for name in ("alive", "lost", "strangers")}
        return {"scope": self.scope, "closed": self.closed, "intent_open": self.intent_open, **keys}


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult(JobResult):
    """
    What was done after a restore.

    Attributes:
        entries: Of the ledger, all verified.
        scopes: Those that were not as it says.
    """

    entries: int
    scopes: tuple[RestoredScope, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give it as ``--json`` prints it."""
        scopes = [scope.to_json() for scope in self.scopes]
        return {**super(RestoreResult, self).to_json(), "entries": self.entries, "scopes": scopes}


def after_restore(
    store: SealedStore,
    *,
    ledger: Ledger | None = None,
    notify: Callable[[SubjectErased], object] | None = None,
    dry_run: bool = False,
    progress: Callable[[JobResult], object] | None = None,
) -> RestoreResult:
    """
    Destroy again, by id, the keys that the ledger says were shredded; finish what was begun and not done.

    The whole ledger is verified before anything is done. A key that it does not name is destroyed only where
    a shred was begun and is not done: that is carried through for the whole scope. Run it again at will.

    Args:
        store: An ``EventSeal``, or any object with its four; no process used it since the restore.
        ledger: ``None``: the store's own.
        notify: Called for each scope that was not as the ledger says: what was restored with the keys may
            hold its data in plain.
        dry_run: Whether only to tell what would be done.
        progress: Called now and then, with how many entries were compared with the key tables.

    Returns:
        ``done`` counts keys that were destroyed again, or whose tombstones were put back; ``by_table`` the
        items under them. ``failed`` counts scopes that could not be dealt with, live keys of closed scopes
        that the ledger does not know, and scopes shredded without its knowledge. ``leftover`` says what was
        in the way of overwriting the bytes of the wrappings.

    Raises:
        ConfigurationError: There is no ledger, or a table that looks sealed is not registered.
        IntegrityError: The ledger is not what was written; nothing was done.
        KmsError: The KMS refused or failed.
        StoreError: The ledger or the key store refused or failed; run it again.
    """
    started = time.monotonic()
    ledger = ledger or own_ledger(store)
    if ledger is None:
        raise ConfigurationError(
            "no erasure ledger is configured, so nothing tells what was shredded",
            remedy="Name it: `ledger` in eventseal.toml, or EVENTSEAL_LEDGER.",
        )
    refuse_unregistered_tables(store)
    tables = registered_tables(store.datastore, store.cipher.application)
    run = _Run(
        verb="verify",
        started=started,
        store=store,
        ledger=ledger,
        tables=tables,
        notify=notify,
        dry_run=dry_run,
    )
    reading = Reading.of(store, ledger)

    def tell(number: int) -> None:
        if progress is not None:
            progress(run.result(complete=False, done=number, left=reading.entries - number))

    undone = undone_scopes(store, ledger, reading, progress=tell)
    for scope in sorted(undone):
        run.take(undone[scope])
    run.report_unrecorded(reading.unrecorded)
    leftover = "" if dry_run else overwrite_deleted(store.datastore.key_engine)
    facts = run.facts(complete=not run.failed, leftover=leftover)
    return RestoreResult(**facts, entries=reading.entries, scopes=tuple(run.scopes))


@dataclass(slots=True, kw_only=True)
class _Run(Run):
    """Deals with one scope after the other; one that fails does not keep the others from it."""

    store: SealedStore
    ledger: Ledger
    tables: list[SealedTable]
    notify: Callable[[SubjectErased], object] | None
    dry_run: bool
    scopes: list[RestoredScope] = field(default_factory=list)

    def take(self, undone: Undone) -> None:
        """Make one scope as the ledger says, or tell why it is not."""
        try:
            scope = self._compared(undone)
            self.scopes.append(scope)
            if not self.dry_run:
                self._erase(undone, is_told=bool(scope.strangers) and not scope.alive and not scope.lost)
        except IntegrityError as error:
            self.fail(KEY_TABLE, getattr(error, "key_id", None), error)
            return
        self.done += len(scope.alive) + len(scope.lost)
        for key_id in scope.strangers:
            self.fail(KEY_TABLE, key_id, _stranger(undone.scope, key_id))

    def report_unrecorded(self, unrecorded: Sequence[KeyRecord]) -> None:
        """Tell of scopes that were shredded without the ledger's knowledge."""
        taken = {scope.scope for scope in self.scopes}
        first = {record.scope: record for record in reversed(unrecorded)}
        for scope, record in sorted(first.items()):
            if scope not in taken:
                self.fail(KEY_TABLE, record.key_id, _unrecorded(scope, self.ledger))

    def _compared(self, undone: Undone) -> RestoredScope:
        """Tell what is amiss with a scope."""
        found = self.store.keyring.destroyer.shred_again(
            undone.scope, undone.keys, closed=undone.closed, dry_run=True
        )
        there = {record.key_id for record in found.keys}
        strangers = [
            record.key_id for record in found.keys if record.state.opens and record.key_id not in undone.keys
        ]
        begun = undone.intent_open  # its shred takes the strangers, too
        return RestoredScope(
            scope=undone.scope,
            closed=undone.closed,
            intent_open=begun,
            # A key that the ledger does not name goes only by a shred that was begun (docs/decisions/0013).
            alive=(*found.destroyed, *(strangers if begun else ())),
            lost=tuple(sorted(set(undone.keys) - there)),
            strangers=tuple(strangers) if undone.closed and not begun else (),
        )

    def _erase(self, undone: Undone, *, is_told: bool) -> None:
        ended = self.store.keyring.destroyer.shred_again(undone.scope, undone.keys, closed=undone.closed)
        if undone.intent_open:
            result = shred(
                self.store,
                undone.scope,
                ledger=self.ledger,
                notify=self.notify,
                destroy_application_items=undone.scope == DEFAULT_SCOPE,
            )
            self._count(result.by_table, result.failures)
            return
        fences = close_scope_fences(self.store, self.tables, ended.shredded)
        if not undone.closed:  # it was reopened, and the list of what was erased in it may be older
            list_erased(self.store, self.tables, ended.shredded)
        self._count(fences.by_table, fences.failures)
        if is_told:
            return
        entry = self.ledger.append(
            self.store,
            DONE,
            scope=undone.scope,
            keys=undone.keys,
            details={
                "destroyed": len(ended.destroyed),
                "items": fences.by_table,
                "intents": [],
                "after_restore": True,
            },
        )
        if self.notify is not None:
            self.notify(SubjectErased.of(entry))

    def _count(self, by_table: Mapping[str, Mapping[str, int]], failures: Iterable[Failure]) -> None:
        for table, counts in by_table.items():
            self.by_table.setdefault(table, Counter()).update(counts)
        for failure in failures:
            self.add_failure(failure)


def _stranger(scope: str, key_id: UUID) -> EventSealError:
    return JobError(
        f"scope {scope!r} was shredded and not reopened, but key {key_id}, of which the ledger knows "
        "nothing, lives in it: it was made since the restore",
        remedy=f"If its items are to go too: eventseal shred {scope}. If not: eventseal reopen {scope}",
        key_id=key_id,
    )


def _unrecorded(scope: str, ledger: Ledger) -> EventSealError:
    return JobError(
        f"scope {scope!r} was shredded, and {ledger.name} does not say so: entries are missing at its end, "
        "or it was shredded without the ledger",
        remedy=f"Put the ledger back from its newest copy; else note it now: eventseal shred {scope}",
    )
