"""Backups of a world's database, and what somebody gets at who has one and may ask the KEKs for anything."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.lifecycle.audit import BRANCH, DESTROYED
from tests.lifecycle.erasing import AfterRestore
from tests.lifecycle.model import Violation
from tests.lifecycle.site import APPLICATION

from eventseal.errors import EventSealError
from eventseal.keys.wrapping.branches import named_branch
from eventseal.kms import EncryptionContext

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime
    from uuid import UUID

    from tests.lifecycle.model import Model
    from tests.lifecycle.traffic import Fault
    from tests.lifecycle.world import World

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
    """

    copy: Any
    model: Model
    records: Sequence[KeyRecord]
    taken_at: datetime

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


class Backups:
    """
    The backups of a world, from the oldest to the newest.

    Args:
        world: Whose database.

    Attributes:
        is_restoring: Whether one was put back, and not compared with the ledger yet.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._taken: list[Backup] = []
        self.is_restoring = False

    def __bool__(self) -> bool:
        return bool(self._taken)

    def __getitem__(self, number: int) -> Backup:
        return self._taken[number]

    def take(self) -> None:
        """Take one of the whole database."""
        world = self._world
        assert not world.running
        world.step += 1
        world.look()
        model = world.model.copied()
        for client in world.clients:  # is gone when it is restored, and so is what it knows alone
            for key_id, owed in client.owed().items():
                model.unreserved[key_id] += owed
        records = world.auditor.store.page(APPLICATION, limit=1_000_000)
        self._taken.append(Backup(world.site.copy(), model, records, world.auditor.store.now()))

    def whole(self) -> list[Backup]:
        """Those whose keys the KMS opens still."""
        return [backup for backup in self._taken if backup.is_whole(self._world.kms)]

    def put_back(self, backup: Backup) -> AfterRestore:
        """
        Restore one, and start all clients anew.

        Returns:
            What is to be done before any of them does anything else.
        """
        world = self._world
        assert not world.running
        world.step += 1
        before, world.model = world.model, backup.model.copied()
        for client in world.clients:
            client.end()
        world.site.put_back(backup.copy)
        world.model.may_shred |= before.may_shred
        world.start_anew()
        self.is_restoring = True
        world.look()
        return AfterRestore.expected(before, world.model, world.told)

    def restore(self, backup: Backup, slot: int, *faults: Fault) -> None:
        """
        Restore one, and have a client compare it with the ledger.

        Args:
            backup: One of :meth:`whole`.
            slot: Whose client; it is interrupted by *faults*, and run again.
            faults: None of which lets it stand still.
        """
        operation = self.put_back(backup)
        if not self._world.do(slot, operation, *faults).is_clean:
            self._world.clients[slot].traffic.heal()
            self._world.do(slot, operation)
        self.is_restoring = False

    def cover(self, before: datetime) -> None:
        """
        Check that those from before a moment open nothing, with all that is left now.

        Raises:
            Violation: One of them does.
        """
        branches = {
            key_id
            for key_id, life in self._world.model.keys.items()
            if life.row.purpose == BRANCH and life.row.state != DESTROYED
        }
        for backup in self._taken:
            if backup.taken_at < before and (opened := backup.opened(self._world.kms, branches)):
                raise Violation(f"a backup of {backup.taken_at} opens {opened} though the epoch was rolled")


def _unwraps(record: KeyRecord, kms: Sequence[FakeKms]) -> bool:
    context = EncryptionContext(record.key_id, str(record.purpose), record.application)
    for wrapped in record.wrappings:
        for kek in kms:
            with suppress(EventSealError):
                kek.unwrap(wrapped, context)
                return True
    return False
