"""A keyring whose KEK is in Vault: what its users see, and what it costs by the server's own log."""

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from eventseal import AESCipher, InMemoryKeyStore, ItemContext, Keyring
from eventseal.errors import IntegrityError, KekNotConfiguredError, KmsKeyStateError, KmsUnavailableError
from eventseal.testing import ManualClock
from eventseal_kms.local import LocalKmsAdapter
from eventseal_kms.vault import VaultTransitAdapter

PLACE = ItemContext(sequence_id="order-1", position=0, topic="shop:OrderPlaced")


@pytest.fixture
def key_store():
    return InMemoryKeyStore()


@pytest.fixture
def keyring(openbao, key_name, key_store):
    """Make a keyring, each as another process would have it, over the same keys."""

    def make(*more, **options):
        vault = VaultTransitAdapter("transit", key_name, client=openbao.client())
        return Keyring(kms=[vault, *more], key_store=key_store, application="shop", **options)

    return make


def operations(made):
    return [path.split("/")[1] for _, path in made]


@pytest.mark.slow
def test_a_thousand_items_of_fifty_threads_cost_two_calls_and_another_process_two_more(openbao, keyring):
    writer, barrier = AESCipher(keyring()), threading.Barrier(50)

    def write(_):
        barrier.wait()
        return [writer.encrypt(b"Ada", PLACE) for _ in range(20)]

    with ThreadPoolExecutor(50) as pool, openbao.counted("transit/") as made:
        sealed = [item for items in pool.map(write, range(50)) for item in items]
    assert sorted(operations(made)) == ["encrypt", "encrypt", "keys"]  # a store key and a data key
    reader = AESCipher(keyring())
    with openbao.counted("transit/") as made:
        assert {reader.decrypt(item, PLACE) for item in sealed} == {b"Ada"}
    assert operations(made) == ["decrypt", "decrypt"]


@pytest.mark.slow
def test_a_cold_replay_over_many_scopes_opens_their_keys_a_hundred_a_call(openbao, keyring):
    scopes = [f"tenant:{number}" for number in range(250)]
    places = [ItemContext(sequence_id=uuid4(), position=0, topic="shop:OrderPlaced") for _ in scopes]
    sealed = AESCipher(keyring()).encrypt_many([(b"Ada", place) for place in places], scopes=scopes)
    reader = AESCipher(keyring())
    with openbao.counted("transit/") as made:
        opened = reader.open_many(list(zip(sealed, places, strict=True)))
    assert {item.plaintext for item in opened} == {b"Ada"}
    assert operations(made) == ["decrypt"] * (1 + 3)  # the store key, and 250 keys


def test_vault_beside_a_local_key_opens_under_either(tmp_path, key_store, keyring):
    with pytest.warns(UserWarning, match="for development only"):
        local = LocalKmsAdapter.create(tmp_path / "dev.key")
    sealed = AESCipher(keyring(local)).encrypt(b"Ada", PLACE)
    only_local = Keyring(kms=local, key_store=key_store, application="shop")
    for ring in (only_local, keyring()):
        assert AESCipher(ring).decrypt(sealed, PLACE) == b"Ada"


def test_a_store_whose_kek_is_not_listed_is_told_which_one(openbao, key_store, keyring, key_name):
    sealed = AESCipher(keyring()).encrypt(b"Ada", PLACE)
    openbao.client().secrets.transit.create_key("elsewhere", derived=True)
    other = VaultTransitAdapter("transit", "elsewhere", client=openbao.client())
    with openbao.counted("transit/") as made, pytest.raises(KekNotConfiguredError, match=key_name):
        AESCipher(Keyring(kms=other, key_store=key_store, application="shop")).decrypt(sealed, PLACE)
    assert made == []


def test_a_key_made_again_under_its_name_is_no_outage(openbao, keyring, key_name):
    sealed = AESCipher(keyring()).encrypt(b"Ada", PLACE)
    transit = openbao.client().secrets.transit
    transit.update_key_configuration(key_name, deletion_allowed=True)
    transit.delete_key(key_name)
    with pytest.raises(KmsKeyStateError):
        AESCipher(keyring()).decrypt(sealed, PLACE)
    transit.create_key(key_name, derived=True)
    with pytest.raises(IntegrityError):
        AESCipher(keyring()).decrypt(sealed, PLACE)


@pytest.mark.slow
def test_a_sealed_vault_is_served_from_memory_and_never_taken_for_anything_else(
    persistent_openbao, key_store
):
    server, clock = persistent_openbao, ManualClock()
    server.client().secrets.transit.create_key("outage", derived=True)

    def cipher(**options):
        kms = VaultTransitAdapter("transit", "outage", client=server.client())
        return AESCipher(Keyring(kms=kms, key_store=key_store, application="shop", **options))

    running = cipher(clock=clock)
    sealed = running.encrypt(b"Ada", PLACE)
    server.seal()
    try:
        clock.advance(901)  # past the time after which a key is unwrapped again
        assert running.decrypt(sealed, PLACE) == b"Ada"
        with pytest.raises(KmsUnavailableError, match="sealed"):
            cipher().decrypt(sealed, PLACE)
    finally:
        server.unseal()
    assert cipher().decrypt(sealed, PLACE) == b"Ada"
