"""How keys are derived (HKDF, RFC 5869), and how values are framed before they are hashed."""

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
    Join *parts*, each behind its length.

    Args:
        parts: Any byte strings, each under 2**32 bytes.

    Returns:
        For each part 4 bytes of big-endian length, then the part.
    """
    return b"".join([piece for part in parts for piece in (_LENGTH.pack(len(part)), part)])


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """
    Write a JSON object in its one form: members sorted, no spaces, ASCII only.

    Args:
        value: What JSON has, and nothing else.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


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
