"""Compression that is kept only if it helps, and decompression that cannot be made to allocate or to lie."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from eventseal.cipher import EventZstd, NoCompression, Zlib, Zstd, compression
from eventseal.cipher.compression import decompress, event_dictionary
from eventseal.errors import OPAQUE_INTEGRITY_MESSAGE, ConfigurationError, IntegrityError, ItemTooLargeError
from eventseal.suites import CompressionId

LIMIT = 1000
EVENT = b'{"timestamp":{"_type_":"datetime_iso","_data_":"2024-05-06T07:08:09.123456+00:00"},"name":"a"}'
TEXT = b'{"activity":"A_SUBMITTED","resource":"112"}' * 10
ALL = [NoCompression(), Zlib(), Zstd(), EventZstd()]
NAMES = ["none", "zlib", "zstd", "events"]


def zstd_frame(data, **options):
    return zstandard.ZstdCompressor(**options).compress(data)


def streamed_zstd(data):
    """A frame that does not declare its content's size."""
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize("method", ALL, ids=NAMES)
@given(data=st.binary(min_size=1, max_size=LIMIT))
def test_what_is_compressed_decompresses(method, data):
    assert decompress(method.id, method.compress(data), limit=LIMIT) == data


@pytest.mark.parametrize("method", ALL, ids=NAMES)
def test_the_limit_itself_is_allowed_and_one_byte_more_is_not(method):
    data = (TEXT * 3)[:LIMIT]
    assert len(data) == LIMIT
    assert decompress(method.id, method.compress(data), limit=LIMIT) == data
    refused = decompress(method.id, method.compress(data), limit=LIMIT - 1)
    assert isinstance(refused, ItemTooLargeError)
    assert refused.limit == LIMIT - 1


def test_the_event_dictionary_is_the_one_of_the_format():
    told = re.search(r"`([0-9a-f]{64})`", (Path(__file__).parents[2] / "docs" / "format.md").read_text())
    assert hashlib.sha256(event_dictionary().as_bytes()).hexdigest() == told[1]


def test_a_small_event_takes_half_as_much_with_the_dictionary():
    assert len(EventZstd().compress(EVENT)) < 0.5 * len(Zstd().compress(EVENT))


def test_what_the_dictionary_helped_with_is_still_bounded():
    large = EventZstd().compress(EVENT * 100)
    assert isinstance(decompress(CompressionId.ZSTD_EVENTS, large, limit=LIMIT), ItemTooLargeError)


DAMAGED = {
    "zlib, trailing byte": (CompressionId.ZLIB, zlib.compress(TEXT) + b"\0"),
    "zlib, two streams": (CompressionId.ZLIB, zlib.compress(TEXT) * 2),
    "zlib, cut": (CompressionId.ZLIB, zlib.compress(TEXT)[:-1]),
    "zlib, cut to nothing": (CompressionId.ZLIB, b""),
    "zlib, wrong checksum": (CompressionId.ZLIB, zlib.compress(TEXT)[:-1] + b"\0"),
    "zlib, needs a dictionary": (CompressionId.ZLIB, b"\x78\xbb\0\0\0\1" + zlib.compress(TEXT)[2:]),
    "zlib, raw deflate": (CompressionId.ZLIB, zlib.compress(TEXT, wbits=-15)),
    "zlib, gzip": (CompressionId.ZLIB, zlib.compress(TEXT, wbits=31)),
    "zlib, zstd inside": (CompressionId.ZLIB, zstd_frame(TEXT)),
    "events, trailing byte": (CompressionId.ZSTD_EVENTS, EventZstd().compress(TEXT) + b"\0"),
    "events, no declared size": (CompressionId.ZSTD_EVENTS, streamed_zstd(TEXT)),
    "events, cut": (CompressionId.ZSTD_EVENTS, EventZstd().compress(TEXT)[:-1]),
    "zstd, needs the dictionary": (CompressionId.ZSTD, EventZstd().compress(EVENT)),
    "zstd, trailing byte": (CompressionId.ZSTD, zstd_frame(TEXT) + b"\0"),
    "zstd, two frames": (CompressionId.ZSTD, zstd_frame(TEXT) * 2),
    "zstd, cut": (CompressionId.ZSTD, zstd_frame(TEXT)[:-1]),
    "zstd, cut in the header": (CompressionId.ZSTD, zstd_frame(TEXT)[:5]),
    "zstd, cut to nothing": (CompressionId.ZSTD, b""),
    "zstd, no declared size": (CompressionId.ZSTD, streamed_zstd(TEXT)),
    "zstd, no declared size, empty": (CompressionId.ZSTD, streamed_zstd(b"")),
    "zstd, skippable frame": (CompressionId.ZSTD, b"\x50\x2a\x4d\x18\x04\0\0\0abcd"),
    "zstd, skippable frame before": (CompressionId.ZSTD, b"\x50\x2a\x4d\x18\0\0\0\0" + zstd_frame(TEXT)),
    "zstd, an empty item, which is never compressed": (CompressionId.ZSTD, zstd_frame(b"")),
    "zstd, no frame": (CompressionId.ZSTD, TEXT),
    "zstd, zlib inside": (CompressionId.ZSTD, zlib.compress(TEXT)),
}


@pytest.mark.parametrize(("method", "data"), DAMAGED.values(), ids=DAMAGED.keys())
def test_bytes_that_are_not_one_whole_item_are_refused(method, data):
    refused = decompress(method, data, limit=LIMIT)
    assert isinstance(refused, IntegrityError)
    assert str(refused) == OPAQUE_INTEGRITY_MESSAGE
    assert refused.__traceback__ is refused.__context__ is None  # whose frames would hold what was decrypted


def with_declared_size(size):
    """A zstd frame of 100 bytes whose header declares *size*."""
    frame = bytearray(zstd_frame(TEXT[:100]))
    assert frame[4:6] == b"\x20\x64"  # one segment, a size of one byte
    return bytes(frame[:4]) + b"\xe0" + size.to_bytes(8, "little") + bytes(frame[6:])


@pytest.mark.parametrize("declared", [0, 1, 99, 101, 1000])
def test_a_zstd_frame_that_declares_another_size_than_it_has_is_refused(declared):
    assert isinstance(
        decompress(CompressionId.ZSTD, with_declared_size(declared), limit=LIMIT), IntegrityError
    )


@pytest.mark.parametrize("declared", [1001, 2**24, 2**40, 2**63, 2**64 - 3])
def test_a_zstd_frame_is_refused_by_its_declared_size_alone(declared, monkeypatch):
    monkeypatch.setattr(compression, "_idle_decompressors", None)  # would fail if it went further
    refused = decompress(CompressionId.ZSTD, with_declared_size(declared), limit=LIMIT)
    assert isinstance(refused, ItemTooLargeError)
    assert refused.size == declared


@given(st.binary(max_size=300), st.sampled_from([CompressionId.ZLIB, CompressionId.ZSTD]))
def test_no_bytes_make_decompression_end_otherwise(data, method):
    for given_data in (data, b"\x28\xb5\x2f\xfd" + data, b"\x78\x9c" + data):
        outcome = decompress(method, given_data, limit=LIMIT)
        assert isinstance(outcome, IntegrityError | ItemTooLargeError) or len(outcome) <= LIMIT


def test_a_decompressor_that_failed_is_dropped_and_others_serve():
    good = zstd_frame(TEXT)
    decompress(CompressionId.ZSTD, good, limit=LIMIT)
    kept = len(compression._idle_decompressors)
    assert isinstance(decompress(CompressionId.ZSTD, good[:-1], limit=LIMIT), IntegrityError)
    assert len(compression._idle_decompressors) == kept - 1
    assert decompress(CompressionId.ZSTD, good, limit=LIMIT) == TEXT


def test_no_compressor_and_no_decompressor_is_used_by_two_threads_at_once(monkeypatch):
    meeting = threading.Barrier(2, timeout=60)
    used = []

    class Slow:
        def compress(self, data):
            return self.decompress(data)

        def decompress(self, data, **_):
            used.append(self)
            meeting.wait()  # both threads are inside now
            return data

    method = Zstd()
    frame = zstd_frame(TEXT)
    monkeypatch.setattr(compression, "_idle_decompressors", type(method._idle)([Slow(), Slow()]))
    method._idle.extend([Slow(), Slow()])
    for work in (lambda: method.compress(TEXT), lambda: decompress(CompressionId.ZSTD, frame, limit=LIMIT)):
        used.clear()
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(used) == len(set(used)) == 2


def test_eight_threads_compress_and_decompress_without_harm():
    method = Zstd()
    wrong = []

    def work(seed):
        for number in range(500):
            data = (b"%d " % (seed * number)) * 50
            if decompress(CompressionId.ZSTD, method.compress(data), limit=LIMIT) != data:
                wrong.append(data)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(method._idle) <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("method", "highest"),
    [(Zlib, 9), (Zstd, zstandard.MAX_COMPRESSION_LEVEL), (EventZstd, zstandard.MAX_COMPRESSION_LEVEL)],
)
def test_a_level_that_does_not_exist_is_a_wrong_setting(method, highest):
    method(highest)
    for level in (0, -1, highest + 1):
        with pytest.raises(ConfigurationError, match=str(highest)):
            method(level)
