"""After a restore of the key tables: what was shredded since the backup is shredded again, by the ledger."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventseal.erasure.ledger.entries import DONE
from eventseal.erasure.restore_scan import Reading, Undone, undone_scopes, unrecorded_keys
from eventseal.erasure.shredding import SubjectErased, close_scope_fences, list_erased, own_ledger, shred
from eventseal.errors import ConfigurationError, EventSealError, IntegrityError, JobError
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.rotation.results import MAX_FAILURES, Failure, JobResult
from eventseal.rotation.sealed_store import registered_tables
from eventseal.rotation.table_checks import refuse_unregistered_tables
from eventseal.storage.keys.wrapping_rows import overwrite_deleted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from uuid import UUID

    from eventseal.erasure.ledger.ledger import Ledger
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable

_KEYS_TABLE = "encryption_keys"


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
        return {
            "scope": self.scope,
            "closed": self.closed,
            "intent_open": self.intent_open,
            "alive": list(map(str, self.alive)),
            "lost": list(map(str, self.lost)),
            "strangers": list(map(str, self.strangers)),
        }


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
    reading = Reading.of(store, ledger)

    def tell(number: int) -> None:
        if progress is not None:
            progress(
                JobResult(
                    verb="verify",
                    complete=False,
                    done=number,
                    left=reading.entries - number,
                    failed=0,
                    seconds=time.monotonic() - started,
                )
            )

    undone = undone_scopes(store, ledger, reading, progress=tell)
    work = _Work(store, ledger, tables, notify=notify, dry_run=dry_run)
    for scope in sorted(undone):
        work.take(undone[scope])
    work.complain_of_unrecorded()
    leftover = "" if dry_run else overwrite_deleted(store.datastore.key_engine)
    return RestoreResult(
        verb="verify",
        complete=not work.failed,
        done=work.done,
        left=0,
        failed=work.failed,
        seconds=time.monotonic() - started,
        by_table={table: dict(counts) for table, counts in work.by_table.items()},
        failures=tuple(work.failures),
        leftover=leftover,
        entries=reading.entries,
        scopes=tuple(work.scopes),
    )


class _Work:
    """Deals with one scope after the other; one that fails does not keep the others from it."""

    def __init__(
        self,
        store: SealedStore,
        ledger: Ledger,
        tables: list[SealedTable],
        *,
        notify: Callable[[SubjectErased], object] | None,
        dry_run: bool,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._tables = tables
        self._notify = notify
        self._dry_run = dry_run
        self.done = 0
        self.failed = 0
        self.by_table: dict[str, Counter[str]] = {}
        self.failures: list[Failure] = []
        self.scopes: list[RestoredScope] = []

    def take(self, undone: Undone) -> None:
        """Make one scope as the ledger says, or tell why it is not."""
        try:
            scope = self._looked_at(undone)
            self.scopes.append(scope)
            if not self._dry_run:
                self._erase(undone, is_told=bool(scope.strangers) and not scope.alive and not scope.lost)
        except IntegrityError as error:
            self._fail(Failure.of_key(_KEYS_TABLE, getattr(error, "key_id", None), error))
            return
        self.done += len(scope.alive) + len(scope.lost)
        for key_id in scope.strangers:
            self._fail(Failure.of_key(_KEYS_TABLE, key_id, _stranger(undone.scope, key_id)))

    def complain_of_unrecorded(self) -> None:
        """Tell of scopes that were shredded without the ledger's knowledge."""
        taken = {scope.scope for scope in self.scopes}
        first = {record.scope: record for record in reversed(unrecorded_keys(self._store, self._ledger))}
        for scope, record in sorted(first.items()):
            if scope not in taken:
                self._fail(Failure.of_key(_KEYS_TABLE, record.key_id, _unrecorded(scope, self._ledger)))

    def _looked_at(self, undone: Undone) -> RestoredScope:
        """Tell what is amiss with a scope."""
        found = self._store.keyring.shred_again(undone.scope, undone.keys, closed=undone.closed, dry_run=True)
        there = {record.key_id for record in found.keys}
        strangers = [
            record.key_id for record in found.keys if record.state.opens and record.key_id not in undone.keys
        ]
        begun = undone.intent_open  # its shred takes the strangers, too
        return RestoredScope(
            scope=undone.scope,
            closed=undone.closed,
            intent_open=begun,
            alive=(*found.destroyed, *(strangers if begun else ())),
            lost=tuple(sorted(set(undone.keys) - there)),
            strangers=tuple(strangers) if undone.closed and not begun else (),
        )

    def _erase(self, undone: Undone, *, is_told: bool) -> None:
        ended = self._store.keyring.shred_again(undone.scope, undone.keys, closed=undone.closed)
        if undone.intent_open:
            result = shred(
                self._store,
                undone.scope,
                ledger=self._ledger,
                notify=self._notify,
                destroy_application_items=undone.scope == DEFAULT_SCOPE,
            )
            self._count(result.by_table, result.failures)
            return
        fences = close_scope_fences(self._store, self._tables, ended.shredded)
        if not undone.closed:  # it was reopened, and the list of what was erased in it may be older
            list_erased(self._store, self._tables, ended.shredded)
        self._count(fences.by_table, fences.failures)
        if is_told:
            return
        entry = self._ledger.append(
            self._store,
            DONE,
            scope=undone.scope,
            keys=undone.keys,
            details={
                "destroyed": len(ended.destroyed),
                "items": {table: dict(counts) for table, counts in fences.by_table.items()},
                "intents": [],
                "after_restore": True,
            },
        )
        if self._notify is not None:
            self._notify(
                SubjectErased(
                    application=entry.application,
                    scope=undone.scope,
                    key_ids=tuple(undone.keys),
                    entry=entry.number,
                )
            )

    def _count(self, by_table: Mapping[str, Mapping[str, int]], failures: Iterable[Failure]) -> None:
        for table, counts in by_table.items():
            self.by_table.setdefault(table, Counter()).update(counts)
        for failure in failures:
            self._fail(failure)

    def _fail(self, failure: Failure) -> None:
        self.failed += 1
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(failure)


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
