"""Wraps keys under a KEK, and finds the KEK of each wrapping."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from eventseal.errors import EventSealError, IntegrityError, KmsForbiddenError, NotMyKeyError
from eventseal.keys.authentication.row_checks import check_row
from eventseal.keys.authentication.row_macs import check_readable
from eventseal.keys.records import restore_remedy
from eventseal.keys.wrapping.unwrapping import concerns_the_kek, few_of_each, is_under
from eventseal.kms.adapter import SupportsRewrap, TellsVersion
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.store_key import StoreKey
    from eventseal.keys.wrapping.keks import Keks
    from eventseal.kms.adapter import KmsAdapter, WrappedKey


MAX_FAILURES = 1000
"""How many failures a run over all keys lists. All failures are counted."""


@dataclass(slots=True)
class RewrapOutcome:
    """
    The result of wrapping keys under another KEK, version or branch key.

    Attributes:
        made: The new wrappings by key id, which are not stored yet.
        verified: The keys whose new wrapping was unwrapped again, and holds the key.
        failed: The errors of keys that have no new wrapping.
        ended_by: The error about a KEK that ended the work. Keys that are in none of the above were not
            processed.
    """

    made: dict[UUID, WrappedKey] = field(default_factory=dict)
    verified: set[UUID] = field(default_factory=set)
    failed: dict[UUID, EventSealError] = field(default_factory=dict)
    ended_by: EventSealError | None = None

    def fail(self, key_id: UUID, error: EventSealError) -> None:
        """Record the error of a key. An error about a KEK ends the work."""
        if concerns_the_kek(error):
            self.ended_by = self.ended_by or error
        else:
            self.failed[key_id] = error

    def untried(self, records: Sequence[KeyRecord]) -> list[KeyRecord]:
        """Return the *records* without a result yet. Once the work has ended, it returns none."""
        if self.ended_by is not None:
            return []
        return [r for r in records if r.key_id not in self.made and r.key_id not in self.failed]


class RowChecks:
    """
    Rejects rows that were edited. Their keys are not wrapped again.

    Args:
        application: The application that owns the keys.
        store_key: The source of the MACs. It is unwrapped only when they are needed.
    """

    def __init__(self, application: str, store_key: StoreKey) -> None:
        self._application = application
        self._store_key = store_key

    def refuse_unreadable(self, records: Sequence[KeyRecord], result: RewrapOutcome) -> None:
        """Fail keys with unreadable rows or with more wrappings than are read."""
        for record in records:
            try:
                check_readable(record)
                if record.more_wrappings:
                    raise _flooded(record)
            except IntegrityError as error:
                result.fail(record.key_id, error)

    def refuse_edited(self, records: Sequence[KeyRecord], result: RewrapOutcome) -> set[UUID]:
        """
        Fail keys whose row is not authentic, or was put back.

        A row that says that its key is destroyed, although it is not, matters too. A backup may need a KEK
        that will be deleted.

        Returns:
            The rejected keys. A key of another application is not in ``result.failed``, because it ends the
            work.

        Raises:
            EventSealError: As :meth:`opened` raises.
        """
        seals = self._store_key.seals() if records else None
        refused: set[UUID] = set()
        for record in records:
            try:
                check_row(record, record.key_id, self._application, seals)
            except EventSealError as error:
                result.fail(record.key_id, error)
                refused.add(record.key_id)
        return refused

    def opened(
        self,
        records: Sequence[KeyRecord],
        outcomes: Sequence[DataKey | EventSealError],
        result: RewrapOutcome,
    ) -> dict[UUID, DataKey]:
        """
        Return the unwrapped keys whose rows are authentic, and fail the others.

        Args:
            records: The rows.
            outcomes: The result of unwrapping each row.
            result: The outcome that records the failures.

        Raises:
            IntegrityError: The store key's row is not authentic.
            KmsError: The store key could not be unwrapped.
            StoreError: The key store refused or failed.
        """
        keys: dict[UUID, DataKey] = {}
        for record, outcome in zip(records, outcomes, strict=True):
            if isinstance(outcome, EventSealError):
                result.fail(record.key_id, outcome)
            else:
                keys[record.key_id] = outcome
        try:
            refused = self.refuse_edited([record for record in records if record.key_id in keys], result)
        except BaseException:
            for key in keys.values():
                key.close()
            raise
        for key_id in refused:
            keys.pop(key_id).close()
        return keys

    def prove(
        self,
        records: Sequence[KeyRecord],
        outcomes: Sequence[DataKey | EventSealError],
        result: RewrapOutcome,
    ) -> None:
        """Record the keys that :meth:`opened` returns as verified, and close them. Raises as it does."""
        for key_id, key in self.opened(records, outcomes, result).items():
            key.close()
            result.verified.add(key_id)


def _flooded(record: KeyRecord) -> IntegrityError:
    count = len(record.wrappings) + record.more_wrappings
    return IntegrityError(
        f"key {record.key_id} has {counted(count, 'wrapping')}: somebody added rows to "
        "eventseal_key_wrappings",
        remedy=restore_remedy(),
        key_id=record.key_id,
    )


class KekFacts:
    """
    Remembers the names and newest versions of KEKs for one run.

    Each KEK is asked once.

    Args:
        adapters: The KEKs that may be asked. Nothing else is ever contacted.
    """

    def __init__(self, adapters: Iterable[KmsAdapter]) -> None:
        self._adapters = tuple(adapters)
        self._under: dict[tuple[str, str], bool] = {}
        self._newest: dict[str, str | None] = {}

    def is_configured(self, wrapped: WrappedKey) -> bool:
        """Return whether a wrapping is under one of the KEKs."""
        return any(self.is_under(adapter, wrapped) for adapter in self._adapters)

    def is_under(self, adapter: KmsAdapter, wrapped: WrappedKey) -> bool:
        """Return whether a wrapping is under this KEK."""
        place = adapter.uri, wrapped.kek_uri
        if place not in self._under:
            self._under[place] = is_under(adapter, wrapped.kek_uri)
        return self._under[place]

    def learn(self, adapter: KmsAdapter, made: WrappedKey) -> None:
        """Learn a KEK's name and newest version from a new wrapping."""
        self._under[adapter.uri, made.kek_uri] = True
        if made.kek_version is not None and isinstance(adapter, TellsVersion):
            self._newest[adapter.uri] = made.kek_version

    def ask_newest(self, adapter: KmsAdapter) -> None:
        """
        Ask a KEK for its newest version, unless it is known.

        If the process may rewrap but not ask, it learns the version from the first rewrapped wrapping.

        Raises:
            KmsError: The KMS refused or failed.
        """
        if adapter.uri in self._newest:
            return
        try:
            self._newest[adapter.uri] = (
                adapter.current_version() if isinstance(adapter, TellsVersion) else None
            )
        except KmsForbiddenError:
            if not isinstance(adapter, SupportsRewrap):
                raise

    def knows_newest(self, adapter: KmsAdapter) -> bool:
        """Return whether the newest version is known. A KEK without versions counts as known."""
        return adapter.uri in self._newest

    def is_current(self, adapter: KmsAdapter, wrapped: WrappedKey) -> bool:
        """
        Return whether a wrapping is under this KEK's newest version.

        A KEK without versions counts as having one version.
        """
        if not self.is_under(adapter, wrapped):
            return False
        if adapter.uri not in self._newest:
            return False
        newest = self._newest[adapter.uri]
        return newest is None or wrapped.kek_version == newest

    def current(self, adapter: KmsAdapter, record: KeyRecord) -> WrappedKey | None:
        """Return a key's wrapping under a KEK's newest version. A verified one comes first."""
        found = [wrapped for wrapped in record.wrappings if self.is_current(adapter, wrapped)]
        return next((wrapped for wrapped in found if wrapped in record.verified), next(iter(found), None))

    def confirmed_newest(self, adapter: KmsAdapter) -> str | None:
        """
        Ask again for the version that wraps.

        Some KMS do not return the version under which they created a wrapping.

        Returns:
            The version, if it is unchanged since before the wrappings were created.

        Raises:
            KmsError: The KMS refused or failed.
        """
        before = self._newest.get(adapter.uri)
        if before is None or not isinstance(adapter, TellsVersion):
            return None
        return before if adapter.current_version() == before else None


class KekRewrapper:
    """
    Wraps keys under one KEK that are under others or older versions.

    Args:
        keks: The KEKs that unwrap, including the target.
        facts: Knows which KEK each wrapping is under.
        checks: Reject edited rows. They use the store key's MACs only where keys are unwrapped.
        trusted: The KEKs of the application's configuration. New wrappings under them are unwrapped again, so
            that old wrappings can be dropped immediately.
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

    def rewrap(self, target: KmsAdapter, records: Sequence[KeyRecord]) -> RewrapOutcome:
        """
        Create a wrapping under *target* for each of the readable *records*.

        A key is unwrapped only if the KMS of *target* cannot move any of its wrappings itself.

        Raises:
            IntegrityError: The store key's row is not authentic.
            StoreError: The key store refused or failed.
        """
        result = RewrapOutcome()
        if isinstance(target, SupportsRewrap):
            self._rewrap_by_kms(target, target, result.untried(records), result)
        self._rewrap_here(target, result.untried(records), result)
        return result

    def verify(self, target: KmsAdapter, held: Sequence[tuple[KeyRecord, WrappedKey]]) -> RewrapOutcome:
        """
        Unwrap wrappings under *target*, and check that each holds its key.

        Args:
            target: A KEK that must allow this process to unwrap.
            held: Rows, each with one wrapping.

        Returns:
            The keys that passed, and the errors of the others. No wrapping is created.

        Raises:
            IntegrityError: The store key's row is not authentic.
            StoreError: The key store refused or failed.
        """
        seen = RewrapOutcome()
        self._checks.prove([record for record, _ in held], self._keks.calls.unwrap(target, held), seen)
        return seen

    def learn_newest(self, target: KmsAdapter, records: Sequence[KeyRecord]) -> None:
        """
        Learn a KEK's newest version by rewrapping one of its wrappings.

        The result of the rewrap is not stored.

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

    def _rewrap_by_kms(
        self, target: KmsAdapter, service: SupportsRewrap, records: Sequence[KeyRecord], result: RewrapOutcome
    ) -> None:
        """
        Move keys inside the KMS if possible.

        For each key, it tries one wrapping after the other until one moves.
        """
        candidates = {record.key_id: self._candidates(target, record) for record in records}
        refused: dict[UUID, EventSealError] = {}
        elsewhere: set[UUID] = set()
        while asked := list(_next_of_each(result.untried(records), candidates)):
            outcomes = self._keks.calls.rewrap(service, asked)
            for (record, _), outcome in zip(asked, outcomes, strict=True):
                if not isinstance(outcome, EventSealError):
                    self._facts.learn(target, outcome)
                    result.made[record.key_id] = outcome
                elif isinstance(outcome, NotMyKeyError):
                    elsewhere.add(record.key_id)  # of another service: only unwrapping can move it
                elif concerns_the_kek(outcome):
                    result.fail(record.key_id, outcome)
                else:
                    refused[record.key_id] = outcome
        for key_id, error in refused.items():
            if key_id not in result.made and key_id not in elsewhere:
                result.fail(key_id, error)

    def _candidates(self, target: KmsAdapter, record: KeyRecord) -> Iterator[WrappedKey]:
        """
        Yield the wrappings that may be sent, in order.

        The target's own wrappings come first, and then verified wrappings.
        """
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

    def _rewrap_here(self, target: KmsAdapter, records: Sequence[KeyRecord], result: RewrapOutcome) -> None:
        """Unwrap keys and wrap them again. Keys with edited rows are left out."""
        keys = self._checks.opened(records, self._keks.unwrap(records), result)
        try:
            if keys and result.ended_by is None:
                self._wrap(target, {r.key_id: r for r in records}, keys, result)
        finally:
            for key in keys.values():
                key.close()

    def _wrap(
        self,
        target: KmsAdapter,
        records: dict[UUID, KeyRecord],
        keys: dict[UUID, DataKey],
        result: RewrapOutcome,
    ) -> None:
        made: dict[UUID, WrappedKey] = {}
        outcomes = self._keks.calls.wrap(target, list(keys.values()))
        for key_id, outcome in zip(keys, outcomes, strict=True):
            if isinstance(outcome, EventSealError):
                result.fail(key_id, outcome)
            else:
                made[key_id] = outcome
                self._facts.learn(target, outcome)
        if any(wrapped.kek_version is None for wrapped in made.values()):
            version = self._facts.confirmed_newest(target)
            made = {
                key_id: replace(wrapped, kek_version=wrapped.kek_version or version)
                for key_id, wrapped in made.items()
            }
        result.made.update(made)
        if target.uri in self._verifying and result.ended_by is None:
            self._verify(target, [(records[key_id], wrapped) for key_id, wrapped in made.items()], result)

    def _verify(
        self, target: KmsAdapter, made: Sequence[tuple[KeyRecord, WrappedKey]], result: RewrapOutcome
    ) -> None:
        """Unwrap new wrappings, once. If the KEK does not allow it, other processes will do it."""
        for (record, _), outcome in zip(made, self._keks.calls.unwrap(target, made), strict=True):
            if not isinstance(outcome, EventSealError):
                outcome.close()
                result.verified.add(record.key_id)
            elif concerns_the_kek(outcome):
                self._verifying.discard(target.uri)
            else:
                del result.made[record.key_id]
                result.fail(record.key_id, outcome)


def _next_of_each(
    records: Sequence[KeyRecord], candidates: dict[UUID, Iterator[WrappedKey]]
) -> Iterator[tuple[KeyRecord, WrappedKey]]:
    for record in records:
        wrapped = next(candidates[record.key_id], None)
        if wrapped is not None:
            yield record, wrapped
