"""What a refresh reads."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

from eventseal.keys.records import STORE_SCOPE, ChangeMark, Revocation
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.testing.key_store_contract.fixtures import KeyStoreFixtures
from eventseal.testing.key_store_contract.records import (
    assert_same,
    make_record,
    moved,
    next_mark,
    the_changes,
)

if TYPE_CHECKING:
    from eventseal.keys.store import KeyStore


class ChangesContract(KeyStoreFixtures):
    """What a refresh reads."""

    def test_an_application_without_a_store_key_has_no_mark(self, store: KeyStore) -> None:
        assert store.changes(f"contract-{uuid4().hex}", -1, []) is None

    def test_without_a_change_only_the_mark_is_read(self, store: KeyStore, application: str) -> None:
        record = store.add_active([make_record(application, "a")])["a"]
        changes = the_changes(store, application, 0, [record.key_id])
        assert changes.mark.counter == 0
        assert (changes.records, changes.revoked, changes.retired) == ((), (), ())
        assert changes.refresh_interval > 0
        assert abs(changes.now - store.now()) < timedelta(minutes=1)

    def test_a_mark_is_kept_as_it_was_given(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        record = store.add_active([make_record(application, "a")])["a"]
        given: list[ChangeMark] = []

        def keep(mark: ChangeMark) -> ChangeMark:
            given.append(next_mark(mark))
            return given[-1]

        store.set_states([moved(record, KeyState.DEACTIVATED)], next_mark=keep)
        assert the_changes(other_store, application, 0).mark == given[-1]

    def test_a_change_gives_the_asked_for_keys_that_moved_without_wrappings(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        stored = store.add_active([make_record(application, scope) for scope in ("a", "b", "c")])
        ids = {scope: record.key_id for scope, record in stored.items()}
        store.set_states([moved(stored["a"], KeyState.DEACTIVATED)], next_mark=next_mark)
        store.set_states([moved(stored["b"], KeyState.COMPROMISED)], next_mark=next_mark)
        asked = [ids["b"], ids["c"]]
        changes = the_changes(other_store, application, 1, asked)
        assert [(record.key_id, record.state) for record in changes.records] == [
            (ids["b"], KeyState.COMPROMISED)
        ]
        assert changes.records[0].wrappings == ()
        assert_same(changes.records[0], replace(store.get([ids["b"]])[ids["b"]], wrappings=()))
        assert changes.mark.counter == 2
        everything = the_changes(other_store, application, 0, list(ids.values()))
        assert {record.key_id for record in everything.records} == {ids["a"], ids["b"]}

    def test_a_change_lists_what_is_compromised_or_shredded_and_what_was_retired_since(
        self, store: KeyStore, application: str
    ) -> None:
        scopes = ("compromised", "shredded", "retired", "deactivated", "active")
        stored = store.add_active([make_record(application, scope) for scope in scopes])
        moves = [
            moved(stored["compromised"], KeyState.COMPROMISED),
            moved(stored["shredded"], KeyState.DESTROYED, destroyed_by="shredded"),
            moved(stored["retired"], KeyState.DESTROYED, destroyed_by="retired"),
            moved(stored["deactivated"], KeyState.DEACTIVATED),
        ]
        store.set_states(moves, next_mark=next_mark)
        other = f"{application}-other"
        store_key = make_record(other, STORE_SCOPE, purpose=KeyPurpose.STORE)
        mark = ChangeMark(application=other, counter=0, revoked=bytes(64), seal=bytes(32))
        store.add_active([store_key], mark=mark)
        theirs = store.add_active([make_record(other, "a")])["a"]
        store.set_states([moved(theirs, KeyState.COMPROMISED)], next_mark=next_mark)
        expected = {
            Revocation(stored["compromised"].key_id, "compromised"),
            Revocation(stored["shredded"].key_id, "shredded"),
        }
        for since, retired in ((-1, ()), (0, (stored["retired"].key_id,))):
            changes = the_changes(store, application, since)
            assert len(changes.revoked) == len(expected)
            assert set(changes.revoked) == expected
            assert changes.retired == retired

    def test_a_change_lists_only_what_came_after_the_counter(self, store: KeyStore, application: str) -> None:
        stored = store.add_active([make_record(application, scope) for scope in ("a", "b", "c")])
        for end in (
            moved(stored["a"], KeyState.DESTROYED, destroyed_by="shredded"),
            moved(stored["b"], KeyState.DESTROYED, destroyed_by="shredded"),
            moved(stored["c"], KeyState.DESTROYED, destroyed_by="retired"),
        ):
            store.set_states([end], next_mark=next_mark)
        changes = the_changes(store, application, 1)
        assert changes.revoked == (Revocation(stored["b"].key_id, "shredded"),)
        assert changes.retired == (stored["c"].key_id,)
        assert the_changes(store, application, 2).revoked == ()

    def test_a_change_gives_no_key_of_another_application(self, store: KeyStore, application: str) -> None:
        theirs = store.add_active([make_record(f"{application}-other", "a")])["a"]
        assert the_changes(store, application, -1, [theirs.key_id]).records == ()

    def test_making_a_key_leaves_the_counter(self, store: KeyStore, application: str) -> None:
        store.add_active([make_record(application, "a")])
        assert the_changes(store, application, -1).mark.counter == 0
