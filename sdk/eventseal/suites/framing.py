"""Length-prefixed framing: several byte strings as one, so that no two lists of parts give the same bytes."""

from __future__ import annotations

from struct import Struct

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
