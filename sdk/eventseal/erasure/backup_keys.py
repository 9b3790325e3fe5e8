"""The keys that open a backup: their states are today's, and only retired keys come from the backup."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

from eventseal.errors import (
    EventSealError,
    IntegrityError,
    KekNotConfiguredError,
    KeyDestroyedError,
    KmsError,
)
from eventseal.keys.seals import is_bound
from eventseal.keys.states import KeyPurpose, KeyState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys import Keyring
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.source import KeySource


class BackupKeys:
    """
    Opens what a backup holds, and seals under today's keys. It is a key source for a cipher.

    A backup is bytes that somebody may have made. So what a key may do, today's key tables say: one that
    lives opens by itself, and of the backup's keys only those are used that were retired since. Each of them
    must be the very key that today's tombstone was made for.

    Args:
        today: The store's keyring.
        backup: A keyring over the backup's key tables.
    """

    def __init__(self, today: Keyring, backup: Keyring) -> None:
        self._today = today
        self._backup = backup
        self._suspect: set[UUID] = set()

    @property
    def application(self) -> str:
        """The application whose keys these are."""
        return self._today.application

    def sealing_keys(
        self, items_by_scope: Mapping[str, int], *, make: bool = True, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[str, DataKey]:
        """Give each scope's active key as it is today; see ``KeySource``."""
        return self._today.sealing_keys(items_by_scope, make=make, purpose=purpose)

    def opening_keys(
        self, key_ids: Collection[UUID], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[UUID, DataKey | EventSealError]:
        """
        Give each key, or why there is none; see ``KeySource``.

        A retired key of a scope that was ever shredded is refused: what it opens may have been erased.
        """
        found = self._today.opening_keys(key_ids, purpose=purpose)
        retired = [key_id for key_id, outcome in found.items() if _is_retired(outcome)]
        if retired:
            found |= self._retired(retired)
        self._suspect |= {
            key_id
            for key_id, outcome in found.items()
            if not isinstance(outcome, EventSealError) and outcome.state is KeyState.COMPROMISED
        }
        return found

    def is_suspect(self, key_id: UUID) -> bool:
        """Whether a key that :meth:`opening_keys` gave is compromised, or was before it was retired."""
        return key_id in self._suspect

    def are_listed_as_erased(self, items: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Say what was erased before a scope was reopened; see ``KeySource``."""
        return self._today.are_listed_as_erased(items)

    def stored_scope(self, scope: str) -> str:
        """Give a scope as keys name it; see ``KeySource``."""
        return self._today.stored_scope(scope)

    def add_place(self, name: str, collection: str) -> None:
        """Note that a place holds items; see ``KeySource``."""
        self._today.add_place(name, collection)

    def refresh(self) -> None:
        """Look at once for keys whose state changed."""
        self._today.refresh()

    def _retired(self, key_ids: Sequence[UUID]) -> dict[UUID, DataKey | EventSealError]:
        tombstones = self._today.retired_keys(key_ids)
        erased = [key_id for key_id, retired in tombstones.items() if retired.scope_was_shredded]
        found: dict[UUID, DataKey | EventSealError] = {
            key_id: _erased(tombstones[key_id].record.scope, key_id) for key_id in erased
        }
        wanted = [key_id for key_id in tombstones if key_id not in found]
        for key_id, outcome in self._backup.opening_keys(wanted).items() if wanted else ():
            if isinstance(outcome, EventSealError):
                found[key_id] = _of_backup(outcome)
            elif is_bound(outcome, tombstones[key_id].record):
                found[key_id] = outcome
            else:
                found[key_id] = _another_key(key_id)
            if tombstones[key_id].was_compromised:
                self._suspect.add(key_id)
        return found


def _is_retired(outcome: DataKey | EventSealError) -> bool:
    return isinstance(outcome, KeyDestroyedError) and outcome.destroyed_by == "retired"


def _of_backup(error: EventSealError) -> EventSealError:
    """Say that it is the backup's key tables that are not in order, if it is they."""
    if isinstance(error, KmsError | KekNotConfiguredError):
        return error
    told = copy(error)
    told.args = (f"in the backup: {error}",)
    told.remedy = "Use another backup, and find out who changed this one."
    return told


def _erased(scope: str, key_id: UUID) -> KeyDestroyedError:
    return KeyDestroyedError(
        f"key {key_id} was retired, and its scope {scope!r} was shredded at some time: what the backup holds "
        "under the key may have been erased",
        remedy="Nothing brings erased data back. To go on without the row: eventseal set-aside",
        key_id=key_id,
        scope=scope,
        destroyed_by="shredded",
    )


def _another_key(key_id: UUID) -> IntegrityError:
    return IntegrityError(
        f"the backup's key {key_id} is not the key that the store retired: the backup was edited or forged",
        remedy="Use another backup, and find out who changed this one.",
        key_id=key_id,
    )


if TYPE_CHECKING:
    _: type[KeySource] = BackupKeys
