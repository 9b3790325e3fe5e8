"""Compression of plaintext before sealing, and decompression within limits."""

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
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_KEPT = os.cpu_count() or 1


class Compression(Protocol):
    """
    How a cipher compresses plaintext before it seals it.

    Several threads may call its methods at the same time.
    """

    @property
    def id(self) -> CompressionId:
        """The compression's byte in the envelope."""
        ...

    def compress(self, plaintext: bytes) -> bytes:
        """Compress *plaintext*. The cipher decides whether it keeps the result."""
        ...


class NoCompression:
    """Leaves items uncompressed. Then their lengths reveal the least about their content."""

    id = CompressionId.NONE

    def compress(self, plaintext: bytes) -> bytes:
        """Return *plaintext* unchanged."""
        return plaintext


class Zlib:
    """
    Compresses by zlib (RFC 1950).

    Args:
        level: The compression level, 1 to 9.
    """

    id = CompressionId.ZLIB

    def __init__(self, level: int = 6) -> None:
        self._level = _checked_level(level, 9)

    def compress(self, plaintext: bytes) -> bytes:
        """Compress *plaintext* into one zlib stream."""
        return zlib.compress(plaintext, self._level)


class Zstd:
    """
    Compresses by Zstandard (RFC 8878).

    Each item is one frame, which declares the size of its content.

    Args:
        level: The compression level, 1 to 22. Higher levels take longer, with little effect on events.
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
    Compresses by Zstandard with the dictionary of the format.

    The dictionary has the parts that the JSON of most events has in common. With it, a small event takes
    about half as many bytes. Its samples are invented events (``tests/vectors/format/make_dictionary.py``),
    and EventSeal ships it.

    Args:
        level: The compression level, 1 to 22.
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
    """Return the dictionary of the format, which threads may share."""
    return zstandard.ZstdCompressionDict(Path(__file__).with_name("events.zdict").read_bytes())


_idle_decompressors: deque[zstandard.ZstdDecompressor] = deque(maxlen=_KEPT)


_idle_event_decompressors: deque[zstandard.ZstdDecompressor] = deque(maxlen=_KEPT)


def decompress(compression: int, data: bytes, *, limit: int) -> bytes | IntegrityError | ItemTooLargeError:
    """
    Decompress an item, within a limit.

    Args:
        compression: The compression's byte in the envelope's header.
        data: The decrypted body. Its tag was verified.
        limit: The most bytes that the plaintext may have. More bytes are never allocated.

    Returns:
        The plaintext, or an error: the plaintext is over *limit*, or *data* is not one whole compressed item.
        Errors are returned, not raised, so that no traceback holds a plaintext.
    """
    return _DECOMPRESS[compression](data, limit)


def too_large(size: int, limit: int) -> ItemTooLargeError:
    """Return the error of an item over the *limit* in bytes."""
    return ItemTooLargeError(
        f"the plaintext of the item has {counted(size, 'byte')}, which is over the limit of {limit:,}",
        size=size,
        limit=limit,
    )


def _checked_level(level: int, highest: int) -> int:
    if not 1 <= level <= highest:
        raise ConfigurationError(f"the compression level is {level}, but it must be from 1 to {highest}")
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
    # -1: no size is declared. 0: zstandard would read no further, so bytes after the frame would stay unread.
    # The cipher never compresses an empty item (docs/decisions/0004).
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
        return ItemTooLargeError(
            f"the plaintext of the item is over the limit of {counted(limit, 'byte')}", limit=limit
        )
    if not stream.eof or stream.unused_data:
        return IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
    return plaintext


_DECOMPRESS: Mapping[int, Callable[[bytes, int], bytes | IntegrityError | ItemTooLargeError]] = {
    CompressionId.NONE: _as_it_is,
    CompressionId.ZLIB: _decompress_zlib,
    CompressionId.ZSTD: _decompress_zstd,
    CompressionId.ZSTD_EVENTS: _decompress_events,
}
