"""A rewrap under a transit key: by a token that may only rewrap, in batches, by the server's own log."""

from __future__ import annotations

import pytest

from eventseal import InMemoryKeyStore, Keyring
from eventseal.errors import KmsForbiddenError, KmsKeyStateError, KmsUnavailableError
from eventseal.keys import DataKey, Rewrap
from eventseal_kms.local import LocalKmsAdapter
from eventseal_kms.vault import VaultTransitAdapter

REWRAP, READ = (
    'path "transit/rewrap/{}" {{ capabilities = ["update"] }}',
    ('path "transit/keys/{}" {{ capabilities = ["read"] }}'),
)


@pytest.fixture
def key_store():
    return InMemoryKeyStore()


@pytest.fixture
def vault(openbao, key_name):
    return VaultTransitAdapter("transit", key_name, client=openbao.client())


@pytest.fixture
def keyring(vault, key_store):
    def keyring(*adapters, **options):
        return Keyring(list(adapters) or vault, key_store, application="shop", **options)

    return keyring


@pytest.fixture
def worker(openbao, key_name):
    """An adapter whose token has these policies alone, and not even `default`."""

    def worker(*lines):
        root = openbao.client()
        name = f"worker-{key_name}-{len(lines)}"
        root.sys.create_or_update_policy(name, "\n".join(line.format(key_name) for line in lines))
        token = root.auth.token.create(policies=[name], no_default_policy=True)["auth"]["client_token"]
        return VaultTransitAdapter("transit", key_name, client=openbao.client(token=token))

    return worker


def fill(keyring, count=20):
    return [key.key_id for key in keyring.sealing_keys({f"tenant:{n}": 1 for n in range(count)}).values()]


def opened(keyring, key_ids):
    return all(isinstance(key, DataKey) for key in keyring.opening_keys(key_ids).values())


def versions(key_store):
    return {wrapped.kek_version for record in key_store.page("shop") for wrapped in record.wrappings}


@pytest.mark.slow
@pytest.mark.parametrize("policy", [[REWRAP], [REWRAP, READ]], ids=["rewrap-alone", "rewrap-and-read"])
def test_a_token_that_may_only_rewrap_adds_wrappings_and_drops_none(
    openbao, vault, keyring, key_store, worker, key_name, policy
):
    key_ids = fill(keyring(), 250)
    vault.rotate()
    only = keyring(worker(*policy))
    with pytest.raises(KmsForbiddenError):
        only.prepare(["no key is seen"])
    with openbao.counted("transit/") as made:
        assert only.rewrap().awaiting == 251
    rewraps = [path for _, path in made if path == f"transit/rewrap/{key_name}"]
    assert len(rewraps) == 3 + (policy == [REWRAP])  # a hundred keys a call, and one to learn the version
    assert opened(keyring(), key_ids)
    assert only.rewrap() == Rewrap(awaiting=251)  # it may not decrypt, so it drops nothing
    assert keyring().rewrap() == Rewrap(done=251, dropped=251)
    assert versions(key_store) == {"v2"}
    vault.forbid_versions_before("v2")
    assert opened(keyring(), key_ids)


def test_what_is_current_costs_one_call(openbao, keyring, key_store):
    fill(keyring(), 250)
    with openbao.counted("transit/") as made:
        assert keyring().rewrap().done == 251
    assert [operation for operation, _ in made] == ["read"]


def test_ten_versions_later_the_newest_is_still_told_from_the_others(vault, keyring, key_store):
    key_ids = fill(keyring(), 3)
    for _ in range(9):
        vault.rotate()
    keyring().rewrap()
    assert opened(keyring(), key_ids)
    keyring().rewrap()
    assert versions(key_store) == {"v10"}


def test_a_key_whose_version_may_not_open_is_a_failure_and_the_others_go_on(vault, keyring, key_store):
    lost = fill(keyring(), 3)
    vault.rotate()
    kept = [key.key_id for key in keyring().sealing_keys({f"late:{n}": 1 for n in range(3)}).values()]
    vault.rotate()
    vault.forbid_versions_before("v2")
    rewrap = keyring().rewrap(batch=2)
    assert set(lost) < set(rewrap.failures)
    assert {type(error) for error in rewrap.failures.values()} == {KmsKeyStateError}
    assert {error.kek_version for error in rewrap.failures.values()} == {"v1"}
    assert (rewrap.failed, rewrap.awaiting) == (4, len(kept))
    vault.forbid_versions_before("v1")
    assert keyring().rewrap().failed == 0


def test_a_move_to_another_transit_key_unwraps_and_is_verified_at_once(
    openbao, vault, keyring, key_store, key_name
):
    key_ids = fill(keyring(), 150)
    openbao.client().secrets.transit.create_key(f"{key_name}-new", derived=True)
    new = VaultTransitAdapter("transit", f"{key_name}-new", client=openbao.client())
    with openbao.counted("transit/") as made:
        assert keyring(vault, new).rewrap(new) == Rewrap(done=151, added={new.uri: 151}, dropped=151)
    assert len(made) <= 12
    assert opened(keyring(new), key_ids)


@pytest.mark.slow
def test_a_server_that_is_sealed_half_way_is_told_and_the_rewrap_goes_on_later(
    persistent_openbao, key_store, key_name
):
    server = persistent_openbao
    server.client().secrets.transit.create_key(key_name, derived=True)
    vault = VaultTransitAdapter("transit", key_name, client=server.client())
    keyring = Keyring(vault, key_store, application="shop")
    key_ids = fill(keyring, 40)
    vault.rotate()

    def seal(so_far):
        if so_far.keys == 20:
            server.seal()

    try:
        with pytest.raises(KmsUnavailableError):
            keyring.rewrap(batch=10, progress=seal)
    finally:
        server.unseal()
    assert keyring.rewrap(batch=10).added == {vault.uri: 21}
    assert opened(Keyring(vault, key_store, application="shop"), key_ids)


def test_a_transit_key_that_is_gone_is_told_and_names_itself(
    openbao, vault, keyring, key_store, key_name, tmp_path
):
    local = LocalKmsAdapter.create(tmp_path / "dev.key")
    fill(keyring())
    root = openbao.client().secrets.transit
    root.update_key_configuration(key_name, deletion_allowed=True)
    root.delete_key(key_name)
    for to in (None, local):
        with pytest.raises(KmsKeyStateError, match=key_name):
            keyring().rewrap(to)
