"""Branch keys at work: the data keys of a million scopes cost the KMS a call for each branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import (
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    WrongApplicationError,
)
from eventseal.keys.branch_wrapping import (
    branch_scope,
    branch_wrapping,
    named_branch,
    unwrap_under,
    wrap_under,
)
from eventseal.keys.handles import random_key
from eventseal.keys.single_flight import copied

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.opening import Opener
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.resources import Wrapping
    from eventseal.keys.sealing import Sealer
    from eventseal.kms.adapter import WrappedKey

_REMEDY = "Find out who changed the key tables, and restore the key's rows from a backup."
_WAS_NEEDED = (
    "No branch key is destroyed while others are wrapped under it: find out who changed the key tables, and "
    "restore the rows of both keys from a backup."
)


class Branches:
    """
    Wraps new keys under branch keys, and unwraps what was wrapped under whichever branch key.

    Args:
        count: Branches for new keys; ``None``: the KEKs wrap them.
        keks: Wrap and unwrap every key that no branch key does.
        sealer: Finds and makes the active branch keys.
        opener: Finds branch keys by id.
    """

    def __init__(self, count: int | None, keks: Wrapping, *, sealer: Sealer, opener: Opener) -> None:
        self._count = count
        self._keks = keks
        self._sealer = sealer
        self._opener = opener

    def generate(self, records: Sequence[KeyRecord]) -> list[tuple[DataKey, tuple[WrappedKey, ...]]]:
        """
        Make a key for each of *records*. The KMS is called only for branch keys that are not at hand.

        Raises:
            IntegrityError: A branch key's row is not what a keyring sealed.
            KeyDestroyedError: A branch was closed.
            KmsError: The KMS refused or failed.
            StoreError: The key store refused or failed.
        """
        if self._count is None:
            return self._keks.generate(records)
        scopes = [branch_scope(record.application, record.scope, self._count) for record in records]
        branches = self._sealer.keys(dict.fromkeys(scopes, 0), make=True)
        keys = [random_key(record) for record in records]
        by_branch: dict[str, list[DataKey]] = {}
        for scope, key in zip(scopes, keys, strict=True):
            by_branch.setdefault(scope, []).append(key)
        wrapped: dict[UUID, WrappedKey] = {}
        for scope, of_branch in by_branch.items():
            wrappings = self._wrapped(scope, branches[scope], of_branch)
            wrapped.update(zip([key.key_id for key in of_branch], wrappings, strict=True))
        return [(key, (wrapped[key.key_id],)) for key in keys]

    def unwrap(self, records: Sequence[KeyRecord]) -> list[DataKey | EventSealError]:
        """
        Unwrap the key of each of *records* under its branch key if it has one, else under a KEK.

        Returns:
            One outcome a record, in order: a handle whose bytes match the record's binding, or the error.

        Raises:
            StoreError: The branch keys could not be read.
        """
        outcomes: dict[int, DataKey | EventSealError] = {}
        by_kek: dict[int, KeyRecord] = {}
        by_branch: dict[UUID, dict[int, tuple[KeyRecord, WrappedKey]]] = {}
        for index, record in enumerate(records):
            wrapped = branch_wrapping(record)
            branch_id = None if wrapped is None else named_branch(wrapped)
            if wrapped is None:
                by_kek[index] = record
            elif branch_id is None:
                outcomes[index] = _not_one(record, wrapped.kek_uri)
            else:
                by_branch.setdefault(branch_id, {})[index] = (record, wrapped)
        if by_kek:
            outcomes.update(zip(by_kek, self._keks.unwrap(list(by_kek.values())), strict=True))
        branches = self._opener.keys(by_branch) if by_branch else {}
        for branch_id, addressed in by_branch.items():
            answers = self._unwrapped(branch_id, branches[branch_id], list(addressed.values()))
            outcomes.update(zip(addressed, answers, strict=True))
        return [outcomes[index] for index in range(len(records))]

    def _wrapped(self, scope: str, branch: DataKey, keys: Sequence[DataKey]) -> list[WrappedKey]:
        try:
            return wrap_under(branch, keys)
        except KeyNotFoundError:
            pass  # closed between being handed out and being used: ask once more, and take that answer
        return wrap_under(self._sealer.keys({scope: 0}, make=True)[scope], keys)

    def _unwrapped(
        self,
        branch_id: UUID,
        branch: DataKey | EventSealError,
        addressed: Sequence[tuple[KeyRecord, WrappedKey]],
        *,
        last_answer: bool = False,
    ) -> list[DataKey | EventSealError]:
        if isinstance(branch, EventSealError):
            return [_refusal(branch, branch_id, record) for record, _ in addressed]
        try:
            return unwrap_under(branch, addressed)
        except KeyNotFoundError as error:
            # Closed between being handed out and being used: ask once more, and take that answer.
            again = error if last_answer else self._opener.keys([branch_id])[branch_id]
        return self._unwrapped(branch_id, again, addressed, last_answer=True)


def _refusal(error: EventSealError, branch_id: UUID, record: KeyRecord) -> EventSealError:
    """Say for one key why its branch key does not unwrap it."""
    wrapped = f"key {record.key_id} is wrapped under branch key {branch_id}"
    if isinstance(error, KeyDestroyedError):
        # Without the scope: the key's own row says that it lives, so nothing of its scope was erased.
        return KeyDestroyedError(
            f"{wrapped}, which was {error.destroyed_by}",
            key_id=branch_id,
            destroyed_by=error.destroyed_by,
            remedy=_WAS_NEEDED,
        )
    if isinstance(error, KeyNotFoundError | WrongApplicationError):
        # Neither is a fact about the item's own key: its row was found, and is this application's.
        return IntegrityError(f"{wrapped}: {error}", remedy=_REMEDY, key_id=record.key_id)
    if isinstance(error, IntegrityError):  # of the branch key's row, or of what the wrapping names instead
        key_id = getattr(error, "key_id", branch_id)
        return IntegrityError(f"{wrapped}: {error}", remedy=error.remedy, key_id=key_id)
    return copied(error)


def _not_one(record: KeyRecord, kek_uri: str) -> IntegrityError:
    return IntegrityError(
        f"the wrapping of key {record.key_id} is under {kek_uri!r}, which is the name of no branch key",
        remedy=_REMEDY,
        key_id=record.key_id,
    )
