"""Roll the epoch: earlier backups of the key tables then open nothing."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.erasure.epoch_keks import EpochKeks
from eventseal.erasure.epoch_receipt import EpochReceipt, EpochResult
from eventseal.erasure.ledger.entries import DONE, INTENT
from eventseal.erasure.ledger.recording import prepare_ledger
from eventseal.erasure.shredding import own_ledger
from eventseal.errors import JobError
from eventseal.keys.wrapping.branches import BRANCH_PREFIX, branch_uri
from eventseal.rotation.key_rotation import KEY_TABLE
from eventseal.rotation.results import Failure
from eventseal.rotation.rewrapping import WRAPPING_TABLE, kek_report
from eventseal.rotation.status.key_totals import refresh_interval
from eventseal.rotation.table_checks import refuse_old_key_tables
from eventseal.storage.database.rows import chunks
from eventseal.storage.keys.epochs import (
    begin_epoch,
    finish_epoch,
    is_rolling,
    note_branch_keys,
    note_version,
)
from eventseal.storage.keys.kek_fences import NO_KEY, close_keks, hanging_on
from eventseal.storage.keys.wrapping_rows import overwrite_deleted
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from eventseal.erasure.ledger.entries import LedgerEntry
    from eventseal.erasure.ledger.ledger import Ledger
    from eventseal.errors import EventSealError
    from eventseal.keys import KeyRecord, Rewrap
    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.kms import KmsAdapter
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.keys.epochs import Epoch

EPOCH = "epoch"
"""The kind of the entry in the ledger."""

ATTEMPTS = 5
"""
How often EventSeal moves keys that other processes created late.

By then, every process should have noticed the change.
"""

LONGEST_WINDOW = 30
"""The default for the days until the KMS deletes a whole KEK."""

_BATCH_SIZE = 100
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


def roll_epoch(
    store: SealedStore,
    *,
    to: KmsAdapter | None = None,
    pending_window_days: int = LONGEST_WINDOW,
    ledger: Ledger | None = None,
    batch: int = 100,
    dry_run: bool = False,
    progress: Callable[[EpochResult], None] | None = None,
) -> EpochResult:
    """
    Make earlier backups of the key tables useless.

    Such a backup, even together with everything that is left now, opens nothing. The steps:

    1. Every branch gets a new branch key. The data keys that are not destroyed are wrapped under the new
       branch keys. The old branch keys are destroyed.
    2. Every KEK gets a new version, or *to* replaces all KEKs. The keys that KEKs wrap are wrapped there,
       and unwrapped once as a proof. The old wrappings are deleted.
    3. The older versions of the KEKs, or the old KEKs, are ended.

    No item is touched. If a run is interrupted, run it again: it resumes. If all is done, another run begins
    the next epoch. If that is impossible because the old KEK already has its deletion date, the ledger's
    receipt is returned again, as long as nothing was erased since.

    Take a backup of the key tables immediately afterwards: no earlier backup opens anything.

    Args:
        store: An ``EventSeal``, or another ``SealedStore``. It must be allowed to unwrap with its KEKs.
        to: The only KEK that remains. It is one of the store's KEKs, and every process must have it by now.
            Required if the older versions of a KEK cannot be ended alone, as on AWS.
        pending_window_days: Days until the KMS deletes a whole KEK.
        ledger: The erasure ledger. It records the roll, and its key moves to the remaining KEKs, so that it
            stays readable. ``None``: the store's own ledger, if it has one.
        batch: Keys in one call, 1 or more.
        dry_run: Whether to only count the wrappings that would be replaced, and those that other applications
            must replace.
        progress: Called after each batch with the result so far.

    Returns:
        ``done`` counts the keys that are wrapped correctly. If any key ``failed``, no KEK was ended.
        ``by_kek`` counts the wrappings afterwards.

    Raises:
        ConfigurationError: An argument is invalid, or a KEK has no older versions that can be ended alone.
        IntegrityError: The store key's row does not authenticate.
        JobError: Keys of other applications, or keys that others create meanwhile, still need a key that
            should end. That key stays.
        KmsError: A KEK rejects a request or fails. The finished steps stay done.
        StoreError: The key store rejects a request or fails.
        StoreReadOnlyError: The key tables are from an earlier release. Run `eventseal upgrade`.
    """
    if not dry_run:
        refuse_old_key_tables(store)
    keks = EpochKeks(store.keyring.keks, to)
    roll = _Roll(store, keks, ledger or own_ledger(store), to, batch, progress)
    if dry_run:
        return roll.foreseen()
    return roll.run(pending_window_days)


@dataclass
class _Roll:
    """One run of :func:`roll_epoch`, with its progress."""

    store: SealedStore
    keks: EpochKeks
    ledger: Ledger | None
    to: KmsAdapter | None
    batch: int
    progress: Callable[[EpochResult], None] | None
    started: float = field(default_factory=time.monotonic)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    total: int = 0
    passed: int = 0

    def __post_init__(self) -> None:
        self.keyring = self.store.keyring
        self.engine = self.store.datastore.key_engine
        self.application = self.keyring.application

    def foreseen(self) -> EpochResult:
        """Count the wrappings that would be replaced."""
        uses = kek_report(self.store).uses
        names = {use.kek_uri for use in uses}
        self.keks.refuse_same_kek(names)
        by_branch = sum(use.wrappings for use in uses if use.kek_uri.startswith(BRANCH_PREFIX))
        self.counts["under_branch_keys"] = by_branch
        self.counts["under_keks"] = sum(use.wrappings for use in uses) - by_branch
        every = dict.fromkeys(uri for uri in names if not uri.startswith(BRANCH_PREFIX))
        return self._result(
            complete=True,
            left=self.counts.total(),
            others=self._others(hanging_on(self.engine, every)),
        )

    def run(self, days: int) -> EpochResult:
        """Run all steps."""
        names = set(kek_report(self.store).by_kek)
        self.keks.refuse_same_kek(names)
        if not is_rolling(self.engine, self.application):
            dates = self.keks.deletion_dates()
            receipt = self._receipt_of_before(dates)
            if receipt is not None:
                self.counts.update(added=0, dropped=0)
                return self._result(complete=True, receipt=receipt)
            self.keks.refuse_ended(dates)
        if self.ledger is not None:
            prepare_ledger(self.store, self.ledger)
        self.total = 2 * self.store.key_store.count_wrapped_keys(self.application)
        seals = self.keyring.tables.seals()
        shreds = self.keyring.tables.count_shreds()
        epoch = begin_epoch(self.engine, self.application, seals, shreds=shreds)
        # Branch keys first: if an old branch key is ever wrapped under a KEK that stays, every backup opens
        # again (docs/decisions/0014).
        if not self._replace_branch_keys(epoch, seals):
            return self._result(complete=False)
        note = partial(note_version, self.engine, self.application, seals, epoch.number)
        versions = self.keks.make_versions(epoch.kek_versions, note)
        if not self._move_to_staying_keks(names, versions):
            return self._result(complete=False)
        self.keks.refuse_same_kek(kek_report(self.store).by_kek)
        covers = self.keks.in_use_since(versions, epoch.begun_at)
        if self.ledger is not None:
            self.ledger.rewrap(self.store, to=self.keks.staying)
        ended = self.keks.end_old(versions, made_before=epoch.kek_versions.keys(), days=days)
        finish = partial(finish_epoch, self.engine, self.application, seals, epoch.number)
        if not ended:  # a receipt would claim an end that no KMS performed (docs/decisions/0014)
            finish()
            raise self.keks.nothing_ended()
        receipt = EpochReceipt(
            application=self.application,
            begun_at=epoch.begun_at,
            covers_before=covers,
            keks=ended,
            staying={adapter.uri: versions.get(adapter.uri) for adapter in self.keks.staying},
            keys=self.counts["done"],
            done_at=self.store.key_store.now(),
        )
        if self.ledger is not None:  # before finish(): if that fails, the next run writes the entry again
            entry = self.ledger.append(self.store, EPOCH, details=receipt.details)
            receipt = EpochReceipt.of(self.ledger.name, entry)
        else:
            receipt = receipt.authenticated(self.keyring)
        finished_at = finish()
        leftover = overwrite_deleted(self.engine)
        return self._result(complete=True, receipt=receipt, finished_at=finished_at, leftover=leftover)

    # --- the steps ---

    def _replace_branch_keys(self, epoch: Epoch, seals: Seals) -> bool:
        """Create new branch keys, wrap data keys under them, destroy old ones."""
        old, made = self.keyring.wrappings.renew_branches(set(map(UUID, epoch.branch_keys)))
        note_branch_keys(self.engine, self.application, seals, epoch.number, made)
        self.counts["branch_keys_replaced"] = len(old)
        noticed_at = self._noticed_at(old)
        late = 0
        for attempt in count(1):
            if not self._wrapped(self.keyring.wrappings.rewrap_under_branches, attempt):
                return False
            try:
                if not self._opens_without(old):
                    return False
                for some in chunks(old, _BATCH_SIZE):
                    self.keyring.destroyer.retire([record.key_id for record in some])
            except JobError:  # a process that has not noticed yet wraps new keys under an old branch key
                late += noticed_at <= self.store.key_store.now()
                if late == ATTEMPTS:
                    raise
                time.sleep(min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE))
            else:
                break
        return True

    def _opens_without(self, branch_keys: Sequence[KeyRecord]) -> bool:
        """
        Return whether every key opens without these branch keys.

        Raises:
            JobError: No key failed, but a process that has not noticed yet wrapped keys under one of them.
        """
        if not branch_keys:
            return True
        ending = [record.key_id for record in branch_keys]
        uris = set(map(branch_uri, ending))
        proof = self.keyring.wrappings.prove_without(
            lambda wrapped: wrapped.kek_uri in uris, ending=ending, batch=self.batch
        )
        if proof.failures and all(isinstance(error, JobError) for error in proof.failures.values()):
            raise next(iter(proof.failures.values()))
        self.counts["failed"] = proof.failed
        self._note(proof.failures)
        return not proof.failed

    def _noticed_at(self, old: Sequence[KeyRecord]) -> datetime:
        """Return when every process has noticed that the branch keys ended."""
        replaced = [moment for record in old if (moment := record.compromised_at or record.deactivated_at)]
        interval = refresh_interval(self.engine, application=self.application)
        return max(replaced, default=self.store.key_store.now()) + interval

    def _move_to_staying_keks(self, names: set[str], versions: Mapping[str, str]) -> bool:
        """Move all wrappings to the staying KEKs, then close the ending ones."""
        move = partial(self.keyring.rewrap, self.to, verify=True)
        hanging: dict[str, int] = {}
        for attempt in range(1, ATTEMPTS + 1):
            if not self._wrapped(move, attempt):
                return False
            # Wrappings without a key, of any application: a backup may hold the key that opens them.
            orphaned = self.keyring.wrappings.orphaned_keys()
            if orphaned:
                self.counts["failed"] += len(orphaned)
                self._note(orphaned)
                return False
            names |= set(kek_report(self.store).by_kek)
            ending = self.keks.places(names, versions)
            hanging = close_keks(self.engine, ending) if ending else {}
            if not hanging:
                return True
            if self.application not in hanging:
                break
        raise self._needed(hanging)

    def _wrapped(self, rewrap: Callable[..., Rewrap], attempt: int) -> bool:
        """Rewrap all keys, and return whether none of them failed."""
        before = self.passed

        def tell(rewrapped: Rewrap) -> None:
            self.passed = before + rewrapped.keys
            if self.progress is not None:
                self.progress(self._result(complete=False, left=max(0, self.total - self.passed)))

        rewrapped = rewrap(batch=self.batch, progress=tell)
        if attempt > 1:
            self.passed = before  # this pass counted the same keys again
        self.counts["done"] = rewrapped.done
        self.counts["added"] += sum(rewrapped.added.values())
        self.counts["dropped"] += rewrapped.dropped
        self.counts["failed"] = rewrapped.failed
        self._note(rewrapped.failures)
        return not rewrapped.failed

    def _note(self, failures: Mapping[UUID, EventSealError]) -> None:
        self.failures = [Failure.of_key(WRAPPING_TABLE, key_id, error) for key_id, error in failures.items()]

    def _receipt_of_before(self, dates: Mapping[str, datetime]) -> EpochReceipt | None:
        """
        Return the receipt of an earlier run that still holds.

        It holds if that run ended these KEKs and nothing was erased since it began.
        """
        if self.ledger is None or not dates or not self.ledger.exists(self.application):
            return None
        told: LedgerEntry | None = None
        erased_at: datetime | None = None
        for entry in self.ledger.entries(self.store):
            if entry.kind == EPOCH:
                told = entry
            elif entry.kind in {INTENT, DONE}:
                erased_at = entry.at
        if told is None:
            return None
        receipt = EpochReceipt.of(self.ledger.name, told)
        is_this = (
            {kek.kek_uri: kek.ends_at for kek in receipt.keks} == dates
            and set(dates) == {adapter.uri for adapter in self.keks.leaving}
            and set(receipt.staying) == {adapter.uri for adapter in self.keks.staying}
        )
        # By the ledger's authenticated times: anyone who writes to the key tables can set their columns.
        is_erased_since = erased_at is not None and erased_at >= receipt.begun_at
        return receipt if is_this and not is_erased_since else None

    # --- messages and results ---

    def _needed(self, hanging: Mapping[str, int]) -> JobError:
        target = "" if self.to is None else f" --to {shlex.quote(self.to.uri)}"
        if target.startswith(" --to local://"):  # a check value, but the option takes the file
            target = " --to local://FILE"
        again = f"run `eventseal roll-epoch{target}` again: it resumes."
        needed_by = "no KMS key was ended: an old key is still needed by"
        if NO_KEY in hanging:
            return JobError(
                f"{needed_by} {counted(hanging[NO_KEY], 'wrapping')} without a key row in {KEY_TABLE}",
                remedy=f"Find out who deleted rows of {KEY_TABLE}, and restore them from a backup. Then "
                + again,
            )
        others = self._others(hanging)
        if others:
            named = ", ".join(
                f"{counted(found, 'wrapping')} of application {name}"
                for name, found in sorted(others.items())
            )
            return JobError(
                f"{needed_by} {named}",
                remedy=f"With the settings of each application, run `eventseal rewrap{target}`, "
                f"`eventseal verify`, and the rewrap again. Then {again}",
                applications=others,
            )
        return JobError(
            f"{needed_by} {counted(sum(hanging.values()), 'wrapping')} that a process created meanwhile",
            remedy="A process still wraps new keys under the old key. Let every application list only the "
            f"KMS keys that stay. Then {again}",
        )

    def _others(self, hanging: Mapping[str, int]) -> dict[str, int]:
        return {name: keys for name, keys in hanging.items() if name != self.application}

    def _result(
        self, *, complete: bool, left: int = 0, receipt: EpochReceipt | None = None, **more: Any
    ) -> EpochResult:
        tables = {
            WRAPPING_TABLE: ("under_branch_keys", "under_keks", "added", "dropped"),
            KEY_TABLE: ("branch_keys_replaced",),
        }
        told: dict[str, Any] = {}
        if receipt is not None:
            told = {
                "covers_before": receipt.covers_before,
                "finished_at": receipt.done_at,
                "keks": receipt.keks,
                "receipt": receipt,
            }
        return EpochResult(
            verb="roll-epoch",
            complete=complete,
            done=self.counts["done"],
            left=left,
            failed=self.counts["failed"],
            seconds=time.monotonic() - self.started,
            by_table={
                table: {name: self.counts[name] for name in names if name in self.counts}
                for table, names in tables.items()
            },
            by_kek=kek_report(self.store).by_kek if complete else {},
            failures=tuple(self.failures),
            **told | more,
        )
