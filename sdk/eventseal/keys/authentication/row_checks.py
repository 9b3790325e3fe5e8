"""Checks of key rows before the key is unwrapped, and against the states already seen. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from eventseal.errors import (
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    WrongApplicationError,
)
from eventseal.keys.revocation_tree import REMEDY, least_state
from eventseal.keys.states import KeyPurpose, KeyState

if TYPE_CHECKING:
    from uuid import UUID

    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.records import ChangeMark, KeyRecord


_MOST_SEEN = 100_000
_REMEDY_OF_SET_BACK = (
    "Find out who changed the key tables, or which backup was restored; destroyed keys stay destroyed."
)


class Moment(NamedTuple):
    """
    What was known when a query began.

    Attributes:
        moves: Refreshes that had found the counter moved.
        noted: States that had been noted.
        floor: The lowest counter that the store may still show.
    """

    moves: int
    noted: int
    floor: int


class _Seen(NamedTuple):
    state: KeyState
    row_version: int
    noted: int


class KnownStates:
    """
    The application's counter, what its mark covered then, and the last seen state of each key that has moved.

    Attributes:
        counter: As of the last refresh; -1 before the first.
    """

    def __init__(self) -> None:
        self.counter = -1
        self._floor = -1
        self._refreshes = 0
        self._noted = 0
        self._revoked = b""
        self._seen: OrderedDict[UUID, _Seen] = OrderedDict()

    def moment(self) -> Moment:
        """Say what is known now: to be asked before a query whose rows are admitted after it."""
        return Moment(self._refreshes, self._noted, self._floor)

    def admit(self, record: KeyRecord, since: Moment) -> bool:
        """
        Compare a row with what was seen of it, and note it.

        Args:
            record: Read, with its seal checked, by a query that began after *since*.
            since: What was known before the query.

        Returns:
            ``False`` if states moved since the query began, so that the row must be read again.

        Raises:
            IntegrityError: A later state had been seen before the query began.
        """
        if since.moves != self._refreshes:
            return False
        seen = self._seen.get(record.key_id)
        if seen is not None and _is_earlier(record, seen):
            if seen.noted > since.noted:
                return False
            raise set_back(record, seen.state)
        self.note(record)
        return True

    def note(self, record: KeyRecord) -> None:
        """Remember the state of a key that has moved from its first one."""
        if record.state is KeyState.ACTIVE:
            return
        self._noted += 1
        self._seen[record.key_id] = _Seen(record.state, record.row_version, self._noted)
        self._seen.move_to_end(record.key_id)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)

    def raise_floor(self, counter: int) -> None:
        """Note a counter that this process wrote itself: the store shows no lower one afterwards."""
        self._floor = max(self._floor, counter)

    def check(self, mark: ChangeMark, since: Moment) -> None:
        """
        Compare a mark, its seal checked, with what was seen of it.

        Raises:
            IntegrityError: It is an earlier one, or another one of the same counter.
        """
        if mark.counter < since.floor:
            raise IntegrityError(
                f"the change counter of application {mark.application!r} went back "
                f"from {since.floor} to {mark.counter}",
                remedy=_REMEDY_OF_SET_BACK,
            )
        if mark.counter == self.counter and mark.revoked != self._revoked:
            raise IntegrityError(
                f"the change mark of application {mark.application!r} changed without its counter",
                remedy=_REMEDY_OF_SET_BACK,
            )

    def move(self, mark: ChangeMark) -> None:
        """Accept a mark whose counter moved."""
        self.counter = mark.counter
        self.raise_floor(mark.counter)
        self._revoked = mark.revoked
        self._refreshes += 1


def _is_earlier(record: KeyRecord, seen: _Seen) -> bool:
    return not seen.state.may_become(record.state) or record.row_version < seen.row_version


def set_back(record: KeyRecord, seen: KeyState) -> IntegrityError:
    """The error of a row that shows an earlier state than one that is known."""
    return IntegrityError(
        f"the row of key {record.key_id} says {record.state}, but it was {seen}: an old row was put back",
        remedy=_REMEDY_OF_SET_BACK,
        key_id=record.key_id,
    )


_MISUSE = {
    KeyPurpose.DATA: "seals and opens no items",
    KeyPurpose.FIELD: "seals and opens no fields",
    KeyPurpose.BRANCH: "wraps no other keys",
}
_FOREIGN = "Do not use what names it: such a key cannot have sealed it."
_REMEDY = "Find out who changed the key tables, and restore the key's row from a backup."


def why_not(
    record: KeyRecord | None,
    key_id: UUID,
    *,
    application: str,
    seals: Seals | None,
    purpose: KeyPurpose,
) -> EventSealError | None:
    """
    Say why a row's key must not be used to open; ``None`` if it may.

    The application comes before the seal, which is under the owner's store key; the seal before the state, so
    that nobody can forge an erasure.

    Args:
        record: As the key store gave it for *key_id*.
        key_id: The one that was asked for.
        application: Whose keys are looked for.
        seals: The application's; ``None`` if it has no store key.
        purpose: Of the keys that are looked for.
    """
    if record is None:
        return KeyNotFoundError(f"the key store has no key {key_id}", key_id=key_id)
    try:
        check_row(record, key_id, application, seals)
        _check_purpose(record, purpose)
    except EventSealError as error:
        return error
    return destroyed(record) if record.state is KeyState.DESTROYED else None


def why_not_sealing(
    record: KeyRecord, scope: str, *, application: str, seals: Seals, purpose: KeyPurpose
) -> EventSealError | None:
    """
    Say why the key that holds a scope's slot must not be used to seal; ``None`` if it may.

    Args:
        record: As the key store gave it for *scope*.
        scope: The one that was asked for.
        application: Whose keys are looked for.
        seals: The application's.
        purpose: Of the keys that are looked for.
    """
    refusal = why_not(record, record.key_id, application=application, seals=seals, purpose=purpose)
    if refusal is not None:
        return refusal
    if (record.scope, record.active_scope, record.state) != (scope, scope, KeyState.ACTIVE):
        return IntegrityError(
            f"key {record.key_id} holds the slot of scope {scope!r}, "
            f"but its sealed row is {record.state} and of scope {record.scope!r}",
            remedy=_REMEDY,
            key_id=record.key_id,
        )
    return None


def destroyed(record: KeyRecord) -> KeyDestroyedError:
    """The error of a tombstone whose seal was checked."""
    closed = record.active_scope is not None
    return KeyDestroyedError(
        f"key {record.key_id} of scope {record.scope!r} was {record.destroyed_by}"
        + (", and the scope is closed" if closed else ""),
        key_id=record.key_id,
        scope=record.scope,
        destroyed_by=record.destroyed_by,
    )


def is_set_back(record: KeyRecord) -> bool:
    """Whether a row shows an earlier state than the revocation tree says."""
    how = record.revoked_as
    return how != "unproven" and not least_state(how).may_become(record.state)


def closed_scope(scope: str) -> KeyDestroyedError:
    """The error of a scope that the revocation tree has as closed, and whose slot no tombstone holds."""
    return KeyDestroyedError(
        f"scope {scope!r} was shredded, and is closed", scope=scope, destroyed_by="shredded"
    )


def lives_in_closed_scope(record: KeyRecord) -> IntegrityError:
    """The error of a live key in a scope that the revocation tree has as closed: no shred leaves one."""
    return IntegrityError(
        f"key {record.key_id} is {record.state}, but its scope {record.scope!r} was shredded and closed: "
        "the key's row was hidden from the shred, or an old row was put back",
        remedy=f"Run `eventseal shred {record.scope}` again: it destroys this key. If the key was made after "
        f"a backup was restored, and is to stay: `eventseal reopen {record.scope}`.",
        key_id=record.key_id,
    )


def tombstone_of_open_scope(record: KeyRecord) -> IntegrityError:
    """The error of a slot that a tombstone holds, although the revocation tree has the scope as open."""
    return IntegrityError(
        f"the tombstone {record.key_id} holds the slot of scope {record.scope!r}, which is not closed: "
        "an old row was put back",
        remedy=_REMEDY,
        key_id=record.key_id,
    )


def check_row(record: KeyRecord, key_id: UUID, application: str, seals: Seals | None) -> None:
    """
    Check whose row it is, and that it is as a keyring sealed it.

    Args:
        record: As the key store gave it for *key_id*.
        key_id: The one that was asked for.
        application: Whose keys are looked for.
        seals: The application's; ``None`` if it has no store key.

    Raises:
        WrongApplicationError: The key is another application's.
        IntegrityError: The row is not what a keyring sealed, or that of another key.
    """
    if record.application != application and "application" not in record.unreadable:
        raise WrongApplicationError(
            f"key {key_id} belongs to application {record.application!r}, not to {application!r}",
            expected=application,
            found=record.application,
        )
    if seals is None:
        raise IntegrityError(
            f"key {key_id} has a row, but application {application!r} has no store key: somebody deleted it",
            remedy="Find out who changed the key tables, and restore the store key from a backup.",
            key_id=key_id,
        )
    seals.check(record)
    if record.revoked_as == "unproven":
        raise IntegrityError(
            f"the leaf of key {key_id} in the revocation tree does not match the change mark: it was edited",
            remedy=REMEDY,
            key_id=key_id,
        )
    if record.revoked_as is not None and is_set_back(record):
        raise set_back(record, least_state(record.revoked_as))
    if record.key_id != key_id:
        raise IntegrityError(
            f"the key store gave the row of key {record.key_id} for key {key_id}",
            remedy=_REMEDY,
            key_id=key_id,
        )


def _check_purpose(record: KeyRecord, purpose: KeyPurpose) -> None:
    if record.purpose is not purpose:
        raise IntegrityError(
            f"key {record.key_id} is of purpose {record.purpose}, and {_MISUSE[purpose]}",
            remedy=_REMEDY if purpose is KeyPurpose.BRANCH else _FOREIGN,
            key_id=record.key_id,
        )
