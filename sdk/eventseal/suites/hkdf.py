"""Key derivation by HKDF (RFC 5869), and framing of values before hashing."""

from __future__ import annotations

import json
from struct import Struct
from typing import TYPE_CHECKING, Any
from uuid import UUID

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from collections.abc import Mapping


_LENGTH = Struct(">I")


def length_prefixed(*parts: bytes) -> bytes:
    """
    Join *parts*, each after its length.

    Args:
        parts: Any byte strings, each shorter than 2**32 bytes.

    Returns:
        For each part 4 bytes of big-endian length, then the part.
    """
    return b"".join([piece for part in parts for piece in (_LENGTH.pack(len(part)), part)])


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """
    Return a JSON object in canonical form: sorted members, no spaces, ASCII.

    Args:
        value: A mapping that holds only types of JSON.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def hkdf_sha512(key: bytes, *, salt: bytes | None, info: bytes, length: int) -> bytes:
    """
    Derive *length* bytes from *key*.

    Args:
        key: The input keying material: a data key of 32 bytes, or a static key of 16, 24 or 32 bytes.
        salt: The salt, usually the 16 bytes of the key's id. ``None`` means RFC 5869's string of zeros.
        info: The purpose of the derived bytes.
        length: The number of bytes to derive, from 1 to 16,320.

    Returns:
        The derived bytes.
    """
    return HKDF(algorithm=SHA512(), length=length, salt=salt, info=info).derive(key)


def key_check_id(key: bytes) -> UUID:
    """
    Return an id for a key that has no row.

    The id is a check value of the key, as a version 8 UUID (RFC 9562 section 5.8).

    Args:
        key: Random bytes, never a passphrase, because anyone who sees the id can test a guess against it.

    Returns:
        A version 8 UUID over ``HKDF-SHA-512(key, info="eventseal/v1/static key id")[:16]``.
    """
    value = bytearray(hkdf_sha512(key, salt=None, info=b"eventseal/v1/static key id", length=16))
    value[6] = 0x80 | (value[6] & 0x0F)
    value[8] = 0x80 | (value[8] & 0x3F)
    return UUID(bytes=bytes(value))
