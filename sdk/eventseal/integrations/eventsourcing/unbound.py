"""
A cipher for applications that cannot configure a mapper.

It does not know the row of a state, so it binds no state to its row.
"""

from __future__ import annotations

import warnings
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from eventsourcing.persistence import Cipher, Mapper

from eventseal.cipher import ItemContext
from eventseal.integrations.eventsourcing.sealing import Sealing, SealingOptions
from eventseal.integrations.eventsourcing.stored_events import refuse_marked_event

if TYPE_CHECKING:
    from eventsourcing.utils import Environment

UNBOUND = ItemContext(sequence_id="", position=0, topic="", collection="unbound")
"""The fixed binding of every state, in place of its row."""

_COMPRESSOR = "COMPRESSOR_TOPIC"
_WARNING = (
    "EnvelopeCipher binds no state to its row: an attacker who can write to the database can swap states. "
    "Use MAPPER_TOPIC=eventseal.integrations.eventsourcing:EncryptingMapper instead"
)


class UnboundCipherWarning(UserWarning):
    """States are sealed without their row. An attacker who can write to the database can swap them."""


def _look_at_events() -> None:
    """Let the library's mappers check events, because this cipher gets only bytes."""
    to_stored_event = Mapper.to_stored_event  # the last to see the class (docs/decisions/0028)

    @wraps(to_stored_event)
    def checked(self: Any, domain_event: Any) -> Any:
        if isinstance(self.cipher, EnvelopeCipher):
            refuse_marked_event(domain_event)
        return to_stored_event(self, domain_event)

    Mapper.to_stored_event = checked  # type: ignore[method-assign]


class EnvelopeCipher(Cipher):
    """
    A cipher for the library, with KMS keys but without binding.

    Its keys can be rotated. Threads may share it. The library passes only bytes to a cipher, which causes
    these limits:

    - A state that is moved to another row opens there.
    - The events of all aggregates are under the keys of one scope.
    - The states are neither re-encrypted nor verified in place.

    :class:`EncryptingMapper` has none of these limits.

    Args:
        environment: The environment of the library. It decides whether a compressor runs first. All other
            settings are the process's.

    Raises:
        ConfigurationError: The settings name no KMS key or no database, or are invalid.
    """

    def __init__(self, environment: Environment) -> None:
        self._sealing = Sealing(SealingOptions())
        self._compress = not environment.get(_COMPRESSOR)
        _warn_once()

    def encrypt(self, plaintext: bytes) -> bytes:
        """Seal a state."""
        return self._sealing.seal(((plaintext, UNBOUND),), compress=self._compress)[0]

    def decrypt(self, ciphertext: bytes) -> bytes:
        """
        Open a state.

        Raises:
            EventSealError: The state does not open. See ``AESCipher.open_many``.
        """
        return self._sealing.cipher.decrypt(ciphertext, UNBOUND)


_look_at_events()


@cache
def _warn_once() -> None:
    warnings.warn(_WARNING, UnboundCipherWarning, stacklevel=3)
