"""
Branch keys, which are in the key store, and wrap data keys.

They wrap the data keys of a million scopes, and each branch key costs one KMS call.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha512
from typing import TYPE_CHECKING
from uuid import UUID

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    WrongApplicationError,
)
from eventseal.keys.concurrency import copied
from eventseal.keys.data_key import material_of, random_key, unwrapped_key
from eventseal.keys.records import restore_remedy
from eventseal.kms.adapter import WrappedKey
from eventseal.suites.cbc_hmac import A256CBC_HS512, open_many, seal_many
from eventseal.suites.envelope import CompressionId, build_header
from eventseal.suites.hkdf import length_prefixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.opening import Opener
    from eventseal.keys.ring.sealing import Sealer
    from eventseal.keys.wrapping.keks import Keks


BRANCH_PREFIX = "branch:"
"""The prefix of the ``kek_uri`` of each wrapping under a branch key. No KEK's URI has it."""

MOST_BRANCHES = 4096
"""The highest number of branches of an application."""

_DOMAIN = b"wrapped-key"


def branch_scope(application: str, scope: str, branches: int) -> str:
    """
    Return the scope of the branch that wraps a scope's new keys.

    Args:
        application: The scope's application.
        scope: The scope of the keys to wrap.
        branches: The number of branches.

    Returns:
        The scope of the branch key: ``branch:0`` to ``branch:<branches - 1>``.
    """
    digest = sha512(length_prefixed(application.encode(), scope.encode())).digest()
    return f"{BRANCH_PREFIX}{int.from_bytes(digest) % branches}"


def branch_scopes(branches: int) -> list[str]:
    """Return the scopes of the branch keys for a number of branches."""
    return [f"{BRANCH_PREFIX}{number}" for number in range(branches)]


def branch_uri(branch_id: UUID) -> str:
    """Return the name of a branch key in ``kek_uri``."""
    return f"{BRANCH_PREFIX}{branch_id}"


def branch_wrapping(record: KeyRecord) -> WrappedKey | None:
    """Return the wrapping of *record* under a branch key, or ``None``."""
    for wrapped in record.wrappings:
        if wrapped.kek_uri.startswith(BRANCH_PREFIX):
            return wrapped
    return None


def named_branch(wrapped: WrappedKey) -> UUID | None:
    """Return the branch key id in a wrapping. ``None`` if it has none in canonical form."""
    return named_branch_in(wrapped.kek_uri)


@lru_cache(maxsize=MOST_BRANCHES)
def named_branch_in(kek_uri: str) -> UUID | None:
    """Return the branch key id in a ``kek_uri``. ``None`` if it has none in canonical form."""
    try:
        branch_id = UUID(kek_uri.removeprefix(BRANCH_PREFIX))
    except ValueError:
        return None
    return branch_id if branch_uri(branch_id) == kek_uri else None


def wrap_under(branch: DataKey, keys: Sequence[DataKey]) -> list[WrappedKey]:
    """
    Wrap keys under a branch key.

    Raises:
        KeyNotFoundError: A handle was closed in the meantime.
    """
    header = build_header(A256CBC_HS512.id, CompressionId.NONE, branch.key_id)
    pool, uri = branch.wrapping_pool(), branch_uri(branch.key_id)
    bodies = seal_many(pool, [(material_of(key), header + _bound(key)) for key in keys])
    return [WrappedKey(kek_uri=uri, kek_version=None, ciphertext=header + body) for body in bodies]


def unwrap_under(
    branch: DataKey, addressed: Sequence[tuple[KeyRecord, WrappedKey]]
) -> list[DataKey | EventSealError]:
    """
    Unwrap keys that were wrapped under one branch key.

    Args:
        branch: The branch key that the wrappings name.
        addressed: Rows, each with one wrapping.

    Returns:
        One outcome for each row, in order: a handle whose bytes match the row's binding, or
        ``IntegrityError``.

    Raises:
        KeyNotFoundError: The branch key's handle was closed in the meantime.
    """
    header = build_header(A256CBC_HS512.id, CompressionId.NONE, branch.key_id)
    fitting = [wrapped.ciphertext.startswith(header) for _, wrapped in addressed]
    bodies = [
        (wrapped.ciphertext[len(header) :], header + _bound(record))
        for (record, wrapped), fits in zip(addressed, fitting, strict=True)
        if fits
    ]
    opened = iter(open_many(branch.wrapping_pool(), bodies))
    giver = f"branch key {branch.key_id}"
    return [
        _opened(next(opened), record, giver) if fits else _changed(record, giver)
        for (record, _), fits in zip(addressed, fitting, strict=True)
    ]


def checked_branches(branches: int | None) -> int | None:
    """
    Reject an invalid number of branches.

    Raises:
        ConfigurationError: It is not a whole number from 1 to 4,096.
    """
    if branches is not None and (type(branches) is not int or not 1 <= branches <= MOST_BRANCHES):
        raise ConfigurationError(
            f"branches is {branches}, but it must be a whole number from 1 to {MOST_BRANCHES:,}",
            remedy="Omit branches, and then the KMS keys wrap every data key.",
        )
    return branches


def _opened(outcome: bytes | IntegrityError, record: KeyRecord, giver: str) -> DataKey | EventSealError:
    if isinstance(outcome, IntegrityError):
        return _changed(record, giver)
    return unwrapped_key(outcome, record, giver=giver)


def _changed(record: KeyRecord, giver: str) -> IntegrityError:
    return IntegrityError(
        f"the wrapping of key {record.key_id} under {giver} does not authenticate: "
        "it was changed, or it wraps another key",
        remedy=restore_remedy("the row of this key in eventseal_key_wrappings"),
        key_id=record.key_id,
    )


def _bound(key: DataKey | KeyRecord) -> bytes:
    """Return the associated data of a wrapping, without its header."""
    return length_prefixed(
        _DOMAIN, key.application.encode(), key.purpose.encode(), key.scope.encode(), key.key_id.bytes
    )


_REMEDY = restore_remedy()
_WAS_NEEDED = "A branch key is never destroyed while it wraps other keys. " + restore_remedy(
    "the rows of both keys"
)


class Branches:
    """
    Wraps and unwraps keys under branch keys.

    Args:
        count: The number of branches for new keys. With ``None``, the KEKs wrap them.
        keks: The KEKs wrap and unwrap every key that no branch key wraps.
        sealer: Finds and creates the active branch keys.
        opener: Finds branch keys by id.
    """

    def __init__(self, count: int | None, keks: Keks, *, sealer: Sealer, opener: Opener) -> None:
        self._count = count
        self._keks = keks
        self._sealer = sealer
        self._opener = opener

    @property
    def wraps_new_keys(self) -> bool:
        """Whether branch keys wrap new keys. If not, the KEKs do."""
        return self._count is not None

    def generate(self, records: Sequence[KeyRecord]) -> list[tuple[DataKey, tuple[WrappedKey, ...]]]:
        """
        Create a key for each of *records*. Only branch keys not in memory need the KMS.

        Raises:
            IntegrityError: A branch key's row is not authentic.
            KeyDestroyedError: A branch is closed.
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
        Unwrap the key of each of *records*.

        A key is unwrapped under its branch key if it has one, and otherwise under a KEK.

        Returns:
            One outcome for each record, in order: a handle whose bytes match the record's binding, or the
            error.

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
        if len(by_kek) == len(records):
            return self._keks.unwrap(records)
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
            pass  # closed after it was returned and before it was used: get it once more, and use that one
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
            # Closed after it was returned and before it was used: get it once more, and use that answer.
            again = error if last_answer else self._opener.keys([branch_id])[branch_id]
        return self._unwrapped(branch_id, again, addressed, last_answer=True)


def _refusal(error: EventSealError, branch_id: UUID, record: KeyRecord) -> EventSealError:
    """Return the error of a key that its branch key cannot unwrap."""
    wrapped = f"key {record.key_id} is wrapped under branch key {branch_id}"
    if isinstance(error, KeyDestroyedError):
        # The scope is left out: by the key's own row, it is not destroyed, so nothing of its scope was
        # erased.
        return KeyDestroyedError(
            f"{wrapped}, which was {error.destroyed_by}",
            key_id=branch_id,
            destroyed_by=error.destroyed_by,
            remedy=_WAS_NEEDED,
        )
    if isinstance(error, KeyNotFoundError | WrongApplicationError):
        # Neither error is about the item's own key: its row was found, and belongs to this application.
        return IntegrityError(f"{wrapped}: {error}", remedy=_REMEDY, key_id=record.key_id)
    if isinstance(error, IntegrityError):  # of the branch key or another named row
        key_id = getattr(error, "key_id", branch_id)
        return IntegrityError(f"{wrapped}: {error}", remedy=error.remedy, key_id=key_id)
    return copied(error)


def _not_one(record: KeyRecord, kek_uri: str) -> IntegrityError:
    return IntegrityError(
        f"the wrapping of key {record.key_id} is under {kek_uri!r}, which is not the name of a branch key",
        remedy=_REMEDY,
        key_id=record.key_id,
    )
