"""The encryption context: the non-secret pairs that a KMS binds to a wrapped key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventseal.suites.framing import length_prefixed

if TYPE_CHECKING:
    from uuid import UUID


@dataclass(frozen=True, slots=True)
class EncryptionContext:
    """
    What a KMS binds to a wrapped key. AWS CloudTrail shows it, so it never holds the scope or personal data.

    Attributes:
        key_id: The wrapped key's id.
        purpose: ``data``, ``branch``, ``field``, ``index``, ``store`` or ``ledger``.
        application: The application that owns the key.
    """

    key_id: UUID
    purpose: str
    application: str

    def as_mapping(self) -> dict[str, str]:
        """Give the pairs as AWS KMS takes them."""
        return {
            "eventseal:key-id": str(self.key_id),
            "eventseal:purpose": self.purpose,
            "eventseal:application": self.application,
        }

    def canonical(self) -> bytes:
        """Give the same pairs, each name and value length-prefixed, in the order of the names."""
        pairs = sorted(self.as_mapping().items())
        return length_prefixed(*[text.encode() for pair in pairs for text in pair])
