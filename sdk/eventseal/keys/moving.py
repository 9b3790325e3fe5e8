"""Gives keys a wrapping under a KEK: inside its KMS where that can be, else by unwrapping and wrapping."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from eventseal.errors import EventSealError, NotMyKeyError
from eventseal.keys.kek_facts import concerns_the_kek
from eventseal.keys.moved import Moved
from eventseal.keys.unwrapping import few_of_each
from eventseal.kms.adapter import SupportsRewrap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.kek_facts import KekFacts
    from eventseal.keys.moved import RowChecks
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.wrapping import Keks
    from eventseal.kms.adapter import KmsAdapter, WrappedKey


class Mover:
    """
    Wraps keys under one KEK that are wrapped under others, or under an older version of it.

    Args:
        keks: What unwraps, the KEK that is moved to among them.
        facts: Which wrappings are whose.
        checks: Tell whether a row was edited; by the store key's seals only where keys are unwrapped.
        trusted: KEKs with which the application is configured: what is wrapped under them is unwrapped once
            more, so that the old wrappings can go at once.
    """

    def __init__(
        self,
        keks: Keks,
        facts: KekFacts,
        checks: RowChecks,
        *,
        trusted: Sequence[KmsAdapter],
    ) -> None:
        self._keks = keks
        self._facts = facts
        self._checks = checks
        self._verifying = {adapter.uri for adapter in trusted}

    def move(self, target: KmsAdapter, records: Sequence[KeyRecord]) -> Moved:
        """
        Make a wrapping under *target* for each of *records*, which can be read.

        A key is unwrapped only if the KMS of *target* cannot move any of its wrappings by itself.

        Raises:
            IntegrityError: The store key's row is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        moved = Moved()
        if isinstance(target, SupportsRewrap):
            self._move_inside(target, target, moved.untried(records), moved)
        self._move_outside(target, moved.untried(records), moved)
        return moved

    def verify(self, target: KmsAdapter, held: Sequence[tuple[KeyRecord, WrappedKey]]) -> Moved:
        """
        Unwrap wrappings under *target*, and see whether each holds its key.

        Args:
            target: Must let this process unwrap.
            held: Rows, and the wrapping of each.

        Returns:
            Which do, and why others do not; nothing is made.

        Raises:
            IntegrityError: The store key's row is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        seen = Moved()
        self._checks.prove([record for record, _ in held], self._keks.calls.unwrap(target, held), seen)
        return seen

    def learn_newest(self, target: KmsAdapter, records: Sequence[KeyRecord]) -> None:
        """
        Learn a KEK's newest version from a wrapping of it that comes back from a rewrap; nothing is stored.

        Raises:
            KmsError: The KMS refused or failed.
        """
        for record in records:
            for wrapped in few_of_each(record.wrappings):
                if (
                    self._facts.knows_newest(target)
                    or not isinstance(target, SupportsRewrap)
                    or not self._facts.is_under(target, wrapped)
                ):
                    continue
                (outcome,) = self._keks.calls.rewrap(target, [(record, wrapped)])
                if not isinstance(outcome, EventSealError):
                    self._facts.learn(target, outcome)
                elif concerns_the_kek(outcome):
                    raise outcome

    def _move_inside(
        self, target: KmsAdapter, service: SupportsRewrap, records: Sequence[KeyRecord], moved: Moved
    ) -> None:
        """Have the KMS move what it can: of each key one wrapping after the other, until one moves."""
        candidates = {record.key_id: self._candidates(target, record) for record in records}
        refused: dict[UUID, EventSealError] = {}
        elsewhere: set[UUID] = set()
        while asked := list(_next_of_each(moved.untried(records), candidates)):
            outcomes = self._keks.calls.rewrap(service, asked)
            for (record, _), outcome in zip(asked, outcomes, strict=True):
                if not isinstance(outcome, EventSealError):
                    self._facts.learn(target, outcome)
                    moved.made[record.key_id] = outcome
                elif isinstance(outcome, NotMyKeyError):
                    elsewhere.add(record.key_id)  # another service's: only unwrapping moves it
                elif concerns_the_kek(outcome):
                    moved.fail(record.key_id, outcome)
                else:
                    refused[record.key_id] = outcome
        for key_id, error in refused.items():
            if key_id not in moved.made and key_id not in elsewhere:
                moved.fail(key_id, error)

    def _candidates(self, target: KmsAdapter, record: KeyRecord) -> Iterator[WrappedKey]:
        """Give the wrappings that may be sent: the KEK's own first, and those that somebody has verified."""
        configured = [wrapped for wrapped in record.wrappings if self._facts.is_configured(wrapped)]
        return few_of_each(
            sorted(
                configured,
                key=lambda wrapped: (
                    not self._facts.is_under(target, wrapped),
                    wrapped not in record.verified,
                ),
            )
        )

    def _move_outside(self, target: KmsAdapter, records: Sequence[KeyRecord], moved: Moved) -> None:
        """Unwrap keys and wrap them again; what was edited is not wrapped again."""
        keys = self._checks.opened(records, self._keks.unwrap(records), moved)
        try:
            if keys and moved.ended_by is None:
                self._wrap(target, {r.key_id: r for r in records}, keys, moved)
        finally:
            for key in keys.values():
                key.close()

    def _wrap(
        self,
        target: KmsAdapter,
        records: dict[UUID, KeyRecord],
        keys: dict[UUID, DataKey],
        moved: Moved,
    ) -> None:
        made: dict[UUID, WrappedKey] = {}
        outcomes = self._keks.calls.wrap(target, list(keys.values()))
        for key_id, outcome in zip(keys, outcomes, strict=True):
            if isinstance(outcome, EventSealError):
                moved.fail(key_id, outcome)
            else:
                made[key_id] = outcome
                self._facts.learn(target, outcome)
        if any(wrapped.kek_version is None for wrapped in made.values()):
            version = self._facts.confirmed_newest(target)
            made = {
                key_id: replace(wrapped, kek_version=wrapped.kek_version or version)
                for key_id, wrapped in made.items()
            }
        moved.made.update(made)
        if target.uri in self._verifying and moved.ended_by is None:
            self._verify(target, [(records[key_id], wrapped) for key_id, wrapped in made.items()], moved)

    def _verify(self, target: KmsAdapter, made: Sequence[tuple[KeyRecord, WrappedKey]], moved: Moved) -> None:
        """Unwrap what was just wrapped, once; where the KEK does not let this process, others will."""
        for (record, _), outcome in zip(made, self._keks.calls.unwrap(target, made), strict=True):
            if not isinstance(outcome, EventSealError):
                outcome.close()
                moved.verified.add(record.key_id)
            elif concerns_the_kek(outcome):
                self._verifying.discard(target.uri)
            else:
                del moved.made[record.key_id]
                moved.fail(record.key_id, outcome)


def _next_of_each(
    records: Sequence[KeyRecord], candidates: dict[UUID, Iterator[WrappedKey]]
) -> Iterator[tuple[KeyRecord, WrappedKey]]:
    for record in records:
        wrapped = next(candidates[record.key_id], None)
        if wrapped is not None:
            yield record, wrapped
