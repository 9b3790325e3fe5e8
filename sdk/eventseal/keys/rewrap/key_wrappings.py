"""Runs over all keys' wrappings: rewraps, new branch keys, and proofs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError, IntegrityError, JobError
from eventseal.keys.rewrap.rewrapping import Rewrap, Rewrapper
from eventseal.keys.rewrap.under_branches import BranchRewrapper
from eventseal.keys.rewrap.under_keks import MAX_FAILURES, KekFacts, KekRewrapper, RewrapOutcome, RowChecks
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import (
    BRANCH_PREFIX,
    MOST_BRANCHES,
    Branches,
    branch_scopes,
    named_branch_in,
)
from eventseal.keys.wrapping.keks import Keks
from eventseal.kms.adapter import KmsAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.errors import EventSealError
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.parts import KeyringOptions, KeysOfPurpose, RingParts
    from eventseal.keys.wrapping.kek_calls import KekCalls
    from eventseal.kms.adapter import WrappedKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """
    Whether every key that is not destroyed opens with the remaining wrappings.

    Attributes:
        failed: How many keys do not open, have a row that is not authentic, or lost everything that could
            unwrap them. The last kind includes keys of any application.
        failures: The errors of the first 1,000 of these keys. A ``JobError`` is the error of a key whose only
            wrappings will be lost.
    """

    failed: int = 0
    failures: Mapping[UUID, EventSealError] = field(default_factory=dict)


def _state_of(record: KeyRecord) -> str:
    return "in an unknown state" if "state" in record.unreadable else str(record.state)


class KeyWrappings:
    """
    Processes the wrappings of all keys or all branches of an application.

    Args:
        parts: The application, its key store and store key, the held keys and the clock.
        given: The keyring's arguments: its KEKs, and how many branches new keys have.
        calls: Calls these KEKs, and other KEKs that will wrap keys.
        branches: The branches that wrap data keys.
        branch_keys: The keys of these branches.
    """

    def __init__(
        self,
        parts: RingParts,
        given: KeyringOptions,
        calls: KekCalls,
        branches: Branches,
        branch_keys: KeysOfPurpose,
    ) -> None:
        self._parts = parts
        self._application = parts.application
        self._store = parts.store
        self._checks = RowChecks(parts.application, parts.store_key)
        self._given = given
        self._calls = calls
        self._branches = branches
        self._branch_keys = branch_keys

    def rewrap(
        self,
        to: KmsAdapter | None,
        *,
        batch: int,
        dry_run: bool,
        verify: bool,
        progress: Callable[[Rewrap], object] | None,
    ) -> Rewrap:
        """Wrap every key under the current KEKs. See :meth:`eventseal.keys.Keyring.rewrap`."""
        self._parts.held_keys.check_open()
        if not isinstance(to, KmsAdapter | None):
            raise ConfigurationError(f"to= is a {type(to).__name__}, which is not a KMS adapter")
        others = [adapter for adapter in self._given.kms if to is None or adapter.uri != to.uri]
        adapters = others if to is None else [*others, to]
        rewrapper = self._rewrapper(
            adapters, targets=adapters if to is None else [to], exclusive=to is not None, verify=verify
        )
        return rewrapper.run(batch, dry_run=dry_run, progress=progress)

    def rewrap_under_branches(
        self, *, batch: int = 100, progress: Callable[[Rewrap], object] | None = None
    ) -> Rewrap:
        """
        Wrap data keys of branches under the active keys of their branches.

        Keys that are not under branch keys are left unchanged.

        Args:
            batch: How many keys are read at a time.
            progress: Called after each batch.

        Raises:
            EventSealError: As :meth:`rewrap` raises. KEKs are only called for branch keys.
        """
        self._parts.held_keys.check_open()
        rewrapper = self._rewrapper(self._given.kms, targets=(), exclusive=False, verify=False)
        return rewrapper.run(batch, dry_run=False, progress=progress)

    def prove_without(
        self, leaving: Callable[[WrappedKey], bool], *, ending: Collection[UUID] = (), batch: int = 100
    ) -> Proof:
        """
        Unwrap every key without the wrappings that it will lose.

        These are wrappings whose KEK or branch key will be destroyed. The proof needs one unwrap call for
        each key that a KEK has wrapped, and none for keys under branch keys. The rows of destroyed keys are
        checked too, because a backup may have a key that only its row calls destroyed.

        Args:
            leaving: Returns whether a wrapping will be lost.
            ending: Keys that will be destroyed themselves, and need not open.
            batch: How many keys are read at a time, and at most unwrapped in one call.

        Raises:
            ConfigurationError: The keyring is closed.
            IntegrityError: The store key's row is not authentic.
            KmsError: A KEK refused or failed. Nothing is proved.
            StoreError: The key store refused or failed.
        """
        self._parts.held_keys.check_open()
        keks = self._keks(self._given.kms)
        branch_keys = self._branch_keys
        branches = Branches(None, keks, sealer=branch_keys.sealer, opener=branch_keys.opener)
        failures: dict[UUID, EventSealError] = {
            key_id: error for key_id, error in self.orphaned_keys().items() if key_id not in ending
        }
        skipped = {*ending, *failures}
        failed = len(failures)
        after: UUID | None = None
        while page := self._store.page(self._application, after=after, limit=batch):
            seen = self._tried([record for record in page if record.key_id not in skipped], leaving, branches)
            if seen.ended_by is not None:
                raise seen.ended_by
            failed += len(seen.failed)
            for key_id, error in seen.failed.items():
                if len(failures) < MAX_FAILURES:
                    failures[key_id] = error
            after = page[-1].key_id
        return Proof(failed=failed, failures=failures)

    def _tried(
        self, page: Sequence[KeyRecord], leaving: Callable[[WrappedKey], bool], branches: Branches
    ) -> RewrapOutcome:
        seen = RewrapOutcome()
        self._checks.refuse_edited([record for record in page if record.state is KeyState.DESTROYED], seen)
        self._checks.refuse_unreadable(page, seen)
        staying: list[KeyRecord] = []
        for record in seen.untried([record for record in page if record.state is not KeyState.DESTROYED]):
            wrappings = tuple(wrapped for wrapped in record.wrappings if not leaving(wrapped))
            if wrappings:
                # Only a row says that a wrapping was unwrapped before, so that puts no wrapping first.
                staying.append(replace(record, wrappings=wrappings, verified=frozenset()))
            else:
                seen.fail(record.key_id, JobError(f"key {record.key_id} has no other wrapping"))
        self._checks.prove(staying, branches.unwrap(staying), seen)
        return seen

    def orphaned_keys(self) -> dict[UUID, IntegrityError]:
        """
        Return up to 1,000 keys that nothing can unwrap any more.

        They are keys of all applications. They have no wrapping but are not destroyed, or their application
        has no change mark. The application in a row does not matter, because an attacker may have changed it
        to hide the key. While such keys exist, no KEK may be deleted, because a backup may have the missing
        rows.

        Raises:
            ConfigurationError: The keyring is closed.
            StoreError: The key store refused or failed.
        """
        self._parts.held_keys.check_open()
        return {
            record.key_id: IntegrityError(
                f"key {record.key_id} of application {record.application!r}, {_state_of(record)}, cannot be "
                "unwrapped any more: it has no wrapping, or its application has no change mark. "
                "Rows were edited or deleted",
                remedy="Find out who changed the key tables. Restore this key's row, and its rows of "
                "eventseal_key_wrappings, from a backup. Until then, keep every KMS key and branch key.",
                key_id=record.key_id,
            )
            for record in self._store.unchecked.orphans(limit=MAX_FAILURES)
        }

    def rotate_branches(self, *, compromised: bool) -> list[KeyRecord]:
        """Create a new key for every branch. See :meth:`eventseal.keys.Keyring.rotate_branches`."""
        self._parts.held_keys.check_open()
        scopes = {**dict.fromkeys(branch_scopes(self._given.branches or 0)), **self._branches_with_keys()}
        if not scopes:
            raise ConfigurationError(
                "the keyring has no branches",
                remedy="Pass branches= to the keyring, or rotate the key of a scope.",
            )
        return [self._branch_keys.rotate_one(scope, compromised=compromised) for scope in scopes]

    def renew_branches(self, made: Collection[UUID]) -> tuple[list[KeyRecord], list[UUID]]:
        """
        Create a new key for every branch that has none of *made*.

        Branches without any key are left out.

        Args:
            made: New branch keys of an earlier, interrupted call.

        Returns:
            The old branch keys that are not destroyed and no longer wrap, and the ids of the new ones. The
            caller retires the old ones when nothing needs them.

        Raises:
            EventSealError: As :meth:`Keyring.rotate` raises. The branches that were rotated before stay
                rotated.
        """
        self._parts.held_keys.check_open()
        replaced: list[KeyRecord] = []
        active: list[UUID] = []
        for scope, holder in self._branches_with_keys().items():
            if holder is None or holder.key_id not in made:
                holder = self._branch_keys.rotate_one(scope, compromised=False)  # noqa: PLW2901
            active.append(holder.key_id)
            replaced += [
                record
                for record in self._store.of_scope(self._application, scope)
                if record.purpose is KeyPurpose.BRANCH
                and record.state in {KeyState.DEACTIVATED, KeyState.COMPROMISED}
            ]
        return replaced, active

    def _branches_with_keys(self) -> dict[str, KeyRecord | None]:
        """Return the branches that have keys, each with its active key."""
        found: dict[str, KeyRecord | None] = {}
        uses = self._store.unchecked.kek_uses(self._application)
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
        keks = self._keks(adapters)
        opener = self._branch_keys.opener
        return Rewrapper(
            self._application,
            self._store,
            facts=facts,
            keks=KekRewrapper(keks, facts, self._checks, trusted=self._given.kms),
            branches=BranchRewrapper(self._application, self._store, self._branches, opener, self._checks),
            checks=self._checks,
            targets=targets,
            exclusive=exclusive,
            verifying=verify,
        )

    def _keks(self, adapters: Sequence[KmsAdapter]) -> Keks:
        """Return KEKs that share the keyring's limit of calls in flight."""
        return Keks(
            adapters,
            calls=self._calls,
            fall_back_on_outage=self._given.fall_back_on_outage,
            clock=self._parts.clock,
        )
