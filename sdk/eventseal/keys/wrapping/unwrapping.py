"""Unwraps keys. It chooses KEKs and wrappings, and remembers each KEK's recent answers."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KekNotConfiguredError,
    KmsError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
    NotMyKeyError,
)
from eventseal.keys.concurrency import copied
from eventseal.keys.policy import RETRY_SECONDS
from eventseal.keys.records import restore_remedy
from eventseal.keys.wrapping.branches import branch_wrapping
from eventseal.kms.adapter import SupportsAliases

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.policy import Clock
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.wrapping.kek_calls import KekCalls
    from eventseal.keys.wrapping.keks import Verifier
    from eventseal.kms.adapter import KmsAdapter, WrappedKey


def is_under(adapter: KmsAdapter, kek_uri: str) -> bool:
    """
    Return whether a wrapping that names *kek_uri* is under a KEK.

    Raises:
        KmsError: The KEK is configured as an alias that could not be resolved.
    """
    return kek_uri == adapter.uri or (isinstance(adapter, SupportsAliases) and adapter.is_named(kek_uri))


def concerns_the_kek(error: Exception) -> bool:
    """
    Return whether an error concerns a KEK, or the connection to it.

    Other errors concern one wrapping or key.
    """
    if isinstance(error, ConfigurationError):
        return not isinstance(error, KekNotConfiguredError)
    # A plain KmsError may concern one wrapping only. An error with a version concerns that version only.
    return (
        isinstance(error, KmsError)
        and type(error) is not KmsError
        and not getattr(error, "kek_version", None)
    )


_log = logging.getLogger(__name__)


TRIAL_RESTS = 900.0
"""
How many seconds a KEK that opened nothing is not tried early.

Early means before its turn.
"""


class KekHealth:
    """
    Remembers the last answers of KEKs.

    Args:
        clock: The clock for outages. If another KEK can replace an unavailable KEK, the unavailable one comes
            last for a few seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._outages: dict[str, tuple[KmsUnavailableError, float]] = {}
        self._refusing: set[str] = set()
        self._serving: set[str] = set()
        self._untried_until: dict[str, float] = {}

    def note(self, adapter: KmsAdapter, outcomes: Sequence[object]) -> None:
        """Record the answers of a KEK."""
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
        """Return the error of a KEK that was unavailable a moment ago."""
        error, until = self._outages.get(adapter.uri, (None, 0.0))
        return error if error is not None and self._clock.now() < until else None

    def in_order(self, adapters: Sequence[KmsAdapter], *, resting_last: bool) -> list[KmsAdapter]:
        """Return KEKs in their order. With *resting_last*, recently unavailable ones come last."""
        if not (resting_last and self._outages):
            return list(adapters)
        return sorted(adapters, key=lambda adapter: self.outage(adapter) is not None)

    def refuses(self, adapter: KmsAdapter) -> bool:
        """Return whether a KEK refused a call and has served none since."""
        return adapter.uri in self._refusing

    def serves(self, adapter: KmsAdapter) -> bool:
        """Return whether a KEK has opened or wrapped a key."""
        return adapter.uri in self._serving

    def rest_from_trials(self, adapter: KmsAdapter) -> None:
        """Stop trying a KEK before its turn, for a while."""
        self._untried_until[adapter.uri] = self._clock.now() + TRIAL_RESTS

    def may_be_tried(self, adapter: KmsAdapter) -> bool:
        """Return whether a KEK may be tried before its turn."""
        rested = self._clock.now() >= self._untried_until.get(adapter.uri, 0.0)
        return rested and self.outage(adapter) is None


MOST_TRIED = 3
"""
How many wrappings of one key are sent to one KEK.

An attacker may have added thousands that open nothing.
"""


class Answer(NamedTuple):
    """
    The answer of one KEK for a key.

    Attributes:
        outcome: The key or the error. ``NotMyKeyError`` if none of the key's wrappings is addressed to the
            KEK.
        wrapped: The wrapping that was unwrapped or failed.
        is_doubtful: Whether it is the error of an unverified wrapping of a key that has others. The others
            are tried before the error counts.
    """

    outcome: DataKey | EventSealError
    wrapped: WrappedKey
    is_doubtful: bool = False


class Unwrapper:
    """
    Unwraps keys by calling KEKs.

    Args:
        adapters: The KEKs, in their order.
        calls: Calls the KEKs.
        health: Records the answers.
        verifier: Records which wrappings opened. With ``None``, nothing is recorded, and no wrapping is tried
            only to verify it.
        fall_back_on_outage: Whether to unwrap under the next KEK if one is unavailable.
    """

    def __init__(
        self,
        adapters: Sequence[KmsAdapter],
        calls: KekCalls,
        health: KekHealth,
        verifier: Verifier | None,
        *,
        fall_back_on_outage: bool,
    ) -> None:
        self._adapters = adapters
        self._calls = calls
        self._health = health
        self._verifier = verifier
        self._falls_back = fall_back_on_outage

    def unwrap(self, records: Sequence[KeyRecord]) -> list[DataKey | EventSealError]:
        """
        Unwrap the key of each of *records*.

        It uses the first KEK to which one of the key's wrappings is addressed. If several wrappings are under
        one KEK, it takes a wrapping that was never verified, or else the newest. It skips a wrapping that was
        changed, or whose KEK version no longer serves. If a key can be unwrapped elsewhere, it is unwrapped
        once by an unverified wrapping under a later KEK. So that wrapping gets verified too.

        Returns:
            One outcome for each record, in order: a handle whose bytes match the record's binding, or the
            error.
        """
        pending = {index: record for index, record in enumerate(records) if record.wrappings}
        settled = self._try_new(pending)
        passed: dict[int, EventSealError] = {}
        for adapter in self._health.in_order(self._adapters, resting_last=self._falls_back):
            left = {index: record for index, record in pending.items() if index not in settled}
            answers = self._ask(adapter, list(left.values()))
            for index, answer in zip(left, answers, strict=True):
                if isinstance(answer.outcome, EventSealError) and self._leads_on(answer):
                    passed[index] = _weightier_error(passed.get(index), answer.outcome)
                else:
                    settled[index] = answer._replace(outcome=_after(passed.get(index), answer.outcome))
        opened = [
            (pending[index], answer.wrapped)
            for index, answer in settled.items()
            if not isinstance(answer.outcome, EventSealError) and len(pending[index].wrappings) > 1
        ]
        if self._verifier is not None and (opened or self._verifier.pending):
            self._verifier.note(opened)
        return [
            settled[index].outcome if index in settled else self._not_unwrapped(record, passed.get(index))
            for index, record in enumerate(records)
        ]

    def _ask(self, adapter: KmsAdapter, records: Sequence[KeyRecord]) -> list[Answer]:
        """
        Unwrap keys under one KEK, by at most 3 wrappings each.

        If several wrappings of a key are under the KEK, a wrapping that must be tried comes first, or else
        the newest.

        Returns:
            One answer for each record, in order.
        """
        answers: dict[int, Answer] = {}
        tried: Counter[int] = Counter()
        order = [
            record.wrappings
            if self._verifier is None or len(record.wrappings) == 1
            else self._verifier.in_order(record)
            for record in records
        ]
        for place in range(max(map(len, order), default=0)):
            asked = [
                index
                for index, wrappings in enumerate(order)
                if place < len(wrappings) and tried[index] < MOST_TRIED and _goes_on(answers.get(index))
            ]
            addressed = [(records[index], order[index][place]) for index in asked]
            for index, pair, outcome in zip(
                asked, addressed, self._calls.unwrap(adapter, addressed), strict=True
            ):
                given = Answer(outcome, pair[1], self._is_doubtful(*pair, outcome))
                answers[index] = _weightier(answers.get(index), given)
                tried[index] += not isinstance(outcome, NotMyKeyError)
        for index, count in tried.items():
            if count == MOST_TRIED and answers[index].is_doubtful:
                answers[index] = _given_up(records[index], answers[index])
        self._health.note(adapter, [answer.outcome for answer in answers.values()])
        return [answers[index] for index in range(len(records))]

    def _try_new(self, pending: Mapping[int, KeyRecord]) -> dict[int, Answer]:
        """
        Open keys by new wrappings under a KEK before its turn.

        So a process verifies these wrappings. This happens once, and replaces a call that is necessary
        anyway. If it fails, the key is opened in the ordinary way. If an earlier KEK refused a call, no later
        KEK is tried.

        Args:
            pending: Records by index.

        Returns:
            The answers of the keys that opened.
        """
        opened: dict[int, Answer] = {}
        if self._verifier is None or len(self._adapters) == 1:
            return opened
        due = {index: found for index, record in pending.items() if (found := self._verifier.untried(record))}
        for earlier, adapter in pairwise(self._adapters):
            # A denial is a decision: no other KEK may bypass it (docs/decisions/0008, 0009).
            if not due or self._health.refuses(earlier):
                break
            if self._health.may_be_tried(adapter):
                opened |= self._tried(
                    adapter,
                    [
                        (i, pending[i], wrapped)
                        for i, found in due.items()
                        if i not in opened
                        for wrapped in found
                    ],
                )
        return opened

    def _leads_on(self, answer: Answer) -> bool:
        """Return whether the next KEK may be tried after *answer*."""
        return (
            answer.is_doubtful
            or isinstance(answer.outcome, NotMyKeyError)
            or (self._falls_back and isinstance(answer.outcome, KmsUnavailableError))
        )

    def _not_unwrapped(self, record: KeyRecord, passed: EventSealError | None) -> EventSealError:
        """Return the error that explains why no KEK has unwrapped a key."""
        if passed is not None and not isinstance(passed, NotMyKeyError):
            return passed
        if not record.wrappings:
            return IntegrityError(
                f"key {record.key_id} is {record.state} but has no wrapping, because somebody deleted it",
                remedy=restore_remedy("this key's rows of eventseal_key_wrappings"),
                key_id=record.key_id,
            )
        if branch_wrapping(record) is not None:
            return IntegrityError(
                f"key {record.key_id} of purpose {record.purpose} has a wrapping under a branch key, "
                "and none under a KMS key of this keyring. Branch keys wrap only keys of other purposes",
                remedy=restore_remedy(),
                key_id=record.key_id,
            )
        if passed is not None and explains(passed):  # such as the KEK that its alias now points to
            return KekNotConfiguredError(
                f"key {record.key_id}: {passed}",
                remedy=passed.remedy,
                kek_uri=getattr(passed, "kek_uri", None),
            )
        uris = ", ".join(wrapping.kek_uri for wrapping in record.wrappings)
        configured = ", ".join(adapter.uri for adapter in self._adapters)
        return KekNotConfiguredError(
            f"key {record.key_id} is wrapped under {uris}, but this keyring is configured with {configured}",
            kek_uri=record.wrappings[0].kek_uri,
        )

    def _tried(
        self, adapter: KmsAdapter, candidates: Sequence[tuple[int, KeyRecord, WrappedKey]]
    ) -> dict[int, Answer]:
        """
        Try wrappings under one KEK.

        If the KEK is not known to serve, the first wrapping is tried alone.
        """
        opened: dict[int, Answer] = {}
        rest = list(candidates)
        while rest and self._health.may_be_tried(adapter):
            count = len(rest) if self._health.serves(adapter) else 1
            asked, rest = rest[:count], rest[count:]
            outcomes = self._calls.unwrap(adapter, [(record, wrapped) for _, record, wrapped in asked])
            self._health.note(adapter, outcomes)
            for (index, record, wrapped), outcome in zip(asked, outcomes, strict=True):
                if not isinstance(outcome, EventSealError):
                    opened[index] = Answer(outcome, wrapped)
                elif concerns_the_kek(outcome):
                    self._health.rest_from_trials(adapter)
                elif not isinstance(outcome, NotMyKeyError):
                    self._warn(record, wrapped, outcome)
        return opened

    def _is_doubtful(self, record: KeyRecord, wrapped: WrappedKey, outcome: DataKey | EventSealError) -> bool:
        of_wrapping = isinstance(outcome, IntegrityError) or (
            isinstance(outcome, KmsKeyStateError) and outcome.kek_version is not None
        )
        # An unverified wrapping is skipped, so that one bad row does not cost the key (docs/decisions/0009).
        if not of_wrapping or len(record.wrappings) == 1 or wrapped in record.verified:
            return False
        self._warn(record, wrapped, outcome)
        return True

    def _warn(self, record: KeyRecord, wrapped: WrappedKey, outcome: object) -> None:
        _log.warning(
            "key %s has a new wrapping under %s that does not open. Its other wrappings are kept: %s",
            record.key_id,
            wrapped.kek_uri,
            outcome,
        )
        if self._verifier is not None:
            self._verifier.give_up(record, wrapped)


def few_of_each(wrappings: Iterable[WrappedKey]) -> Iterator[WrappedKey]:
    """Yield at most 3 wrappings under each KEK, in their order."""
    given: Counter[str] = Counter()
    for wrapped in wrappings:
        given[wrapped.kek_uri] += 1
        if given[wrapped.kek_uri] <= MOST_TRIED:
            yield wrapped


def _given_up(record: KeyRecord, answer: Answer) -> Answer:
    """Add the number of untried wrappings under a KEK to the answer."""
    uri = answer.wrapped.kek_uri
    left = sum(wrapped.kek_uri == uri for wrapped in record.wrappings) - MOST_TRIED + record.more_wrappings
    if left <= 0:
        return answer
    error = IntegrityError(
        f"key {record.key_id}: {MOST_TRIED} of its wrappings under {uri} do not open, starting with the "
        f"newest. {left:,} more were not tried",
        remedy=restore_remedy("this key's rows of eventseal_key_wrappings"),
        key_id=record.key_id,
    )
    return answer._replace(outcome=error)


def _goes_on(answer: Answer | None) -> bool:
    return answer is None or answer.is_doubtful or isinstance(answer.outcome, NotMyKeyError)


def _weightier(first: Answer | None, second: Answer) -> Answer:
    """Return the answer that says more about a key. If they say as much, it is the first one."""
    return second if first is None or _weight(second) > _weight(first) else first


def _weight(answer: Answer) -> int:
    if isinstance(answer.outcome, NotMyKeyError):
        return int(explains(answer.outcome))
    return 2 if answer.is_doubtful else 3


def explains(error: EventSealError) -> bool:
    """Return whether a "not mine" error has an explanation."""
    return error.remedy != NotMyKeyError.default_remedy


def _weightier_error(first: EventSealError | None, second: EventSealError) -> EventSealError:
    """Return the error that says more about a key. If they say as much, it is the first one."""
    return second if first is None or _weight_of_error(second) > _weight_of_error(first) else first


def _weight_of_error(error: EventSealError) -> int:
    return int(explains(error)) if isinstance(error, NotMyKeyError) else 2


def _after(passed: EventSealError | None, answer: DataKey | EventSealError) -> DataKey | EventSealError:
    """Return *answer*. If it is an error, its cause is the outage that led to its KEK."""
    if isinstance(answer, EventSealError) and isinstance(passed, KmsUnavailableError):
        answer.__cause__ = passed
    return answer
