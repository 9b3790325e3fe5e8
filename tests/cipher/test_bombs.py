"""Bombs: an item of a few kilobytes that would be a gigabyte is refused in bounded memory and time."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import zstandard

from eventseal.cipher import AESCipher, ItemContext
from eventseal.suites import CompressionId

CHILD = Path(__file__).parent / "bomb_child.py"
KEY = bytes(range(32))
PLACE = ItemContext("bombs", 0, "Bomb")
LIMIT = 2**24
PIECE = bytes(2**20)

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from /proc"
)


class Ready:
    """Stands in for a compression whose result is already there: whoever has the key can seal anything."""

    def __init__(self, method, compressed):
        self.id, self.compressed = method, compressed

    def compress(self, plaintext):
        return self.compressed


def zlib_bomb(pieces):
    compressor = zlib.compressobj(1)
    return b"".join([compressor.compress(PIECE) for _ in range(pieces)]) + compressor.flush()


def zstd_bomb(pieces, *, declares):
    size = pieces * len(PIECE) if declares else -1
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=size)
    return b"".join([compressor.compress(PIECE) for _ in range(pieces)]) + compressor.flush()


def opened_in_a_child(tmp_path, method, compressed):
    sealed = AESCipher(KEY, compression=Ready(method, compressed)).encrypt(bytes(LIMIT), PLACE)
    assert sealed[2] == method
    path = tmp_path / "sealed"
    path.write_bytes(sealed)
    done = subprocess.run(
        [sys.executable, CHILD, path, str(LIMIT)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_a_zstd_bomb_of_a_gigabyte_costs_nothing(tmp_path):
    told = opened_in_a_child(tmp_path, CompressionId.ZSTD, zstd_bomb(1024, declares=True))
    assert told["outcome"] == "ItemTooLargeError"
    assert told["grown"] < LIMIT / 4
    assert told["seconds"] < 10


def test_a_zstd_bomb_that_hides_its_size_costs_nothing(tmp_path):
    told = opened_in_a_child(tmp_path, CompressionId.ZSTD, zstd_bomb(1024, declares=False))
    assert told["outcome"] == "IntegrityError"
    assert told["grown"] < LIMIT / 4
    assert told["seconds"] < 10


@pytest.mark.slow
def test_a_zlib_bomb_of_a_quarter_of_a_gigabyte_costs_twice_the_limit_at_most(tmp_path):
    told = opened_in_a_child(tmp_path, CompressionId.ZLIB, zlib_bomb(256))
    assert told["outcome"] == "ItemTooLargeError"
    assert told["grown"] < 2.5 * LIMIT
    assert told["seconds"] < 10


@pytest.mark.parametrize("method", [CompressionId.ZLIB, CompressionId.ZSTD])
def test_the_measure_itself_sees_memory(tmp_path, method):
    """An item just within the limit does allocate, so the numbers above mean something."""
    pieces = LIMIT // len(PIECE)
    compressed = zlib_bomb(pieces) if method is CompressionId.ZLIB else zstd_bomb(pieces, declares=True)
    told = opened_in_a_child(tmp_path, method, compressed)
    assert told["outcome"] == f"opened {LIMIT}"
    assert told["grown"] > LIMIT / 2
