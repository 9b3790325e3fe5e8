"""Gives keys a wrapping under a KEK, and says which of their wrappings are under which KEK and version."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from eventseal.errors import EventSealError, IntegrityError, KmsForbiddenError, NotMyKeyError
from eventseal.keys.authentication.row_checks import check_row
from eventseal.keys.authentication.row_macs import check_readable
from eventseal.keys.wrapping.unwrapping import concerns_the_kek, few_of_each, is_under
from eventseal.kms.adapter import SupportsRewrap, TellsVersion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.store_key import StoreKey
    from eventseal.keys.wrapping.keks import Keks
    from eventseal.kms.adapter import KmsAdapter, WrappedKey


MAX_FAILURES = 1000
"""Failures that a run over all keys lists; the count goes on."""


@dataclass(slots=True)
class RewrapOutcome:
    """
    What became of some keys that were to be wrapped under another KEK, version or branch key.

    Attributes:
        made: New wrappings, by key; not stored yet.
        verified: Those of these keys whose new wrapping was unwrapped again, and holds the key.
        failed: Why others have none.
        ended_by: What ended the work: an error about a KEK. Keys that are in none of the above are left.
    """

    made: dict[UUID, WrappedKey] = field(default_factory=dict)
    verified: set[UUID] = field(default_factory=set)
    failed: dict[UUID, EventSealError] = field(default_factory=dict)
    ended_by: EventSealError | None = None

    def fail(self, key_id: UUID, error: EventSealError) -> None:
        """Note why a key has no new wrapping; an error about a KEK ends the work."""
        if concerns_the_kek(error):
            self.ended_by = self.ended_by or error
        else:
            self.failed[key_id] = error

    def untried(self, records: Sequence[KeyRecord]) -> list[KeyRecord]:
        """Give those of *records* of which nothing has become yet; none once the work has ended."""
        if self.ended_by is not None:
            return []
        return [r for r in records if r.key_id not in self.made and r.key_id not in self.failed]


class RowChecks:
    """
    Refuses the rows that were edited: no such key is wrapped again.

    Args:
        application: Whose keys.
        store_key: Its seals tell; it is unwrapped only when they are asked for.
    """

    def __init__(self, application: str, store_key: StoreKey) -> None:
        self._application = application
        self._store_key = store_key

    def refuse_unreadable(self, records: Sequence[KeyRecord], result: RewrapOutcome) -> None:
        """Fail the keys whose row holds what none does, and those with more wrappings than are read."""
        for record in records:
            try:
                check_readable(record)
                if record.more_wrappings:
                    raise _flooded(record)
            except IntegrityError as error:
                result.fail(record.key_id, error)

    def refuse_edited(self, records: Sequence[KeyRecord], result: RewrapOutcome) -> set[UUID]:
        """
        Fail the keys whose row no keyring sealed, and those of old rows that were put back.

        That a row calls its key destroyed, although it is not, matters too: a backup may need what ends.

        Returns:
            The refused keys. One of another application is not among ``result.failed``: it ends the work.

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
        Give the keys that were unwrapped and whose row matches its seal; fail the others.

        Args:
            records: The rows.
            outcomes: What unwrapping each of them gave.
            result: Takes the failures.

        Raises:
            IntegrityError: The store key's row is not what a keyring sealed.
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
        """Note as verified the keys that :meth:`opened` gives, and close them; raises as that does."""
        for key_id, key in self.opened(records, outcomes, result).items():
            key.close()
            result.verified.add(key_id)


def _flooded(record: KeyRecord) -> IntegrityError:
    count = len(record.wrappings) + record.more_wrappings
    return IntegrityError(
        f"key {record.key_id} has {count:,} wrappings: somebody added rows to key_wrappings",
        remedy="Find out who did, and restore the rows of this key from a backup.",
        key_id=record.key_id,
    )


class KekFacts:
    """
    Remembers, for one run, what KEKs are called in wrappings and what wraps now. A KEK is asked once.

    Args:
        adapters: Those that may be asked: nothing else is ever contacted.
    """

    def __init__(self, adapters: Iterable[KmsAdapter]) -> None:
        self._adapters = tuple(adapters)
        self._under: dict[tuple[str, str], bool] = {}
        self._newest: dict[str, str | None] = {}

    def is_configured(self, wrapped: WrappedKey) -> bool:
        """Whether a wrapping is under one of the KEKs."""
        return any(self.is_under(adapter, wrapped) for adapter in self._adapters)

    def is_under(self, adapter: KmsAdapter, wrapped: WrappedKey) -> bool:
        """Whether a wrapping is under this KEK."""
        place = adapter.uri, wrapped.kek_uri
        if place not in self._under:
            self._under[place] = is_under(adapter, wrapped.kek_uri)
        return self._under[place]

    def learn(self, adapter: KmsAdapter, made: WrappedKey) -> None:
        """Take from a wrapping that a KEK has just made what it is called there, and what wraps now."""
        self._under[adapter.uri, made.kek_uri] = True
        if made.kek_version is not None and isinstance(adapter, TellsVersion):
            self._newest[adapter.uri] = made.kek_version

    def ask_newest(self, adapter: KmsAdapter) -> None:
        """
        Ask a KEK for its newest version, unless that is known.

        Whoever may not ask, but may rewrap, learns it from the first wrapping that comes back.

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
        """Whether the KEK's newest version, or that it has none, is known."""
        return adapter.uri in self._newest

    def is_current(self, adapter: KmsAdapter, wrapped: WrappedKey) -> bool:
        """Whether a wrapping is under this KEK and its newest version; a KEK without versions has one."""
        if not self.is_under(adapter, wrapped):
            return False
        if adapter.uri not in self._newest:
            return False
        newest = self._newest[adapter.uri]
        return newest is None or wrapped.kek_version == newest

    def current(self, adapter: KmsAdapter, record: KeyRecord) -> WrappedKey | None:
        """Give a key's wrapping under a KEK's newest version, a verified one if there is one."""
        found = [wrapped for wrapped in record.wrappings if self.is_current(adapter, wrapped)]
        return next((wrapped for wrapped in found if wrapped in record.verified), next(iter(found), None))

    def confirmed_newest(self, adapter: KmsAdapter) -> str | None:
        """
        Ask again for the version that wraps: some KMS do not say under which one they made a wrapping.

        Returns:
            The version, if it is still the one that was known before they were made.

        Raises:
            KmsError: The KMS refused or failed.
        """
        before = self._newest.get(adapter.uri)
        if before is None or not isinstance(adapter, TellsVersion):
            return None
        return before if adapter.current_version() == before else None


class KekRewrapper:
    """
    Wraps keys under one KEK that are wrapped under others, or under an older version of it.

    Args:
        keks: What unwraps, the target KEK among them.
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

    def rewrap(self, target: KmsAdapter, records: Sequence[KeyRecord]) -> RewrapOutcome:
        """
        Make a wrapping under *target* for each of *records*, which can be read.

        A key is unwrapped only if the KMS of *target* cannot move any of its wrappings by itself.

        Raises:
            IntegrityError: The store key's row is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        result = RewrapOutcome()
        if isinstance(target, SupportsRewrap):
            self._rewrap_by_kms(target, target, result.untried(records), result)
        self._rewrap_here(target, result.untried(records), result)
        return result

    def verify(self, target: KmsAdapter, held: Sequence[tuple[KeyRecord, WrappedKey]]) -> RewrapOutcome:
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
        seen = RewrapOutcome()
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

    def _rewrap_by_kms(
        self, target: KmsAdapter, service: SupportsRewrap, records: Sequence[KeyRecord], result: RewrapOutcome
    ) -> None:
        """Have the KMS move what it can: of each key one wrapping after the other, until one moves."""
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
                    elsewhere.add(record.key_id)  # another service's: only unwrapping moves it
                elif concerns_the_kek(outcome):
                    result.fail(record.key_id, outcome)
                else:
                    refused[record.key_id] = outcome
        for key_id, error in refused.items():
            if key_id not in result.made and key_id not in elsewhere:
                result.fail(key_id, error)

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

    def _rewrap_here(self, target: KmsAdapter, records: Sequence[KeyRecord], result: RewrapOutcome) -> None:
        """Unwrap keys and wrap them again; what was edited is not wrapped again."""
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
        """Unwrap what was just wrapped, once; where the KEK does not let this process, others will."""
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
