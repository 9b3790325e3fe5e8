"""Rewraps all keys: adds missing wrappings, and drops old ones after verification."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError, KeyDestroyedError, KmsForbiddenError
from eventseal.keys.rewrap.under_keks import MAX_FAILURES, RewrapOutcome
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import branch_wrapping

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from eventseal.errors import EventSealError
    from eventseal.keys.authentication.row_checks import CheckedStore
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.rewrap.under_branches import BranchRewrapper
    from eventseal.keys.rewrap.under_keks import KekFacts, KekRewrapper, RowChecks
    from eventseal.kms.adapter import KmsAdapter, WrappedKey


_UNDER_KEKS_ONLY = frozenset({KeyPurpose.STORE, KeyPurpose.BRANCH})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrap:
    """
    The result of a rewrap. A progress callback gets the result so far.

    Every processed key that is not destroyed counts in exactly one of *done*, *to_move*, *awaiting* and
    *failed*.

    Attributes:
        done: Keys that have exactly the wrappings that they should have.
        to_move: In a dry run, keys that a rewrap would wrap again.
        awaiting: Keys whose old wrappings are kept for now. Either no process has unwrapped the new wrapping
            yet, or this rewrap may not unwrap, or another process was rewrapping the keys at the same time.
            Run it again later.
        failed: Keys that could not be wrapped again.
        added: The number of new wrappings for each KEK or branch key.
        dropped: The number of keys that lost old wrappings.
        failures: The errors of the first 1,000 keys that failed.
    """

    done: int = 0
    to_move: int = 0
    awaiting: int = 0
    failed: int = 0
    added: Mapping[str, int] = field(default_factory=dict)
    dropped: int = 0
    failures: Mapping[UUID, EventSealError] = field(default_factory=dict)

    @property
    def keys(self) -> int:
        """How many keys were processed."""
        return self.done + self.to_move + self.awaiting + self.failed


class Rewrapper:
    """
    Rewraps the keys of one application, page by page.

    Its progress is only in the rows.

    Args:
        application: The application that owns the keys.
        store: The store of the keys.
        facts: Knows which KEK each wrapping is under, and which wrappings are current.
        keks: Wraps keys under KEKs.
        branches: Wraps data keys under branch keys.
        checks: Reject edited rows.
        targets: The KEKs under whose newest versions every key should be wrapped.
        exclusive: Whether every other wrapping is dropped. If not, only wrappings under older versions of the
            targets are dropped.
        verifying: Whether to unwrap every wrapping that remains. Then each row that was edited or put back
            also fails before its key is wrapped again, including rows of destroyed keys.
    """

    def __init__(
        self,
        application: str,
        store: CheckedStore,
        *,
        facts: KekFacts,
        keks: KekRewrapper,
        branches: BranchRewrapper,
        checks: RowChecks,
        targets: Sequence[KmsAdapter],
        exclusive: bool,
        verifying: bool = False,
    ) -> None:
        self._application = application
        self._store = store
        self._facts = facts
        self._keks = keks
        self._branches = branches
        self._checks = checks
        self._targets = targets
        self._exclusive = exclusive
        self._verifying = verifying
        self._denied: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._added: Counter[str] = Counter()
        self._dropped = 0
        self._failures: dict[UUID, EventSealError] = {}

    def run(self, batch: int, *, dry_run: bool, progress: Callable[[Rewrap], object] | None = None) -> Rewrap:
        """
        Process all keys that are not destroyed.

        Args:
            batch: How many keys are read at a time, and at most wrapped in one call.
            dry_run: Whether to only count. EventSeal then asks a KEK for its newest version only.
            progress: Called after each batch.

        Raises:
            EventSealError: A KEK or the key store refused or failed. Earlier changes are kept.
        """
        if type(batch) is not int or batch < 1:
            raise ConfigurationError(f"batch is {batch}, but it must be at least 1")
        after: UUID | None = None
        verifying = self._verifying and not dry_run
        store = self._store if verifying else self._store.unchecked
        while page := store.page(self._application, after=after, limit=batch):
            edited = self._edited(page) if verifying else set()
            live = [record for record in page if record.state is not KeyState.DESTROYED]
            self._settle([_Key(r) for r in live if r.key_id not in edited], dry_run=dry_run)
            after = page[-1].key_id
            if progress is not None:
                progress(self._result())
        return self._result()

    def _settle(self, keys: Sequence[_Key], *, dry_run: bool) -> None:
        unreadable = RewrapOutcome()
        self._checks.refuse_unreadable([key.record for key in keys], unreadable)
        self._note_failures(unreadable, keys)
        readable = [key for key in keys if key.outcome != FAILED]
        under_branches = [key for key in readable if _is_under_a_branch(key.record)]
        under_keks = [key for key in readable if not _is_under_a_branch(key.record)]
        self._branches.learn([key.record for key in under_branches])
        for target in self._targets:
            self._settle_version(target, [key.record for key in under_keks])
        if dry_run:
            self._look(under_keks, under_branches)
        else:
            for target in self._targets:
                self._rewrap_under(target, under_keks)
            self._rewrap_branches(under_branches)
        for key in keys:
            self._counts[key.outcome] += 1

    def _edited(self, page: Sequence[KeyRecord]) -> set[UUID]:
        """Fail edited rows before a KEK moves their keys. A KEK may move a key without unwrapping it here."""
        seen = RewrapOutcome()
        self._checks.refuse_edited(page, seen)
        if seen.ended_by is not None:
            raise seen.ended_by
        self._note_failures(seen, [_Key(record) for record in page if record.key_id in seen.failed])
        self._counts[FAILED] += len(seen.failed)
        return set(seen.failed)

    def _settle_version(self, target: KmsAdapter, records: Sequence[KeyRecord]) -> None:
        self._facts.ask_newest(target)
        if not self._facts.knows_newest(target):
            self._keks.learn_newest(target, records)

    def _look(self, under_keks: Sequence[_Key], under_branches: Sequence[_Key]) -> None:
        """Set the outcome that a rewrap of keys would have."""
        for key in under_keks:
            for target in self._targets:
                current = self._facts.current(target, key.record)
                if current is None:
                    key.outcome = TO_MOVE
                elif current not in key.record.verified and self._old(target, key.record):
                    key.awaits()
                elif self._old(target, key.record):
                    key.outcome = TO_MOVE
        for key in under_branches:
            if not self._is_settled(key.record):
                key.outcome = TO_MOVE

    def _rewrap_under(self, target: KmsAdapter, keys: Sequence[_Key]) -> None:
        """Wrap keys under a KEK where necessary, and drop superseded wrappings."""
        held, lacking = _parted(keys, partial(self._facts.current, target))
        proven: set[UUID] = set()
        if open_keys := [key for key in lacking if key.outcome != FAILED]:
            result = self._keks.rewrap(target, [key.record for key in open_keys])
            held.update(self._kept(result, open_keys))
            proven |= result.verified & held.keys()
            if result.ended_by is not None:
                raise result.ended_by
        old = {key: self._old(target, key.record) for key in keys if key.key_id in held}
        doubted = [
            key
            for key in old
            if key.key_id not in proven
            and key.outcome != FAILED
            and (self._verifying or (old[key] and held[key.key_id] in key.record.verified))
        ]
        proven |= self._proven(target, doubted, held)
        self._drop(
            {key: (held[key.key_id], gone) for key, gone in old.items() if key.outcome != FAILED}, proven
        )

    def _proven(self, target: KmsAdapter, keys: Sequence[_Key], held: Mapping[UUID, WrappedKey]) -> set[UUID]:
        """
        Unwrap the wrappings that replace others.

        It returns the ids of keys whose wrapping holds the right key. A row that says that a wrapping was
        verified is only a reason to try it. Anyone who can write to the tables can say so. A process that may
        add wrappings, but not unwrap, drops none.
        """
        if not keys or target.uri in self._denied:
            return set()
        try:
            seen = self._keks.verify(target, [(key.record, held[key.key_id]) for key in keys])
            self._mark(seen, keys, held)
            if seen.ended_by is not None:
                raise seen.ended_by
        except KmsForbiddenError:  # by this KEK, or by the KEK that should open the store key
            if self._verifying:
                raise
            self._denied.add(target.uri)
            return set()
        return seen.verified

    def _mark(self, seen: RewrapOutcome, keys: Sequence[_Key], held: Mapping[UUID, WrappedKey]) -> None:
        """Record wrappings that were unwrapped for the first time, and failures."""
        first = {
            key.key_id: held[key.key_id]
            for key in keys
            if key.key_id in seen.verified and held[key.key_id] not in key.record.verified
        }
        if first:
            self._store.unchecked.mark_wrappings_verified(first, wait=True)
        self._note_failures(seen, keys)

    def _rewrap_branches(self, keys: Sequence[_Key]) -> None:
        """Wrap data keys under the active keys of their branches. Wrappings under older keys are dropped."""
        open_keys = [key for key in keys if self._verifying or not self._is_settled(key.record)]
        held, lacking = _parted(open_keys, self._branches.current)
        there = [key for key in open_keys if key.key_id in held]
        seen = self._branches.verify([(key.record, held[key.key_id]) for key in there])
        self._mark(seen, there, held)
        proven = seen.verified
        if seen.ended_by is not None:
            raise seen.ended_by
        if lacking:
            result = self._branches.rewrap([key.record for key in lacking])
            try:
                held.update(self._kept(result, lacking))
            except KeyDestroyedError:  # a branch key was retired since: its branch has another one
                self._branches.forget()
                for key in lacking:
                    key.awaits()
            if result.ended_by is not None:
                raise result.ended_by
            proven |= result.verified & held.keys()
        self._drop(
            {
                key: (
                    held[key.key_id],
                    [w for w in key.record.wrappings if w.kek_uri != held[key.key_id].kek_uri],
                )
                for key in open_keys
                if key.key_id in proven and not self._branches.has_no_successor(key.record)
            },
            proven,
        )

    def _is_settled(self, record: KeyRecord) -> bool:
        """
        Return whether a data key is only under its branch's active key.

        If the branch has no active key, the answer is also yes.
        """
        if self._branches.has_no_successor(record):
            return True
        current = self._branches.current(record)
        return current is not None and record.wrappings == (current,)

    def _kept(self, result: RewrapOutcome, keys: Sequence[_Key]) -> dict[UUID, WrappedKey]:
        """
        Store new wrappings, and return the wrappings that are stored now.

        It also sets the outcomes of the other keys.
        """
        stored: set[UUID] = set()
        for verified in (True, False):
            made = {k: w for k, w in result.made.items() if (k in result.verified) is verified}
            if made:
                stored |= self._store.unchecked.put_wrappings(made, verified=verified)
        self._added.update(result.made[key_id].kek_uri for key_id in stored)
        self._note_failures(result, keys)
        for key in keys:
            if key.key_id not in stored:
                key.awaits()
        return {key_id: result.made[key_id] for key_id in stored}

    def _note_failures(self, result: RewrapOutcome, keys: Sequence[_Key]) -> None:
        for key in keys:
            if key.key_id in result.failed:
                key.outcome = FAILED
                if len(self._failures) < MAX_FAILURES:
                    self._failures[key.key_id] = result.failed[key.key_id]

    def _old(self, target: KmsAdapter, record: KeyRecord) -> list[WrappedKey]:
        """Return the wrappings to drop after one under *target* is verified."""
        return [
            wrapped
            for wrapped in record.wrappings
            if not self._facts.is_current(target, wrapped)
            and (self._exclusive or self._facts.is_under(target, wrapped))
        ]

    def _drop(self, old: Mapping[_Key, tuple[WrappedKey, Sequence[WrappedKey]]], verified: set[UUID]) -> None:
        """Drop old wrappings of keys whose new one is verified. The other keys wait."""
        superfluous = {key: pair for key, pair in old.items() if pair[1]}
        ready = {key.key_id: pair for key, pair in superfluous.items() if key.key_id in verified}
        dropped: set[UUID] = set()
        if ready:
            dropped = self._store.unchecked.drop_wrappings(
                {key_id: gone for key_id, (_, gone) in ready.items()},
                keep={key_id: kept for key_id, (kept, _) in ready.items()},
            )
            self._dropped += len(dropped)
        for key in superfluous:
            if key.key_id not in dropped:
                key.awaits()

    def _result(self) -> Rewrap:
        return Rewrap(
            done=self._counts[DONE],
            to_move=self._counts[TO_MOVE],
            awaiting=self._counts[AWAITING],
            failed=self._counts[FAILED],
            added=dict(self._added),
            dropped=self._dropped,
            failures=dict(self._failures),
        )


DONE, TO_MOVE, AWAITING, FAILED = "done", "to move", "awaiting", "failed"


class _Key:
    """A key of the current page, and its outcome."""

    __slots__ = ("key_id", "outcome", "record")

    def __init__(self, record: KeyRecord) -> None:
        self.record = record
        self.key_id = record.key_id
        self.outcome = DONE

    def awaits(self) -> None:
        """Record that old wrappings are kept for now. Keys that failed or would move keep that outcome."""
        if self.outcome == DONE:
            self.outcome = AWAITING


def _parted(
    keys: Sequence[_Key], current: Callable[[KeyRecord], WrappedKey | None]
) -> tuple[dict[UUID, WrappedKey], list[_Key]]:
    """Return the current wrappings of keys, and the keys without one."""
    found = [(key, current(key.record)) for key in keys]
    held = {key.key_id: wrapped for key, wrapped in found if wrapped is not None}
    return held, [key for key, wrapped in found if wrapped is None]


def _is_under_a_branch(record: KeyRecord) -> bool:
    return record.purpose not in _UNDER_KEKS_ONLY and branch_wrapping(record) is not None
