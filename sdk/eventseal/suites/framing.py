"""Values as bytes to authenticate: no two lists of parts, and no two JSON objects, give the same bytes."""

from __future__ import annotations

import json
from struct import Struct
from typing import TYPE_CHECKING, Any

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
