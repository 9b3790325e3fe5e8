"""Proves that keys open without what is about to end: each is unwrapped by what stays, whatever rows say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from eventseal.errors import IntegrityError, JobError
from eventseal.keys.moved import MAX_FAILURES, Moved
from eventseal.keys.states import KeyState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.errors import EventSealError
    from eventseal.keys.checked_store import CheckedStore
    from eventseal.keys.moved import RowChecks
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.resources import Wrapping
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
