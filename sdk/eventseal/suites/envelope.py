"""
The envelope of version 1, written and parsed without a key.

::

    offset  size   field
    0       1      version, 0x01
    1       1      suite id
    2       1      compression id
    3       16     key id
    19      4      dictionary id, only if compression is 3
    ..      16|24  IV or nonce
    ..      n      ciphertext
    ..      16..32 tag

``docs/format.md`` specifies it to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

from eventseal.errors import UnknownFormatError
from eventseal.wording import counted

VERSION = 1
HEADER_SIZE = 19
KEY_ID_IN_HEADER = slice(3, HEADER_SIZE)
"""The place of the key id in an envelope."""

IV_SIZE = BLOCK_SIZE = 16


class SuiteId(IntEnum):
    """The suites that version 1 names. 0x11 is reserved."""

    A128CBC_HS256 = 0x01
    A192CBC_HS384 = 0x02
    A256CBC_HS512 = 0x03
    XAES_256_GCM = 0x11


class CompressionId(IntEnum):
    """How the plaintext was compressed before it was sealed. 3 is reserved."""

    NONE = 0
    ZLIB = 1
    ZSTD = 2
    ZSTD_DICTIONARY = 3
    ZSTD_EVENTS = 4


TAG_SIZES: dict[int, int] = {
    SuiteId.A128CBC_HS256: 16,
    SuiteId.A192CBC_HS384: 24,
    SuiteId.A256CBC_HS512: 32,
}
"""The size of the tag in bytes, by suite of this release."""

_COMPRESSIONS = frozenset(
    {CompressionId.NONE, CompressionId.ZLIB, CompressionId.ZSTD, CompressionId.ZSTD_EVENTS}
)

_SMALLEST: dict[bytes, int] = {
    bytes((VERSION, suite, compression)): HEADER_SIZE + IV_SIZE + BLOCK_SIZE + tag_size
    for suite, tag_size in TAG_SIZES.items()
    for compression in _COMPRESSIONS
}
"""The smallest size of an envelope, by its first three bytes."""

SMALLEST_SIZE = HEADER_SIZE + 24 + 16
"""
The size of the smallest envelope of any suite, in bytes.

An envelope of the reserved suite may be only a header, an IV and a tag.
"""


@dataclass(frozen=True, slots=True)
class EnvelopeInfo:
    """
    The facts that an envelope shows without a key.

    None of them is authenticated until the item is opened.

    Attributes:
        version: The version of the format, which is 1.
        suite: The cipher suite that sealed the item.
        compression: How the plaintext was compressed before it was sealed.
        key_id: The data key that opens the item.
        size: The size of the whole envelope in bytes.
        ciphertext_size: The size of the ciphertext in bytes, a positive multiple of 16.
    """

    version: int
    suite: SuiteId
    compression: CompressionId
    key_id: UUID
    size: int
    ciphertext_size: int


def build_header(suite: SuiteId, compression: CompressionId, key_id: UUID) -> bytes:
    """Return the header: the 19 bytes before the IV."""
    return bytes((VERSION, suite, compression)) + key_id.bytes


def parse_envelope(sealed: bytes) -> EnvelopeInfo:
    """
    Read an envelope's header and check that its lengths add up.

    Args:
        sealed: The whole envelope.

    Returns:
        The facts that it shows without a key.

    Raises:
        UnknownFormatError: The envelope is cut, or this release does not open its version, suite or
            compression.
    """
    problem = envelope_problem(sealed)
    if problem is not None:
        raise problem
    suite = SuiteId(sealed[1])
    return EnvelopeInfo(
        version=sealed[0],
        suite=suite,
        compression=CompressionId(sealed[2]),
        key_id=UUID(bytes=sealed[KEY_ID_IN_HEADER]),
        size=len(sealed),
        ciphertext_size=len(sealed) - HEADER_SIZE - IV_SIZE - TAG_SIZES[suite],
    )


def envelope_problem(sealed: object) -> UnknownFormatError | None:
    """
    Return the error that :func:`parse_envelope` would raise, or ``None``.

    It costs a tenth of parsing.

    Args:
        sealed: Any bytes. Random bytes of a fitting length pass once in two million times. So bytes that pass
            are an envelope only if their key is known.
    """
    if not isinstance(sealed, bytes):
        return UnknownFormatError(f"an envelope is bytes, not {type(sealed).__name__}", offset=0)
    smallest = _SMALLEST.get(sealed[:3])
    if smallest is not None and (rest := len(sealed) - smallest) >= 0 and not rest % BLOCK_SIZE:
        return None
    return _problem(sealed)


def _problem(sealed: bytes) -> UnknownFormatError:
    size = len(sealed)
    if size < HEADER_SIZE:
        return UnknownFormatError(
            f"{counted(size, 'byte')} cannot be an envelope: the header alone has {HEADER_SIZE} bytes",
            offset=size,
        )
    version, suite, compression = sealed[0], sealed[1], sealed[2]
    if version != VERSION:
        return UnknownFormatError(
            f"envelope version 0x{version:02x} is not known: this release reads 0x{VERSION:02x}", offset=0
        )
    if suite not in TAG_SIZES:
        return _unopened("suite", suite, SuiteId.XAES_256_GCM, "XAES-256-GCM", offset=1)
    if compression not in _COMPRESSIONS:
        return _unopened(
            "compression", compression, CompressionId.ZSTD_DICTIONARY, "zstd with a dictionary", offset=2
        )
    ciphertext_size = size - HEADER_SIZE - IV_SIZE - TAG_SIZES[suite]
    return UnknownFormatError(
        f"the envelope is cut: its {counted(size, 'byte')} leave {ciphertext_size} for the ciphertext, "
        f"which needs a positive multiple of {BLOCK_SIZE}",
        offset=size,
    )


def _unopened(field: str, value: int, reserved: int, name: str, *, offset: int) -> UnknownFormatError:
    if value == reserved:
        message = f"{field} 0x{value:02x} ({name}) is reserved: this release does not open it"
    else:
        message = f"{field} 0x{value:02x} is not known"
    return UnknownFormatError(message, offset=offset)
