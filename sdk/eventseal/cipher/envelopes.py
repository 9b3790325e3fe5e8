"""The body of an envelope: plaintext compressed where that pays, within limits, and framed."""

from __future__ import annotations

import os
import zlib
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import zstandard

from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    ConfigurationError,
    EventSealError,
    IntegrityError,
    ItemTooLargeError,
    SerializationError,
    WrongApplicationError,
)
from eventseal.keys.states import KeyPurpose
from eventseal.suites.cbc_hmac import SUITES, open_many, seal_many
from eventseal.suites.envelope import HEADER_SIZE, CompressionId, build_header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.suites.cbc_hmac import Suite


_KEPT = os.cpu_count() or 1


class Compression(Protocol):
    """How a cipher compresses what it seals. Methods may be called from several threads at once."""

    @property
    def id(self) -> CompressionId:
        """Its byte in the envelope."""
        ...

    def compress(self, plaintext: bytes) -> bytes:
        """Compress *plaintext*; the cipher decides whether the result is worth keeping."""
        ...


class NoCompression:
    """Seals items as they are: their lengths say the least about their content."""

    id = CompressionId.NONE

    def compress(self, plaintext: bytes) -> bytes:
        """Give *plaintext* back."""
        return plaintext


class Zlib:
    """
    zlib (RFC 1950).

    Args:
        level: 1 to 9.
    """

    id = CompressionId.ZLIB

    def __init__(self, level: int = 6) -> None:
        self._level = _checked_level(level, 9)

    def compress(self, plaintext: bytes) -> bytes:
        """Compress *plaintext* into one zlib stream."""
        return zlib.compress(plaintext, self._level)


class Zstd:
    """
    Zstandard (RFC 8878), one frame an item, which declares its content's size.

    Args:
        level: 1 to 22; higher ones take longer for little on events.
    """

    id = CompressionId.ZSTD

    def __init__(self, level: int = 3) -> None:
        self._level = _checked_level(level, zstandard.MAX_COMPRESSION_LEVEL)
        self._idle: deque[zstandard.ZstdCompressor] = deque(maxlen=_KEPT)

    def compress(self, plaintext: bytes) -> bytes:
        """Compress *plaintext* into one zstd frame."""
        try:
            compressor = self._idle.pop()
        except IndexError:
            compressor = self._made()
        compressed = compressor.compress(plaintext)
        self._idle.append(compressor)
        return compressed

    def _made(self) -> zstandard.ZstdCompressor:
        return zstandard.ZstdCompressor(level=self._level, write_content_size=True)


class EventZstd(Zstd):
    """
    Zstandard with the dictionary of the format: it knows what the JSON of most events has in common.

    A small event takes about half of what it takes without. The dictionary is made of events that nobody ever
    had (``tests/vectors/format/make_dictionary.py``), and comes with EventSeal.

    Args:
        level: 1 to 22.
    """

    id = CompressionId.ZSTD_EVENTS

    def _made(self) -> zstandard.ZstdCompressor:
        return zstandard.ZstdCompressor(
            level=self._level,
            dict_data=event_dictionary(),
            write_content_size=True,
            write_dict_id=False,  # the header's byte names it
        )


@lru_cache(maxsize=1)
def event_dictionary() -> zstandard.ZstdCompressionDict:
    """Give the dictionary of the format; threads may share it."""
    return zstandard.ZstdCompressionDict(Path(__file__).with_name("events.zdict").read_bytes())


_idle_decompressors: deque[zstandard.ZstdDecompressor] = deque(maxlen=_KEPT)
_idle_event_decompressors: deque[zstandard.ZstdDecompressor] = deque(maxlen=_KEPT)


def decompress(compression: int, data: bytes, *, limit: int) -> bytes | IntegrityError | ItemTooLargeError:
    """
    Undo a compression, within bounds.

    Args:
        compression: As the envelope's header has it.
        data: What was sealed; its tag was verified.
        limit: Bytes that may come out at most; more are never allocated.

    Returns:
        What came out, or why nothing did: it would be over *limit*, or *data* is not one whole compressed
        item. Errors are given, not raised, so that no traceback holds a plaintext.
    """
    return _DECOMPRESS[compression](data, limit)


def too_large(size: int, limit: int) -> ItemTooLargeError:
    """Say that an item of *size* bytes is over the *limit*."""
    return ItemTooLargeError(
        f"the item has {size} bytes in plain; the limit is {limit}", size=size, limit=limit
    )


def _checked_level(level: int, highest: int) -> int:
    if not 1 <= level <= highest:
        raise ConfigurationError(f"compression level {level} is not one of 1 to {highest}")
    return level


def _as_it_is(data: bytes, limit: int) -> bytes | ItemTooLargeError:
    return data if len(data) <= limit else too_large(len(data), limit)


def _decompress_zstd(data: bytes, limit: int) -> bytes | IntegrityError | ItemTooLargeError:
    return _from_frame(data, limit, _idle_decompressors, zstandard.ZstdDecompressor)


def _decompress_events(data: bytes, limit: int) -> bytes | IntegrityError | ItemTooLargeError:
    return _from_frame(data, limit, _idle_event_decompressors, _event_decompressor)


def _event_decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(dict_data=event_dictionary())


def _from_frame(
    data: bytes,
    limit: int,
    idle: deque[zstandard.ZstdDecompressor],
    make: Callable[[], zstandard.ZstdDecompressor],
) -> bytes | IntegrityError | ItemTooLargeError:
    try:
        declared = zstandard.frame_content_size(data)
    except zstandard.ZstdError:
        return IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
    # -1: none is declared. 0: zstandard would look no further, and no empty item is worth compressing.
    if declared < 1:
        return IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
    if declared > limit:
        return too_large(declared, limit)
    try:
        decompressor = idle.pop()
    except IndexError:
        decompressor = make()
    try:
        plaintext = decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError:
        return IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
    idle.append(decompressor)
    return plaintext


def _decompress_zlib(data: bytes, limit: int) -> bytes | IntegrityError | ItemTooLargeError:
    stream = zlib.decompressobj()
    try:
        plaintext = stream.decompress(data, limit + 1)
    except zlib.error:
        return IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
    if len(plaintext) > limit:
        return ItemTooLargeError(f"the item has more than {limit} bytes in plain", limit=limit)
    if not stream.eof or stream.unused_data:
        return IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
    return plaintext


_DECOMPRESS: Mapping[int, Callable[[bytes, int], bytes | IntegrityError | ItemTooLargeError]] = {
    CompressionId.NONE: _as_it_is,
    CompressionId.ZLIB: _decompress_zlib,
    CompressionId.ZSTD: _decompress_zstd,
    CompressionId.ZSTD_EVENTS: _decompress_events,
}


_Place = TypeVar("_Place", contravariant=True)  # noqa: PLC0105 - one name for the protocol and its users
_WHAT_SEALS = {
    KeyPurpose.DATA: "only data keys seal and open items",
    KeyPurpose.FIELD: "only field keys seal and open fields",
}

Ready: TypeAlias = "tuple[CompressionId, bytes, bytes]"
"""An item before it meets its key: how its body is compressed, the body, and its place as bytes."""


@dataclass(frozen=True, slots=True)
class Opened:
    """
    An opened item.

    Attributes:
        plaintext: As it was sealed.
        key_id: The key that opened it.
        scope: That key's scope; a reader compares it with the scope that it expects.
    """

    plaintext: bytes = field(repr=False)
    key_id: UUID
    scope: str


class Binder(Protocol[_Place]):
    """Writes places as associated data, for one application."""

    @property
    def application(self) -> str:
        """Its name is part of all associated data."""
        ...

    def bind(self, context: _Place, /) -> bytes:
        """
        Give the associated data but for the envelope's header, which goes before it.

        Raises:
            SerializationError: A part has no canonical value.
        """
        ...


def seal_under(
    key: DataKey,
    suite: Suite,
    items: Sequence[Ready],
    *,
    application: str,
    purpose: KeyPurpose = KeyPurpose.DATA,
) -> list[bytes]:
    """
    Seal items, or fields, under one key.

    Raises:
        WrongApplicationError: The key belongs to another application.
        IntegrityError: It is not a key of this purpose.
        KeyNotFoundError: It was closed meanwhile.
    """
    problem = misfit(key, application, purpose)
    if problem is not None:
        raise problem
    used = {compression for compression, _, _ in items}
    headers = {compression: build_header(suite.id, compression, key.key_id) for compression in used}
    framed = [(body, headers[compression] + place) for compression, body, place in items]
    bodies = seal_many(key.pool(suite), framed)
    return [aad[:HEADER_SIZE] + body for (_, aad), body in zip(framed, bodies, strict=True)]


def open_under(
    key: DataKey,
    header: bytes,
    items: Sequence[tuple[bytes, _Place]],
    *,
    binder: Binder[_Place],
    limit: int,
    purpose: KeyPurpose = KeyPurpose.DATA,
) -> list[Opened | EventSealError]:
    """
    Open items, or fields, that have one header in common, each with an outcome of its own.

    Args:
        key: The key that the header names.
        header: 19 bytes that this release knows.
        items: Whole envelopes and their places.
        binder: Gives a place's bytes; its application must be the key's.
        limit: Bytes that an item may have in plain.
        purpose: Of the keys that seal what is opened.

    Raises:
        KeyNotFoundError: The key was closed meanwhile.
    """
    problem = misfit(key, binder.application, purpose)
    if problem is not None:
        return [problem] * len(items)
    framed: list[tuple[bytes, bytes]] = []
    refused: dict[int, SerializationError] = {}
    bind = binder.bind
    for index, (sealed, context) in enumerate(items):
        try:
            framed.append((sealed[HEADER_SIZE:], header + bind(context)))
        except SerializationError as error:
            refused[index] = error
    opened = open_many(key.pool(SUITES[header[1]]), framed)
    outcomes = _decompressed(opened, key, header[2], limit)
    for index, refusal in refused.items():
        outcomes.insert(index, refusal)
    return outcomes


def _decompressed(
    opened: Sequence[bytes | IntegrityError], key: DataKey, compression: int, limit: int
) -> list[Opened | EventSealError]:
    key_id, scope = key.key_id, key.scope
    outcomes: list[Opened | EventSealError] = []
    for body in opened:
        outcome = decompress(compression, body, limit=limit) if isinstance(body, bytes) else body
        outcomes.append(Opened(outcome, key_id, scope) if isinstance(outcome, bytes) else outcome)
    return outcomes


def misfit(key: DataKey, application: str, purpose: KeyPurpose = KeyPurpose.DATA) -> EventSealError | None:
    """Say why *key* may neither seal nor open for *application*; asked before any tag is checked."""
    if key.application != application:
        return WrongApplicationError(
            f"key {key.key_id} belongs to the application {key.application!r}, not to {application!r}",
            expected=application,
            found=key.application,
        )
    if key.purpose is not purpose:
        return IntegrityError(
            f"key {key.key_id} is of purpose {key.purpose}; {_WHAT_SEALS[purpose]}",
            key_id=key.key_id,
        )
    return None
