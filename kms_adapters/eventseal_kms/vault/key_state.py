"""The state of a transit key, and the token's permissions on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventseal.errors import EventSealError, KmsKeyStateError
from eventseal.kms import KmsUse, PermissionCheck
from eventseal_kms.outcomes import value_of
from eventseal_kms.vault.failures import mismatch, policy_line

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Self

    from eventseal_kms.vault.session import VaultSession
    from eventseal_kms.vault.transit_key import TransitKey

_CAPABILITIES = "sys/capabilities-self"
_TO_WRAP = frozenset({KmsUse.GENERATE, KmsUse.WRAP})
_NEEDED = (
    ("encrypt", "update", _TO_WRAP),
    ("decrypt", "update", frozenset({KmsUse.UNWRAP})),
    ("rewrap", "update", frozenset({KmsUse.REWRAP})),
    ("keys", "read", _TO_WRAP | {KmsUse.DESCRIBE}),
)
_FOR_ROTATION = frozenset({"rewrap"})
_ALL = "root"
_VERSIONS = (
    "latest_version",
    "min_encryption_version",
    "min_decryption_version",
    "min_available_version",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyState:
    """
    The state of a transit key, as Vault reports it.

    Attributes:
        derived: Whether the key binds the encryption context.
        encrypts: Whether a key of this type can encrypt.
        soft_deleted: Whether the key is unusable until it is restored (OpenBao).
        latest_version: The version that wraps.
        min_encryption_version: The oldest version that may wrap. With 0, only the latest version may.
        min_decryption_version: The oldest version that can still unwrap.
        min_available_version: The oldest version that is not trimmed. It is 0 or 1 if none is trimmed.
    """

    derived: bool
    encrypts: bool
    soft_deleted: bool
    latest_version: int
    min_encryption_version: int
    min_decryption_version: int
    min_available_version: int

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self | None:
        """Read Vault's answer. Return ``None`` if it does not describe a key."""
        marks = [data.get(name, False) for name in ("derived", "supports_encryption", "soft_deleted")]
        versions = {name: data.get(name, 0) for name in _VERSIONS}
        if "derived" not in data or not all(isinstance(mark, bool) for mark in marks):
            return None
        if not all(isinstance(version, int) for version in versions.values()):
            return None
        derived, encrypts, soft_deleted = marks
        return cls(derived=derived, encrypts=encrypts, soft_deleted=soft_deleted, **versions)

    def defect(self, key: TransitKey) -> KmsKeyStateError | None:
        """Return an error if the key must not wrap."""
        if self.soft_deleted:
            return KmsKeyStateError(
                f"the transit key {key.uri} is soft-deleted",
                remedy=f"Restore it: `bao write -f {key.path('keys')}/soft-delete-restore`.",
                kek_uri=key.uri,
            )
        if not self.encrypts or not self.derived:
            what = "is not derived, so it binds no context" if self.encrypts else "cannot encrypt"
            return KmsKeyStateError(
                f"the transit key {key.uri} {what}",
                remedy="Create and configure another key, because Vault cannot change this one: `vault write "
                f"{key.mount}/keys/<name> type=aes256-gcm96 derived=true`.",
                kek_uri=key.uri,
            )
        return None


def read_state(session: VaultSession, key: TransitKey) -> KeyState | EventSealError:
    """Read the state of the key, which needs ``read`` on its path."""
    answer = session.ask("get", key.path("keys"))
    if isinstance(answer, EventSealError):
        return answer
    return KeyState.of(answer.data) or mismatch(key.path("keys"), key=key)


def defect_of(session: VaultSession, key: TransitKey) -> EventSealError | None:
    """Return an error if the key must not wrap, or is unreadable."""
    state = read_state(session, key)
    return state if isinstance(state, EventSealError) else state.defect(key)


def check_key(session: VaultSession, key: TransitKey) -> list[PermissionCheck]:
    """
    Check the permissions of writer, reader and rotator, and the key's state.

    It changes nothing.

    Raises:
        KmsError: Vault refused the checks, or did not answer.
    """
    paths = [key.path(operation) for operation, _, _ in _NEEDED]
    answer = value_of(session.ask("post", _CAPABILITIES, {"paths": paths}))
    checks = [_permission(key, *needed, answer.data) for needed in _NEEDED]
    if checks[-1].granted:
        checks.append(_fitness(session, key))
    return checks


def policy_of(key: TransitKey, uses: Collection[KmsUse]) -> str:
    """Write the policy that grants some uses, one line for each path."""
    paths = [(key.path(operation), wanted) for operation, wanted, needed_by in _NEEDED if needed_by & {*uses}]
    if KmsUse.END in uses:
        paths += [(f"{key.path('keys')}/{verb}", "update") for verb in ("rotate", "config", "trim")]
    return "\n".join([policy_line(path, wanted) for path, wanted in paths])


def _permission(
    key: TransitKey, operation: str, wanted: str, uses: frozenset[KmsUse], held: Mapping[str, Any]
) -> PermissionCheck:
    path = key.path(operation)
    capabilities = held.get(path)
    granted = isinstance(capabilities, list) and (wanted in capabilities or _ALL in capabilities)
    return PermissionCheck(
        action=f"{wanted} {path}",
        granted=granted,
        detail="" if granted else policy_line(path, wanted),
        required=operation not in _FOR_ROTATION,
        uses=uses,
    )


def _fitness(session: VaultSession, key: TransitKey) -> PermissionCheck:
    defect = defect_of(session, key)
    return PermissionCheck(
        action=f"{key.path('keys')} is a derived key that encrypts",
        granted=defect is None,
        detail="" if defect is None else f"{defect} ({defect.remedy})",
        uses=_TO_WRAP,
    )
