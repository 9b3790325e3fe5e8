"""Length prefixes tell every list of parts from every other; keys derive by RFC 5869."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventseal.suites.hkdf import hkdf_sha512, key_check_id, length_prefixed

PARTS = st.lists(st.binary(max_size=12), max_size=6)


def hkdf_by_hand(key, salt, info, length):
    extracted = hmac.digest(salt or bytes(64), key, "sha512")
    derived, block, count = b"", b"", 0
    while len(derived) < length:
        count += 1
        block = hmac.digest(extracted, block + info + bytes([count]), "sha512")
        derived += block
    return derived[:length]


@given(PARTS, PARTS)
def test_two_lists_of_parts_frame_alike_only_if_they_are_equal(left, right):
    assert (length_prefixed(*left) == length_prefixed(*right)) == (left == right)


def test_parts_stand_behind_four_bytes_of_length():
    assert length_prefixed(b"ab", b"", b"c") == bytes.fromhex("00000002 6162 00000000 00000001 63")


@given(
    st.binary(min_size=1, max_size=64), st.binary(max_size=32), st.binary(max_size=64), st.integers(1, 200)
)
def test_derivation_is_hkdf_with_sha_512(key, salt, info, length):
    assert hkdf_sha512(key, salt=salt or None, info=info, length=length) == hkdf_by_hand(
        key, salt, info, length
    )


@pytest.mark.parametrize("size", [16, 24, 32])
def test_a_static_keys_id_is_a_version_8_uuid_over_a_check_value(size):
    key = bytes(range(size))
    key_id = key_check_id(key)
    assert key_id.version == 8
    assert key_id.variant == "specified in RFC 4122"
    check = int.from_bytes(hkdf_by_hand(key, b"", b"eventseal/v1/static key id", 16), "big")
    fixed = 0xF << 76 | 0b11 << 62
    assert key_id.int & ~fixed == check & ~fixed
    assert key_check_id(key[:-1] + b"\xff") != key_id
