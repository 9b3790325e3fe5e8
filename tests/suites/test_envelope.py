"""The envelope's header: each field is refused with its own error, and what is read would be written so."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventseal.errors import UnknownFormatError
from eventseal.suites import CompressionId, SuiteId
from eventseal.suites.envelope import TAG_SIZES, EnvelopeInfo, build_header, envelope_problem, parse_envelope

KEY_ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
SUITE_IDS = sorted(TAG_SIZES)
COMPRESSION_IDS = [CompressionId.NONE, CompressionId.ZLIB, CompressionId.ZSTD, CompressionId.ZSTD_EVENTS]


def envelope(suite=SuiteId.A256CBC_HS512, compression=CompressionId.NONE, blocks=1, key_id=KEY_ID):
    return build_header(suite, compression, key_id) + bytes(16 + 16 * blocks + TAG_SIZES[suite])


@pytest.mark.parametrize("suite", SUITE_IDS)
@pytest.mark.parametrize("compression", COMPRESSION_IDS)
def test_an_envelope_says_what_it_is(suite, compression):
    sealed = envelope(suite, compression, blocks=3)
    assert parse_envelope(sealed) == EnvelopeInfo(
        version=1, suite=suite, compression=compression, key_id=KEY_ID, size=len(sealed), ciphertext_size=48
    )
    assert envelope_problem(sealed) is None


@pytest.mark.parametrize(
    ("offset", "known"),
    [(0, {1}), (1, set(SUITE_IDS)), (2, set(COMPRESSION_IDS))],
    ids=["version", "suite", "compression"],
)
def test_each_unknown_byte_of_the_header_is_refused_at_its_offset(offset, known):
    for value in range(256):
        sealed = bytearray(envelope())
        sealed[offset] = value
        if value in known:
            continue
        with pytest.raises(UnknownFormatError) as caught:
            parse_envelope(bytes(sealed))
        assert caught.value.offset == offset
        assert f"0x{value:02x}" in str(caught.value)


@pytest.mark.parametrize(("offset", "value", "name"), [(1, 0x11, "XAES-256-GCM"), (2, 3, "dictionary")])
def test_reserved_ids_are_refused_by_name(offset, value, name):
    sealed = bytearray(envelope())
    sealed[offset] = value
    with pytest.raises(UnknownFormatError, match=name):
        parse_envelope(bytes(sealed))


@pytest.mark.parametrize("suite", SUITE_IDS)
def test_an_envelope_cut_anywhere_is_refused_unless_whole_blocks_are_left(suite):
    sealed = envelope(suite, blocks=4)
    readable = [size for size in range(len(sealed)) if envelope_problem(sealed[:size]) is None]
    smallest = len(sealed) - 3 * 16
    assert readable == [smallest, smallest + 16, smallest + 32]
    for size in set(range(len(sealed))) - set(readable):
        with pytest.raises(UnknownFormatError) as caught:
            parse_envelope(sealed[:size])
        assert caught.value.offset == size


@pytest.mark.parametrize("wrong", [None, "01", 7, bytearray(envelope()), memoryview(envelope())])
def test_what_is_not_bytes_is_not_an_envelope(wrong):
    with pytest.raises(UnknownFormatError, match=type(wrong).__name__):
        parse_envelope(wrong)


@given(st.binary(max_size=200))
def test_both_readers_agree_on_any_bytes(data):
    problem = envelope_problem(data)
    if problem is None:
        info = parse_envelope(data)
        assert info.size == len(data)
    else:
        with pytest.raises(UnknownFormatError, match=r"."):
            parse_envelope(data)


@given(
    st.sampled_from(SUITE_IDS),
    st.sampled_from(COMPRESSION_IDS),
    st.uuids(),
    st.integers(min_value=1, max_value=20).flatmap(
        lambda blocks: st.binary(min_size=16 * blocks, max_size=16 * blocks)
    ),
)
def test_what_is_parsed_is_built_again_equal(suite, compression, key_id, ciphertext):
    sealed = (
        build_header(SuiteId(suite), compression, key_id) + bytes(16) + ciphertext + bytes(TAG_SIZES[suite])
    )
    info = parse_envelope(sealed)
    assert build_header(info.suite, info.compression, info.key_id) == sealed[:19]
    assert info.ciphertext_size == len(ciphertext)
    assert info.size == len(sealed)
