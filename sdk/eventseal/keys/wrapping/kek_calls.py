"""Calls to one KEK: counted, a bounded number at once, and how the KEK answered of late."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from eventseal.errors import (
    EventSealError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
    NotMyKeyError,
)
from eventseal.keys.concurrency import CallSlots, copied
from eventseal.keys.data_key import generated_key, material_of, unwrapped_key
from eventseal.keys.policy import RETRY_SECONDS
from eventseal.kms.adapter import EncryptionContext, SupportsBatch, SupportsGeneration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.policy import Clock
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.parts import KeyringCounters
    from eventseal.kms.adapter import KmsAdapter, SupportsRewrap, WrappedKey


TRIAL_RESTS = 900.0
"""Seconds for which a KEK that opened nothing is not tried before its turn."""


class KekHealth:
    """
    Remembers the last answers of KEKs.

    Args:
        clock: A KEK that was unavailable comes last for a few seconds of it, where another one can stand in.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._outages: dict[str, tuple[KmsUnavailableError, float]] = {}
        self._refusing: set[str] = set()
        self._serving: set[str] = set()
        self._untried_until: dict[str, float] = {}

    def note(self, adapter: KmsAdapter, outcomes: Sequence[object]) -> None:
        """Take what a KEK has answered."""
        for outcome in outcomes:
            if isinstance(outcome, KmsUnavailableError):
                self._outages[adapter.uri] = (copied(outcome), self._clock.now() + RETRY_SECONDS)
                return
            if isinstance(outcome, KmsForbiddenError | KmsKeyStateError):
                self._refusing.add(adapter.uri)
            elif not isinstance(outcome, EventSealError):
                self._refusing.discard(adapter.uri)
                self._serving.add(adapter.uri)

    def outage(self, adapter: KmsAdapter) -> KmsUnavailableError | None:
        """Give the error of a KEK that was unavailable a moment ago."""
        error, until = self._outages.get(adapter.uri, (None, 0.0))
        return error if error is not None and self._clock.now() < until else None

    def in_order(self, adapters: Sequence[KmsAdapter], *, resting_last: bool) -> list[KmsAdapter]:
        """Give KEKs in their order; if told so, those that did not answer a moment ago come last."""
        if not (resting_last and self._outages):
            return list(adapters)
        return sorted(adapters, key=lambda adapter: self.outage(adapter) is not None)

    def refuses(self, adapter: KmsAdapter) -> bool:
        """Whether a KEK said no, and has not opened or wrapped anything since."""
        return adapter.uri in self._refusing

    def serves(self, adapter: KmsAdapter) -> bool:
        """Whether a KEK has opened or wrapped something."""
        return adapter.uri in self._serving

    def rest_from_trials(self, adapter: KmsAdapter) -> None:
        """Ask a KEK for nothing before its turn, for a while."""
        self._untried_until[adapter.uri] = self._clock.now() + TRIAL_RESTS

    def may_be_tried(self, adapter: KmsAdapter) -> bool:
        """Whether a KEK may be asked before its turn."""
        rested = self._clock.now() >= self._untried_until.get(adapter.uri, 0.0)
        return rested and self.outage(adapter) is None


Item = TypeVar("Item")
Value = TypeVar("Value")


class KekCalls:
    """
    Calls adapters for a keyring.

    Unwrapped keys travel as handles from here on, so that no frame of EventSeal's that can raise holds bytes.

    Args:
        counters: Told of every call that leaves the process.
    """

    def __init__(self, counters: KeyringCounters) -> None:
        self._counters = counters
        self._slots = CallSlots()

    def generate(self, adapter: KmsAdapter, records: Sequence[KeyRecord]) -> list[tuple[DataKey, WrappedKey]]:
        """
        Have a KEK make a key for each of *records*.

        Raises:
            KmsError: The KMS refused or failed; then none is given.
            IntegrityError: What it gave is no key.
        """
        if len(records) > 1 and isinstance(adapter, SupportsGeneration):
            return self._generated_together(adapter, records)
        made: list[tuple[DataKey, WrappedKey]] = []
        try:
            for record in records:
                made.append(self._generated(adapter, record))  # noqa: PERF401 - what was made is closed below
        except BaseException:
            for key, _ in made:
                key.close()
            raise
        return made

    def wrap(self, adapter: KmsAdapter, keys: Sequence[DataKey]) -> list[WrappedKey | EventSealError]:
        """Have a KEK wrap keys: one outcome a key, in order."""
        if len(keys) > 1 and isinstance(adapter, SupportsBatch):
            self._counters.count_kms_calls(1)
            return self._wrapped_together(adapter, keys)
        return _one_by_one(keys, lambda key: self._wrapped(adapter, key))

    def unwrap(
        self, adapter: KmsAdapter, addressed: Sequence[tuple[KeyRecord, WrappedKey]]
    ) -> list[DataKey | EventSealError]:
        """
        Have a KEK unwrap keys.

        Args:
            adapter: Says itself which of the wrappings are addressed to it.
            addressed: Rows, and a wrapping of each.

        Returns:
            One outcome a row, in order: a handle whose bytes match the row's binding, or the error.
        """
        if len(addressed) > 1 and isinstance(adapter, SupportsBatch):
            outcomes = self._unwrapped_together(adapter, addressed)
            self._counters.count_kms_calls(int(any(map(_called_out, outcomes))))
            return outcomes
        return _one_by_one(addressed, lambda pair: self._unwrapped(adapter, *pair))

    def rewrap(
        self, adapter: SupportsRewrap, addressed: Sequence[tuple[KeyRecord, WrappedKey]]
    ) -> list[WrappedKey | EventSealError]:
        """
        Have a KMS move wrappings under a KEK's newest version, without showing the keys.

        Args:
            adapter: The KEK; says itself which of the wrappings its KMS can move.
            addressed: Rows, and a wrapping of each.

        Returns:
            One outcome a row, in order.
        """
        try:
            with self._slots.taken(len(addressed)):
                outcomes = adapter.rewrap_many(
                    [(wrapped, _context_of(record)) for record, wrapped in addressed]
                )
        except EventSealError as error:
            outcomes = [copied(error) for _ in addressed]
        self._counters.count_kms_calls(int(any(map(_called_out, outcomes))))
        return outcomes

    def _generated(self, adapter: KmsAdapter, record: KeyRecord) -> tuple[DataKey, WrappedKey]:
        self._counters.count_kms_calls(1)
        with self._slots.taken(1):
            material, wrapped = adapter.generate_data_key(_context_of(record))
        key = generated_key(material, record, giver=type(adapter).__name__)
        del material
        if isinstance(key, EventSealError):
            raise key
        return key, wrapped

    def _generated_together(
        self, adapter: SupportsGeneration, records: Sequence[KeyRecord]
    ) -> list[tuple[DataKey, WrappedKey]]:
        self._counters.count_kms_calls(1)
        giver = type(adapter).__name__
        with self._slots.taken(len(records)):
            answers = adapter.generate_data_keys([_context_of(record) for record in records])
        outcomes = [
            answer
            if isinstance(answer, EventSealError)
            else (generated_key(answer[0], record, giver=giver), answer[1])
            for answer, record in zip(answers, records, strict=True)
        ]
        del answers  # no traceback of the error below shows the bytes
        made: list[tuple[DataKey, WrappedKey]] = []
        failures: list[EventSealError] = []
        for outcome in outcomes:
            if isinstance(outcome, EventSealError):
                failures.append(outcome)
            elif isinstance(outcome[0], EventSealError):
                failures.append(outcome[0])
            else:
                made.append((outcome[0], outcome[1]))
        if not failures:
            return made
        for key, _ in made:
            key.close()
        raise failures[0]

    def _wrapped(self, adapter: KmsAdapter, key: DataKey) -> WrappedKey | EventSealError:
        self._counters.count_kms_calls(1)
        try:
            with self._slots.taken(1):
                return adapter.wrap(material_of(key), _context_of(key))
        except EventSealError as error:
            return error

    def _wrapped_together(
        self, adapter: SupportsBatch, keys: Sequence[DataKey]
    ) -> list[WrappedKey | EventSealError]:
        try:
            with self._slots.taken(len(keys)):
                return adapter.wrap_many([(material_of(key), _context_of(key)) for key in keys])
        except EventSealError as error:
            return [copied(error) for _ in keys]

    def _unwrapped(
        self, adapter: KmsAdapter, record: KeyRecord, wrapped: WrappedKey
    ) -> DataKey | EventSealError:
        try:
            with self._slots.taken(1):
                material = adapter.unwrap(wrapped, _context_of(record))
        except EventSealError as error:
            self._counters.count_kms_calls(int(_called_out(error)))
            return error
        self._counters.count_kms_calls(1)
        return unwrapped_key(material, record, giver=type(adapter).__name__)

    def _unwrapped_together(
        self, adapter: SupportsBatch, addressed: Sequence[tuple[KeyRecord, WrappedKey]]
    ) -> list[DataKey | EventSealError]:
        giver = type(adapter).__name__
        asked = [(wrapped, _context_of(record)) for record, wrapped in addressed]
        try:
            with self._slots.taken(len(asked)):
                answers = adapter.unwrap_many(asked)
        except EventSealError as error:
            return [copied(error) for _ in asked]
        return [
            answer if isinstance(answer, EventSealError) else unwrapped_key(answer, record, giver=giver)
            for answer, (record, _) in zip(answers, addressed, strict=True)
        ]


def _one_by_one(
    items: Sequence[Item], work: Callable[[Item], Value | EventSealError]
) -> list[Value | EventSealError]:
    """Do *work* for each item, until an outage, which the rest would only wait for as well."""
    outcomes: list[Value | EventSealError] = []
    for item in items:
        outcomes.append(work(item))
        if isinstance(outage := outcomes[-1], KmsUnavailableError):
            return outcomes + [copied(outage) for _ in items[len(outcomes) :]]
    return outcomes


def _context_of(key: DataKey | KeyRecord) -> EncryptionContext:
    return EncryptionContext(key.key_id, str(key.purpose), key.application)


def _called_out(outcome: object) -> bool:
    """Whether an outcome took a call: an adapter says "not mine" before any."""
    return not isinstance(outcome, NotMyKeyError)
