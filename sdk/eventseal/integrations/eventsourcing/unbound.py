"""A cipher for applications that can set nothing else: it knows no row, so it binds none."""

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
"""What every state is bound to, in place of its row."""

_COMPRESSOR = "COMPRESSOR_TOPIC"
_WARNING = (
    "EnvelopeCipher binds no state to its row: an attacker who can write to the database can swap states. "
    "Use MAPPER_TOPIC=eventseal.integrations.eventsourcing:EncryptingMapper instead"
)


class UnboundCipherWarning(UserWarning):
    """States are sealed without their row: an attacker who can write to the database can swap them."""


def _look_at_events() -> None:
    """Have the library's mappers look at events, since this cipher is given only bytes."""
    to_stored_event = Mapper.to_stored_event  # the last to see the class (docs/decisions/0028)

    @wraps(to_stored_event)
    def checked(self: Any, domain_event: Any) -> Any:
        if isinstance(self.cipher, EnvelopeCipher):
            refuse_marked_event(domain_event)
        return to_stored_event(self, domain_event)

    Mapper.to_stored_event = checked  # type: ignore[method-assign]


class EnvelopeCipher(Cipher):
    """
    A cipher of the library's form: keys of a KMS and rotation, but no binding. Threads may share it.

    The library hands a cipher nothing but bytes. So a state that is moved to another row opens there, the
    events of all aggregates are under the keys of one scope, and what was sealed so is neither re-encrypted
    nor verified in place. :class:`EncryptingMapper` has none of these limits.

    Args:
        environment: The library's. It says whether a compressor goes before; all else is the process's.

    Raises:
        ConfigurationError: The settings name no KEK or no database, or are wrong.
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
            EventSealError: It does not open; see ``AESCipher.open_many``.
        """
        return self._sealing.cipher.decrypt(ciphertext, UNBOUND)


_look_at_events()


@cache
def _warn_once() -> None:
    warnings.warn(_WARNING, UnboundCipherWarning, stacklevel=3)
