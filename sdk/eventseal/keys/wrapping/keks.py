"""New keys while KEK after KEK wraps them, and how many KEKs may fail to. No I/O."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KekNotConfiguredError,
    KmsError,
    KmsUnavailableError,
    NotMyKeyError,
)
from eventseal.keys.concurrency import copied
from eventseal.keys.policy import BootClock
from eventseal.keys.wrapping.branches import BRANCH_PREFIX, branch_wrapping
from eventseal.keys.wrapping.kek_calls import KekCalls, KekHealth
from eventseal.keys.wrapping.unwrapping import Answer, Unwrapper, explains
from eventseal.kms.adapter import KmsAdapter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.policy import Clock
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.parts import KeyringCounters
    from eventseal.keys.wrapping.unwrapping import Verifier
    from eventseal.kms.adapter import WrappedKey


class NewKeys:
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


class Keks:
    """
    The KEKs that a keyring was given, in their order. Nothing else is ever contacted.

    Args:
        adapters: One or several, of different KEKs.
        counters: Told of every call that leaves the process, and of every wrapping that is missing.
        quorum: How many of the KEKs must wrap a new key; ``None``: all.
        fall_back_on_outage: Whether to unwrap under the next KEK where one is unavailable.
        clock: Where another KEK can stand in, one that was unavailable comes last for a few seconds of it.
        verifier: Told which of several wrappings has opened.

    Attributes:
        adapters: The KEKs.
        calls: Makes the calls to them.

    Raises:
        ConfigurationError: There is none, one is no adapter or listed twice, or there are not as many as the
            quorum asks for.
    """

    def __init__(
        self,
        adapters: Sequence[KmsAdapter],
        *,
        counters: KeyringCounters,
        quorum: int | None = None,
        fall_back_on_outage: bool = False,
        clock: Clock | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        _check_adapters(adapters)
        self.adapters = tuple(adapters)
        self.calls = KekCalls(counters)
        self._counters = counters
        self._quorum = _checked_quorum(quorum, len(self.adapters))
        self._falls_back = fall_back_on_outage
        self._health = KekHealth(clock or BootClock())
        self._unwrapper = Unwrapper(self.calls, self._health, verifier)

    def generate(self, records: Sequence[KeyRecord]) -> list[tuple[DataKey, tuple[WrappedKey, ...]]]:
        """
        Make a key for each of *records*, and have every KEK wrap it, or at least as many as the quorum says.

        The first KEK makes the keys. If it cannot, and the others make up the quorum, the next one does.

        Raises:
            KmsError: Too few KEKs wrapped some key; then none is given.
            IntegrityError: A KMS gave what is no key.
        """
        spare = len(self.adapters) - self._quorum
        batch = NewKeys(len(records), quorum=self._quorum, spare=spare)
        try:
            for adapter in self._health.in_order(self.adapters, resting_last=spare > 0):
                failure = batch.take(self._new_wrappings(adapter, records, batch))
                if failure is not None:
                    _log.warning("%s did not wrap all of %d new keys: %s", adapter.uri, len(records), failure)
        except BaseException:
            batch.close()
            raise
        self._counters.count_missing_wrappings(batch.missing)
        return batch.complete()

    def unwrap(self, records: Sequence[KeyRecord]) -> list[DataKey | EventSealError]:
        """
        Unwrap the key of each of *records* under the first KEK that one of its wrappings is addressed to.

        Of several wrappings under one KEK, one that nobody has verified is taken, else the newest. It is
        passed over if it was changed, or if its version serves no more. A key that opens elsewhere is opened
        once by an unverified wrapping under a KEK further down the list, so that somebody verifies that too.

        Returns:
            One outcome a record, in order: a handle whose bytes match the record's binding, or the error.
        """
        pending = {index: record for index, record in enumerate(records) if record.wrappings}
        settled = self._unwrapper.try_new(self.adapters, pending)
        passed: dict[int, EventSealError] = {}
        for adapter in self._health.in_order(self.adapters, resting_last=self._falls_back):
            left = {index: record for index, record in pending.items() if index not in settled}
            answers = self._unwrapper.ask(adapter, list(left.values()))
            for index, answer in zip(left, answers, strict=True):
                if isinstance(answer.outcome, EventSealError) and self._leads_on(answer):
                    passed[index] = _weightier(passed.get(index), answer.outcome)
                else:
                    settled[index] = answer._replace(outcome=_after(passed.get(index), answer.outcome))
        self._unwrapper.note(
            (pending[index], answer)
            for index, answer in settled.items()
            if not isinstance(answer.outcome, EventSealError)
        )
        return [
            settled[index].outcome if index in settled else self._not_unwrapped(record, passed.get(index))
            for index, record in enumerate(records)
        ]

    def _new_wrappings(
        self, adapter: KmsAdapter, records: Sequence[KeyRecord], batch: NewKeys
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

    def _leads_on(self, answer: Answer) -> bool:
        """Whether the next KEK may be tried after *answer*."""
        return (
            answer.is_doubtful
            or isinstance(answer.outcome, NotMyKeyError)
            or (self._falls_back and isinstance(answer.outcome, KmsUnavailableError))
        )

    def _not_unwrapped(self, record: KeyRecord, passed: EventSealError | None) -> EventSealError:
        """Say why no KEK has unwrapped a key."""
        if passed is not None and not isinstance(passed, NotMyKeyError):
            return passed
        if not record.wrappings:
            return IntegrityError(
                f"key {record.key_id} is {record.state} but has no wrapping: somebody deleted it",
                remedy="Restore the rows of key_wrappings from a backup.",
                key_id=record.key_id,
            )
        if branch_wrapping(record) is not None:
            return IntegrityError(
                f"key {record.key_id} of purpose {record.purpose} has a wrapping under a branch key, "
                "and none under a KEK of this keyring: only other keys are wrapped under branch keys",
                remedy="Find out who changed the key tables, and restore the key's rows from a backup.",
                key_id=record.key_id,
            )
        if passed is not None and explains(passed):  # such as where its alias points now
            return KekNotConfiguredError(
                f"key {record.key_id}: {passed}",
                remedy=passed.remedy,
                kek_uri=getattr(passed, "kek_uri", None),
            )
        uris = ", ".join(wrapping.kek_uri for wrapping in record.wrappings)
        configured = ", ".join(adapter.uri for adapter in self.adapters)
        return KekNotConfiguredError(
            f"key {record.key_id} is wrapped under {uris}; this keyring was given {configured}",
            kek_uri=record.wrappings[0].kek_uri,
        )


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


def _weightier(first: EventSealError | None, second: EventSealError) -> EventSealError:
    """Give the error that says more about a key, the first one if they say as much."""
    return second if first is None or _weight(second) > _weight(first) else first


def _weight(error: EventSealError) -> int:
    return int(explains(error)) if isinstance(error, NotMyKeyError) else 2


def _after(passed: EventSealError | None, answer: DataKey | EventSealError) -> DataKey | EventSealError:
    """Give *answer*; if it is an error, with the outage because of which its KEK was asked."""
    if isinstance(answer, EventSealError) and isinstance(passed, KmsUnavailableError):
        answer.__cause__ = passed
    return answer
