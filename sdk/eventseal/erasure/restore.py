"""
Repeat erasures after a restore of the key tables.

The ledger says which keys were shredded since the backup.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from eventseal.erasure.ledger.entries import DONE, INTENT, REOPEN, SET_LEDGER
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
from eventseal.wording import shell_word

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
    A scope whose key rows contradict the ledger.

    Attributes:
        scope: The scope.
        keys: The keys that must be destroyed, with their purposes.
        closed: Whether the scope must be closed, because it was not reopened since.
        intent_open: Whether a shred of the scope was begun and is not done.
    """

    scope: str
    keys: dict[UUID, KeyPurpose] = field(default_factory=dict)
    closed: bool = False
    intent_open: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """
    The facts from a ledger that was read and verified completely.

    Attributes:
        entries: The number of entries.
        reopened: The number of the last reopening, by each scope that was ever reopened.
        open_scopes: The scopes of intents that are not done.
        unrecorded: Shredded keys that no entry names: the end of the ledger was cut off, or the ledger did
            not exist yet.
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
            EventSealError: An error of :meth:`eventseal.erasure.Ledger.entries`, or the key store fails.
        """
        # The key tables first: a shred in progress writes its intent before it destroys a key.
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
    Find scopes whose key rows contradict the ledger.

    Args:
        store: The store with the key tables.
        ledger: The ledger, which is read and verified once more.
        reading: The facts from the same ledger.
        progress: Called with the number of the last entry that was compared.

    Returns:
        The scopes that contradict the ledger, and the scopes of shreds that were begun and are not done.

    Raises:
        EventSealError: An error of :meth:`eventseal.erasure.Ledger.entries`, or the key store fails.
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
    """The key rows for some ledger entries, read together."""

    def __init__(self, store: SealedStore, entries: Sequence[LedgerEntry], reading: Reading) -> None:
        self._reading = reading
        key_ids = {key_id for entry in entries for key_id in entry.keys}
        self._rows = store.key_store.get(key_ids)
        closed = {str(entry.scope) for entry in entries if _says_closed(entry, reading)}
        self._holders = list(_holders(store, closed)) if closed else []

    def agree(self, entry: LedgerEntry) -> bool:
        """
        Whether every key of the entry is a tombstone.

        If the scope must be closed, a tombstone must also occupy each of its slots.
        """
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
    """Whether the entry's shred was after the scope's last reopening."""
    # Compare the intents, not the entry itself: the scope may have been reopened before the end of the shred
    # was recorded (docs/decisions/0016).
    told_by = [entry.number] if entry.kind == INTENT else entry.details.get("intents", [])
    return max(told_by, default=0) > reading.reopened.get(str(entry.scope), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredScope:
    """
    A scope whose key rows contradicted the ledger after a restore.

    Attributes:
        scope: The scope.
        closed: Whether the scope is closed afterwards. ``False``: it was reopened, and stays open.
        intent_open: Whether a shred of the scope had been begun and was not done.
        alive: The keys that the restore brought back. This run destroys them.
        lost: The keys whose tombstones the restore removed. This run restores the tombstones.
        strangers: Keys of a closed scope that are not destroyed and that the ledger does not name. They are
            not touched.
    """

    scope: str
    closed: bool
    intent_open: bool
    alive: tuple[UUID, ...]
    lost: tuple[UUID, ...]
    strangers: tuple[UUID, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        keys = {name: list(map(str, getattr(self, name))) for name in ("alive", "lost", "strangers")}
        return {"scope": self.scope, "closed": self.closed, "intent_open": self.intent_open, **keys}


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult(JobResult):
    """
    The result of reconciling the key tables with the ledger.

    Attributes:
        entries: The number of ledger entries, all of which are verified.
        scopes: The scopes whose key rows contradicted the ledger.
    """

    entries: int
    scopes: tuple[RestoredScope, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that ``--json`` prints."""
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
    Destroy restored keys again, as the ledger says.

    It destroys the shredded keys by their ids, and finishes shreds that were begun and are not done. It
    verifies the whole ledger before it changes anything. An unfinished shred is completed for its whole
    scope. Keys that the ledger does not name are destroyed only in such a scope. You can run it again at any
    time.

    Args:
        store: An ``EventSeal``, or another ``SealedStore``. No process may have used it since the restore.
        ledger: The erasure ledger. ``None``: the store's own ledger.
        notify: Called for each scope whose key rows contradicted the ledger. Read models that were restored
            together with the keys may hold its data as plaintext.
        dry_run: Whether to only report what would be done.
        progress: Called now and then, with how many entries were compared with the key tables.

    Returns:
        The result:

        - ``done`` counts the keys that were destroyed again, or whose tombstones were restored.
        - ``by_table`` counts the items under these keys.
        - ``failed`` counts scopes that could not be processed, or that were shredded without an entry.
        - ``failed`` also counts keys of closed scopes that still open items, unknown to the ledger.
        - ``leftover`` says why bytes of wrappings could not be overwritten.

    Raises:
        ConfigurationError: There is no ledger, or a table that looks sealed is not registered.
        IntegrityError: The ledger was changed. Nothing was done.
        KmsError: The KMS rejects a request or fails.
        StoreError: The ledger or the key store rejects a request or fails. Run it again.
    """
    started = time.monotonic()
    ledger = ledger or own_ledger(store)
    if ledger is None:
        raise ConfigurationError(
            "no erasure ledger is configured, so nothing records which keys were shredded",
            remedy=SET_LEDGER,
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
    """Processes each scope, even if another scope fails."""

    store: SealedStore
    ledger: Ledger
    tables: list[SealedTable]
    notify: Callable[[SubjectErased], object] | None
    dry_run: bool
    scopes: list[RestoredScope] = field(default_factory=list)

    def take(self, undone: Undone) -> None:
        """Reconcile one scope with the ledger, or record the failure."""
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
        """Report scopes that were shredded without a ledger entry."""
        taken = {scope.scope for scope in self.scopes}
        first = {record.scope: record for record in reversed(unrecorded)}
        for scope, record in sorted(first.items()):
            if scope not in taken:
                self.fail(KEY_TABLE, record.key_id, _unrecorded(scope, self.ledger))

    def _compared(self, undone: Undone) -> RestoredScope:
        """Compare the key rows of a scope with the ledger."""
        found = self.store.keyring.destroyer.shred_again(
            undone.scope, undone.keys, closed=undone.closed, dry_run=True
        )
        there = {record.key_id for record in found.keys}
        strangers = [
            record.key_id for record in found.keys if record.state.opens and record.key_id not in undone.keys
        ]
        begun = undone.intent_open  # the unfinished shred destroys the strangers, too
        return RestoredScope(
            scope=undone.scope,
            closed=undone.closed,
            intent_open=begun,
            # Only a shred that was begun destroys keys that the ledger does not name (docs/decisions/0013).
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
        if not undone.closed:  # the scope was reopened, and the restored list of erased items may be older
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
        f"scope {scope!r} was shredded and not reopened, but it has key {key_id}, which the ledger does not "
        "name: the key was created after the restore. It was not destroyed",
        remedy=f"To erase its items too, run `eventseal shred {shell_word(scope)}`. To keep them, run "
        f"`eventseal reopen {shell_word(scope)}`.",
        key_id=key_id,
    )


def _unrecorded(scope: str, ledger: Ledger) -> EventSealError:
    return JobError(
        f"scope {scope!r} was shredded, but {ledger.name} has no entry for it: entries are missing at its "
        "end, or the scope was shredded without the ledger",
        remedy="Restore the ledger from its newest copy. If no copy has the entry, record the erasure now: "
        f"run `eventseal shred {shell_word(scope)}`.",
    )
