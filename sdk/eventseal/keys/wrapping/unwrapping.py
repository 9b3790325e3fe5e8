"""Unwraps keys: which KEK is asked for which wrapping, and which wrappings were seen to open."""

from __future__ import annotations

import logging
import threading
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
    NotMyKeyError,
)
from eventseal.kms.adapter import SupportsAliases, SupportsRewrap, TellsVersion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.authentication.checked_store import CheckedStore
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.wrapping.kek_calls import KekCalls, KekHealth
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


MOST_REMEMBERED = 100_000
"""Wrappings that a process remembers to have tried; when there are more, it begins anew."""

_OLD_AND_NEW = 2

_log = logging.getLogger(__name__)


class Verifier:
    """
    Tells the key store which wrappings this process has unwrapped, as well as it can.

    Only keys with several wrappings are told of: where there is one, nothing depends on it. What cannot be
    written now, such as inside the caller's write transaction, is written after a later load.

    Args:
        store: Holds the keys.
    """

    def __init__(self, store: CheckedStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._pending: dict[UUID, WrappedKey] = {}
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
        if not due and not self._pending:
            return
        self._remember(due.items())
        with self._lock:
            pending, self._pending = self._pending | due, {}
        try:
            self._store.mark_wrappings_verified(pending, wait=False)
        except EventSealError as error:
            _log.debug("%d verified wrappings are not noted yet: %s", len(pending), error)
            self._put_back(pending)

    def _put_back(self, pending: Mapping[UUID, WrappedKey]) -> None:
        with self._lock:
            self._pending = {**pending, **self._pending}
            while len(self._pending) > MOST_REMEMBERED:
                del self._pending[next(iter(self._pending))]

    def _remember(self, tried: Iterable[tuple[UUID, WrappedKey]]) -> None:
        with self._lock:
            if len(self._tried) > MOST_REMEMBERED:
                self._tried.clear()
            self._tried.update(tried)


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
