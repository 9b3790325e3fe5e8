"""How plaintext is compressed before it is sealed, and decompressed within limits."""

from __future__ import annotations

import os
import zlib
from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import zstandard

from eventseal.errors import OPAQUE_INTEGRITY_MESSAGE, ConfigurationError, IntegrityError, ItemTooLargeError
from eventseal.suites.envelope import CompressionId

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


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
            write_dict_id=False,  # the header's byte names it (docs/decisions/0018)
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
    # -1: none is declared. 0: zstandard would look no further, so bytes after the frame would pass unread;
    # no empty item is worth compressing (docs/decisions/0004).
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
