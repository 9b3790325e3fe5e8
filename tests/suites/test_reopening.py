"""What was just sealed is tried at once: whether it opens, and to the same bytes."""

from __future__ import annotations

import os

import pytest

from eventseal.errors import KeyNotFoundError
from eventseal.suites.cbc_hmac import SUITES, ContextPool, open_many, reopens, seal_many


@pytest.fixture(params=list(SUITES.values()), ids=lambda suite: suite.name)
def pool(request):
    return ContextPool(request.param, os.urandom(request.param.key_size))


def items(count=20, size=50):
    return [(os.urandom(size + number), b"aad %d" % number) for number in range(count)]


def test_what_was_sealed_reopens(pool):
    given = items()
    sealed = seal_many(pool, given)
    assert reopens(pool, sealed, given)
    assert open_many(pool, [(s, aad) for s, (_, aad) in zip(sealed, given, strict=True)]) == [
        plaintext for plaintext, _ in given
    ]


def test_more_than_one_page_reopens(pool):
    given = items(5, 400_000)
    sealed = seal_many(pool, given)
    assert reopens(pool, sealed, given)
    assert not reopens(pool, sealed, [*given[:-1], (bytes(len(given[-1][0])), given[-1][1])])


def test_nothing_reopens_to_nothing(pool):
    assert reopens(pool, [], [])
    given = [(b"", b"aad"), (b"", b"")]
    assert reopens(pool, seal_many(pool, given), given)


@pytest.mark.parametrize("number", [0, 7, 19])
def test_another_plaintext_shows(pool, number):
    given = items()
    sealed = seal_many(pool, given)
    plaintext, aad = given[number]
    given[number] = (bytes([plaintext[0] ^ 1]) + plaintext[1:], aad)
    assert not reopens(pool, sealed, given)


@pytest.mark.parametrize("number", [0, 7, 19])
def test_another_place_or_a_changed_byte_shows(pool, number):
    given = items()
    sealed = seal_many(pool, given)
    for byte in (0, 20, -1):
        changed = bytearray(sealed[number])
        changed[byte] ^= 1
        assert not reopens(pool, [*sealed[:number], bytes(changed), *sealed[number + 1 :]], given)
    moved = [*given]
    moved[number] = (given[number][0], b"elsewhere")
    assert not reopens(pool, sealed, moved)


def test_a_closed_pool_reopens_nothing(pool):
    given = items(1)
    sealed = seal_many(pool, given)
    pool.close()
    with pytest.raises(KeyNotFoundError):
        reopens(pool, sealed, given)
