"""Older formats that a migration reads: plaintext JSON, former ciphers, static keys."""

from __future__ import annotations

import hmac
from base64 import b64decode
from dataclasses import replace
from json import loads
from typing import TYPE_CHECKING, NoReturn, Protocol, runtime_checkable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from eventseal.cipher.aes import MAX_PLAINTEXT, AESCipher
from eventseal.cipher.compression import decompress, too_large
from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    ItemTooLargeError,
    KeyNotFoundError,
    UnknownFormatError,
)
from eventseal.items.item import EVENTS, TIMED_EVENTS
from eventseal.suites.envelope import CompressionId
from eventseal.suites.hkdf import key_check_id

if TYPE_CHECKING:
    from uuid import UUID

    from eventseal.cipher.context import ItemContext


KEY_SIZES = frozenset({16, 24, 32})
OPAQUE_OLD_MESSAGE = "the item does not open in an older format: its bytes or its key are wrong"
"""The same message for every failure that depends on the key. So no failure reveals its cause."""

_BLOCK = 16
_NONCE, _TAG = 12, 16


@runtime_checkable
class OldFormat(Protocol):
    """Reads one older format. Several threads may call it at the same time."""

    @property
    def name(self) -> str:
        """The name, as in settings and messages."""
        ...

    @property
    def key_id(self) -> UUID | None:
        """A check value of the key, or ``None`` without a key."""
        ...

    def open(self, data: bytes, context: ItemContext) -> bytes:
        """
        Return the JSON of an item.

        Args:
            data: The bytes as stored. For a text column, its UTF-8.
            context: The place of the item.

        Raises:
            UnknownFormatError: The item is not of this format, as anyone can see without the key.
            IntegrityError: The item may be of this format, but does not open. The message gives no details.
            ItemTooLargeError: The JSON is over the limit.
        """
        ...


class PlainJSON:
    """
    Unencrypted JSON, of EventSeal or of any release of the eventsourcing library.

    Args:
        compressed: Whether the JSON is compressed with zlib.
        max_plaintext: The maximum size of an item, in bytes.
    """

    key_id: UUID | None = None

    def __init__(self, *, compressed: bool = False, max_plaintext: int = MAX_PLAINTEXT) -> None:
        self.name = "plain-json+zlib" if compressed else "plain-json"
        self._compressed = compressed
        self._limit = max_plaintext

    def open(self, data: bytes, context: ItemContext) -> bytes:  # noqa: ARG002 - it is bound to no place
        """Check that the item is a JSON object. See ``OldFormat``."""
        plaintext = _unzipped(data, self._limit) if self._compressed else data
        if plaintext is None or not _is_object(plaintext):
            raise UnknownFormatError(f"the item is not {self.name}", remedy=_OTHER_FORMAT)
        return _within(self._limit, plaintext)


class _WithKey:
    def __init__(self, name: str, key: bytes, max_plaintext: int) -> None:
        self.name = name
        self.key_id: UUID | None = key_check_id(key)
        self._limit = max_plaintext

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} key={self.key_id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an older format holds a key, and cannot be pickled or copied")


class EventsourcingCBC(_WithKey):
    """
    The AES-CBC format of the eventsourcing library's releases 1 to 3.

    It is base64 of AES-CBC of base64 of zlib, without a MAC. Nothing authenticates such an item. An attacker
    who can write to the table can change it, so migrate soon.

    Args:
        key: The key: 16, 24 or 32 bytes.
        max_plaintext: The maximum size of the plaintext of an item, in bytes.
    """

    def __init__(self, key: bytes, *, max_plaintext: int = MAX_PLAINTEXT) -> None:
        super().__init__("eventsourcing-cbc", _checked_key(key), max_plaintext)
        self._key = key

    def open(self, data: bytes, context: ItemContext) -> bytes:  # noqa: ARG002 - it is bound to no place
        """Decrypt in a new context for the item. See ``OldFormat``."""
        raw = _from_base64(data)
        if raw is None or len(raw) < 2 * _BLOCK or len(raw) % _BLOCK:
            raise UnknownFormatError(f"the item is not {self.name}", remedy=_OTHER_FORMAT)
        decryptor = Cipher(algorithms.AES(self._key), modes.CBC(raw[:_BLOCK])).decryptor()
        padded = decryptor.update(raw[_BLOCK:]) + decryptor.finalize()
        # Do all the steps for any padding, so that the time says no more than the error.
        size = min(max(padded[-1], 1), _BLOCK)
        is_padded = hmac.compare_digest(padded[-size:], bytes((size,)) * size) and padded[-1] == size
        zipped = _from_base64(padded[:-size])
        plaintext = _unzipped(zipped or b"", self._limit)
        if not is_padded or plaintext is None or not _is_object(plaintext):
            _refuse()
        return plaintext


class EventsourcingGCM(_WithKey):
    """
    The AES-GCM format of the eventsourcing library's releases 8 and 9.

    It is ``nonce | tag | ciphertext``.

    Args:
        key: The bytes of ``CIPHER_KEY``, decoded from base64: 16, 24 or 32 bytes.
        compressed: Whether the application used ``ZlibCompressor``.
        max_plaintext: The maximum size of the plaintext of an item, in bytes.
    """

    def __init__(self, key: bytes, *, compressed: bool = False, max_plaintext: int = MAX_PLAINTEXT) -> None:
        name = "eventsourcing-gcm+zlib" if compressed else "eventsourcing-gcm"
        super().__init__(name, _checked_key(key), max_plaintext)
        self._key = key
        self._compressed = compressed

    def open(self, data: bytes, context: ItemContext) -> bytes:  # noqa: ARG002 - it is bound to no place
        """Check the tag and decrypt. See ``OldFormat``."""
        if len(data) <= _NONCE + _TAG:
            raise UnknownFormatError(f"the item is not {self.name}", remedy=_OTHER_FORMAT)
        nonce, tag, ciphertext = data[:_NONCE], data[_NONCE : _NONCE + _TAG], data[_NONCE + _TAG :]
        try:
            body: bytes | None = AESGCM(self._key).decrypt(nonce, ciphertext + tag, None)
        except InvalidTag:
            body = None
        plaintext = _unzipped(body, self._limit) if self._compressed and body is not None else body
        if plaintext is None or not _is_object(plaintext):
            _refuse()
        return _within(self._limit, plaintext)


class EventsourcingGCMText(EventsourcingGCM):
    """
    The AES-GCM format of the eventsourcing library's releases 4 to 7.

    It is base64 of AES-GCM of zlib.

    Args:
        key: The bytes of ``CIPHER_KEY``, decoded from base64: 16, 24 or 32 bytes.
        max_plaintext: The maximum size of the plaintext of an item, in bytes.
    """

    def __init__(self, key: bytes, *, max_plaintext: int = MAX_PLAINTEXT) -> None:
        super().__init__(key, compressed=True, max_plaintext=max_plaintext)
        self.name = "eventsourcing-gcm-base64"

    def open(self, data: bytes, context: ItemContext) -> bytes:
        """Decode base64, check the tag and decrypt. See ``OldFormat``."""
        raw = _from_base64(data)
        if raw is None:
            raise UnknownFormatError(f"the item is not {self.name}", remedy=_OTHER_FORMAT)
        return super().open(raw, context)


class StaticKeyEnvelope(_WithKey):
    """
    EventSeal's own envelopes under a static key, as ``AESCipher(key)`` writes them.

    Args:
        application: The application name of that cipher.
        max_plaintext: The maximum size of the plaintext of an item, in bytes.
    """

    def __init__(
        self, key: bytes, *, application: str = "default", max_plaintext: int = MAX_PLAINTEXT
    ) -> None:
        self._cipher = AESCipher(key, application=application, max_plaintext=max_plaintext)
        super().__init__("static-key", key, max_plaintext)

    def open(self, data: bytes, context: ItemContext) -> bytes:
        """Open the envelope at its place. See ``OldFormat``."""
        (outcome,) = self._cipher.open_many([(data, context)])
        if isinstance(outcome, IntegrityError) and context.collection == TIMED_EVENTS:
            # Earlier releases used one collection for both tables of events.
            (outcome,) = self._cipher.open_many([(data, replace(context, collection=EVENTS))])
        if isinstance(outcome, KeyNotFoundError | UnknownFormatError):
            raise UnknownFormatError(f"the item is not sealed under the static key {self.key_id}")
        if isinstance(outcome, EventSealError):
            raise outcome
        return outcome.plaintext


_OTHER_FORMAT = "Accept the format that wrote it, with its key."


def _refuse() -> NoReturn:
    raise IntegrityError(
        OPAQUE_OLD_MESSAGE,
        remedy="Accept the format that wrote it, with its key. If other items open, find out who changed it.",
    )


def _checked_key(key: object) -> bytes:
    if not isinstance(key, bytes) or len(key) not in KEY_SIZES:
        size = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise ConfigurationError(
            f"the key of an older format has 16, 24 or 32 bytes, not {size}",
            remedy="Pass the bytes that the old application encrypted with. CIPHER_KEY is their base64.",
        )
    return key


def _from_base64(text: bytes) -> bytes | None:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return None


def _unzipped(data: bytes, limit: int) -> bytes | None:
    outcome = decompress(CompressionId.ZLIB, data, limit=limit)
    if isinstance(outcome, ItemTooLargeError):
        raise outcome
    return outcome if isinstance(outcome, bytes) else None


def _within(limit: int, plaintext: bytes) -> bytes:
    # An item over the limit could not be encrypted either, and would stop the other items of its batch.
    if len(plaintext) > limit:
        raise too_large(len(plaintext), limit)
    return plaintext


def _is_object(plaintext: bytes) -> bool:
    if plaintext.lstrip()[:1] != b"{":
        return False
    try:
        return isinstance(loads(plaintext), dict)
    except (ValueError, RecursionError):  # for example a number with more digits than Python reads
        return False


__all__ = [
    "EventsourcingCBC",
    "EventsourcingGCM",
    "EventsourcingGCMText",
    "OldFormat",
    "PlainJSON",
    "StaticKeyEnvelope",
]
