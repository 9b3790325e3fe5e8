"""What became of keys that were to be wrapped again, and what stops one of them by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eventseal.errors import EventSealError, IntegrityError
from eventseal.keys.kek_facts import concerns_the_kek
from eventseal.keys.rows import check_row, why_not
from eventseal.keys.seals import check_readable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.store_key import StoreKey
    from eventseal.kms.adapter import WrappedKey

MAX_FAILURES = 1000
"""Failures that a run over all keys lists; the count goes on."""


@dataclass(slots=True)
class Moved:
    """
    What became of some keys that were to be wrapped under another KEK, version or branch key.

    Attributes:
        made: New wrappings, by key; not stored yet.
        verified: Those of these keys whose new wrapping was unwrapped again, and holds the key.
        failed: Why others have none.
        ended_by: What ended the work: an error about a KEK. Keys that are in none of the above are left.
    """

    made: dict[UUID, WrappedKey] = field(default_factory=dict)
    verified: set[UUID] = field(default_factory=set)
    failed: dict[UUID, EventSealError] = field(default_factory=dict)
    ended_by: EventSealError | None = None

    def fail(self, key_id: UUID, error: EventSealError) -> None:
        """Note why a key has no new wrapping; an error about a KEK ends the work."""
        if concerns_the_kek(error):
            self.ended_by = self.ended_by or error
        else:
            self.failed[key_id] = error

    def untried(self, records: Sequence[KeyRecord]) -> list[KeyRecord]:
        """Give those of *records* of which nothing has become yet; none once the work has ended."""
        if self.ended_by is not None:
            return []
        return [r for r in records if r.key_id not in self.made and r.key_id not in self.failed]


class RowChecks:
    """
    Refuses the rows that were edited: no such key is wrapped again.

    Args:
        application: Whose keys.
        store_key: Its seals tell; it is unwrapped only when they are asked for.
    """

    def __init__(self, application: str, store_key: StoreKey) -> None:
        self._application = application
        self._store_key = store_key

    def refuse_unreadable(self, records: Sequence[KeyRecord], moved: Moved) -> None:
        """Fail the keys whose row holds what none does, and those with more wrappings than are read."""
        for record in records:
            try:
                check_readable(record)
                if record.more_wrappings:
                    raise _flooded(record)
            except IntegrityError as error:
                moved.fail(record.key_id, error)

    def refuse_edited(self, records: Sequence[KeyRecord], moved: Moved) -> None:
        """
        Fail the keys whose row no keyring sealed, and those of old rows that were put back.

        That a row calls its key destroyed, although it is not, matters too: a backup may need what ends.

        Raises:
            EventSealError: As :meth:`opened` raises.
        """
        seals = self._store_key.seals() if records else None
        for record in records:
            try:
                check_row(record, record.key_id, self._application, seals)
            except EventSealError as error:
                moved.fail(record.key_id, error)

    def opened(
        self, records: Sequence[KeyRecord], outcomes: Sequence[DataKey | EventSealError], moved: Moved
    ) -> dict[UUID, DataKey]:
        """
        Give the keys that were unwrapped and whose row matches its seal; fail the others.

        Args:
            records: The rows.
            outcomes: What unwrapping each of them gave.
            moved: Takes the failures.

        Raises:
            IntegrityError: The store key's row is not what a keyring sealed.
            KmsError: The store key could not be unwrapped.
            StoreError: The key store refused or failed.
        """
        keys: dict[UUID, DataKey] = {}
        for record, outcome in zip(records, outcomes, strict=True):
            if isinstance(outcome, EventSealError):
                moved.fail(record.key_id, outcome)
            else:
                keys[record.key_id] = outcome
        try:
            self._refuse_edited(records, keys, moved)
        except BaseException:
            for key in keys.values():
                key.close()
            raise
        return keys

    def prove(
        self, records: Sequence[KeyRecord], outcomes: Sequence[DataKey | EventSealError], moved: Moved
    ) -> None:
        """Note as verified the keys that :meth:`opened` gives, and close them; raises as that does."""
        for key_id, key in self.opened(records, outcomes, moved).items():
            key.close()
            moved.verified.add(key_id)

    def _refuse_edited(self, records: Sequence[KeyRecord], keys: dict[UUID, DataKey], moved: Moved) -> None:
        """Fail the keys whose row does not match its seal, and take them out of *keys*."""
        if not keys:
            return
        seals = self._store_key.seals()
        for record in records:
            if record.key_id not in keys:
                continue
            refusal = why_not(
                record, record.key_id, application=self._application, seals=seals, purpose=record.purpose
            )
            if refusal is not None:
                moved.fail(record.key_id, refusal)
                keys.pop(record.key_id).close()


def _flooded(record: KeyRecord) -> IntegrityError:
    count = len(record.wrappings) + record.more_wrappings
    return IntegrityError(
        f"key {record.key_id} has {count:,} wrappings: somebody added rows to key_wrappings",
        remedy="Find out who did, and restore the rows of this key from a backup.",
        key_id=record.key_id,
    )
