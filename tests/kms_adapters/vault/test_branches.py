"""Many subject keys under a transit key: what they cost by the server's own log, and a second KEK."""

from __future__ import annotations

import pytest

from eventseal import AESCipher, InMemoryKeyStore, ItemContext, Keyring
from eventseal.keys import DataKey
from eventseal_kms.local import LocalKmsAdapter
from eventseal_kms.vault import VaultTransitAdapter

PLACE = ItemContext(sequence_id="order-1", position=0, topic="shop:OrderPlaced")
SUBJECTS, BRANCHES = 1_000, 16


@pytest.fixture
def key_store():
    return InMemoryKeyStore()


@pytest.fixture
def vault(openbao, key_name):
    return VaultTransitAdapter("transit", key_name, client=openbao.client())


def operations(made):
    return [path.split("/")[1] for _, path in made]


def test_a_thousand_subject_keys_cost_one_call_for_all_branch_keys_together(openbao, vault, key_store):
    scopes = [f"subject:{number}" for number in range(SUBJECTS)]
    writer = AESCipher(Keyring(vault, key_store, application="shop", branches=BRANCHES))
    sealed = []
    with openbao.counted("transit/encrypt/") as made:
        for start in range(0, SUBJECTS, 250):
            page = scopes[start : start + 250]
            sealed += writer.encrypt_many([(scope.encode(), PLACE) for scope in page], scopes=page)
    assert len(made) == 2
    reader = AESCipher(Keyring(vault, key_store, application="shop"))
    with openbao.counted("transit/") as made:
        for start in range(0, SUBJECTS, 250):
            for opened in reader.open_many([(item, PLACE) for item in sealed[start : start + 250]]):
                assert opened.plaintext.decode() == opened.scope
    assert operations(made) == ["decrypt", "decrypt"]  # the store key, then all branch keys in one batch


def test_a_store_moves_from_vault_to_another_kek(openbao, vault, key_store, tmp_path):
    local = LocalKmsAdapter.create(tmp_path / "dev.key")
    keys = Keyring(vault, key_store, application="shop").sealing_keys(
        {f"tenant:{number}": 1 for number in range(150)}
    )
    with openbao.counted("transit/") as made:
        rewrap = Keyring([vault, local], key_store, application="shop").rewrap()
    assert (rewrap.added, rewrap.failed) == ({local.uri: 151}, 0)
    assert set(operations(made)) == {"keys", "decrypt"}
    assert len(made) < 10
    found = Keyring(local, key_store, application="shop").opening_keys([key.key_id for key in keys.values()])
    assert all(isinstance(key, DataKey) for key in found.values())
    back = Keyring([local, vault], key_store, application="shop").rewrap()
    assert back.added == {}
