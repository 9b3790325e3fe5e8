"""Sealing and opening at the suites' level: what any CBC implementation opens, and what nothing opens."""

from __future__ import annotations

import os

import pytest

from eventseal.errors import OPAQUE_INTEGRITY_MESSAGE, EventSealError, IntegrityError, KeyNotFoundError
from eventseal.suites import A256CBC_HS512, cbc_hmac
from eventseal.suites.cbc_hmac import ContextPool, open_many, seal_many

SIZES = [0, 1, 14, 15, 16, 17, 31, 32, 33, 255, 256, 1000]


@pytest.fixture
def pool(suite, key):
    return ContextPool(suite, key)


def page():
    return [(os.urandom(size), b"aad of %d" % size) for size in SIZES]


def refused(outcome):
    return isinstance(outcome, IntegrityError) and str(outcome) == OPAQUE_INTEGRITY_MESSAGE


def test_a_plain_one_shot_decryptor_opens_what_the_fast_path_sealed(pool, one_shot):
    for _ in range(3):
        items = page()
        for (plaintext, aad), sealed in zip(items, seal_many(pool, items), strict=True):
            assert one_shot.open(sealed, aad) == plaintext


def test_the_fast_path_opens_what_a_plain_one_shot_encryptor_sealed(pool, one_shot):
    for _ in range(3):
        items = page()
        sealed = [(one_shot.seal(plaintext, aad, os.urandom(16)), aad) for plaintext, aad in items]
        assert open_many(pool, sealed) == [plaintext for plaintext, _ in items]


def test_lengths_are_those_of_the_format(pool, suite):
    for (plaintext, _), sealed in zip(page(), seal_many(pool, page()), strict=True):
        assert len(sealed) == 16 + (len(plaintext) // 16 + 1) * 16 + suite.tag_size


def test_no_items_are_no_work(pool):
    assert seal_many(pool, []) == []
    assert open_many(pool, []) == []


def test_items_sealed_together_open_apart_and_in_another_order(pool):
    items = page()
    sealed = [(body, aad) for body, (_, aad) in zip(seal_many(pool, items), items, strict=True)]
    assert [open_many(pool, [item])[0] for item in reversed(sealed)] == [text for text, _ in reversed(items)]


def test_a_page_larger_than_one_call_is_cut_into_several(pool, monkeypatch, one_shot):
    calls = []
    encrypt = ContextPool.encrypt
    decrypt = ContextPool.decrypt
    monkeypatch.setattr(
        ContextPool, "encrypt", lambda self, blocks: calls.append(blocks) or encrypt(self, blocks)
    )
    monkeypatch.setattr(
        ContextPool, "decrypt", lambda self, blocks: calls.append(blocks) or decrypt(self, blocks)
    )
    items = [(bytes([number]) * 300_000, b"%d" % number) for number in range(7)]
    sealed = [(body, aad) for body, (_, aad) in zip(seal_many(pool, items), items, strict=True)]
    assert len(calls) == 3
    for (body, aad), (plaintext, _) in zip(sealed, items, strict=True):
        assert one_shot.open(body, aad) == plaintext
    assert open_many(pool, sealed) == [plaintext for plaintext, _ in items]
    assert len(calls) == 6
    assert all(len(blocks) <= 2**20 for blocks in calls)


def test_an_item_larger_than_one_call_goes_alone(pool):
    items = [(b"small", b"1"), (b"l" * (2**20 + 5), b"2"), (b"small too", b"3")]
    sealed = [(body, aad) for body, (_, aad) in zip(seal_many(pool, items), items, strict=True)]
    assert open_many(pool, sealed) == [plaintext for plaintext, _ in items]


def test_each_batch_draws_its_random_blocks_once_and_fresh(pool):
    drawn = []

    def random(size):
        drawn.append(os.urandom(size))
        return drawn[-1]

    for count in (1, 3, 100):
        seal_many(pool, [(b"x", b"")] * count, _random=random)
    assert [len(given) for given in drawn] == [16, 48, 1600]
    blocks = [given[start : start + 16] for given in drawn for start in range(0, len(given), 16)]
    assert len(set(blocks)) == 104


def test_each_item_of_a_batch_uses_a_random_block_of_its_own(pool, suite, one_shot, monkeypatch):
    """With the key, the block can be computed back from the IV and from what was chained before it."""
    monkeypatch.setattr(cbc_hmac, "MAX_UPDATE", 2000)  # several pages in the batch
    given = os.urandom(16 * 50)
    sealed = seal_many(pool, [(b"y" * size, b"") for size in range(50)], _random=lambda size: given)
    chained, used = bytes(16), b""
    for body in sealed:
        used += one_shot.random_for(body[:16], chained)
        chained = body[-suite.tag_size - 16 : -suite.tag_size]
    assert used == given


@pytest.mark.parametrize("wrong", [-16, -1, 1, 16])
def test_a_random_source_that_gives_another_length_seals_nothing(pool, wrong):
    with pytest.raises(EventSealError, match="random source"):
        seal_many(pool, [(b"x", b""), (b"y", b"")], _random=lambda size: bytes(size + wrong))


def test_equal_items_never_look_equal(pool):
    sealed = seal_many(pool, [(b"the same", b"aad")] * 1000)
    assert len({body[:16] for body in sealed}) == 1000
    assert len({body[16:32] for body in sealed}) == 1000


def test_every_bit_flip_and_truncation_is_refused_alike(pool, suite):
    aad = b"associated"
    (sealed,) = seal_many(pool, [(b"forty bytes of plaintext, three blocks..", aad)])
    bodies = [bytearray(sealed) for _ in range(8 * len(sealed))]
    for bit, body in enumerate(bodies):
        body[bit // 8] ^= 1 << bit % 8
    attempts = [(bytes(body), aad) for body in bodies]
    attempts += [(sealed[:size], aad) for size in range(len(sealed))]
    attempts += [(sealed[size:], aad) for size in range(1, len(sealed))]
    attempts += [(sealed + bytes(extra), aad) for extra in (1, 15, 16, suite.tag_size)]
    attempts += [(sealed, aad[:-1]), (sealed, aad + b"\0"), (sealed, b""), (b"", aad), (b"", b"")]
    assert all(refused(outcome) for outcome in open_many(pool, attempts))


def test_only_verified_bytes_reach_a_decryptor(pool, monkeypatch):
    decrypted = []
    decrypt = ContextPool.decrypt
    monkeypatch.setattr(
        ContextPool, "decrypt", lambda self, blocks: decrypted.append(blocks) or decrypt(self, blocks)
    )
    good, bad = seal_many(pool, [(b"good", b"1"), (b"bad", b"2")])
    probe_verified_first(pool, good, bad, decrypted)
    decrypted.clear()
    monkeypatch.setattr(
        cbc_hmac, "_verified", lambda pool, items: [body[: -pool.suite.tag_size] for body, _ in items]
    )
    with pytest.raises(AssertionError):  # a reader that decrypts first is caught
        probe_verified_first(pool, good, bad, decrypted)


def probe_verified_first(pool, good, bad, decrypted):
    tag_size = pool.suite.tag_size
    forged = bad[:-1] + bytes([bad[-1] ^ 1])
    outcomes = open_many(pool, [(bad, b"another place"), (good, b"1"), (forged, b"2")])
    assert outcomes[1] == b"good"
    assert refused(outcomes[0])
    assert refused(outcomes[2])
    assert decrypted == [good[:-tag_size]]


def test_bad_items_of_a_page_do_not_disturb_good_ones(pool):
    items = [(b"item %d" % number, b"%d" % number) for number in range(50)]
    sealed = [(body, aad) for body, (_, aad) in zip(seal_many(pool, items), items, strict=True)]
    for number in range(0, 50, 3):
        sealed[number] = (sealed[number][0], b"elsewhere")
    for number, outcome in enumerate(open_many(pool, sealed)):
        assert refused(outcome) if number % 3 == 0 else outcome == b"item %d" % number


def test_each_failure_is_an_error_of_its_own(pool):
    first, second = open_many(pool, [(bytes(64), b""), (bytes(64), b"")])
    assert first is not second


def test_another_key_or_suite_opens_nothing(key):
    (sealed,) = seal_many(ContextPool(A256CBC_HS512, bytes(64)), [(b"x", b"")])
    for other in (bytes(63) + b"\1", b"\1" + bytes(63)):
        assert refused(open_many(ContextPool(A256CBC_HS512, other), [(sealed, b"")])[0])


def test_a_closed_pool_seals_and_opens_nothing(pool):
    (sealed,) = seal_many(pool, [(b"x", b"")])
    pool.close()
    with pytest.raises(KeyNotFoundError):
        seal_many(pool, [(b"x", b"")])
    with pytest.raises(KeyNotFoundError):
        open_many(pool, [(sealed, b"")])


def test_no_public_argument_sets_the_random_block():
    assert seal_many.__kwdefaults__ == {"_random": os.urandom}
