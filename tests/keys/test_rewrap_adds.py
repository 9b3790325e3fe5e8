"""A rewrap adds the wrappings that keys miss, page by page, and touches nothing else."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    KekNotConfiguredError,
    KmsForbiddenError,
    KmsUnavailableError,
    StoreReadOnlyError,
)
from eventseal.keys import DataKey, KeyPurpose, KeyState, Rewrap
from eventseal.keys.rewrap.rewrapping import MAX_FAILURES
from eventseal.keys.wrapping.branches import Branches
from eventseal.keys.wrapping.unwrapping import Unwrapper
from eventseal.testing import FakeBatchKms, FakeKms


@pytest.fixture
def keks() -> list[FakeKms]:
    return [FakeKms("one"), FakeBatchKms("two"), FakeBatchKms("three")]


def prepare(keyring, count: int, kind: str = "s") -> None:
    keyring.prepare([f"{kind}:{number}" for number in range(count)])


def uris(store) -> set[tuple[str, ...]]:
    return {tuple(sorted(w.kek_uri for w in record.wrappings)) for record in store.records()}


def test_a_kek_that_was_listed_later_gets_every_key(new_keyring, store, keks) -> None:
    prepare(new_keyring(kms=keks[:1]), 20)
    rewrap = new_keyring(kms=keks).rewrap()
    assert rewrap == Rewrap(done=21, added={"fake://two": 21, "fake://three": 21})
    assert uris(store) == {("fake://one", "fake://three", "fake://two")}
    for kms in keks:
        found = new_keyring(kms=kms).opening_keys([record.key_id for record in store.data_records()])
        assert all(isinstance(key, DataKey) for key in found.values())


def test_what_a_quorum_left_out_is_added(new_keyring, store, keks) -> None:
    keyring = new_keyring(kms=keks, wrap_quorum=1)
    prepare(keyring, 3, "before")
    keks[0].fail_always(), keks[2].deny()
    prepare(keyring, 4, "during")
    keks[0].recover(), keks[2].recover()
    assert keyring.counters.missing_wrappings == 8
    rewrap = keyring.rewrap()
    assert rewrap == Rewrap(done=8, added={"fake://one": 4, "fake://three": 4})
    assert {len(names) for names in uris(store)} == {3}


def test_run_again_it_adds_nothing_and_calls_nobody(new_keyring, store, keks) -> None:
    prepare(new_keyring(kms=keks[:2]), 5)
    keyring = new_keyring(kms=keks)
    keyring.rewrap()
    before = store.snapshot()
    for kms in keks:
        kms.calls.clear()
    assert keyring.rewrap() == Rewrap(done=6)
    assert [kms.count() for kms in keks] == [0, 0, 0]
    assert store.snapshot() == before


def test_it_works_in_pages_and_batches(new_keyring, store) -> None:
    first, second = FakeBatchKms("one"), FakeBatchKms("two")
    prepare(new_keyring(kms=first), 100)
    keyring = new_keyring(kms=[first, second])
    keyring.refresh()
    first.calls.clear()
    assert keyring.rewrap(batch=25).added == {"fake://two": 101}
    assert [(call.operation, len(call.key_ids)) for call in second.calls] == [
        *[("wrap_many", 25), ("unwrap_many", 25)] * 4,
        ("wrap", 1),
        ("unwrap", 1),
    ]
    assert first.count("unwrap_many") == 4


def test_keys_under_branch_keys_need_none(new_keyring, store, keks) -> None:
    prepare(new_keyring(kms=keks[:1], branches=2), 30)
    rewrap = new_keyring(kms=keks[:2]).rewrap()
    assert rewrap == Rewrap(done=33, added={"fake://two": 3})  # two branch keys and the store key
    assert {len(record.wrappings) for record in store.data_records()} == {1}
    found = new_keyring(kms=keks[1]).opening_keys([record.key_id for record in store.data_records()])
    assert all(isinstance(key, DataKey) for key in found.values())


def test_destroyed_keys_get_none(new_keyring, store, kms, destroy) -> None:
    second = FakeKms("two")
    keyring = new_keyring()
    prepare(keyring, 3)
    gone = store.data_records()[0].key_id
    destroy(gone, by="shredded", keep_slot=True)
    assert new_keyring(kms=[kms, second]).rewrap() == Rewrap(done=3, added={"fake://two": 3})
    assert store.record(gone).wrappings == ()


def test_a_key_that_is_destroyed_meanwhile_gets_none(new_keyring, store, kms, destroy, seals) -> None:
    prepare(new_keyring(), 3)
    gone = store.data_records()[0].key_id
    seals()

    class Slow(FakeBatchKms):
        def wrap_many(self, keys):
            destroy(gone, by="shredded")
            return super().wrap_many(keys)

    rewrap = new_keyring(kms=[kms, Slow("two")]).rewrap()
    assert rewrap.added == {"fake://two": 3}
    assert store.record(gone).wrappings == ()


def test_states_seals_and_the_mark_stay(new_keyring, store, keks) -> None:
    keyring = new_keyring(kms=keks[:1])
    prepare(keyring, 3)
    keyring.rotate("s:0"), keyring.rotate("s:1", compromised=True)
    bare = {"wrappings": (), "verified": frozenset()}
    before = {record.key_id: replace(record, **bare) for record in store.records()}
    mark = store._marks["default"]
    assert new_keyring(kms=keks).rewrap().keys == 6
    assert {record.key_id: replace(record, **bare) for record in store.records()} == before
    assert store._marks["default"] == mark


def test_another_applications_keys_are_left_alone(new_keyring, store, keks) -> None:
    prepare(new_keyring(kms=keks[:1], application="other"), 3)
    assert new_keyring(kms=keks).rewrap() == Rewrap()
    prepare(new_keyring(kms=keks[:1]), 1)
    assert new_keyring(kms=keks).rewrap().keys == 2
    assert {len(record.wrappings) for record in store.records("other")} == {1}


def test_a_key_that_cannot_be_unwrapped_is_listed_and_the_rest_is_rewrapped(new_keyring, store, keks) -> None:
    prepare(new_keyring(kms=keks[:1]), 5)
    edited, damaged, foreign, bare, good = [record.key_id for record in store.data_records()]
    store.edit(edited, scope="s:9")
    (wrapped,) = store.record(damaged).wrappings
    store.edit(damaged, wrappings=(replace(wrapped, ciphertext=b"x" * 60),))
    store.edit(foreign, wrappings=(replace(wrapped, kek_uri="fake://elsewhere"),))
    store.edit(bare, wrappings=())
    rewrap = new_keyring(kms=keks).rewrap()
    assert rewrap.keys == 6
    assert rewrap.added == {"fake://two": 2, "fake://three": 2}
    assert rewrap.failed == 4
    assert {key_id: type(error) for key_id, error in rewrap.failures.items()} == {
        edited: IntegrityError,
        damaged: IntegrityError,
        foreign: KekNotConfiguredError,
        bare: IntegrityError,
    }
    assert len(store.record(good).wrappings) == 3
    asked = [key_id for kms in keks for call in kms.calls for key_id in call.key_ids]
    assert asked.count(damaged) == 1 + 1  # when it was made, and once to repair it, under however many KEKs
    assert store.record(edited).wrappings == (store.record(edited).wrappings[0],)


def test_the_first_thousand_failures_are_listed(new_keyring, store, keks) -> None:
    prepare(new_keyring(kms=keks[:1], branches=None), MAX_FAILURES + 10)
    for record in store.data_records():
        store.edit(record.key_id, seal=bytes(32))
    rewrap = new_keyring(kms=keks[:2]).rewrap()
    assert rewrap.failed == MAX_FAILURES + 10
    assert len(rewrap.failures) == MAX_FAILURES


@pytest.mark.parametrize("fault", ["fail_always", "deny"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_kek_that_fails_ends_it_and_what_was_added_stays(new_keyring, store, keks, fault, which) -> None:
    prepare(new_keyring(kms=keks[:1]), 60)
    keyring = new_keyring(kms=keks)
    keyring.refresh()
    failing, most = keks[which], (40, 2)[which]
    failing.calls.clear()
    calls = failing._call

    def fail_later(operation, *contexts):
        if failing.count() >= most:
            getattr(failing, fault)()
        return calls(operation, *contexts)

    failing._call = fail_later
    with pytest.raises((KmsUnavailableError, KmsForbiddenError)):
        keyring.rewrap(batch=10)
    failing._call = calls
    failing.recover()
    so_far = sum(len(record.wrappings) - 1 for record in store.records())
    rewrap = keyring.rewrap(batch=10)
    assert 0 < so_far < 2 * 61
    assert sum(rewrap.added.values()) == 2 * 61 - so_far
    assert {len(names) for names in uris(store)} == {3}


@pytest.mark.parametrize("says_its_names", [True, False])
def test_an_alias_is_known_by_what_its_wrappings_are_called(new_keyring, store, keks, says_its_names) -> None:
    class Alias(FakeBatchKms):
        """Is configured under one name, and stores another."""

        @property
        def uri(self):
            return "fake://alias"

    if says_its_names:
        Alias.is_named = lambda self, kek_uri: kek_uri == "fake://two"
    alias = Alias("two")
    prepare(new_keyring(kms=[keks[0], alias]), 30)
    assert uris(store) == {("fake://one", "fake://two")}
    alias.calls.clear()
    keyring = new_keyring(kms=[keks[0], alias])
    assert keyring.rewrap(batch=10).done == 31
    assert uris(store) == {("fake://one", "fake://two")}
    # An adapter that does not say it is asked for one batch, whose wrappings tell what they are called.
    assert alias.count("wrap", "wrap_many") == (0 if says_its_names else 1)
    store.edit(store.data_records()[20].key_id, wrappings=store.data_records()[20].wrappings[:1])
    assert keyring.rewrap(batch=10).added["fake://two"] == 1


def test_two_rewraps_at_once_add_each_wrapping_once(new_keyring, store, keks) -> None:
    prepare(new_keyring(kms=keks[:1]), 20)
    put = store.put_wrappings

    def after_another(add, **options):
        store.put_wrappings = put
        assert new_keyring(kms=keks[:2]).rewrap().added == {"fake://two": 21}
        return put(add, **options)

    store.put_wrappings = after_another
    late = new_keyring(kms=keks[:2]).rewrap()
    assert (late.added, late.awaiting) == ({}, 21)
    assert uris(store) == {("fake://one", "fake://two")}
    assert new_keyring(kms=keks[:2]).rewrap() == Rewrap(done=21)


def test_a_key_store_that_cannot_be_written_is_told(new_keyring, store, keks) -> None:
    prepare(new_keyring(kms=keks[:1]), 2)

    def refuse(add, **options):
        raise StoreReadOnlyError("read only")

    store.put_wrappings = refuse
    with pytest.raises(StoreReadOnlyError):
        new_keyring(kms=keks).rewrap()


def test_the_handles_of_rewrapped_keys_are_closed(new_keyring, keks, monkeypatch) -> None:
    prepare(new_keyring(kms=keks[:1], branches=2), 5)
    new_keyring(kms=keks[:1], branches=2).rotate_branches()
    keyring = new_keyring(kms=keks[:2])
    seen = []
    for cls in (Unwrapper, Branches):

        def unwrap(self, records, unwrap=cls.unwrap):
            found = unwrap(self, records)
            seen.extend(found)
            return found

        monkeypatch.setattr(cls, "unwrap", unwrap)
    keyring.rewrap()
    closed = [key for key in seen if key.purpose is not KeyPurpose.BRANCH]
    assert len(closed) >= 6
    assert all(key.closed for key in closed)
    assert not keyring._held_keys.keys


def test_a_closed_keyring_rewraps_nothing(new_keyring, keks) -> None:
    keyring = new_keyring(kms=keks)
    keyring.close()
    with pytest.raises(ConfigurationError, match="closed"):
        keyring.rewrap()


def test_an_application_without_keys_needs_no_rewrap(new_keyring, store, keks) -> None:
    assert new_keyring(kms=keks, application=f"none-{uuid4().hex}").rewrap() == Rewrap()
    assert store.records() == []


def test_a_deactivated_key_is_rewrapped_too(new_keyring, store, keks) -> None:
    keyring = new_keyring(kms=keks[:1])
    keyring.rotate("a"), keyring.rotate("a")
    new_keyring(kms=keks[:2]).rewrap()
    (old,) = [record for record in store.records() if record.state is KeyState.DEACTIVATED]
    assert len(old.wrappings) == 2
