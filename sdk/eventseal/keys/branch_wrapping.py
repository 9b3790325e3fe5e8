"""
Keys wrapped under branch keys, which are kept in the key store: a million keys cost a KMS one call. No I/O.

A wrapped key is an envelope of 115 bytes under the default suite; ``docs/format.md`` has it to the byte.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha512
from typing import TYPE_CHECKING
from uuid import UUID

from eventseal.errors import ConfigurationError, EventSealError, IntegrityError
from eventseal.keys.data_key import material_of
from eventseal.keys.handles import unwrapped_key
from eventseal.kms.adapter import WrappedKey
from eventseal.suites.cbc_hmac import A256CBC_HS512, open_many, seal_many
from eventseal.suites.envelope import CompressionId, build_header
from eventseal.suites.framing import length_prefixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord

BRANCH_PREFIX = "branch:"
"""What the ``kek_uri`` of a wrapping under a branch key begins with; no KEK's does."""

MOST_BRANCHES = 4096
"""Branches that an application may have."""

_DOMAIN = b"wrapped-key"


def branch_scope(application: str, scope: str, branches: int) -> str:
    """
    Say under which branch the new keys of a scope are wrapped.

    Args:
        application: The scope's application.
        scope: Of the keys to be wrapped.
        branches: How many branches there are.

    Returns:
        The scope of the branch key: ``branch:0`` to ``branch:<branches - 1>``.
    """
    digest = sha512(length_prefixed(application.encode(), scope.encode())).digest()
    return _branch_scope(int.from_bytes(digest) % branches)


def branch_scopes(branches: int) -> list[str]:
    """Name the branch keys of an application that has so many."""
    return [_branch_scope(number) for number in range(branches)]


def branch_uri(branch_id: UUID) -> str:
    """Name a branch key, as ``kek_uri`` has it."""
    return f"{BRANCH_PREFIX}{branch_id}"


def branch_wrapping(record: KeyRecord) -> WrappedKey | None:
    """Give the wrapping of *record* that is under a branch key, if there is one."""
    for wrapped in record.wrappings:
        if wrapped.kek_uri.startswith(BRANCH_PREFIX):
            return wrapped
    return None


def named_branch(wrapped: WrappedKey) -> UUID | None:
    """Read the id of the branch key that a wrapping names; ``None`` if it names none in canonical form."""
    return _branch_id(wrapped.kek_uri)


def named_branch_in(kek_uri: str) -> UUID | None:
    """Read the id of the branch key that a ``kek_uri`` names; ``None`` if it names none in canonical form."""
    return _branch_id(kek_uri)


def wrap_under(branch: DataKey, keys: Sequence[DataKey]) -> list[WrappedKey]:
    """
    Wrap keys under a branch key.

    Raises:
        KeyNotFoundError: A handle was closed meanwhile.
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
        branch: The one that the wrappings name.
        addressed: Rows, and the wrapping of each.

    Returns:
        One outcome a row, in order: a handle whose bytes match the row's binding, or ``IntegrityError``.

    Raises:
        KeyNotFoundError: The branch key's handle was closed meanwhile.
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
    Refuse a number of branches that is none.

    Raises:
        ConfigurationError: It is not a whole number of 1 to 4,096.
    """
    if branches is not None and (type(branches) is not int or not 1 <= branches <= MOST_BRANCHES):
        raise ConfigurationError(
            f"branches is {branches}; 1 to {MOST_BRANCHES} are allowed",
            remedy="Leave branches out to have the KEKs wrap every data key.",
        )
    return branches


@lru_cache(maxsize=MOST_BRANCHES)
def _branch_id(kek_uri: str) -> UUID | None:
    try:
        branch_id = UUID(kek_uri.removeprefix(BRANCH_PREFIX))
    except ValueError:
        return None
    return branch_id if branch_uri(branch_id) == kek_uri else None


def _branch_scope(number: int) -> str:
    return f"{BRANCH_PREFIX}{number}"


def _opened(outcome: bytes | IntegrityError, record: KeyRecord, giver: str) -> DataKey | EventSealError:
    if isinstance(outcome, IntegrityError):
        return _changed(record, giver)
    return unwrapped_key(outcome, record, giver=giver)


def _changed(record: KeyRecord, giver: str) -> IntegrityError:
    return IntegrityError(
        f"the wrapping of key {record.key_id} under {giver} does not authenticate: "
        "it was changed, or wraps another key",
        remedy="Restore the key's row in key_wrappings from a backup, and find out who changed it.",
        key_id=record.key_id,
    )


def _bound(key: DataKey | KeyRecord) -> bytes:
    """Give what a wrapping is bound to, beside its header."""
    return length_prefixed(
        _DOMAIN, key.application.encode(), key.purpose.encode(), key.scope.encode(), key.key_id.bytes
    )
