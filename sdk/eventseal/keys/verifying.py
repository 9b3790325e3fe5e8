"""Notes which new wrappings were seen to open, so that the old ones may go. Never in the way of a read."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING

from eventseal.errors import EventSealError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.checked_store import CheckedStore
    from eventseal.keys.records import KeyRecord
    from eventseal.kms.adapter import WrappedKey

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
