"""Many subject keys under AWS KMS: what the account pays, how many calls are in flight, and a second KEK."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from eventseal import AESCipher, InMemoryKeyStore, ItemContext, Keyring
from eventseal.errors import KmsForbiddenError, KmsUnavailableError
from eventseal.keys import DataKey
from eventseal.testing import ManualClock
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.local import LocalKmsAdapter
from eventseal_kms.testing import NO_ANSWER

PLACE = ItemContext(sequence_id="order-1", position=0, topic="shop:OrderPlaced")
SUBJECTS, BRANCHES = 2_000, 16


@pytest.fixture
def key_store():
    return InMemoryKeyStore()


@pytest.fixture
def keyring(kms, key, key_store):
    def keyring(*others, first=None, **options):
        adapter = AwsKmsAdapter(first or key, client=kms.client())
        return Keyring(kms=[adapter, *others], key_store=key_store, application="shop", **options)

    return keyring


@pytest.fixture
def local(tmp_path):
    return LocalKmsAdapter.create(tmp_path / "dev.key")


def subjects(count: int) -> list[str]:
    return [f"subject:{number}" for number in range(count)]


@pytest.mark.slow
def test_two_thousand_subject_keys_cost_a_call_for_each_branch_and_one(kms, keyring):
    scopes = subjects(SUBJECTS)
    writer = AESCipher(keyring(branches=BRANCHES))
    sealed, before = [], len(kms.calls)
    for start in range(0, SUBJECTS, 500):
        page = scopes[start : start + 500]
        sealed += writer.encrypt_many([(scope.encode(), PLACE) for scope in page], scopes=page)
    assert Counter(call.action for call in kms.calls[before:]) == {"kms:GenerateDataKey": BRANCHES + 1}
    reader, before = AESCipher(keyring()), len(kms.calls)
    for start in range(0, SUBJECTS, 500):
        for opened in reader.open_many([(item, PLACE) for item in sealed[start : start + 500]]):
            assert opened.plaintext.decode() == opened.scope
    assert Counter(call.action for call in kms.calls[before:]) == {"kms:Decrypt": BRANCHES + 1}


def test_fifty_threads_on_a_cold_cache_make_one_call(kms, keyring):
    ids = [key.key_id for key in keyring(branches=1).sealing_keys(dict.fromkeys(subjects(50), 1)).values()]
    cold = keyring()
    cold.refresh()
    before, kms.delay = len(kms.calls), 0.02
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda key_id: cold.opening_keys([key_id])[key_id], ids))
    assert all(isinstance(key, DataKey) for key in found)
    assert [call.action for call in kms.calls[before:]] == ["kms:Decrypt"]


@pytest.mark.slow
def test_a_thousand_keys_that_expire_together_have_twenty_calls_in_flight(kms, keyring):
    clock = ManualClock()
    ring = keyring(clock=clock)
    ids = [key.key_id for key in ring.sealing_keys(dict.fromkeys(subjects(1_000), 1)).values()]
    clock.advance(901)
    before, kms.delay = len(kms.calls), 0.002

    def read(number: int) -> list:
        # Pages and single keys at once: an adapter's batch is several calls.
        size = 100 if number % 2 else 1
        start = number * 37 % 900
        return [
            key
            for first in range(start, start + 100, size)
            for key in ring.opening_keys(ids[first : first + size]).values()
        ]

    ring.refresh()
    with ThreadPoolExecutor(50) as pool:
        with kms.hold():
            reading = [pool.submit(read, 1)]  # a page, whose calls take all slots
            kms.wait_inside(20)
            reading += [pool.submit(read, number) for number in range(50) if number != 1]
        assert all(isinstance(key, DataKey) for some in reading for key in some.result())
    assert kms.peak == 20
    assert len(kms.calls) - before <= 1_000


def test_another_kek_reads_while_aws_does_not_answer_and_not_while_it_says_no(kms, key, keyring, local):
    sealed = AESCipher(keyring(local, branches=2)).encrypt(b"Ada", PLACE, scope="subject:1")
    kms.fail_always(NO_ANSWER)
    with pytest.raises(KmsUnavailableError):
        AESCipher(keyring(local)).decrypt(sealed, PLACE)
    patient = keyring(local, fall_back_on_outage=True, wrap_quorum=1)
    assert AESCipher(patient).decrypt(sealed, PLACE) == b"Ada"
    assert AESCipher(patient).encrypt(b"Ada", PLACE, scope="subject:2")
    kms.recover()
    kms.fail_always("AccessDeniedException")
    with pytest.raises(KmsForbiddenError):
        AESCipher(keyring(local, fall_back_on_outage=True)).decrypt(sealed, PLACE)


def test_a_store_moves_to_another_kek_and_back(kms, key, keyring, key_store, local):
    sealed = AESCipher(keyring(branches=4)).encrypt_many([(b"Ada", PLACE)] * 40, scopes=subjects(40))
    assert keyring(local).rewrap().added == {local.uri: 5}
    only_local = Keyring(local, key_store, application="shop")
    assert all(AESCipher(only_local).decrypt(item, PLACE) == b"Ada" for item in sealed)
    new = kms.create_key(alias="alias/new")
    rewrap = keyring(local, first=new).rewrap()
    (uri,) = rewrap.added
    assert rewrap.added == {uri: 5}
    assert "alias" not in uri
    before = kms.count("kms:Encrypt")
    assert keyring(local, first=new).rewrap().added == {}
    assert kms.count("kms:Encrypt") == before
    assert AESCipher(keyring(first=new)).decrypt(sealed[0], PLACE) == b"Ada"
