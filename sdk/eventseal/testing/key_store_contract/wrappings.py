"""Tests of adding, verifying, dropping and counting wrappings of stored keys."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from eventseal.keys.records import KekUse, new_key_id
from eventseal.keys.states import KeyState
from eventseal.kms.adapter import WrappedKey
from eventseal.testing.key_store_contract.records import (
    THREADS,
    KeyStoreFixtures,
    assert_same,
    in_state,
    in_threads,
    make_record,
    next_mark,
    the_changes,
)

if TYPE_CHECKING:
    from uuid import UUID

    from eventseal.keys.records import KeyRecord
    from eventseal.keys.store import KeyStore


MANY_WRAPPINGS = 1_500


def _wrapping(kek_uri: str = "fake://three", kek_version: str | None = "1") -> WrappedKey:
    return WrappedKey(kek_uri=kek_uri, kek_version=kek_version, ciphertext=os.urandom(60))


class WrappingContract(KeyStoreFixtures):
    """The store adds wrappings to stored keys."""

    def test_an_added_wrapping_stands_beside_the_others(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """The store must add a wrapping and keep the others."""
        stored = store.add_active([make_record(application, scope) for scope in ("a", "b")])
        key_id, wrapping = stored["a"].key_id, _wrapping()
        assert store.put_wrappings({key_id: wrapping}) == {key_id}
        kept = other_store.get([key_id])[key_id]
        assert sorted(kept.wrappings, key=repr) == sorted((*stored["a"].wrappings, wrapping), key=repr)
        assert (kept.seal, kept.row_version, kept.state) == (stored["a"].seal, 1, KeyState.ACTIVE)
        assert_same(store.active(application, ["b"])["b"], stored["b"])

    def test_adding_wrappings_is_no_change_of_state(self, store: KeyStore, application: str) -> None:
        """A new wrapping must not raise the counter."""
        record = store.add_active([make_record(application, "a")])["a"]
        store.put_wrappings({record.key_id: _wrapping()})
        assert the_changes(store, application, -1).mark.counter == 0

    def test_a_wrapping_of_the_same_kek_and_version_stays(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """An unverified wrapping must not replace one of its version."""
        record = store.add_active([make_record(application, "a")])["a"]
        first, second = _wrapping(), _wrapping()
        assert store.put_wrappings({record.key_id: first}) == {record.key_id}
        assert other_store.put_wrappings({record.key_id: second}) == set()
        assert store.put_wrappings({record.key_id: first}) == {record.key_id}
        wrappings = store.get([record.key_id])[record.key_id].wrappings
        assert first in wrappings
        assert len(wrappings) == 1 + len(record.wrappings)

    def test_versions_of_a_kek_have_wrappings_of_their_own(self, store: KeyStore, application: str) -> None:
        """Each version of a KEK must have its own wrapping."""
        record = store.add_active([make_record(application, "a")])["a"]
        added = [_wrapping(kek_version=version) for version in ("1", "2", None)]
        for wrapping in added:
            assert store.put_wrappings({record.key_id: wrapping}) == {record.key_id}
        assert set(added) <= set(store.get([record.key_id])[record.key_id].wrappings)

    def test_a_destroyed_key_gets_no_wrapping(self, store: KeyStore, application: str) -> None:
        """The store must not add a wrapping to a destroyed key."""
        stored = store.add_active([make_record(application, scope) for scope in ("a", "b")])
        gone, alive = stored["a"], stored["b"]
        store.set_states(
            [in_state(gone, KeyState.DESTROYED, destroyed_by="shredded", keep_slot=True)],
            next_mark=next_mark,
        )
        assert store.put_wrappings({gone.key_id: _wrapping(), alive.key_id: _wrapping()}) == {alive.key_id}
        assert store.get([gone.key_id])[gone.key_id].wrappings == ()

    def test_keys_that_are_not_there_get_no_wrapping(self, store: KeyStore) -> None:
        """The store must ignore wrappings of unknown keys."""
        unknown = new_key_id()
        assert store.put_wrappings({unknown: _wrapping()}) == set()
        assert store.put_wrappings({}) == set()
        assert store.get([unknown]) == {}

    def test_more_wrappings_than_a_statement_takes_are_added(self, store: KeyStore, application: str) -> None:
        """One call must add more wrappings than one statement does."""
        stored = store.add_active([make_record(application, f"{number}") for number in range(MANY_WRAPPINGS)])
        add = {record.key_id: _wrapping() for record in stored.values()}
        assert store.put_wrappings(add) == set(add)
        found = store.get(list(add))
        assert all(wrapping in found[key_id].wrappings for key_id, wrapping in add.items())

    def test_a_key_that_is_destroyed_meanwhile_keeps_no_wrapping(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """A key must have no wrapping after its destruction, despite races."""
        stored = store.add_active([make_record(application, f"{number}") for number in range(THREADS)])
        records = list(stored.values())

        def race(number: int) -> None:
            if number % 2:
                for record in records[::-1]:
                    store.put_wrappings({record.key_id: _wrapping(kek_version=str(number))})
            else:
                for record in records[number // 2 :: THREADS // 2]:
                    destroyed = in_state(record, KeyState.DESTROYED, destroyed_by="shredded")
                    assert other_store.set_states([destroyed], next_mark=next_mark)

        in_threads(race)
        assert all(record.wrappings == () for record in store.get([r.key_id for r in records]).values())


MANY_TO_REWRAP = 1_200


def _added(
    store: KeyStore,
    record: KeyRecord,
    *,
    verified: bool,
    kek_uri: str = "fake://three",
    kek_version: str | None = "1",
) -> WrappedKey:
    wrapped = _wrapping(kek_uri, kek_version)
    assert store.put_wrappings({record.key_id: wrapped}, verified=verified) == {record.key_id}
    return wrapped


def _read(store: KeyStore, key_id: UUID) -> KeyRecord:
    return store.get([key_id])[key_id]


class RewrappingContract(KeyStoreFixtures):
    """The store verifies, drops and counts wrappings of stored keys."""

    # --- verified ---

    def test_nobody_has_verified_the_wrappings_of_a_new_key(self, store: KeyStore, application: str) -> None:
        """A new key must have no verified wrapping."""
        assert store.add_active([make_record(application, "a")])["a"].verified == frozenset()

    def test_a_verified_wrapping_is_told_from_the_others_wherever_the_key_is_read(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """Every read must show which wrappings are verified."""
        record = store.add_active([make_record(application, "a")])["a"]
        first = record.wrappings[0]
        store.mark_wrappings_verified({record.key_id: first})
        for found in (
            other_store.get([record.key_id])[record.key_id],
            other_store.active(application, ["a"])["a"],
            next(r for r in other_store.page(application) if r.key_id == record.key_id),
        ):
            assert found.verified == {first}
            assert_same(replace(found, verified=frozenset()), record)

    def test_only_these_very_bytes_are_marked(self, store: KeyStore, application: str) -> None:
        """The store must mark only a wrapping with equal bytes."""
        record = store.add_active([make_record(application, "a")])["a"]
        for other in (
            replace(record.wrappings[0], ciphertext=b"other"),
            replace(record.wrappings[0], kek_version="another"),
            replace(record.wrappings[0], kek_uri="fake://another"),
        ):
            store.mark_wrappings_verified({record.key_id: other})
        store.mark_wrappings_verified({new_key_id(): record.wrappings[0]}, wait=False)
        store.mark_wrappings_verified({})
        assert _read(store, record.key_id).verified == frozenset()

    def test_marking_again_and_without_waiting_is_harmless(self, store: KeyStore, application: str) -> None:
        """A repeated mark must change nothing, with and without waiting."""
        stored = store.add_active([make_record(application, scope) for scope in "abc"])
        marks = {record.key_id: record.wrappings[1] for record in stored.values()}
        for wait in (True, False, True):
            store.mark_wrappings_verified(marks, wait=wait)
        assert all(found.verified == {marks[key_id]} for key_id, found in store.get(list(marks)).items())

    def test_a_wrapping_may_come_verified(self, store: KeyStore, application: str) -> None:
        """With ``verified=True``, the store must add a verified wrapping."""
        record = store.add_active([make_record(application, "a")])["a"]
        unknown = _added(store, record, verified=False, kek_uri="fake://four")
        known = _added(store, record, verified=True, kek_uri="fake://five")
        found = _read(store, record.key_id)
        assert {unknown, known} <= set(found.wrappings)
        assert found.verified == {known}

    def test_a_verified_wrapping_takes_the_place_of_one_that_nobody_verified(
        self, store: KeyStore, application: str
    ) -> None:
        """A verified wrapping must replace an unverified one, never the reverse."""
        record = store.add_active([make_record(application, "a")])["a"]
        _added(store, record, verified=False)
        better = _added(store, record, verified=True)
        found = _read(store, record.key_id)
        assert [w for w in found.wrappings if w.kek_uri == better.kek_uri] == [better]
        assert store.put_wrappings({record.key_id: _wrapping()}, verified=True) == set()
        assert store.put_wrappings({record.key_id: _wrapping()}) == set()
        assert _read(store, record.key_id) == found

    def test_a_wrapping_that_is_there_already_becomes_verified(
        self, store: KeyStore, application: str
    ) -> None:
        """Adding a stored wrapping as verified must mark it."""
        record = store.add_active([make_record(application, "a")])["a"]
        first = record.wrappings[0]
        assert store.put_wrappings({record.key_id: first}, verified=True) == {record.key_id}
        assert _read(store, record.key_id).verified == {first}

    def test_the_newest_wrapping_comes_first(self, store: KeyStore, application: str) -> None:
        """The store must return the newest wrapping first."""
        record = store.add_active([make_record(application, "a")])["a"]
        store.mark_wrappings_verified({record.key_id: record.wrappings[0]})
        store.mark_wrappings_verified({record.key_id: record.wrappings[1]})
        newest = _added(store, record, verified=False, kek_version="2")
        assert _read(store, record.key_id).wrappings[0] == newest

    # --- dropped ---

    def test_a_wrapping_goes_for_the_sake_of_a_verified_one(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """The store must drop wrappings that the kept one replaces."""
        stored = store.add_active([make_record(application, scope) for scope in ("a", "b")])
        record = stored["a"]
        kept = _added(store, record, verified=True)
        assert other_store.drop_wrappings({record.key_id: record.wrappings}, keep={record.key_id: kept}) == {
            record.key_id
        }
        found = _read(store, record.key_id)
        assert found.wrappings == (kept,)
        assert found.verified == {kept}
        assert (found.seal, found.row_version, found.state) == (record.seal, 1, KeyState.ACTIVE)
        assert_same(_read(store, stored["b"].key_id), stored["b"])

    def test_only_what_is_named_goes(self, store: KeyStore, application: str) -> None:
        """The store must drop only the named wrappings."""
        record = store.add_active([make_record(application, "a")])["a"]
        kept = _added(store, record, verified=True)
        first, second = record.wrappings
        store.drop_wrappings({record.key_id: [first]}, keep={record.key_id: kept})
        assert set(_read(store, record.key_id).wrappings) == {second, kept}

    def test_whether_anybody_noted_that_the_better_one_was_verified_does_not_matter(
        self, store: KeyStore, application: str
    ) -> None:
        """The store must not require that the kept wrapping is verified."""
        record = store.add_active([make_record(application, "a")])["a"]
        kept = _added(store, record, verified=False)
        assert store.drop_wrappings({record.key_id: record.wrappings}, keep={record.key_id: kept}) == {
            record.key_id
        }
        assert _read(store, record.key_id).wrappings == (kept,)

    def test_a_key_keeps_everything_if_the_better_wrapping_is_gone_or_another_by_now(
        self, store: KeyStore, application: str
    ) -> None:
        """Without the kept wrapping, the store must drop nothing."""
        record = store.add_active([make_record(application, "a")])["a"]
        _added(store, record, verified=True)
        old = {record.key_id: record.wrappings}
        assert store.drop_wrappings(old, keep={record.key_id: _wrapping()}) == set()
        assert store.drop_wrappings(old, keep={record.key_id: _wrapping("fake://nowhere")}) == set()
        assert len(_read(store, record.key_id).wrappings) == 3

    def test_another_verified_wrapping_does_not_stand_in_for_the_better_one(
        self, store: KeyStore, application: str
    ) -> None:
        """Another verified wrapping must not replace the kept one."""
        record = store.add_active([make_record(application, "a")])["a"]
        first, second = record.wrappings
        store.mark_wrappings_verified({record.key_id: second})
        gone = replace(second, ciphertext=b"another")
        assert store.drop_wrappings({record.key_id: [first]}, keep={record.key_id: gone}) == set()
        assert first in _read(store, record.key_id).wrappings

    def test_the_better_wrapping_never_goes(self, store: KeyStore, application: str) -> None:
        """The store must never drop the kept wrapping."""
        record = store.add_active([make_record(application, "a")])["a"]
        kept = _added(store, record, verified=True)
        store.drop_wrappings({record.key_id: [*record.wrappings, kept]}, keep={record.key_id: kept})
        assert _read(store, record.key_id).wrappings == (kept,)

    def test_a_wrapping_that_was_replaced_meanwhile_stays(self, store: KeyStore, application: str) -> None:
        """The store must not drop a newer wrapping of that version."""
        record = store.add_active([make_record(application, "a")])["a"]
        replaced = _added(store, record, verified=False, kek_uri="fake://four")
        newer = _added(store, record, verified=True, kek_uri="fake://four")
        kept = _added(store, record, verified=True)
        store.drop_wrappings({record.key_id: [replaced]}, keep={record.key_id: kept})
        assert newer in _read(store, record.key_id).wrappings

    def test_dropping_again_drops_nothing_more(self, store: KeyStore, application: str) -> None:
        """A repeated drop must succeed and drop nothing more."""
        record = store.add_active([make_record(application, "a")])["a"]
        kept = _added(store, record, verified=True)
        for _ in range(2):
            old = {record.key_id: record.wrappings}
            assert store.drop_wrappings(old, keep={record.key_id: kept}) == {record.key_id}
        assert store.drop_wrappings({}, keep={}) == set()

    def test_a_destroyed_key_has_nothing_to_drop(self, store: KeyStore, application: str) -> None:
        """The store must not drop or mark wrappings of destroyed keys."""
        record = store.add_active([make_record(application, "a")])["a"]
        kept = _added(store, record, verified=True)
        store.set_states([in_state(record, KeyState.DESTROYED, destroyed_by="retired")], next_mark=next_mark)
        old = {record.key_id: record.wrappings}
        assert store.drop_wrappings(old, keep={record.key_id: kept}) == set()
        store.mark_wrappings_verified({record.key_id: kept})
        found = _read(store, record.key_id)
        assert (found.wrappings, found.verified) == ((), frozenset())

    def test_many_keys_lose_wrappings_at_once(self, store: KeyStore, application: str) -> None:
        """One call must drop wrappings of many keys."""
        stored = store.add_active([make_record(application, f"{number}") for number in range(MANY_TO_REWRAP)])
        keep = {record.key_id: _wrapping() for record in stored.values()}
        others = set(list(keep)[:7])
        store.put_wrappings({k: w for k, w in keep.items() if k not in others})
        old = {record.key_id: record.wrappings for record in stored.values()}
        assert store.drop_wrappings(old, keep=keep) == set(keep) - others
        found = store.get(list(keep))
        for key_id, record in found.items():
            assert len(record.wrappings) == (2 if key_id in others else 1)

    def test_two_that_drop_each_others_wrapping_leave_one(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """Two opposite drops that race must leave one wrapping."""
        stored = store.add_active([make_record(application, f"{number}") for number in range(THREADS)])
        pairs = {}
        for record in stored.values():
            pairs[record.key_id] = (
                _added(store, record, verified=True, kek_uri="fake://left"),
                _added(store, record, verified=True, kek_uri="fake://right"),
            )

        def race(number: int) -> None:
            handle = store if number % 2 else other_store
            for key_id, pair in pairs.items():
                kept, gone = pair if number % 2 else pair[::-1]
                handle.drop_wrappings({key_id: [gone]}, keep={key_id: kept})

        in_threads(race)
        for key_id, pair in pairs.items():
            found = _read(store, key_id)
            assert len(found.verified & set(pair)) == 1
            assert len(found.wrappings) == 3

    # --- counted ---

    def test_wrappings_are_counted_by_kek_and_version(self, store: KeyStore, application: str) -> None:
        """The store must count wrappings by KEK and version."""
        stored = store.add_active([make_record(application, scope) for scope in ("a", "b", "c")])
        _added(store, stored["a"], verified=True, kek_uri="fake://one", kek_version="8")
        _added(store, stored["b"], verified=False, kek_uri="fake://one", kek_version="8")
        store.set_states(
            [in_state(stored["c"], KeyState.DESTROYED, destroyed_by="shredded", keep_slot=True)],
            next_mark=next_mark,
        )
        store.add_active([make_record(f"other-{uuid4().hex}", "a")])
        assert store.kek_uses(application) == [  # the store key and two data keys
            KekUse(kek_uri="fake://one", kek_version="7", wrappings=3, verified=0),
            KekUse(kek_uri="fake://one", kek_version="8", wrappings=2, verified=1),
            KekUse(kek_uri="fake://two", kek_version=None, wrappings=3, verified=0),
        ]
        assert store.kek_uses("nobody") == []

    def test_keys_that_have_a_wrapping_are_counted(self, store: KeyStore, application: str) -> None:
        """The store must count the keys that have a wrapping."""
        assert store.count_wrapped_keys("nobody") == 0
        stored = store.add_active([make_record(application, scope) for scope in ("a", "b")])
        store.add_active([make_record(f"other-{uuid4().hex}", "a")])
        assert store.count_wrapped_keys(application) == 3  # with the store key
        gone = in_state(stored["a"], KeyState.DESTROYED, destroyed_by="retired")
        store.set_states([gone], next_mark=next_mark)
        assert store.count_wrapped_keys(application) == 2

    def test_keys_that_lost_what_opens_them_are_found_whatever_application_they_name(
        self, store: KeyStore, application: str
    ) -> None:
        """The store must list keys without wrappings or of applications without marks."""
        stored = store.add_active([make_record(application, scope) for scope in ("a", "b")])
        bare = [
            replace(make_record(name, "c"), wrappings=()) for name in (application, f"other-{uuid4().hex}")
        ]
        for record in bare:
            store.add_active([record])
        strange = make_record(f"other-{uuid4().hex}", "d")
        store.add_active([strange])
        gone = in_state(stored["a"], KeyState.DESTROYED, destroyed_by="retired")
        store.set_states([gone], next_mark=next_mark)
        found = [record.key_id for record in store.orphans()]
        assert found == sorted(record.key_id for record in [*bare, strange])
        assert [record.key_id for record in store.orphans(limit=1)] == found[:1]
