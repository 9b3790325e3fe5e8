"""What the token may do with the key, and what the key is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import EventSealError
from eventseal.kms import PermissionCheck
from eventseal_kms.vault.key_facts import read_key
from eventseal_kms.vault.policies import policy_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from eventseal_kms.vault.session import VaultSession
    from eventseal_kms.vault.transit_key import TransitKey

_CAPABILITIES = "sys/capabilities-self"
_NEEDED = (("encrypt", "update"), ("decrypt", "update"), ("rewrap", "update"), ("keys", "read"))
_FOR_ROTATION = frozenset({"rewrap"})
_ALL = "root"


def check_key(session: VaultSession, key: TransitKey) -> list[PermissionCheck]:
    """
    Ask for the capabilities of writer, reader and rotator, and for the key; changes nothing.

    Raises:
        KmsError: Vault could not be asked.
    """
    answer = session.ask("post", _CAPABILITIES, {"paths": [key.path(operation) for operation, _ in _NEEDED]})
    if isinstance(answer, EventSealError):
        raise answer
    checks = [_permission(key, operation, wanted, answer.data) for operation, wanted in _NEEDED]
    if checks[-1].granted:
        checks.append(_fitness(session, key))
    return checks


def _permission(key: TransitKey, operation: str, wanted: str, held: Mapping[str, Any]) -> PermissionCheck:
    path = key.path(operation)
    granted = not {wanted, _ALL}.isdisjoint(held.get(path) or ())
    return PermissionCheck(
        action=f"{wanted} {path}",
        granted=granted,
        detail="" if granted else policy_line(path, wanted),
        required=operation not in _FOR_ROTATION,
    )


def _fitness(session: VaultSession, key: TransitKey) -> PermissionCheck:
    facts = read_key(session, key)
    defect = facts if isinstance(facts, EventSealError) else facts.defect(key)
    return PermissionCheck(
        action=f"{key.path('keys')} is a derived key that encrypts",
        granted=defect is None,
        detail="" if defect is None else f"{defect} ({defect.remedy})",
    )
