"""Adds the wrappings that keys miss: of a KEK that was away when they were made, or was listed later."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eventseal.errors import EventSealError, KmsError
from eventseal.keys.branch_wrapping import branch_wrapping
from eventseal.keys.rows import why_not
from eventseal.keys.states import KeyState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.counters import CountedStore
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.seals import Seals
    from eventseal.keys.wrapping import Keks
    from eventseal.kms.adapter import KmsAdapter, WrappedKey

MAX_FAILURES = 1000
"""Failures that a repair lists; the count goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """
    What a repair of wrappings did.

    Attributes:
        keys: Keys that KEKs wrap, and that were looked at.
        added: Wrappings that were added, by the KEK.
        failed: Keys that cannot be unwrapped, and so not be wrapped again.
        failures: Why, by key; the first 1,000.
    """

    keys: int = 0
    added: Mapping[str, int] = field(default_factory=dict)
    failed: int = 0
    failures: Mapping[UUID, EventSealError] = field(default_factory=dict)


class Repairer:
    """
    Repairs the keys of one application, page by page.

    Args:
        application: Whose keys.
        keks: Every key should be wrapped under each of them.
        store: Holds the keys.
        seals: Check the rows: what was edited is not wrapped again.
    """

    def __init__(self, application: str, keks: Keks, store: CountedStore, seals: Seals) -> None:
        self._application = application
        self._keks = keks
        self._store = store
        self._seals = seals
        self._stored_as: dict[str, str] = {}
        self._keys = 0
        self._added: Counter[str] = Counter()
        self._failed: set[UUID] = set()
        self._failures: dict[UUID, EventSealError] = {}

    def run(self, page_size: int) -> Repair:
        """
        Go through all keys.

        Raises:
            KmsError: A KEK refused or failed; what was added before stays.
            StoreError: The key store refused or failed.
        """
        after: UUID | None = None
        while page := self._store.page(self._application, after=after, limit=page_size):
            self._repair([record for record in page if _is_under_keks(record)])
            after = page[-1].key_id
        return Repair(
            keys=self._keys, added=dict(self._added), failed=len(self._failed), failures=self._failures
        )

    def _repair(self, records: Sequence[KeyRecord]) -> None:
        self._keys += len(records)
        for adapter in self._keks.adapters:
            lacking = self._lacking(adapter, records)
            while lacking and adapter.uri not in self._stored_as:
                self._add(adapter, lacking[:1])  # tells what the KEK's wrappings name: never its alias
                lacking = self._lacking(adapter, lacking[1:])
            self._add(adapter, lacking)

    def _lacking(self, adapter: KmsAdapter, records: Sequence[KeyRecord]) -> list[KeyRecord]:
        name = self._stored_as.get(adapter.uri, adapter.uri)
        return [
            record for record in records if record.key_id not in self._failed and not _is_under(name, record)
        ]

    def _add(self, adapter: KmsAdapter, records: Sequence[KeyRecord]) -> None:
        """Wrap keys under a KEK, and store those wrappings that were missing indeed."""
        keys: list[DataKey] = []
        try:
            for record, outcome in zip(records, self._unwrapped(records), strict=True):
                if not isinstance(outcome, EventSealError):
                    keys.append(outcome)
                elif isinstance(outcome, KmsError):
                    raise outcome
                else:
                    self._fail(record, outcome)
            wrapped = self._wrapped(adapter, keys)
        finally:
            for key in keys:
                key.close()
        missing = {
            record.key_id: wrapped[record.key_id]
            for record in records
            if record.key_id in wrapped and not _is_under(wrapped[record.key_id].kek_uri, record)
        }
        if missing:
            added = self._store.put_wrappings(missing)
            self._added.update(missing[key_id].kek_uri for key_id in added)

    def _unwrapped(self, records: Sequence[KeyRecord]) -> list[DataKey | EventSealError]:
        application, seals = self._application, self._seals
        refusals = [
            why_not(record, record.key_id, application=application, seals=seals, purpose=record.purpose)
            for record in records
        ]
        good = [record for record, refusal in zip(records, refusals, strict=True) if refusal is None]
        opened = iter(self._keks.unwrap(good))
        return [next(opened) if refusal is None else refusal for refusal in refusals]

    def _wrapped(self, adapter: KmsAdapter, keys: Sequence[DataKey]) -> dict[UUID, WrappedKey]:
        wrapped: dict[UUID, WrappedKey] = {}
        for key, outcome in zip(keys, self._keks.calls.wrap(adapter, keys), strict=True):
            if isinstance(outcome, EventSealError):
                raise outcome
            self._stored_as[adapter.uri] = outcome.kek_uri
            wrapped[key.key_id] = outcome
        return wrapped

    def _fail(self, record: KeyRecord, error: EventSealError) -> None:
        self._failed.add(record.key_id)
        if len(self._failures) < MAX_FAILURES:
            self._failures[record.key_id] = error


def _is_under(kek_uri: str, record: KeyRecord) -> bool:
    return any(wrapped.kek_uri == kek_uri for wrapped in record.wrappings)


def _is_under_keks(record: KeyRecord) -> bool:
    return record.state is not KeyState.DESTROYED and branch_wrapping(record) is None
