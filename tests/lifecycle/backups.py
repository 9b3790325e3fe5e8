"""Backups of a world's database, and what somebody gets at who has one and may ask the KEKs for anything."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventseal.errors import EventSealError
from eventseal.keys.branch_wrapping import named_branch
from eventseal.kms import EncryptionContext

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime
    from uuid import UUID

    from tests.lifecycle.model import Model

    from eventseal.keys import KeyRecord
    from eventseal.testing import FakeKms


@dataclass
class Backup:
    """
    A backup of the whole database.

    Attributes:
        copy: As the site made it.
        model: What was true then.
        records: The rows of its keys.
        taken_at: When it was complete, at the latest; the key store's clock.
        is_covered: Whether an epoch was rolled since: it must open nothing.
    """

    copy: Any
    model: Model
    records: Sequence[KeyRecord]
    taken_at: datetime
    is_covered: bool = False

    def opened(self, kms: Sequence[FakeKms], branches: Collection[UUID] = ()) -> set[UUID]:
        """
        Give the keys that it opens.

        Args:
            kms: Are asked for everything.
            branches: Branch keys that somebody has besides.
        """
        direct = {record.key_id for record in self.records if _unwraps(record, kms)}
        by_branch = {*direct, *branches}
        return direct | {
            record.key_id
            for record in self.records
            if any(named_branch(wrapped) in by_branch for wrapped in record.wrappings)
        }

    def is_whole(self, kms: Sequence[FakeKms]) -> bool:
        """Whether each of its keys can be opened: else there is nothing to restore."""
        live = {record.key_id for record in self.records if record.state.opens}
        return live <= self.opened(kms)


def _unwraps(record: KeyRecord, kms: Sequence[FakeKms]) -> bool:
    context = EncryptionContext(record.key_id, str(record.purpose), record.application)
    for wrapped in record.wrappings:
        for kek in kms:
            with suppress(EventSealError):
                kek.unwrap(wrapped, context)
                return True
    return False
