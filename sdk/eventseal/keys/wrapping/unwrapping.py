"""Unwraps keys: which KEK is asked for which wrapping, and how each KEK answered of late."""

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
    Say whether a wrapping that names *kek_uri* is under a KEK.

    Raises:
        KmsError: The KEK is configured as an alias, which could not be resolved.
    """
    return kek_uri == adapter.uri or (isinstance(adapter, SupportsAliases) and adapter.is_named(kek_uri))


def concerns_the_kek(error: Exception) -> bool:
    """Whether an error is about a KEK, or the way to it, rather than about one wrapping or key."""
    if isinstance(error, ConfigurationError):
        return not isinstance(error, KekNotConfiguredError)
    # A KMS's plain refusal may be of one wrapping alone; so is that of one version of the KEK.
    return (
        isinstance(error, KmsError)
        and type(error) is not KmsError
        and not getattr(error, "kek_version", None)
    )


_log = logging.getLogger(__name__)


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


MOST_TRIED = 3
"""Wrappings of one key that are sent to one KEK: somebody may have added thousands that open nothing."""


class Answer(NamedTuple):
    """
    What one KEK has to say of a key.

    Attributes:
        outcome: The key, or the error; ``NotMyKeyError`` if none of its wrappings is addressed to the KEK.
        wrapped: The wrapping that it is of.
        is_doubtful: Whether it is the error of a wrapping that nobody has verified, of a key that has others:
            those are tried before it counts.
    """

    outcome: DataKey | EventSealError
    wrapped: WrappedKey
    is_doubtful: bool = False


class Unwrapper:
    """
    Has KEKs unwrap keys.

    Args:
        adapters: The KEKs, in their order.
        calls: Makes the calls.
        health: Told of the answers.
        verifier: Told which wrappings opened; ``None``: nobody is, and no wrapping is tried for its own sake.
        fall_back_on_outage: Whether to unwrap under the next KEK where one is unavailable.
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
        Unwrap the key of each of *records* under the first KEK that one of its wrappings is addressed to.

        Of several wrappings under one KEK, one that nobody has verified is taken, else the newest. It is
        passed over if it was changed, or if its version serves no more. A key that opens elsewhere is opened
        once by an unverified wrapping under a KEK further down the list, so that somebody verifies that too.

        Returns:
            One outcome a record, in order: a handle whose bytes match the record's binding, or the error.
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
        Have one KEK unwrap keys: of several wrappings under it by one to be tried, else by the newest.

        At most 3 wrappings of a key are sent to it.

        Returns:
            One answer a record, in order.
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
        Open keys by new wrappings under a KEK whose turn it is not, so that somebody verifies those.

        It is done once, in place of a call that would have been made anyway; where it fails, the key is
        opened in the ordinary way. Nobody goes behind a KEK up the list that has said no.

        Args:
            pending: Keys by whatever name.

        Returns:
            Those that opened.
        """
        opened: dict[int, Answer] = {}
        if self._verifier is None or len(self._adapters) == 1:
            return opened
        due = {index: found for index, record in pending.items() if (found := self._verifier.untried(record))}
        for earlier, adapter in pairwise(self._adapters):
            # A denial is an answer: nobody gets around it by another KEK (docs/decisions/0008, 0009).
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
        configured = ", ".join(adapter.uri for adapter in self._adapters)
        return KekNotConfiguredError(
            f"key {record.key_id} is wrapped under {uris}; this keyring was given {configured}",
            kek_uri=record.wrappings[0].kek_uri,
        )

    def _tried(
        self, adapter: KmsAdapter, candidates: Sequence[tuple[int, KeyRecord, WrappedKey]]
    ) -> dict[int, Answer]:
        """Try wrappings under one KEK; the first by itself, if it is not known that the KEK serves."""
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
        # An unverified wrapping is passed over: one bad row must not cost the key (docs/decisions/0009).
        if not of_wrapping or len(record.wrappings) == 1 or wrapped in record.verified:
            return False
        self._warn(record, wrapped, outcome)
        return True

    def _warn(self, record: KeyRecord, wrapped: WrappedKey, outcome: object) -> None:
        _log.warning(
            "key %s has a new wrapping under %s that does not open; its others stay: %s",
            record.key_id,
            wrapped.kek_uri,
            outcome,
        )
        if self._verifier is not None:
            self._verifier.give_up(record, wrapped)


def few_of_each(wrappings: Iterable[WrappedKey]) -> Iterator[WrappedKey]:
    """Give at most 3 of the wrappings under each KEK, in their order."""
    given: Counter[str] = Counter()
    for wrapped in wrappings:
        given[wrapped.kek_uri] += 1
        if given[wrapped.kek_uri] <= MOST_TRIED:
            yield wrapped


def _given_up(record: KeyRecord, answer: Answer) -> Answer:
    """Say how many wrappings under a KEK were not tried, if there are any."""
    uri = answer.wrapped.kek_uri
    left = sum(wrapped.kek_uri == uri for wrapped in record.wrappings) - MOST_TRIED + record.more_wrappings
    if left <= 0:
        return answer
    error = IntegrityError(
        f"key {record.key_id}: {MOST_TRIED} of its wrappings under {uri} do not open, the newest first; "
        f"{left:,} more were not tried",
        remedy="Find out who added rows to key_wrappings, and restore the rows of this key from a backup.",
        key_id=record.key_id,
    )
    return answer._replace(outcome=error)


def _goes_on(answer: Answer | None) -> bool:
    return answer is None or answer.is_doubtful or isinstance(answer.outcome, NotMyKeyError)


def _weightier(first: Answer | None, second: Answer) -> Answer:
    """Give the answer that says more about a key, the first one if they say as much."""
    return second if first is None or _weight(second) > _weight(first) else first


def _weight(answer: Answer) -> int:
    if isinstance(answer.outcome, NotMyKeyError):
        return int(explains(answer.outcome))
    return 2 if answer.is_doubtful else 3


def explains(error: EventSealError) -> bool:
    """Whether "not mine" says more than that."""
    return error.remedy != NotMyKeyError.default_remedy


def _weightier_error(first: EventSealError | None, second: EventSealError) -> EventSealError:
    """Give the error that says more about a key, the first one if they say as much."""
    return second if first is None or _weight_of_error(second) > _weight_of_error(first) else first


def _weight_of_error(error: EventSealError) -> int:
    return int(explains(error)) if isinstance(error, NotMyKeyError) else 2


def _after(passed: EventSealError | None, answer: DataKey | EventSealError) -> DataKey | EventSealError:
    """Give *answer*; if it is an error, with the outage because of which its KEK was asked."""
    if isinstance(answer, EventSealError) and isinstance(passed, KmsUnavailableError):
        answer.__cause__ = passed
    return answer
