"""Keys of purpose ``field``: apart from data keys, made and held as they are, shredded with them."""

import pytest

from eventseal.errors import ConfigurationError, IntegrityError, KeyDestroyedError, KeyNotFoundError
from eventseal.keys import InMemoryKeyStore, Keyring
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.testing import FakeKms, ManualClock

SCOPE = "subject:c-1"
FIELD = KeyPurpose.FIELD


@pytest.fixture
def key_store():
    return InMemoryKeyStore()


@pytest.fixture
def make(key_store):
    kms = FakeKms()
    return lambda **options: Keyring(kms, key_store, application="shop", **options)


def field_key(keyring, scope=SCOPE):
    return keyring.sealing_keys({scope: 1}, purpose=FIELD)[scope]


@pytest.mark.parametrize("branches", [None, 2])
def test_a_scope_has_a_key_of_each_purpose(make, branches):
    keyring = make(branches=branches)
    item_key, key = keyring.sealing_keys({SCOPE: 1})[SCOPE], field_key(keyring)

    assert (key.purpose, key.scope) == (FIELD, SCOPE)
    assert item_key.key_id != key.key_id
    assert field_key(keyring) is key
    cold = make()
    opened = cold.opening_keys([key.key_id], purpose=FIELD)[key.key_id]
    assert opened.derive(b"x", 16) == key.derive(b"x", 16)


def test_no_key_serves_the_other_purpose(make):
    keyring = make()
    item_key, key = keyring.sealing_keys({SCOPE: 1})[SCOPE], field_key(keyring)

    for ring in (keyring, make()):
        assert type(ring.opening_keys([key.key_id])[key.key_id]) is IntegrityError
        found = ring.opening_keys([item_key.key_id], purpose=FIELD)[item_key.key_id]
        assert type(found) is IntegrityError
        assert "does not encrypt or decrypt fields" in str(found)


@pytest.mark.parametrize("purpose", [KeyPurpose.BRANCH, KeyPurpose.STORE, KeyPurpose.INDEX])
def test_other_purposes_are_not_given(make, purpose):
    for ask in (
        lambda: make().sealing_keys({SCOPE: 1}, purpose=purpose),
        lambda: make().opening_keys([], purpose=purpose),
        lambda: make().prepare([SCOPE], purpose=purpose),
    ):
        with pytest.raises(ConfigurationError, match="not for the purpose"):
            ask()


def test_a_shred_ends_the_field_key_here_at_once_and_elsewhere_after_a_refresh(make):
    clock = ManualClock()
    here, there = make(clock=clock), make(clock=clock)
    key = field_key(here)
    held = there.opening_keys([key.key_id], purpose=FIELD)[key.key_id]
    field_key(there)

    here.shred(SCOPE)

    assert key.closed
    assert not held.closed
    clock.advance(61)
    outcome = there.opening_keys([key.key_id], purpose=FIELD)[key.key_id]
    assert (outcome.destroyed_by, outcome.scope) == ("shredded", SCOPE)
    assert held.closed
    for ring in (here, there, make()):
        with pytest.raises(KeyDestroyedError):
            field_key(ring)


def test_a_scope_that_only_had_a_data_key_takes_no_fields_after_a_shred(make):
    keyring = make()
    keyring.prepare([SCOPE])
    keyring.shred(SCOPE)

    with pytest.raises(KeyDestroyedError):
        field_key(keyring)
    keyring.destroyer.reopen(SCOPE)
    assert field_key(keyring).state is KeyState.ACTIVE


def test_a_refresh_asks_after_the_field_keys_too(make):
    clock = ManualClock()
    keyring = make(clock=clock)
    key = field_key(keyring)
    make(clock=clock).shred(SCOPE)

    keyring.refresh()

    assert key.closed


def test_a_refresh_looks_again_for_field_keys_that_were_not_there(make, key_store):
    key = field_key(make())
    record = key_store._records.pop(key.key_id)
    keyring = make()
    assert type(keyring.opening_keys([key.key_id], purpose=FIELD)[key.key_id]) is KeyNotFoundError
    key_store._records[key.key_id] = record

    keyring.refresh()

    assert keyring.opening_keys([key.key_id], purpose=FIELD)[key.key_id].purpose is FIELD


def test_a_field_key_is_leased_and_not_rotated_by_age(make, key_store):
    clock = ManualClock()
    keyring = make(clock=clock)
    key = field_key(keyring)
    assert key_store.get([key.key_id])[key.key_id].items_reserved == 1024

    clock.advance(200 * 86400)

    assert field_key(keyring).key_id == key.key_id


def test_closing_a_keyring_closes_its_field_keys(make):
    keyring = make()
    key = field_key(keyring)

    keyring.close()

    assert key.closed


def test_the_death_of_a_branch_key_closes_the_field_keys_that_it_opened(make):
    keyring = make(branches=1)
    key = field_key(keyring)
    branch = next(
        record for record in keyring._given.key_store._records.values() if record.purpose == "branch"
    )
    buried = branch.__class__(**{name: getattr(branch, name) for name in branch.__slots__})

    keyring._held_keys.bury(buried)

    assert key.closed
