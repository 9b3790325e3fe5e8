"""A keyring whose KEK is in AWS: what its users see, and what the account pays."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from eventseal import AESCipher, InMemoryKeyStore, ItemContext, Keyring
from eventseal.errors import KekNotConfiguredError, KmsKeyStateError, KmsUnavailableError
from eventseal.testing import ManualClock
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.testing import NO_ANSWER

PLACE = ItemContext(sequence_id="order-1", position=0, topic="shop:OrderPlaced")
CRYPTOGRAPHIC = ("kms:GenerateDataKey", "kms:Decrypt", "kms:Encrypt")


@pytest.fixture
def key_store():
    return InMemoryKeyStore()


@pytest.fixture
def keyring(kms, key_store):
    """Make a keyring, each as another process would have it, over the same keys."""

    def keyring(*keys, **options):
        adapters = [AwsKmsAdapter(key, client=kms.client()) for key in keys]
        return Keyring(kms=adapters, key_store=key_store, application="shop", **options)

    return keyring


def test_a_thousand_items_of_fifty_threads_cost_two_calls_and_another_process_two_more(kms, key, keyring):
    kms.delay = 0.02
    writer = AESCipher(keyring(key))
    barrier = threading.Barrier(50)

    def write(_):
        barrier.wait()
        return [writer.encrypt(b"Ada", PLACE) for _ in range(20)]

    with ThreadPoolExecutor(50) as pool:
        sealed = [item for items in pool.map(write, range(50)) for item in items]
    assert kms.count(*CRYPTOGRAPHIC) == 2
    reader = AESCipher(keyring(key))
    assert {reader.decrypt(item, PLACE) for item in sealed} == {b"Ada"}
    assert kms.count(*CRYPTOGRAPHIC) == 4


def test_a_key_is_wrapped_under_both_keks_and_opens_under_either(kms, key, keyring):
    other = kms.create_key(region="us-east-1")
    abroad = AwsKmsAdapter(other, client=kms.client(region="us-east-1"))
    here = AwsKmsAdapter(key, client=kms.client())
    key_store = InMemoryKeyStore()
    both = Keyring(kms=[here, abroad], key_store=key_store, application="shop")
    sealed = AESCipher(both).encrypt(b"Ada", PLACE)
    for adapter in (here, abroad):
        cipher = AESCipher(Keyring(kms=adapter, key_store=key_store, application="shop"))
        assert cipher.decrypt(sealed, PLACE) == b"Ada"


def test_a_repointed_alias_is_explained_where_the_item_is_read(kms, keyring):
    alias = kms.create_key(alias="alias/shop")
    old = kms.client().describe_key(KeyId=alias)["KeyMetadata"]["Arn"]
    sealed = AESCipher(keyring(alias)).encrypt(b"Ada", PLACE)
    new = kms.create_key()
    kms.client().update_alias(AliasName="alias/shop", TargetKeyId=new)
    with pytest.raises(KekNotConfiguredError) as raised:
        AESCipher(keyring(alias)).decrypt(sealed, PLACE)
    for arn in (alias, old, new):
        assert arn in str(raised.value)
    assert f"{alias},{old}" in raised.value.remedy
    assert AESCipher(keyring(alias, old)).decrypt(sealed, PLACE) == b"Ada"


def test_an_outage_is_served_from_memory_and_never_taken_for_anything_else(kms, key, keyring):
    clock = ManualClock()
    cipher = AESCipher(keyring(key, clock=clock))
    sealed = cipher.encrypt(b"Ada", PLACE)
    kms.fail_always(NO_ANSWER)
    clock.advance(901)  # past the TTL
    assert cipher.decrypt(sealed, PLACE) == b"Ada"
    with pytest.raises(KmsUnavailableError):
        AESCipher(keyring(key)).decrypt(sealed, PLACE)
    kms.recover()
    assert AESCipher(keyring(key)).decrypt(sealed, PLACE) == b"Ada"


def test_a_disabled_key_is_not_served_from_memory_past_its_time(kms, key, keyring):
    clock = ManualClock()
    cipher = AESCipher(keyring(key, clock=clock))
    sealed = cipher.encrypt(b"Ada", PLACE)
    kms.client().disable_key(KeyId=key)
    assert cipher.decrypt(sealed, PLACE) == b"Ada"
    clock.advance(901)
    with pytest.raises(KmsKeyStateError):
        cipher.decrypt(sealed, PLACE)
    kms.client().enable_key(KeyId=key)
    assert cipher.decrypt(sealed, PLACE) == b"Ada"
