"""Unwraps keys: which KEK is asked, for which of their wrappings, and whose answer counts."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from eventseal.errors import EventSealError, IntegrityError, KmsKeyStateError, NotMyKeyError
from eventseal.keys.kek_facts import concerns_the_kek

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.kek_calls import KekCalls
    from eventseal.keys.kek_health import KekHealth
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.verifying import Verifier
    from eventseal.kms.adapter import KmsAdapter, WrappedKey

MOST_TRIED = 3
"""Wrappings of one key that are sent to one KEK: somebody may have added thousands that open nothing."""

_log = logging.getLogger(__name__)


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
        calls: Makes the calls.
        health: Told of the answers.
        verifier: Told which wrappings opened; ``None``: nobody is, and no wrapping is tried for its own sake.
    """

    def __init__(self, calls: KekCalls, health: KekHealth, verifier: Verifier | None) -> None:
        self._calls = calls
        self._health = health
        self._verifier = verifier

    def ask(self, adapter: KmsAdapter, records: Sequence[KeyRecord]) -> list[Answer]:
        """
        Have one KEK unwrap keys: of several wrappings under it by one to be tried, else by the newest.

        At most 3 wrappings of a key are sent to it.

        Returns:
            One answer a record, in order.
        """
        answers: dict[int, Answer] = {}
        tried: Counter[int] = Counter()
        order = [
            record.wrappings if self._verifier is None else self._verifier.in_order(record)
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

    def try_new(self, adapters: Sequence[KmsAdapter], pending: Mapping[int, KeyRecord]) -> dict[int, Answer]:
        """
        Open keys by new wrappings under a KEK whose turn it is not, so that somebody verifies those.

        It is done once, in place of a call that would have been made anyway; where it fails, the key is
        opened in the ordinary way. Nobody goes behind a KEK up the list that has said no.

        Args:
            adapters: The KEKs, in their order.
            pending: Keys by whatever name.

        Returns:
            Those that opened.
        """
        opened: dict[int, Answer] = {}
        if self._verifier is None or len(adapters) == 1:
            return opened
        due = {index: found for index, record in pending.items() if (found := self._verifier.untried(record))}
        for earlier, adapter in pairwise(adapters):
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

    def note(self, answers: Iterable[tuple[KeyRecord, Answer]]) -> None:
        """Tell which wrappings have opened, once all keys have their outcome."""
        if self._verifier is not None:
            self._verifier.note((record, answer.wrapped) for record, answer in answers)

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
