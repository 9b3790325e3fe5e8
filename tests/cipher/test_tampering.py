"""Nothing that was changed opens: every bit, every cut, every exchange of one place for another."""

from __future__ import annotations

import itertools
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventseal.cipher import AESCipher, EventZstd, ItemContext, NoCompression, Opened, Zlib, Zstd, inspect
from eventseal.errors import OPAQUE_INTEGRITY_MESSAGE, IntegrityError, KeyNotFoundError, UnknownFormatError
from eventseal.suites.cbc_hmac import SUITES
from eventseal.suites.envelope import build_header

STREAM = UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")
PLACE = ItemContext(STREAM, 7, "shop:Order.Placed")
TEXT = b"forty-four bytes of plaintext in three blocks"
KEY = bytes(range(32))
EACH_SUITE = pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)


def opaque(outcome):
    return type(outcome) is IntegrityError and str(outcome) == OPAQUE_INTEGRITY_MESSAGE


def expected_of_header(offset, value):
    """The documented error of a header's field that was changed to *value*."""
    known = ({1}, {1, 2, 3}, {0, 1, 2, 4})
    if offset < 3:
        return UnknownFormatError if value not in known[offset] else (IntegrityError, UnknownFormatError)
    return KeyNotFoundError


@EACH_SUITE
@pytest.mark.parametrize(
    "compression",
    [NoCompression(), Zlib(), Zstd(), EventZstd()],
    ids=["none", "zlib", "zstd", "event-dictionary"],
)
def test_every_bit_flip_is_refused_with_the_documented_error(suite, compression):
    cipher = AESCipher(KEY, suite=suite, compression=compression)
    sealed = cipher.encrypt(TEXT * 3, PLACE)
    flipped = []
    for bit in range(8 * len(sealed)):
        body = bytearray(sealed)
        body[bit // 8] ^= 1 << bit % 8
        flipped.append(bytes(body))
    outcomes = cipher.open_many([(body, PLACE) for body in flipped])
    for body, outcome, bit in zip(flipped, outcomes, range(8 * len(sealed)), strict=True):
        offset = bit // 8
        if offset < 19:
            assert isinstance(outcome, expected_of_header(offset, body[offset])), bit
        else:
            assert opaque(outcome), bit


@EACH_SUITE
def test_every_truncation_is_refused(suite):
    cipher = AESCipher(KEY, suite=suite, compression=NoCompression())
    sealed = cipher.encrypt(TEXT, PLACE)
    outcomes = cipher.open_many([(sealed[:size], PLACE) for size in range(len(sealed))])
    for size, outcome in enumerate(outcomes):
        smallest = 19 + 16 + 16 + suite.tag_size
        whole = size >= smallest and (size - smallest) % 16 == 0
        assert opaque(outcome) if whole else isinstance(outcome, UnknownFormatError), size


@EACH_SUITE
def test_bytes_put_in_anywhere_are_refused(suite):
    cipher = AESCipher(KEY, suite=suite)
    sealed = cipher.encrypt(TEXT, PLACE)
    for count in (1, 16, 32):
        attempts = [sealed[:at] + bytes(count) + sealed[at:] for at in range(len(sealed) + 1)]
        assert not [
            o for o in cipher.open_many([(body, PLACE) for body in attempts]) if isinstance(o, Opened)
        ]


@EACH_SUITE
def test_the_suite_and_the_compression_in_the_header_are_bound(suite):
    cipher = AESCipher(KEY, suite=suite, compression=NoCompression())
    sealed = cipher.encrypt(TEXT, PLACE)
    for other, compression in itertools.product(SUITES, (0, 1, 2, 4)):
        if (other, compression) == (suite.id, 0):
            continue
        longer = max(0, SUITES[other].tag_size - suite.tag_size)
        shorter = max(0, suite.tag_size - SUITES[other].tag_size)
        for body in (sealed[19:], sealed[19:] + bytes(longer), sealed[19 : len(sealed) - shorter]):
            forged = build_header(SUITES[other].id, compression, inspect(sealed).key_id) + body
            assert not isinstance(cipher.open_many([(forged, PLACE)])[0], Opened)


VALUES = {
    "sequence_id": [STREAM, UUID(int=STREAM.int + 1), "orders", ""],
    "position": [7, 8, 0, -7],
    "topic": ["shop:Order.Placed", "shop:Order.Paid", ""],
    "collection": ["items", "snapshots", "item"],
}


def test_no_item_opens_at_another_items_place():
    cipher = AESCipher(KEY)
    matrix = [ItemContext(*values) for values in itertools.product(*VALUES.values())]
    sealed = cipher.encrypt_many([(repr(place).encode(), place) for place in matrix])
    for place, body in zip(matrix, sealed, strict=True):
        outcomes = cipher.open_many([(body, other) for other in matrix])
        for other, outcome in zip(matrix, outcomes, strict=True):
            if other == place:
                assert outcome.plaintext == repr(place).encode()
            else:
                assert opaque(outcome)


def test_no_item_opens_for_another_application_key_or_scope(make_keys):
    applications = {name: make_keys(name) for name in ("shop", "shops", "bank")}
    material = bytes(range(32))
    for keys in applications.values():
        for scope in ("tenant:a", "tenant:b"):
            keys.by_scope[scope] = keys.make(scope, material=material)
    everyones = {key_id: key for keys in applications.values() for key_id, key in keys.by_id.items()}
    ciphers = {name: AESCipher(keys) for name, keys in applications.items()}
    sealed = {
        (name, scope): cipher.encrypt(TEXT, PLACE, scope=scope)
        for name, cipher in ciphers.items()
        for scope in ("tenant:a", "tenant:b")
    }
    for (name, scope), body in sealed.items():
        for key_id, key in everyones.items():
            # The same key bytes under every id: only the header and what is derived from it differ.
            forged = body[:3] + key_id.bytes + body[19:]
            reader = ciphers[key.application]
            (outcome,) = reader.open_many([(forged, PLACE)])
            if (key.application, key.scope) == (name, scope):
                assert (outcome.plaintext, outcome.scope) == (TEXT, scope)
            else:
                assert opaque(outcome)


def test_an_item_of_another_application_with_the_same_key_bytes_and_id_does_not_open(make_keys):
    shop, bank = make_keys("shop"), make_keys("bank")
    key = shop.by_scope["application"] = shop.make("application", material=KEY)
    bank.make("application", material=KEY, key_id=key.key_id)
    (outcome,) = AESCipher(bank).open_many([(AESCipher(shop).encrypt(TEXT, PLACE), PLACE)])
    assert opaque(outcome)


def test_the_wrong_static_key_is_an_unknown_key():
    sealed = AESCipher(KEY).encrypt(TEXT, PLACE)
    with pytest.raises(KeyNotFoundError) as caught:
        AESCipher(bytes(32)).decrypt(sealed, PLACE)
    assert caught.value.key_id == inspect(sealed).key_id


CIPHERS = [AESCipher(KEY, suite=suite) for suite in SUITES.values()]
SEALED = [cipher.encrypt(TEXT * 2, PLACE) for cipher in CIPHERS]


@settings(max_examples=300)
@given(st.data(), st.integers(0, 2))
def test_no_edit_opens(data, number):
    """Cuts, copies, insertions and overwritten bytes, anywhere."""
    cipher, sealed = CIPHERS[number], SEALED[number]
    start = data.draw(st.integers(0, len(sealed)))
    end = data.draw(st.integers(start, len(sealed)))
    edited = sealed[:start] + data.draw(st.binary(max_size=40)) + sealed[end:]
    (outcome,) = cipher.open_many([(edited, PLACE)])
    if edited == sealed:
        assert outcome.plaintext == TEXT * 2
    else:
        assert isinstance(outcome, IntegrityError | UnknownFormatError | KeyNotFoundError)


@settings(max_examples=200)
@given(st.binary(max_size=400), st.booleans())
def test_no_bytes_make_a_page_raise(junk, looks_right):
    sealed = SEALED[2][:19] + junk if looks_right else junk
    (outcome,) = CIPHERS[2].open_many([(sealed, PLACE)])
    assert isinstance(outcome, IntegrityError | UnknownFormatError | KeyNotFoundError)
