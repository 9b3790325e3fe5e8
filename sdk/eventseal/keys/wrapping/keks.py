"""The KEKs of a keyring: quorums of new keys, and verified wrappings."""

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
from eventseal.wording import counted

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
        count: The number of keys to create.
        quorum: The number of wrappings that each key needs.
        spare: The number of wrappings that each key may lack.

    Attributes:
        keys: The handles of the keys, once a KEK has created them.
        missing: The number of wrappings that are missing so far.
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
        Record the outcome of one KEK for each key.

        Returns:
            The error of a missing wrapping, if there is one and all keys can still have enough wrappings.

        Raises:
            KmsError: A key can no longer have enough wrappings. If there was an outage, that error is raised,
                because a retry can succeed, whatever another KEK answered.
            EventSealError: Something other than the KMS failed.
        """
        failure = None
        for index, outcome in enumerate(outcomes):
            if not isinstance(outcome, EventSealError):
                self._wrappings[index].append(outcome)
                continue
            self._missed[index] += 1
            self.missing += 1
            # Only an error of a KMS may cost a wrapping. Any other error ends the attempt
            # (docs/decisions/0008).
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
        """Return whether every key has as many wrappings as it needs."""
        return all(len(held) >= self._quorum for held in self._wrappings)

    def complete(self) -> list[tuple[DataKey, tuple[WrappedKey, ...]]]:
        """Return the keys with their wrappings."""
        return [(key, tuple(held)) for key, held in zip(self.keys, self._wrappings, strict=True)]

    def close(self) -> None:
        """Drop the keys without using them."""
        for key in self.keys:
            key.close()


_log = logging.getLogger(__name__)


MOST_REMEMBERED = 100_000
"""How many tried wrappings a process remembers. If there are more, it forgets all of them."""

_OLD_AND_NEW = 2


class Verifier:
    """
    Records in the key store which wrappings this process has unwrapped.

    Only keys with several wrappings are recorded, because nothing depends on the record of a single wrapping.
    Some records cannot be written immediately, for example inside the caller's write transaction. They are
    written after a later load, but may get lost.

    Args:
        store: The store that holds the keys.

    Attributes:
        pending: The wrappings that are not recorded yet, by the key's id.
    """

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.pending: dict[UUID, WrappedKey] = {}
        self._tried: set[tuple[UUID, WrappedKey]] = set()

    def is_due(self, record: KeyRecord, wrapped: WrappedKey) -> bool:
        """Return whether a wrapping still needs a trial by this process."""
        return (
            len(record.wrappings) > 1
            and wrapped not in record.verified
            and (record.key_id, wrapped) not in self._tried
        )

    def untried(self, record: KeyRecord) -> list[WrappedKey]:
        """
        Return a wrapping to try for each KEK.

        The key must be known to open elsewhere.

        Returns:
            No wrapping if none was verified yet, because then any wrapping that opens is equally good. Also
            no wrapping under a KEK that has more than an old one and a new one. That KEK only gets wrappings
            in its turn.
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
        Return a key's wrappings. The wrappings that must be tried come first.

        The newest wrapping is not always the right one. If two rewraps run at the same time, the later one
        may know an older version.
        """
        if len(record.wrappings) == 1 or len(record.verified) == len(record.wrappings):
            return record.wrappings
        return sorted(record.wrappings, key=lambda wrapped: not self.is_due(record, wrapped))

    def give_up(self, record: KeyRecord, wrapped: WrappedKey) -> None:
        """Remember that a wrapping was tried and did not open."""
        self._remember([(record.key_id, wrapped)])

    def note(self, opened: Iterable[tuple[KeyRecord, WrappedKey]]) -> None:
        """Record wrappings that held their keys. All pending records are written too."""
        due = {record.key_id: wrapped for record, wrapped in opened if self.is_due(record, wrapped)}
        if not due and not self.pending:
            return
        self._remember(due.items())
        with self._lock:
            pending, self.pending = self.pending | due, {}
        try:
            self._store.mark_wrappings_verified(pending, wait=False)
        except EventSealError as error:
            _log.debug("%d verified wrappings are not recorded yet: %s", len(pending), error)
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
        adapters: One or more adapters, of different KEKs.
        calls: Calls the KEKs. The calls to all KEKs that a keyring ever uses share one limit.
        quorum: How many of the KEKs must wrap a new key. ``None`` means all.
        fall_back_on_outage: Whether to unwrap under the next KEK if one is unavailable.
        clock: The clock for outages. If another KEK can replace an unavailable KEK, the unavailable one comes
            last for a few seconds.
        verifier: Records which of several wrappings was unwrapped.

    Attributes:
        adapters: The KEKs.
        calls: Calls the KEKs.
        unwrap: See :meth:`eventseal.keys.wrapping.unwrapping.Unwrapper.unwrap`.

    Raises:
        ConfigurationError: There is no KEK, one is not an adapter or is listed twice, or there are fewer KEKs
            than the quorum.
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
        check_adapters(adapters)
        self.adapters = tuple(adapters)
        self.calls = calls
        self._quorum = _checked_quorum(quorum, len(self.adapters))
        self._health = KekHealth(clock or BootClock())
        self.unwrap = Unwrapper(
            self.adapters, self.calls, self._health, verifier, fall_back_on_outage=fall_back_on_outage
        ).unwrap

    def generate(self, records: Sequence[KeyRecord]) -> list[tuple[DataKey, tuple[WrappedKey, ...]]]:
        """
        Create a key for each of *records*, wrapped by every KEK.

        With a quorum, at least that many KEKs wrap it. The first KEK creates the keys. If it fails, and the
        others are enough for the quorum, the next KEK creates them.

        Raises:
            KmsError: Too few KEKs wrapped one of the keys. Then no key is returned.
            IntegrityError: A KMS returned bytes that are not a key.
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
        """Create keys under one KEK, or wrap another KEK's new keys."""
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


def check_adapters(adapters: Sequence[object]) -> None:
    """
    Check that a keyring can use these adapters together.

    Raises:
        ConfigurationError: There is none, one is not an adapter, or two are of one KEK.
    """
    if not adapters:
        raise ConfigurationError(
            "no KMS key is configured, and there is no default",
            remedy="Pass one or more KMS adapters in kms=, or set EVENTSEAL_KMS_KEY.",
        )
    uris = []
    for adapter in adapters:
        if not isinstance(adapter, KmsAdapter):
            raise ConfigurationError(
                f"kms= contains a {type(adapter).__name__}, which is not a KMS adapter",
                remedy="Pass adapters, such as LocalKmsAdapter(...) or adapter_from_uri(uri).",
            )
        if adapter.uri.startswith(BRANCH_PREFIX):
            raise ConfigurationError(
                f"{adapter.uri} looks like a branch key, which the URI of a KMS key must not"
            )
        uris.append(adapter.uri)
    if len(set(uris)) < len(uris):
        raise ConfigurationError(f"a KMS key is listed twice in kms=: {', '.join(uris)}")


def _checked_quorum(quorum: int | None, keks: int) -> int:
    if quorum is None:
        return keks
    if type(quorum) is not int or not 1 <= quorum <= keks:
        raise ConfigurationError(
            f"wrap_quorum is {quorum}, but with {counted(keks, 'KMS key')} it must be from 1 to {keks}",
            remedy="Omit wrap_quorum, and then every KMS key wraps every key.",
        )
    return quorum
