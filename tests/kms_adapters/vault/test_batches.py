"""Many keys in one call."""

import os
from dataclasses import replace

import pytest

from eventseal.errors import IntegrityError, KmsForbiddenError, KmsUnavailableError, NotMyKeyError
from eventseal.kms import WrappedKey
from eventseal_kms.vault import VaultTransitAdapter


@pytest.fixture
def make_keys(make_context):
    def make(count):
        return [(os.urandom(32), make_context()) for _ in range(count)]

    return make


@pytest.fixture
def make_adapter(client, key_name, patient):
    def make(batch_size=100):
        return VaultTransitAdapter("transit", key_name, client=client, batch_size=batch_size, retries=patient)

    return make


def contexts_of(keys):
    return [context for _, context in keys]


def test_outcomes_stand_in_the_order_of_the_keys(make_adapter, make_keys):
    adapter, keys = make_adapter(batch_size=7), make_keys(30)
    wrapped = adapter.wrap_many(keys)
    opened = adapter.unwrap_many(list(zip(wrapped, contexts_of(keys), strict=True)))
    assert opened == [key for key, _ in keys]


@pytest.mark.parametrize(("count", "calls"), [(1, 1), (99, 1), (100, 1), (101, 2), (250, 3)])
def test_a_hundred_keys_go_into_one_call(openbao, make_adapter, make_keys, count, calls):
    adapter, keys = make_adapter(), make_keys(count)
    with openbao.counted("transit/encrypt/") as encrypted:
        wrapped = adapter.wrap_many(keys)
    pairs = list(zip(wrapped, contexts_of(keys), strict=True))
    with openbao.counted("transit/decrypt/") as decrypted:
        adapter.unwrap_many(pairs)
    with openbao.counted("transit/rewrap/") as rewrapped:
        adapter.rewrap_many(pairs)
    assert [len(encrypted), len(decrypted), len(rewrapped)] == [calls] * 3


def test_an_empty_batch_calls_nothing(make_adapter, counting):
    adapter = make_adapter()
    assert adapter.wrap_many([]) == adapter.unwrap_many([]) == adapter.rewrap_many([]) == []
    assert counting.tries == []


def test_each_bad_item_has_its_own_error_and_the_good_ones_open(make_adapter, make_keys, make_context):
    adapter, keys = make_adapter(batch_size=4), make_keys(10)
    pairs = list(zip(adapter.wrap_many(keys), contexts_of(keys), strict=True))
    pairs[1] = (pairs[1][0], make_context())
    pairs[3] = (replace(pairs[3][0], kek_uri="vault-transit://transit/other"), pairs[3][1])
    pairs[5] = (replace(pairs[5][0], ciphertext=b"vault:v1:AAAA"), pairs[5][1])
    pairs[6] = (replace(pairs[6][0], ciphertext=b"no ciphertext"), pairs[6][1])
    for outcomes in (adapter.unwrap_many(pairs), adapter.rewrap_many(pairs)):
        assert [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)] == [
            IntegrityError,
            NotMyKeyError,
            IntegrityError,
            IntegrityError,
        ]
        for place in (1, 3, 5, 6):
            assert isinstance(outcomes[place], Exception)
            assert str(pairs[place][1].key_id) in str(outcomes[place])
    good = [place for place in range(10) if place not in (1, 3, 5, 6)]
    outcomes = adapter.unwrap_many(pairs)
    assert [outcomes[place] for place in good] == [keys[place][0] for place in good]


def test_a_batch_of_only_foreign_wrappings_calls_nothing(make_adapter, context, counting):
    foreign = WrappedKey(kek_uri="local://x", kek_version=None, ciphertext=b"")
    outcomes = make_adapter().unwrap_many([(foreign, context)] * 3)
    assert [type(outcome) for outcome in outcomes] == [NotMyKeyError] * 3
    assert counting.tries == []


@pytest.mark.slow
def test_a_batch_that_the_server_finds_too_complex_is_halved_and_the_size_kept(
    openbao, make_adapter, make_keys
):
    adapter, keys = make_adapter(batch_size=1000), make_keys(600)
    with openbao.counted("transit/encrypt/") as first:
        wrapped = adapter.wrap_many(keys)
    # 600 and 300 items of two fields are over the server's 1,000 strings, 150 are not.
    assert not any(isinstance(outcome, Exception) for outcome in wrapped)
    with openbao.counted("transit/encrypt/") as second:
        adapter.wrap_many(keys)
    assert (len(first), len(second)) == (4, 4)
    opened = adapter.unwrap_many(list(zip(wrapped, contexts_of(keys), strict=True)))
    assert opened == [key for key, _ in keys]


def test_the_refused_calls_of_a_halving_are_few(make_adapter, make_keys, counting):
    make_adapter(batch_size=1000).wrap_many(make_keys(600))
    tries = [path for _, path in counting.tries if "/encrypt/" in path]
    assert len(tries) == 2 + 4


@pytest.mark.slow
def test_a_call_that_fails_as_a_whole_is_the_last_one(openbao, make_keys, key_name, counting, impatient):
    adapter = VaultTransitAdapter(
        "transit", key_name, client=openbao.client(session=counting), batch_size=2, retries=impatient
    )
    keys = make_keys(10)
    pairs = list(zip(adapter.wrap_many(keys), contexts_of(keys), strict=True))
    counting.tries.clear()
    with openbao.paused():
        outcomes = adapter.unwrap_many(pairs)
    assert [type(outcome) for outcome in outcomes] == [KmsUnavailableError] * 10
    assert len({id(outcome) for outcome in outcomes}) == 10
    assert len(counting.tries) <= impatient.tries
    assert adapter.unwrap_many(pairs) == [key for key, _ in keys]


def test_a_denied_batch_is_refused_in_one_call(openbao, make_keys, key_name, counting):
    token = openbao.client().auth.token.create(policies=["default"], ttl="1h")["auth"]["client_token"]
    adapter = VaultTransitAdapter("transit", key_name, client=openbao.client(token=token, session=counting))
    wrapped = WrappedKey(kek_uri=adapter.uri, kek_version=None, ciphertext=b"vault:v1:AAAA")
    outcomes = adapter.unwrap_many([(wrapped, context) for _, context in make_keys(250)])
    assert {type(outcome) for outcome in outcomes} == {KmsForbiddenError}
    assert [path for _, path in counting.tries if "transit" in path] == [f"transit/decrypt/{key_name}"]
