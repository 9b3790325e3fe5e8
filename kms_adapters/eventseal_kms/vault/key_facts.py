"""What Vault tells of a transit key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventseal.errors import EventSealError, KmsKeyStateError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from eventseal_kms.vault.session import VaultSession
    from eventseal_kms.vault.transit_key import TransitKey


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFacts:
    """
    A transit key, as it is now.

    Attributes:
        derived: Whether it binds the encryption context.
        encrypts: Whether its type encrypts.
        soft_deleted: Whether it refuses to work until it is restored (OpenBao).
        latest_version: The one that wraps.
        min_encryption_version: The oldest version that may wrap; 0: only the latest.
        min_decryption_version: The oldest version that still opens.
        min_available_version: The oldest version that is not trimmed; 0 or 1 if none is.
    """

    derived: bool
    encrypts: bool
    soft_deleted: bool
    latest_version: int
    min_encryption_version: int
    min_decryption_version: int
    min_available_version: int

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Read Vault's answer."""
        return cls(
            derived=bool(data.get("derived")),
            encrypts=bool(data.get("supports_encryption")),
            soft_deleted=bool(data.get("soft_deleted")),
            **{
                name: int(data.get(name) or 0)
                for name in (
                    "latest_version",
                    "min_encryption_version",
                    "min_decryption_version",
                    "min_available_version",
                )
            },
        )

    def defect(self, key: TransitKey) -> KmsKeyStateError | None:
        """Say why the key must not wrap; ``None`` if it may."""
        if self.soft_deleted:
            return KmsKeyStateError(
                f"the transit key {key.uri} is soft-deleted",
                remedy=f"Restore it: `bao write -f {key.path('keys')}/soft-delete-restore`.",
                kek_uri=key.uri,
            )
        if not self.encrypts or not self.derived:
            what = "is not derived, so it binds no context" if self.encrypts else "does not encrypt"
            return KmsKeyStateError(
                f"the transit key {key.uri} {what}",
                remedy=f"A key cannot be changed into one that does. Make another: `vault write "
                f"{key.mount}/keys/<name> type=aes256-gcm96 derived=true`, and configure that one.",
                kek_uri=key.uri,
            )
        return None


def read_key(session: VaultSession, key: TransitKey) -> KeyFacts | EventSealError:
    """Ask Vault for the key; needs ``read`` on its path."""
    answer = session.ask("get", key.path("keys"))
    return answer if isinstance(answer, EventSealError) else KeyFacts.of(answer.data)
