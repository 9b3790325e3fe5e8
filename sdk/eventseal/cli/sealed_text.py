"""The ways in which people hand an envelope over: its bytes, hex or base64."""

from __future__ import annotations

import base64
import binascii

_VERSION = b"\x01"
_HEX_PREFIXES = (b"\\x", b"0x", b"0X", b"X'", b"x'")


def sealed_bytes(content: bytes) -> bytes:
    """
    Find the envelope in what a file, a database client or a person gave.

    Args:
        content: An envelope's bytes, its hex (also as ``psql`` and ``sqlite3`` print it) or its base64, with
            space around it.

    Returns:
        The envelope's bytes; what is neither is given back as it is.
    """
    # Every envelope begins with its version, a byte that no text begins with.
    if content.startswith(_VERSION):
        return content
    text = content.strip()
    for prefix in _HEX_PREFIXES:
        text = text.removeprefix(prefix)
    text = text.removesuffix(b"'")
    try:
        return binascii.unhexlify(text)
    except binascii.Error:
        pass
    try:
        return base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/")), validate=True)
    except binascii.Error:
        return content
