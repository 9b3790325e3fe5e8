"""Every published vector through the suites' own code: its IV is injected by the random block alone."""

from __future__ import annotations

import re

import pytest
from cryptography.hazmat.primitives.hmac import HMAC

from eventseal.errors import OPAQUE_INTEGRITY_MESSAGE, IntegrityError
from eventseal.suites import A128CBC_HS256, A192CBC_HS384, A256CBC_HS512
from eventseal.suites.cbc_hmac import FIRST_BLOCK, SUITES, ContextPool, open_many, seal_many
from eventseal.suites.hkdf import hkdf_sha512

BY_NAME = {suite.name: suite for suite in SUITES.values()}
BY_AES_KEY_SIZE = {suite.key_size // 2: suite for suite in SUITES.values()}


def cases(wycheproof):
    """Wycheproof's cases with their group's facts; never an empty list."""
    found = [{**group, **test} for group in wycheproof["testGroups"] for test in group["tests"]]
    assert len(found) == wycheproof["numberOfTests"] > 0
    return found


def unhex(case, *names):
    return [bytes.fromhex(case[name]) for name in names]


def check_sealing(one_shot_of, suite, key, plaintext, aad, iv, sealed):
    """*sealed* comes out of a fresh context, and out of one that has sealed before."""
    reference = one_shot_of(suite, key)
    pool = ContextPool(suite, key)
    chained = FIRST_BLOCK
    for _ in range(2):
        random = reference.random_for(iv, chained)
        assert seal_many(pool, [(plaintext, aad)], _random=lambda size, given=random: given) == [sealed]
        chained = sealed[-suite.tag_size - 16 : -suite.tag_size]


def check_refused(pool, sealed, aad):
    (outcome,) = open_many(pool, [(sealed, aad)])
    assert isinstance(outcome, IntegrityError)
    assert str(outcome) == OPAQUE_INTEGRITY_MESSAGE


@pytest.mark.parametrize(
    ("name", "suite"),
    [("a128cbc_hs256", A128CBC_HS256), ("a192cbc_hs384", A192CBC_HS384), ("a256cbc_hs512", A256CBC_HS512)],
)
def test_wycheproof_suites(name, suite, load_vectors, one_shot_of, monkeypatch):
    results = {"valid": 0, "invalid": 0}
    for case in cases(load_vectors(f"wycheproof/{name}_test.json")):
        key, iv, aad, plaintext, ciphertext, tag = unhex(case, "key", "iv", "aad", "msg", "ct", "tag")
        sealed = iv + ciphertext + tag
        pool = ContextPool(suite, key)
        if case["result"] == "valid":
            check_sealing(one_shot_of, suite, key, plaintext, aad, iv, sealed)
            assert open_many(pool, [(sealed, aad)]) == [plaintext]
        else:
            with monkeypatch.context() as patch:
                patch.setattr(
                    ContextPool, "decrypt", lambda *_: pytest.fail("decrypted before the tag was good")
                )
                check_refused(pool, sealed, aad)
        results[case["result"]] += 1
    assert results == {"valid": 67, "invalid": 27}


def test_rfc_7518_appendix_b(load_vectors, one_shot_of):
    vectors = load_vectors("rfc/rfc7518_appendix_b.json")["vectors"]
    assert [vector["name"] for vector in vectors] == list(BY_NAME)
    for vector in vectors:
        suite = BY_NAME[vector["name"]]
        key, plaintext, iv, aad, ciphertext, tag = unhex(vector, "K", "P", "IV", "A", "E", "T")
        sealed = iv + ciphertext + tag
        check_sealing(one_shot_of, suite, key, plaintext, aad, iv, sealed)
        assert open_many(ContextPool(suite, key), [(sealed, aad)]) == [plaintext]


def test_wycheproof_cbc_and_padding_under_a_valid_tag(load_vectors, one_shot_of):
    results = {"valid": 0, "invalid": 0}
    for case in cases(load_vectors("wycheproof/aes_cbc_pkcs5_test.json")):
        aes_key, iv, plaintext, ciphertext = unhex(case, "key", "iv", "msg", "ct")
        suite = BY_AES_KEY_SIZE[len(aes_key)]
        key = bytes(len(aes_key)) + aes_key
        body = iv + ciphertext
        sealed = body + one_shot_of(suite, key).tag(body, b"")
        if case["result"] == "valid":
            check_sealing(one_shot_of, suite, key, plaintext, b"", iv, sealed)
            assert open_many(ContextPool(suite, key), [(sealed, b"")]) == [plaintext]
        else:
            check_refused(ContextPool(suite, key), sealed, b"")
        results[case["result"]] += 1
    assert results == {"valid": 72, "invalid": 144}


def nist_cases(text):
    for block in re.split(r"\n(?=COUNT = )", text):
        facts = dict(re.findall(r"^(KEY|IV|PLAINTEXT|CIPHERTEXT) = ([0-9a-f]+)\s*$", block, re.MULTILINE))
        if facts:
            yield [bytes.fromhex(facts[name]) for name in ("KEY", "IV", "PLAINTEXT", "CIPHERTEXT")]


def test_nist_cavp_blocks_through_the_pooled_contexts(vectors_path, one_shot_of):
    count = 0
    for path in sorted((vectors_path / "nist_cavp").glob("*.rsp")):
        for aes_key, iv, plaintext, ciphertext in nist_cases(path.read_text()):
            key = bytes(32) + aes_key
            pool = ContextPool(A256CBC_HS512, key)
            random = one_shot_of(A256CBC_HS512, key).random_for(iv, FIRST_BLOCK)
            assert pool.encrypt(random + plaintext) == iv + ciphertext
            assert pool.decrypt(iv + ciphertext)[16:] == plaintext
            count += 1
    assert count == 830


def keyed_like_a_pool(suite, mac_key):
    """A pool whose HMAC has a key of another size than the suite's: vectors come with all sizes."""
    pool = ContextPool(suite, bytes(suite.key_size))
    pool._mac = HMAC(mac_key, suite.hash)
    return pool


def mac_of(pool, message):
    mac = pool.keyed_mac().copy()
    mac.update(message)
    return mac.finalize()


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_wycheproof_hmac_by_copies_of_one_keyed_object(suite, load_vectors):
    results = {"valid": 0, "invalid": 0}
    for case in cases(load_vectors(f"wycheproof/hmac_{suite.hash.name}_test.json")):
        mac_key, message, tag = unhex(case, "key", "msg", "tag")
        pool = keyed_like_a_pool(suite, mac_key)
        mac_of(pool, b"another item before")
        assert (mac_of(pool, message)[: len(tag)] == tag) == (case["result"] == "valid")
        results[case["result"]] += 1
    assert results == {"valid": 66, "invalid": 108}


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_rfc_4231_hmac(suite, vectors_path):
    text = (vectors_path / "rfc" / f"rfc-4231-{suite.hash.name}.txt").read_text()
    found = re.findall(r"^Key = (\w+)$.*?^Msg = (\w+)$.*?^MD = (\w+)$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 6
    for case in found:
        mac_key, message, expected = map(bytes.fromhex, case)
        assert mac_of(keyed_like_a_pool(suite, mac_key), message) == expected


def test_wycheproof_hkdf(load_vectors):
    results = {"valid": 0, "invalid": 0}
    for case in cases(load_vectors("wycheproof/hkdf_sha512_test.json")):
        key, salt, info, expected = unhex(case, "ikm", "salt", "info", "okm")
        if case["result"] == "valid":
            assert hkdf_sha512(key, salt=salt, info=info, length=case["size"]) == expected
        else:
            with pytest.raises(ValueError, match="16320"):
                hkdf_sha512(key, salt=salt, info=info, length=case["size"])
        results[case["result"]] += 1
    assert results == {"valid": 80, "invalid": 3}
