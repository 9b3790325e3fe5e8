"""HKDF-SHA-512 (RFC 5869): the one key derivation of EventSeal."""

from __future__ import annotations

from uuid import UUID

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def hkdf_sha512(key: bytes, *, salt: bytes | None, info: bytes, length: int) -> bytes:
    """
    Derive *length* bytes from *key*.

    Args:
        key: Input keying material: a data key of 32 bytes, or a static key of 16, 24 or 32.
        salt: Usually the key's id, 16 bytes; ``None`` is RFC 5869's string of zeros.
        info: What the derived bytes are for.
        length: 1 to 16,320 bytes.

    Returns:
        The derived bytes.
    """
    return HKDF(algorithm=SHA512(), length=length, salt=salt, info=info).derive(key)


def key_check_id(key: bytes) -> UUID:
    """
    Name a key that has no row by a check value of it, as a version 8 UUID (RFC 9562 section 5.8).

    Args:
        key: Random bytes, never a passphrase: whoever sees the id can test a guess against it.

    Returns:
        A version 8 UUID over ``HKDF-SHA-512(key, info="eventseal/v1/static key id")[:16]``.
    """
    value = bytearray(hkdf_sha512(key, salt=None, info=b"eventseal/v1/static key id", length=16))
    value[6] = 0x80 | (value[6] & 0x0F)
    value[8] = 0x80 | (value[8] & 0x3F)
    return UUID(bytes=bytes(value))
