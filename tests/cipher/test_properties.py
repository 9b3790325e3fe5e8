"""Properties over any items, places, suites and compressions."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventseal.cipher import AESCipher, ItemContext, NoCompression, Zlib, Zstd, inspect
from eventseal.suites.cbc_hmac import SUITES
from eventseal.suites.envelope import build_header

TEXT = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
PLACES = st.builds(
    ItemContext,
    st.one_of(st.uuids(), TEXT),
    st.one_of(st.integers(-(2**63), 2**63 - 1), st.decimals(min_value=-(10**12), max_value=10**12, places=6)),
    TEXT,
    TEXT,
)
PLAINTEXTS = st.one_of(
    st.binary(max_size=100),
    st.builds(lambda piece, count: piece * count, st.binary(max_size=20), st.integers(0, 60)),
)
CIPHERS = st.sampled_from([
    AESCipher(bytes(range(size)), suite=suite, compression=compression)
    for size in (16, 24, 32)
    for suite in SUITES.values()
    for compression in (NoCompression(), Zlib(), Zstd())
])  # fmt: skip


@pytest.mark.slow
@settings(max_examples=150)
@given(CIPHERS, st.lists(st.tuples(PLAINTEXTS, PLACES), max_size=8), st.booleans())
def test_every_item_comes_back_singly_and_in_a_page(cipher, items, compress):
    sealed = cipher.encrypt_many(items, compress=compress)
    pairs = [(body, place) for body, (_, place) in zip(sealed, items, strict=True)]
    assert [outcome.plaintext for outcome in cipher.open_many(pairs)] == [text for text, _ in items]
    for (text, _), (body, place) in zip(items, pairs, strict=True):
        assert cipher.decrypt(body, place) == text
        assert cipher.decrypt(cipher.encrypt(text, place, compress=compress), place) == text


@given(CIPHERS, PLAINTEXTS, PLACES)
def test_what_is_sealed_parses_and_is_built_again_equal(cipher, plaintext, place):
    sealed = cipher.encrypt(plaintext, place)
    info = inspect(sealed)
    assert build_header(info.suite, info.compression, info.key_id) + sealed[19:] == sealed
    assert info.size == len(sealed) == 19 + 16 + info.ciphertext_size + SUITES[info.suite].tag_size


@given(CIPHERS, PLAINTEXTS, st.uuids(), st.integers(-(10**9), 10**9), TEXT)
def test_an_item_opens_at_every_spelling_of_its_place(cipher, plaintext, stream, position, topic):
    sealed = cipher.encrypt(plaintext, ItemContext(stream, position, topic))
    for spelled in (position, Decimal(position), Decimal(f"{position}.000")):
        assert cipher.decrypt(sealed, ItemContext(str(stream), spelled, topic)) == plaintext
