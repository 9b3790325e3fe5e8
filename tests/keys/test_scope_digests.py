"""Digests in place of scopes: the same in every process, told apart from other scopes, never mixed."""

import base64
import hmac
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventseal.cipher import AESCipher, ItemContext
from eventseal.errors import ConfigurationError, IntegrityError, KeyDestroyedError
from eventseal.keys import InMemoryKeyStore, KeyPurpose, Keyring, KeyState
from eventseal.keys.records import DEFAULT_SCOPE, STORE_SCOPE
from eventseal.keys.source import StaticKey
from eventseal.testing import FakeKms

PLAIN = "subject:zoe@example.org"
FIELD = KeyPurpose.FIELD


@pytest.fixture
def digesting(new_keyring):
    return lambda **options: new_keyring(scope_digest=True, **options)


def key_of(keyring, scope=PLAIN, purpose=KeyPurpose.DATA):
    return keyring.sealing_keys({scope: 1}, purpose=purpose)[scope]


def scopes_in(store):
    return {record.scope for record in store.records()} | {
        record.active_scope for record in store.records() if record.active_scope is not None
    }


def digest_form(stored, kind="subject"):
    return stored.startswith(f"{kind}:~") and len(stored) == len(kind) + 2 + 43


# --- what is stored ---


def test_the_stored_form_is_the_kind_and_an_hmac_under_the_store_key(digesting, store, kms, seals):
    keyring = digesting()
    key = key_of(keyring)
    mac = hmac.digest(seals()._scope_key, PLAIN.encode(), sha256)

    assert key.scope == "subject:~" + base64.urlsafe_b64encode(mac).decode().rstrip("=")
    assert keyring.stored_scope(PLAIN) == key.scope
    assert scopes_in(store) == {key.scope, "store", "store:digest"}


@pytest.mark.parametrize("branches", [None, 3])
def test_a_plain_scope_with_a_colon_is_in_no_row_and_in_no_call_of_the_kms(digesting, store, kms, branches):
    keyring = digesting(branches=branches)
    plain = [PLAIN, "tenant:acme & co", "stream:zoe:@", "branch:north pole", ":zoe bell"]
    for purpose in (KeyPurpose.DATA, FIELD):
        keyring.prepare([*plain, DEFAULT_SCOPE], purpose=purpose)
    keyring.rotate(PLAIN)
    keyring.rotate_many(plain)
    keyring.shred(PLAIN)
    keyring.destroyer.reopen(PLAIN)

    shown = repr(store.records()) + repr(kms.calls)
    for word in ("@", "acme ", "north ", "zoe "):
        assert word not in shown
    kinds = [scope.partition(":")[0] for scope in scopes_in(store) if "~" in scope]
    assert Counter(kinds) == {"subject": 1, "tenant": 1, "stream": 1, "branch": 1, "": 1}
    assert DEFAULT_SCOPE in scopes_in(store)
    numbered = scopes_in(store) & {f"branch:{number}" for number in range(3)}
    assert bool(numbered) is (branches is not None)


def test_without_it_scopes_are_as_they_were(keyring, store):
    assert keyring.stored_scope(PLAIN) == keyring.tables.scope_named(PLAIN) == PLAIN
    assert store.records() == []
    key_of(keyring)
    assert scopes_in(store) == {PLAIN, STORE_SCOPE}
    assert key_of(keyring, "subject:~x").scope == "subject:~x"


def test_a_static_key_stores_no_scope():
    assert StaticKey(os.urandom(32)).stored_scope(PLAIN) == PLAIN


@given(
    scopes=st.sets(
        st.from_regex(r"\A[a-z]{0,5}(:[a-zA-Z0-9@.:é]{0,9})?\Z").filter(bool), min_size=1, max_size=20
    )
)
@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_scopes_keep_their_kind_and_stay_apart_in_every_process(scopes):
    kms, store = FakeKms(), InMemoryKeyStore()
    one, other = (Keyring(kms, store, application="shop", scope_digest=True) for _ in range(2))
    keys = one.sealing_keys(dict.fromkeys(scopes, 1))

    assert len({key.key_id for key in keys.values()}) == len(scopes)
    for scope in scopes:
        kind, colon, _ = scope.partition(":")
        stored = one.stored_scope(scope)
        assert (
            other.stored_scope(scope)
            == other.tables.scope_named(scope)
            == other.tables.scope_named(stored)
            == stored
        )
        assert other.sealing_keys({scope: 1})[scope].key_id == keys[scope].key_id
        assert digest_form(stored, kind) if colon else stored == scope
        assert one.sealing_keys({scope: 1}) == {scope: keys[scope]}


def test_applications_have_digests_of_their_own(digesting):
    assert digesting(application="a").stored_scope(PLAIN) != digesting(application="b").stored_scope(PLAIN)


def test_processes_that_race_make_one_key(digesting, store):
    keyrings = [digesting() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda keyring: key_of(keyring).key_id, keyrings))

    assert len(ids) == 1
    assert Counter(record.purpose for record in store.records()) == {"store": 1, "data": 1}


# --- the way of a key ---


def test_a_known_scope_costs_no_call_and_only_so_many_are_known(digesting):
    keyring = digesting(max_keys=4)
    key_of(keyring)
    before = keyring.counters.hits
    assert key_of(keyring) is key_of(keyring)
    assert keyring.counters.hits == before + 2

    for number in range(50):
        keyring.stored_scope(f"subject:{number}")
        assert len(keyring._scope_digests.known) <= 4
    assert key_of(keyring).scope == keyring.stored_scope(PLAIN)


def test_a_key_rotates_is_shredded_and_reopened_by_either_name(digesting, store):
    keyring = digesting()
    stored = keyring.stored_scope(PLAIN)
    first = key_of(keyring)
    assert keyring.rotate(PLAIN).scope == keyring.rotate(stored).scope == stored
    assert {*keyring.rotate_many([PLAIN])} == {PLAIN}
    assert {*keyring.rotate_many([stored])} == {stored}
    active = key_of(keyring)
    assert active.key_id != first.key_id
    assert keyring.opening_keys([first.key_id])[first.key_id].scope == stored
    keyring.compromise([active.key_id])

    shredded = keyring.shred(PLAIN)
    assert len(shredded.destroyed) == 6
    assert {record.scope for record in shredded.keys} == {stored}
    for ring in (keyring, digesting()):
        with pytest.raises(KeyDestroyedError) as caught:
            key_of(ring)
        assert caught.value.scope == stored
        assert "zoe@" not in str(caught.value)
    assert keyring.shred(stored).destroyed == ()
    assert len(keyring.destroyer.reopen(stored)) == 3
    assert keyring.destroyer.reopen(PLAIN) == []
    assert key_of(keyring).state is KeyState.ACTIVE


def test_a_scope_that_never_had_a_key_is_unknown_and_its_name_is_not_repeated(digesting, store):
    assert digesting().tables.scope_named(PLAIN) == PLAIN  # nothing has a key: to ask makes none
    assert store.records() == []
    for end in (lambda keyring: keyring.shred(PLAIN), lambda keyring: keyring.destroyer.reopen(PLAIN)):
        with pytest.raises(ConfigurationError, match="never had a key") as caught:
            end(digesting())
        assert "zoe@" not in str(caught.value)


def test_a_closed_keyring_digests_nothing(digesting):
    keyring = digesting()
    keyring.close()
    for ask in (keyring.stored_scope, keyring.tables.scope_named, keyring.rotate, keyring.shred, key_of):
        with pytest.raises(ConfigurationError, match="closed"):
            ask(keyring, PLAIN) if ask is key_of else ask(PLAIN)


def test_items_are_sealed_again_for_the_scope_of_the_key_that_opened_them(digesting):
    keyring = digesting()
    cipher, place = AESCipher(keyring), ItemContext("s", 0, "t")
    sealed = cipher.encrypt(b"x", place, scope=PLAIN)
    new = keyring.rotate(PLAIN)

    column = SimpleNamespace(sequence_ids=["s"], positions=[0], topics=["t"], envelopes=[sealed])
    (moved,) = cipher.reseal_many(column, "items")
    assert moved[3:19] == new.key_id.bytes
    assert cipher.decrypt(moved, place) == b"x"
    assert cipher.stored_scope(PLAIN) == cipher.open_many([(moved, place)])[0].scope == new.scope


def test_nothing_is_made_where_nothing_may_be(digesting, store):
    keyring = digesting()
    assert keyring.sealing_keys({PLAIN: 1}, make=False) == {}
    assert store.records() == []
    key_of(keyring, "subject:other")
    assert keyring.sealing_keys({PLAIN: 1}, make=False) == {}


# --- what is refused ---


@pytest.mark.parametrize("purpose", [KeyPurpose.DATA, FIELD])
def test_a_scope_that_looks_like_a_digest_is_not_sealed_for(digesting, purpose):
    keyring = digesting()
    victim = key_of(keyring)
    for scope in (victim.scope, "subject:~", "subject:~mallory"):
        assert keyring.stored_scope(scope) != scope  # nor does a reader take it for what it names
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="taken for the digest") as caught:
                key_of(keyring, scope, purpose)
            assert scope not in str(caught.value)
        with pytest.raises(ConfigurationError, match="taken for the digest"):
            keyring.prepare([scope], purpose=purpose)


@pytest.mark.parametrize("scope", ["", "subject:\0", "subject:e\u0301", "k" * 199 + ":x", 7])
def test_a_scope_that_cannot_be_one_is_refused(digesting, scope):
    keyring = digesting()
    for ask in (keyring.stored_scope, keyring.tables.scope_named, keyring.rotate, keyring.shred):
        with pytest.raises(ConfigurationError, match=r"key scope|normal form"):
            ask(scope)
    with pytest.raises(ConfigurationError):
        key_of(keyring, scope)


def test_a_kind_that_leaves_no_room_for_a_digest_is_refused(digesting):
    keyring = digesting()
    assert len(key_of(keyring, "k" * 155 + ":x").scope) == 200
    with pytest.raises(ConfigurationError, match="takes 201 bytes") as caught:
        key_of(keyring, "k" * 156 + ":x")
    assert "Shorten the kind" in caught.value.remedy


@pytest.mark.parametrize("first", [True, False], ids=["digests first", "plain first"])
def test_who_was_told_otherwise_than_the_first_process_gets_no_key(new_keyring, store, first):
    key = key_of(new_keyring(scope_digest=first))
    before = store.records()
    for use in (
        key_of,
        lambda keyring: keyring.prepare([DEFAULT_SCOPE]),
        lambda keyring: keyring.prepare([PLAIN], purpose=FIELD),
        lambda keyring: keyring.rotate(PLAIN),
        lambda keyring: keyring.rotate_many([PLAIN]),
        lambda keyring: keyring.shred(PLAIN),
        lambda keyring: keyring.shred(key.scope),
        lambda keyring: keyring.destroyer.reopen(PLAIN),
        lambda keyring: keyring.compromise([key.key_id]),
        lambda keyring: keyring.refresh(),
        lambda keyring: keyring.tables.scope_named(PLAIN),
    ):
        with pytest.raises(ConfigurationError, match="have been stored") as caught:
            use(new_keyring(scope_digest=not first))
        assert "scope_digest" in caught.value.remedy
    other = new_keyring(scope_digest=not first)
    assert type(other.opening_keys([key.key_id])[key.key_id]) is ConfigurationError
    assert store.records() == before


def test_a_race_of_processes_that_were_told_differently_has_one_winner(new_keyring, store):
    def begin(number):
        try:
            return key_of(new_keyring(scope_digest=number % 2 == 0)).scope
        except ConfigurationError:
            return None

    with ThreadPoolExecutor(8) as pool:
        scopes = set(pool.map(begin, range(8)))

    assert len(scopes - {None}) == 1
    assert len(scopes_in(store) - {STORE_SCOPE, "store:digest"}) == 1
    assert Counter(record.purpose for record in store.records()) == {"store": 1, "data": 1}


def test_the_choice_cannot_be_edited(digesting, new_keyring, store):
    key_of(digesting())
    (row,) = [record for record in store.records() if record.purpose is KeyPurpose.STORE]
    store._records[row.key_id] = replace(row, scope=STORE_SCOPE)
    for told in (True, False):
        with pytest.raises(IntegrityError):
            key_of(new_keyring(scope_digest=told))
