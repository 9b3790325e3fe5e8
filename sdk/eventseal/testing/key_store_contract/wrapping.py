"""Adding wrappings to stored keys."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from eventseal.keys.key_ids import new_key_id
from eventseal.keys.states import KeyState
from eventseal.kms.adapter import WrappedKey
from eventseal.testing.key_store_contract.fixtures import KeyStoreFixtures
from eventseal.testing.key_store_contract.records import (
    THREADS,
    assert_same,
    in_threads,
    make_record,
    moved,
    next_mark,
    the_changes,
)

if TYPE_CHECKING:
    from eventseal.keys.store import KeyStore

MANY = 1_500


def _wrapping(kek_uri: str = "fake://three", kek_version: str | None = "1") -> WrappedKey:
    return WrappedKey(kek_uri=kek_uri, kek_version=kek_version, ciphertext=os.urandom(60))


class WrappingContract(KeyStoreFixtures):
    """Adding wrappings to stored keys."""

    def test_an_added_wrapping_stands_beside_the_others(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        stored = store.add_active([make_record(application, scope) for scope in ("a", "b")])
        key_id, wrapping = stored["a"].key_id, _wrapping()
        assert store.put_wrappings({key_id: wrapping}) == {key_id}
        kept = other_store.get([key_id])[key_id]
        assert sorted(kept.wrappings, key=repr) == sorted((*stored["a"].wrappings, wrapping), key=repr)
        assert (kept.seal, kept.row_version, kept.state) == (stored["a"].seal, 1, KeyState.ACTIVE)
        assert_same(store.active(application, ["b"])["b"], stored["b"])

    def test_adding_wrappings_is_no_change_of_state(self, store: KeyStore, application: str) -> None:
        record = store.add_active([make_record(application, "a")])["a"]
        store.put_wrappings({record.key_id: _wrapping()})
        assert the_changes(store, application, -1).mark.counter == 0

    def test_a_wrapping_of_the_same_kek_and_version_stays(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        record = store.add_active([make_record(application, "a")])["a"]
        first, second = _wrapping(), _wrapping()
        assert store.put_wrappings({record.key_id: first}) == {record.key_id}
        assert other_store.put_wrappings({record.key_id: second}) == set()
        assert store.put_wrappings({record.key_id: first}) == {record.key_id}
        wrappings = store.get([record.key_id])[record.key_id].wrappings
        assert first in wrappings
        assert len(wrappings) == 1 + len(record.wrappings)

    def test_versions_of_a_kek_have_wrappings_of_their_own(self, store: KeyStore, application: str) -> None:
        record = store.add_active([make_record(application, "a")])["a"]
        added = [_wrapping(kek_version=version) for version in ("1", "2", None)]
        for wrapping in added:
            assert store.put_wrappings({record.key_id: wrapping}) == {record.key_id}
        assert set(added) <= set(store.get([record.key_id])[record.key_id].wrappings)

    def test_a_destroyed_key_gets_no_wrapping(self, store: KeyStore, application: str) -> None:
        stored = store.add_active([make_record(application, scope) for scope in ("a", "b")])
        gone, alive = stored["a"], stored["b"]
        store.set_states(
            [moved(gone, KeyState.DESTROYED, destroyed_by="shredded", keep_slot=True)], next_mark=next_mark
        )
        assert store.put_wrappings({gone.key_id: _wrapping(), alive.key_id: _wrapping()}) == {alive.key_id}
        assert store.get([gone.key_id])[gone.key_id].wrappings == ()

    def test_keys_that_are_not_there_get_no_wrapping(self, store: KeyStore) -> None:
        unknown = new_key_id()
        assert store.put_wrappings({unknown: _wrapping()}) == set()
        assert store.put_wrappings({}) == set()
        assert store.get([unknown]) == {}

    def test_more_wrappings_than_a_statement_takes_are_added(self, store: KeyStore, application: str) -> None:
        stored = store.add_active([make_record(application, f"{number}") for number in range(MANY)])
        add = {record.key_id: _wrapping() for record in stored.values()}
        assert store.put_wrappings(add) == set(add)
        found = store.get(list(add))
        assert all(wrapping in found[key_id].wrappings for key_id, wrapping in add.items())

    def test_a_key_that_is_destroyed_meanwhile_keeps_no_wrapping(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        stored = store.add_active([make_record(application, f"{number}") for number in range(THREADS)])
        records = list(stored.values())

        def race(number: int) -> None:
            if number % 2:
                for record in records[::-1]:
                    store.put_wrappings({record.key_id: _wrapping(kek_version=str(number))})
            else:
                for record in records[number // 2 :: THREADS // 2]:
                    destroyed = moved(record, KeyState.DESTROYED, destroyed_by="shredded")
                    assert other_store.set_states([destroyed], next_mark=next_mark)

        in_threads(race)
        assert all(record.wrappings == () for record in store.get([r.key_id for r in records]).values())
