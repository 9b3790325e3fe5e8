"""Calls to KEKs. They are counted, and a limited number runs at the same time."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from eventseal.errors import EventSealError, KmsUnavailableError, NotMyKeyError
from eventseal.keys.concurrency import copied
from eventseal.keys.data_key import generated_key, material_of, unwrapped_key
from eventseal.kms.adapter import EncryptionContext, SupportsBatch, SupportsGeneration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from eventseal.keys.authentication.row_checks import KeyringCounters
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord
    from eventseal.kms.adapter import KmsAdapter, SupportsRewrap, WrappedKey


CALLS_IN_FLIGHT = 20
"""The highest number of KEK calls that a keyring has in flight."""


class CallSlots:
    """
    Limits the number of calls that run at the same time.

    The thread that has waited longest goes first.

    Args:
        count: The number of slots.
    """

    def __init__(self, count: int = CALLS_IN_FLIGHT) -> None:
        self._count = self._free = count
        self._condition = threading.Condition()
        self._queue: deque[object] = deque()

    @contextmanager
    def taken(self, wanted: int) -> Iterator[None]:
        """
        Wait for slots and hold them.

        Args:
            wanted: How many calls the block may have in flight. A batch of an adapter may make one call for
                each of its keys. So it counts as that many calls, or as all slots if there are fewer.
        """
        wanted = min(wanted, self._count)
        self._take(wanted)
        try:
            yield
        finally:
            with self._condition:
                self._free += wanted
                self._condition.notify_all()

    def _take(self, wanted: int) -> None:
        ticket = object()
        with self._condition:
            self._queue.append(ticket)
            try:
                self._condition.wait_for(lambda: self._queue[0] is ticket and self._free >= wanted)
                self._free -= wanted
            finally:  # also if the thread is interrupted
                self._queue.remove(ticket)
                self._condition.notify_all()


Item = TypeVar("Item")
Value = TypeVar("Value")


class KekCalls:
    """
    Calls adapters for a keyring.

    It returns unwrapped keys as handles. So no frame of EventSeal that can raise an error holds key bytes.

    Args:
        counters: Count every call that leaves the process.

    Attributes:
        counters: Count every call that leaves the process.
    """

    def __init__(self, counters: KeyringCounters) -> None:
        self.counters = counters
        self._slots = CallSlots()

    def generate(self, adapter: KmsAdapter, records: Sequence[KeyRecord]) -> list[tuple[DataKey, WrappedKey]]:
        """
        Create a key under a KEK for each of *records*.

        Raises:
            KmsError: The KMS refused or failed. Then no key is returned.
            IntegrityError: The KMS returned bytes that are not a key.
        """
        if len(records) > 1 and isinstance(adapter, SupportsGeneration):
            return self._generated_together(adapter, records)
        made: list[tuple[DataKey, WrappedKey]] = []
        try:
            for record in records:
                made.append(self._generated(adapter, record))  # noqa: PERF401 - created keys are closed below
        except BaseException:
            for key, _ in made:
                key.close()
            raise
        return made

    def wrap(self, adapter: KmsAdapter, keys: Sequence[DataKey]) -> list[WrappedKey | EventSealError]:
        """Wrap keys under a KEK. There is one outcome for each key, in order."""
        if len(keys) > 1 and isinstance(adapter, SupportsBatch):
            self.counters.count_kms_calls(1)
            return self._together(
                len(keys), lambda: adapter.wrap_many([(material_of(key), _context_of(key)) for key in keys])
            )
        return _one_by_one(keys, lambda key: self._wrapped(adapter, key))

    def unwrap(
        self, adapter: KmsAdapter, addressed: Sequence[tuple[KeyRecord, WrappedKey]]
    ) -> list[DataKey | EventSealError]:
        """
        Unwrap keys under a KEK.

        Args:
            adapter: The KEK. It decides which of the wrappings are addressed to it.
            addressed: Rows, each with one wrapping.

        Returns:
            One outcome for each row, in order: a handle whose bytes match the row's binding, or the error.
        """
        if len(addressed) > 1 and isinstance(adapter, SupportsBatch):
            outcomes = self._unwrapped_together(adapter, addressed)
            self.counters.count_kms_calls(int(any(map(_called_out, outcomes))))
            return outcomes
        return _one_by_one(addressed, lambda pair: self._unwrapped(adapter, *pair))

    def rewrap(
        self, adapter: SupportsRewrap, addressed: Sequence[tuple[KeyRecord, WrappedKey]]
    ) -> list[WrappedKey | EventSealError]:
        """
        Move wrappings under a KEK's newest version, inside the KMS.

        The KMS does not show the keys.

        Args:
            adapter: The KEK. It decides which of the wrappings its KMS can move.
            addressed: Rows, each with one wrapping.

        Returns:
            One outcome for each row, in order.
        """
        asked = [(wrapped, _context_of(record)) for record, wrapped in addressed]
        outcomes = self._together(len(asked), lambda: adapter.rewrap_many(asked))
        self.counters.count_kms_calls(int(any(map(_called_out, outcomes))))
        return outcomes

    def _generated(self, adapter: KmsAdapter, record: KeyRecord) -> tuple[DataKey, WrappedKey]:
        self.counters.count_kms_calls(1)
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
        self.counters.count_kms_calls(1)
        giver = type(adapter).__name__
        with self._slots.taken(len(records)):
            answers = adapter.generate_data_keys([_context_of(record) for record in records])
        outcomes = [
            answer
            if isinstance(answer, EventSealError)
            else (generated_key(answer[0], record, giver=giver), answer[1])
            for answer, record in zip(answers, records, strict=True)
        ]
        del answers  # so that no traceback of the error below shows the bytes
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
        self.counters.count_kms_calls(1)
        try:
            with self._slots.taken(1):
                return adapter.wrap(material_of(key), _context_of(key))
        except EventSealError as error:
            return error

    def _together(
        self, count: int, ask: Callable[[], list[Value | EventSealError]]
    ) -> list[Value | EventSealError]:
        """Make one call for *count* keys. If it fails, each key gets the error."""
        try:
            with self._slots.taken(count):
                return ask()
        except EventSealError as error:
            return [copied(error) for _ in range(count)]

    def _unwrapped(
        self, adapter: KmsAdapter, record: KeyRecord, wrapped: WrappedKey
    ) -> DataKey | EventSealError:
        try:
            with self._slots.taken(1):
                material = adapter.unwrap(wrapped, _context_of(record))
        except EventSealError as error:
            self.counters.count_kms_calls(int(_called_out(error)))
            return error
        self.counters.count_kms_calls(1)
        return unwrapped_key(material, record, giver=type(adapter).__name__)

    def _unwrapped_together(
        self, adapter: SupportsBatch, addressed: Sequence[tuple[KeyRecord, WrappedKey]]
    ) -> list[DataKey | EventSealError]:
        giver = type(adapter).__name__
        asked = [(wrapped, _context_of(record)) for record, wrapped in addressed]
        answers = self._together(len(asked), lambda: adapter.unwrap_many(asked))
        return [
            answer if isinstance(answer, EventSealError) else unwrapped_key(answer, record, giver=giver)
            for answer, (record, _) in zip(answers, addressed, strict=True)
        ]


def _one_by_one(
    items: Sequence[Item], work: Callable[[Item], Value | EventSealError]
) -> list[Value | EventSealError]:
    """
    Do *work* for each item until an outage. The rest get the same error.

    They would only wait for the same outage.
    """
    outcomes: list[Value | EventSealError] = []
    for item in items:
        outcomes.append(work(item))
        if isinstance(outage := outcomes[-1], KmsUnavailableError):
            return outcomes + [copied(outage) for _ in items[len(outcomes) :]]
    return outcomes


def _context_of(key: DataKey | KeyRecord) -> EncryptionContext:
    return EncryptionContext(key.key_id, str(key.purpose), key.application)


def _called_out(outcome: object) -> bool:
    """Return whether an outcome needed a call. An adapter raises "not mine" before any call."""
    return not isinstance(outcome, NotMyKeyError)
