"""The KEKs of a keyring: which must wrap a new key, and which wrappings were seen to open."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError, EventSealError, KmsError, KmsUnavailableError
from eventseal.keys.concurrency import copied
from eventseal.keys.policy import BootClock
from eventseal.keys.wrapping.branches import BRANCH_PREFIX
from eventseal.keys.wrapping.unwrapping import KekHealth, Unwrapper
from eventseal.kms.adapter import KmsAdapter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.policy import Clock
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.store import KeyStore
    from eventseal.keys.wrapping.kek_calls import KekCalls
    from eventseal.kms.adapter import WrappedKey


class NewKeyBatch:
    """
    A batch of new keys.

    Args:
        count: Keys to be made.
        quorum: Wrappings that each key needs.
        spare: Wrappings that each key may miss.

    Attributes:
        keys: Their handles, as soon as a KEK has made them.
        missing: Wrappings that are missing so far.
    """

    def __init__(self, count: int, *, quorum: int, spare: int) -> None:
        self.keys: list[DataKey] = []
        self.missing = 0
        self._quorum = quorum
        self._spare = spare
        self._wrappings: list[list[WrappedKey]] = [[] for _ in range(count)]
        self._missed = [0] * count
        self._outages: list[KmsUnavailableError | None] = [None] * count

    def take(self, outcomes: Sequence[WrappedKey | EventSealError]) -> KmsError | None:
        """
        Take what one KEK gave for each key.

        Returns:
            Why a wrapping is missing, if one is and all keys can still have enough.

        Raises:
            KmsError: Some key cannot have enough wrappings any more; if there was an outage, that: its end
                would mend it, whatever another KEK said.
            EventSealError: Something else than the KMS failed.
        """
        failure = None
        for index, outcome in enumerate(outcomes):
            if not isinstance(outcome, EventSealError):
                self._wrappings[index].append(outcome)
                continue
            self._missed[index] += 1
            self.missing += 1
            # Only an error of a KMS may cost a wrapping: all else ends the attempt (docs/decisions/0008).
            if not isinstance(outcome, KmsError):
                raise outcome
            if self._missed[index] > self._spare:
                raise self._decisive(index, outcome)
            if isinstance(outcome, KmsUnavailableError):
                self._outages[index] = outcome
            failure = outcome
        return failure

    def _decisive(self, index: int, last: KmsError) -> KmsError:
        outage = self._outages[index]
        if outage is None or isinstance(last, KmsUnavailableError):
            return last
        outage.__cause__ = last
        return outage

    def has_quorum(self) -> bool:
        """Whether every key has as many wrappings as it needs."""
        return all(len(held) >= self._quorum for held in self._wrappings)

    def complete(self) -> list[tuple[DataKey, tuple[WrappedKey, ...]]]:
        """Give the keys with their wrappings."""
        return [(key, tuple(held)) for key, held in zip(self.keys, self._wrappings, strict=True)]

    def close(self) -> None:
        """Drop the keys: they are not used."""
        for key in self.keys:
            key.close()


_log = logging.getLogger(__name__)


MOST_REMEMBERED = 100_000
"""Wrappings that a process remembers to have tried; when there are more, it begins anew."""

_OLD_AND_NEW = 2


class Verifier:
    """
    Tells the key store which wrappings this process has unwrapped, as well as it can.

    Only keys with several wrappings are told of: where there is one, nothing depends on it. What cannot be
    written now, such as inside the caller's write transaction, is written after a later load.

    Args:
        store: Holds the keys.

    Attributes:
        pending: What is not written yet, by the key's id.
    """

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.pending: dict[UUID, WrappedKey] = {}
        self._tried: set[tuple[UUID, WrappedKey]] = set()

    def is_due(self, record: KeyRecord, wrapped: WrappedKey) -> bool:
        """Whether something depends on whether a wrapping opens, and this process has not tried it yet."""
        return (
            len(record.wrappings) > 1
            and wrapped not in record.verified
            and (record.key_id, wrapped) not in self._tried
        )

    def untried(self, record: KeyRecord) -> list[WrappedKey]:
        """
        Give, of a key that opens elsewhere for sure, a wrapping under each KEK that has one to be tried.

        Returns:
            None where no wrapping was verified yet: then any one that opens is as good. None either under a
            KEK that has more than an old one and a new one: those in its turn are all that it is sent.
        """
        if not record.verified or len(record.verified) == len(record.wrappings):
            return []
        counts = Counter(wrapped.kek_uri for wrapped in record.wrappings)
        first: dict[str, WrappedKey] = {}
        for wrapped in record.wrappings:
            if counts[wrapped.kek_uri] <= _OLD_AND_NEW and self.is_due(record, wrapped):
                first.setdefault(wrapped.kek_uri, wrapped)
        return list(first.values())

    def in_order(self, record: KeyRecord) -> Sequence[WrappedKey]:
        """
        Give a key's wrappings, those that are to be tried first.

        The newest one alone would not do: of two rewraps at once, the later one may know of an older version.
        """
        if len(record.wrappings) == 1 or len(record.verified) == len(record.wrappings):
            return record.wrappings
        return sorted(record.wrappings, key=lambda wrapped: not self.is_due(record, wrapped))

    def give_up(self, record: KeyRecord, wrapped: WrappedKey) -> None:
        """Remember that a wrapping was tried in vain."""
        self._remember([(record.key_id, wrapped)])

    def note(self, opened: Iterable[tuple[KeyRecord, WrappedKey]]) -> None:
        """Take wrappings that held their keys, and write down what is not written yet."""
        due = {record.key_id: wrapped for record, wrapped in opened if self.is_due(record, wrapped)}
        if not due and not self.pending:
            return
        self._remember(due.items())
        with self._lock:
            pending, self.pending = self.pending | due, {}
        try:
            self._store.mark_wrappings_verified(pending, wait=False)
        except EventSealError as error:
            _log.debug("%d verified wrappings are not noted yet: %s", len(pending), error)
            self._put_back(pending)

    def _put_back(self, pending: Mapping[UUID, WrappedKey]) -> None:
        with self._lock:
            self.pending = {**pending, **self.pending}
            while len(self.pending) > MOST_REMEMBERED:
                del self.pending[next(iter(self.pending))]

    def _remember(self, tried: Iterable[tuple[UUID, WrappedKey]]) -> None:
        with self._lock:
            if len(self._tried) > MOST_REMEMBERED:
                self._tried.clear()
            self._tried.update(tried)


class Keks:
    """
    The KEKs that a keyring was given, in their order. Nothing else is ever contacted.

    Args:
        adapters: One or several, of different KEKs.
        calls: Makes the calls; those of all KEKs that a keyring ever uses share one limit.
        quorum: How many of the KEKs must wrap a new key; ``None``: all.
        fall_back_on_outage: Whether to unwrap under the next KEK where one is unavailable.
        clock: Where another KEK can stand in, one that was unavailable comes last for a few seconds of it.
        verifier: Told which of several wrappings has opened.

    Attributes:
        adapters: The KEKs.
        calls: As given.
        unwrap: See :meth:`eventseal.keys.wrapping.unwrapping.Unwrapper.unwrap`.

    Raises:
        ConfigurationError: There is none, one is no adapter or listed twice, or there are not as many as the
            quorum asks for.
    """

    def __init__(
        self,
        adapters: Sequence[KmsAdapter],
        *,
        calls: KekCalls,
        quorum: int | None = None,
        fall_back_on_outage: bool = False,
        clock: Clock | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        _check_adapters(adapters)
        self.adapters = tuple(adapters)
        self.calls = calls
        self._quorum = _checked_quorum(quorum, len(self.adapters))
        self._health = KekHealth(clock or BootClock())
        self.unwrap = Unwrapper(
            self.adapters, self.calls, self._health, verifier, fall_back_on_outage=fall_back_on_outage
        ).unwrap

    def generate(self, records: Sequence[KeyRecord]) -> list[tuple[DataKey, tuple[WrappedKey, ...]]]:
        """
        Make a key for each of *records*, and have every KEK wrap it, or at least as many as the quorum says.

        The first KEK makes the keys. If it cannot, and the others make up the quorum, the next one does.

        Raises:
            KmsError: Too few KEKs wrapped some key; then none is given.
            IntegrityError: A KMS gave what is no key.
        """
        spare = len(self.adapters) - self._quorum
        batch = NewKeyBatch(len(records), quorum=self._quorum, spare=spare)
        try:
            for adapter in self._health.in_order(self.adapters, resting_last=spare > 0):
                failure = batch.take(self._new_wrappings(adapter, records, batch))
                if failure is not None:
                    _log.warning("%s did not wrap all of %d new keys: %s", adapter.uri, len(records), failure)
        except BaseException:
            batch.close()
            raise
        self.calls.counters.count_missing_wrappings(batch.missing)
        return batch.complete()

    def _new_wrappings(
        self, adapter: KmsAdapter, records: Sequence[KeyRecord], batch: NewKeyBatch
    ) -> Sequence[WrappedKey | EventSealError]:
        """Have one KEK make the keys, or wrap those that another one has made."""
        outage = self._health.outage(adapter)
        if outage is not None and batch.has_quorum():
            return [copied(outage) for _ in records]
        outcomes: Sequence[WrappedKey | EventSealError]
        if batch.keys:
            outcomes = self.calls.wrap(adapter, batch.keys)
        else:
            try:
                made = self.calls.generate(adapter, records)
            except KmsError as error:
                outcomes = [copied(error) for _ in records]
            else:
                batch.keys = [key for key, _ in made]
                outcomes = [wrapped for _, wrapped in made]
        self._health.note(adapter, outcomes)
        return outcomes


def _check_adapters(adapters: Sequence[object]) -> None:
    if not adapters:
        raise ConfigurationError(
            "no KEK is configured, and there is no default one",
            remedy="Give kms= one KMS adapter or several, or set EVENTSEAL_KMS_KEY.",
        )
    uris = []
    for adapter in adapters:
        if not isinstance(adapter, KmsAdapter):
            raise ConfigurationError(
                f"kms= holds a {type(adapter).__name__}, which is no KMS adapter",
                remedy="Give adapters, such as LocalKmsAdapter(...) or adapter_from_uri(uri).",
            )
        if adapter.uri.startswith(BRANCH_PREFIX):
            raise ConfigurationError(f"{adapter.uri} looks like a branch key; no KEK's URI may")
        uris.append(adapter.uri)
    if len(set(uris)) < len(uris):
        raise ConfigurationError(f"a KEK is listed twice in kms=: {', '.join(uris)}")


def _checked_quorum(quorum: int | None, keks: int) -> int:
    if quorum is None:
        return keks
    if type(quorum) is not int or not 1 <= quorum <= keks:
        raise ConfigurationError(
            f"wrap_quorum is {quorum}; with {keks} KEKs listed, 1 to {keks} are allowed",
            remedy="Leave wrap_quorum out to have every KEK wrap every key.",
        )
    return quorum
