"""Upkeep of all wrappings of an application, and the proof that keys open without what is about to end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from eventseal.errors import ConfigurationError, IntegrityError, JobError, WrongApplicationError
from eventseal.keys.rewrap.rewrapping import Rewrap, Rewrapper
from eventseal.keys.rewrap.under_branches import BranchMover
from eventseal.keys.rewrap.under_keks import MAX_FAILURES, Moved, Mover, RowChecks
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import (
    BRANCH_PREFIX,
    MOST_BRANCHES,
    Branches,
    branch_scopes,
    named_branch_in,
)
from eventseal.keys.wrapping.keks import Keks
from eventseal.keys.wrapping.unwrapping import KekFacts
from eventseal.kms.adapter import KmsAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.errors import EventSealError
    from eventseal.keys.authentication.checked_store import CheckedStore
    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.policy import Clock
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.held_keys import Memory
    from eventseal.keys.ring.parts import KeyringCounters, KeysOfPurpose, Wrapping
    from eventseal.keys.ring.store_key import StoreKey
    from eventseal.kms.adapter import WrappedKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """
    Whether every live key opens by what stays.

    Attributes:
        failed: Keys that do not, and keys whose row is not what a keyring sealed; and keys of
            any application that lost what opens them.
        failures: Why; the first 1,000. A ``JobError`` stands for a key that has no wrapping but under what is
            about to end.
    """

    failed: int = 0
    failures: Mapping[UUID, EventSealError] = field(default_factory=dict)


class Prover:
    """
    Unwraps the live keys of one application, page by page, and keeps none.

    Args:
        application: Whose keys.
        store: Holds them.
        wrapping: Unwraps them, under KEKs and branch keys.
        checks: Says whether a row was edited.
    """

    def __init__(self, application: str, store: CheckedStore, wrapping: Wrapping, checks: RowChecks) -> None:
        self._application = application
        self._store = store
        self._wrapping = wrapping
        self._checks = checks

    def run(self, leaving: Callable[[WrappedKey], bool], ending: Collection[UUID], *, batch: int) -> Proof:
        """
        Unwrap every live key without the wrappings that leave.

        Args:
            leaving: Says whether a wrapping is under what is about to end.
            ending: Keys that end themselves, and need not open.
            batch: Keys that are read at a time.

        Raises:
            EventSealError: A KEK or the key store refused or failed: then nothing is proved.
        """
        failures: dict[UUID, EventSealError] = {
            key_id: error for key_id, error in orphaned_keys(self._store).items() if key_id not in ending
        }
        skipped = {*ending, *failures}
        failed = len(failures)
        after: UUID | None = None
        while page := self._store.page(self._application, after=after, limit=batch, check=True):
            seen = self._tried([record for record in page if record.key_id not in skipped], leaving)
            if seen.ended_by is not None:
                raise seen.ended_by
            failed += len(seen.failed)
            for key_id, error in seen.failed.items():
                if len(failures) < MAX_FAILURES:
                    failures[key_id] = error
            after = page[-1].key_id
        return Proof(failed=failed, failures=failures)

    def _tried(self, page: Sequence[KeyRecord], leaving: Callable[[WrappedKey], bool]) -> Moved:
        seen = Moved()
        self._checks.refuse_edited([record for record in page if record.state is KeyState.DESTROYED], seen)
        self._checks.refuse_unreadable(page, seen)
        staying: list[KeyRecord] = []
        for record in seen.untried([record for record in page if record.state is not KeyState.DESTROYED]):
            wrappings = tuple(wrapped for wrapped in record.wrappings if not leaving(wrapped))
            if wrappings:
                # That some process has seen one open is what a row says: none comes first because of it.
                staying.append(replace(record, wrappings=wrappings, verified=frozenset()))
            else:
                seen.fail(record.key_id, JobError(f"key {record.key_id} is wrapped nowhere else"))
        self._checks.prove(staying, self._wrapping.unwrap(staying), seen)
        return seen


def orphaned_keys(store: CheckedStore) -> dict[UUID, IntegrityError]:
    """
    Say which keys lost what opens them, the first 1,000: their wrappings, or their application's change mark.

    The application that a row names decides nothing: somebody may have changed it to hide the key.
    """
    return {
        record.key_id: IntegrityError(
            f"key {record.key_id} of application {record.application!r}, {_state_of(record)}, lost what "
            "opens it: it has no wrapping, or its application no change mark. Rows were edited or deleted",
            remedy="Find out who changed the key tables. Restore this key's row, and its rows of "
            "key_wrappings, from a backup. Until then, keep every KEK and branch key.",
            key_id=record.key_id,
        )
        for record in store.orphans(limit=MAX_FAILURES)
    }


def _state_of(record: KeyRecord) -> str:
    return "in an unknown state" if "state" in record.unreadable else str(record.state)


class RenewedBranches(NamedTuple):
    """
    Branches that were given new keys.

    Attributes:
        replaced: The branch keys that live still and wrap no more: to be retired when they are not needed.
        made: The ids of the new ones.
    """

    replaced: Sequence[KeyRecord]
    made: Sequence[UUID]


class KeyUpkeep:
    """The part of a keyring that goes through all keys."""

    counters: KeyringCounters
    _application: str
    _branch_count: int | None
    _branch_keys: KeysOfPurpose
    _branches: Branches
    _clock: Clock
    _falls_back: bool
    _kms: tuple[KmsAdapter, ...]
    _memory: Memory
    _store: CheckedStore
    _store_key: StoreKey

    def table_seals(self) -> Seals:
        """
        Give what authenticates the application's rows in the key tables; make its store key if it has none.

        Raises:
            ConfigurationError: The keyring is closed.
            IntegrityError: The store key's row is not what a keyring sealed.
            KmsError: A KEK refused or failed.
            StoreError: The key store refused or failed.
        """
        self._memory.check_open()
        return self._store_key.made_seals()

    def rewrap(
        self,
        to: KmsAdapter | None = None,
        *,
        batch: int = 100,
        dry_run: bool = False,
        verify: bool = False,
        progress: Callable[[Rewrap], object] | None = None,
    ) -> Rewrap:
        """
        Wrap every live key where it should be, and drop what that makes superfluous. No item is touched.

        Each key gets a wrapping under the newest version of every KEK of this keyring, those included that it
        misses; older versions' wrappings go. With *to* it ends under that KEK alone. Data keys under branch
        keys are wrapped under their branch's active key. Run again, it goes on where it stopped.

        An old wrapping goes in the run that has unwrapped the new one. That is the run which makes it, where
        keys must be unwrapped anyway and the KEK is one of its own, and with *verify*; else a later one, once
        the rows say that a process which opens keys has unwrapped it.

        Args:
            to: The only KEK that is to remain; it need not be one of this keyring's.
            batch: Keys read, and at most wrapped in one call, at a time.
            dry_run: Whether only to count; a KEK is asked for nothing but its newest version.
            verify: Whether to unwrap every wrapping that stays, under a KEK or a branch key, and to check the
                rows of destroyed keys: whoever ends a KEK afterwards relies on it. It takes the right to
                unwrap, and one run is enough then.
            progress: Called after each batch.

        Raises:
            ConfigurationError: The keyring is closed, or *to* or *batch* is refused.
            IntegrityError: The store key's row is not what a keyring sealed.
            KmsError: A KEK refused or failed; what was done before stays.
            StoreError: The key store refused or failed.
        """
        self._memory.check_open()
        if not isinstance(to, KmsAdapter | None):
            raise ConfigurationError(f"to= is a {type(to).__name__}, which is no KMS adapter")
        others = [adapter for adapter in self._kms if to is None or adapter.uri != to.uri]
        adapters = others if to is None else [*others, to]
        rewrapper = self._rewrapper(
            adapters, targets=adapters if to is None else [to], exclusive=to is not None, verify=verify
        )
        return rewrapper.run(batch, dry_run=dry_run, progress=progress)

    def rewrap_under_branches(
        self, *, batch: int = 100, progress: Callable[[Rewrap], object] | None = None
    ) -> Rewrap:
        """
        Wrap data keys that branch keys have wrapped under their branch's active one; others stay as they are.

        Args:
            batch: Keys read at a time.
            progress: Called after each batch.

        Raises:
            EventSealError: As :meth:`rewrap` raises; but a KEK is asked for branch keys alone.
        """
        self._memory.check_open()
        rewrapper = self._rewrapper(self._kms, targets=(), exclusive=False, verify=False)
        return rewrapper.run(batch, dry_run=False, progress=progress)

    def prove_without(
        self, leaving: Callable[[WrappedKey], bool], *, ending: Collection[UUID] = (), batch: int = 100
    ) -> Proof:
        """
        Unwrap every live key without the wrappings that are about to lose their KEK or branch key.

        It takes one unwrap call a key that a KEK has wrapped, and none for those that branch keys have. The
        rows of destroyed keys are checked too: what only says that it was destroyed may be in a backup.

        Args:
            leaving: Says whether a wrapping is under what is about to end.
            ending: Keys that end themselves, and need not open.
            batch: Keys that are read, and at most unwrapped in one call, at a time.

        Raises:
            ConfigurationError: The keyring is closed.
            IntegrityError: The store key's row is not what a keyring sealed.
            KmsError: A KEK refused or failed: nothing is proved.
            StoreError: The key store refused or failed.
        """
        self._memory.check_open()
        keks = Keks(
            self._kms, counters=self.counters, fall_back_on_outage=self._falls_back, clock=self._clock
        )
        branch_keys = self._branch_keys
        branches = Branches(None, keks, sealer=branch_keys.sealer, opener=branch_keys.opener)
        checks = RowChecks(self._application, self._store_key)
        return Prover(self._application, self._store, branches, checks).run(leaving, ending, batch=batch)

    def edited_keys(self, key_ids: Collection[UUID]) -> set[UUID]:
        """
        Say which of some keys have a row that is not what a keyring sealed, or an older one put back.

        Keys that are not there, and those of other applications, are left out. No key is unwrapped but the
        store key.

        Raises:
            ConfigurationError: The keyring is closed.
            EventSealError: The store key does not open, or the mark is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        self._memory.check_open()
        seen = Moved()
        checks = RowChecks(self._application, self._store_key)
        checks.refuse_edited(list(self._store.get(key_ids).values()), seen)
        return {key for key, error in seen.failed.items() if not isinstance(error, WrongApplicationError)}

    def orphaned_keys(self) -> dict[UUID, IntegrityError]:
        """
        Say which keys, of all applications, lost what opens them; the first 1,000.

        They live without a wrapping, or are of an application that has no change mark. No KEK may end while
        there are any: a backup may have what is missing.

        Raises:
            ConfigurationError: The keyring is closed.
            StoreError: The key store refused or failed.
        """
        self._memory.check_open()
        return orphaned_keys(self._store)

    def rotate_branches(self, *, compromised: bool = False) -> list[KeyRecord]:
        """
        Give every branch a new key; the old ones unwrap what they have wrapped, and wrap no more.

        Branches that the keyring had before, with another number of them, are among them.

        Args:
            compromised: Whether the data keys under the old ones must be wrapped, and items encrypted, again.

        Returns:
            The rows of the new branch keys.

        Raises:
            ConfigurationError: The keyring has no branches, and never had, or is closed.
            EventSealError: As :meth:`Keyring.rotate` raises; the branches before stay rotated.
        """
        self._memory.check_open()
        scopes = {**dict.fromkeys(branch_scopes(self._branch_count or 0)), **self._branches_with_keys()}
        if not scopes:
            raise ConfigurationError(
                "the keyring has no branches", remedy="Give it branches=, or rotate the key of a scope."
            )
        return [self._branch_keys.rotate(scope, compromised=compromised).new for scope in scopes]

    def renew_branches(self, made: Collection[UUID]) -> RenewedBranches:
        """
        Give every branch that has a key a new one, unless that is one of *made*.

        Args:
            made: New branch keys of an earlier, interrupted call.

        Returns:
            What was replaced, and what was made.

        Raises:
            EventSealError: As :meth:`Keyring.rotate` raises; the branches before stay rotated.
        """
        self._memory.check_open()
        replaced: list[KeyRecord] = []
        active: list[UUID] = []
        for scope, holder in self._branches_with_keys().items():
            if holder is None or holder.key_id not in made:
                holder = self._branch_keys.rotate(scope, compromised=False).new  # noqa: PLW2901
            active.append(holder.key_id)
            replaced += [
                record
                for record in self._store.of_scope(self._application, scope)
                if record.purpose is KeyPurpose.BRANCH
                and record.state in {KeyState.DEACTIVATED, KeyState.COMPROMISED}
            ]
        return RenewedBranches(replaced, active)

    def _branches_with_keys(self) -> dict[str, KeyRecord | None]:
        """Give the branches that have keys, with the active one of each."""
        found: dict[str, KeyRecord | None] = {}
        uses = self._store.kek_uses(self._application)
        named = {use.kek_uri for use in uses if use.kek_uri.startswith(BRANCH_PREFIX)}
        ids = {branch_id for uri in named if (branch_id := named_branch_in(uri)) is not None}
        for record in self._store.get(ids).values() if ids else ():
            if record.purpose is KeyPurpose.BRANCH and record.application == self._application:
                found[record.scope] = None
        every = branch_scopes(MOST_BRANCHES)
        holders = self._store.active(self._application, every, purpose=KeyPurpose.BRANCH)
        found.update((s, record) for s, record in holders.items() if record.state is KeyState.ACTIVE)
        return found

    def _rewrapper(
        self, adapters: Sequence[KmsAdapter], *, targets: Sequence[KmsAdapter], exclusive: bool, verify: bool
    ) -> Rewrapper:
        facts = KekFacts(adapters)
        keks = Keks(adapters, counters=self.counters, fall_back_on_outage=self._falls_back, clock=self._clock)
        checks = RowChecks(self._application, self._store_key)
        opener = self._branch_keys.opener
        return Rewrapper(
            self._application,
            self._store,
            facts=facts,
            mover=Mover(keks, facts, checks, trusted=self._kms),
            branch_mover=BranchMover(self._application, self._store, self._branches, opener, checks),
            checks=checks,
            targets=targets,
            exclusive=exclusive,
            verifying=verify,
        )
