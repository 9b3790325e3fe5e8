"""The end of a whole scope, and of branch keys."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from eventseal.errors import KeyDestroyedError
from eventseal.keys.branch_wrapping import branch_uri
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.kms.adapter import WrappedKey
from eventseal.testing.key_store_contract.fixtures import KeyStoreFixtures
from eventseal.testing.key_store_contract.records import (
    assert_same,
    make_record,
    moved,
    next_mark,
    refuse_mark,
    the_changes,
)

if TYPE_CHECKING:
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.store import KeyStore


def make_tombstone(application: str, scope: str, purpose: KeyPurpose) -> KeyRecord:
    """Make the record of a shredded key that never was."""
    record = make_record(application, scope, purpose=purpose)
    return replace(record, state=KeyState.DESTROYED, destroyed_by="shredded", wrappings=())


def wrapped_under(branch: KeyRecord, record: KeyRecord) -> KeyRecord:
    """Give *record* wrapped under a branch key."""
    wrapped = WrappedKey(kek_uri=branch_uri(branch.key_id), kek_version=None, ciphertext=b"wrapped")
    return replace(record, wrappings=(wrapped,))


def add_branch(store: KeyStore, application: str) -> KeyRecord:
    """Make a branch key."""
    return store.add_active([make_record(application, "branch:0", purpose=KeyPurpose.BRANCH)])["branch:0"]


class EndingContract(KeyStoreFixtures):
    """The end of a whole scope, and of branch keys."""

    def test_a_scope_gives_all_its_keys_and_tombstones(self, store: KeyStore, application: str) -> None:
        first = store.add_active([make_record(application, "a")])["a"]
        second = store.replace_active(
            first, moved(first, KeyState.DEACTIVATED), make_record(application, "a"), next_mark=next_mark
        )
        field = store.add_active([make_record(application, "a", purpose=KeyPurpose.FIELD)])["a"]
        tombstone = moved(field, KeyState.DESTROYED, destroyed_by="shredded")
        store.set_states([tombstone], next_mark=next_mark)
        store.add_active([make_record(application, "A"), make_record(application, "a ")])
        store.add_active([make_record(f"{application}-other", "a")])
        found = store.of_scope(application, "a")
        assert [record.key_id for record in found] == sorted([first.key_id, second.key_id, field.key_id])
        assert all(record.wrappings == () for record in found)
        assert {record.state for record in found} == {
            KeyState.DEACTIVATED,
            KeyState.ACTIVE,
            KeyState.DESTROYED,
        }
        assert store.of_scope(application, "b") == []

    def test_tombstones_come_with_the_states(self, store: KeyStore, application: str) -> None:
        data = store.add_active([make_record(application, "a")])["a"]
        ended = moved(data, KeyState.DESTROYED, destroyed_by="shredded", keep_slot=True)
        given = [
            make_tombstone(application, "a", purpose) for purpose in (KeyPurpose.FIELD, KeyPurpose.INDEX)
        ]
        stored = store.set_states([ended], next_mark=next_mark, whole_scope="a", tombstones=given)
        assert [record.key_id for record in stored] == [record.key_id for record in (ended, *given)]
        for there, record in zip(stored[1:], given, strict=True):
            assert_same(there, record)
            assert there.created_at is not None
            assert there.destroyed_at is not None
            late = make_record(application, "a", purpose=record.purpose)
            assert store.add_active([late]) == {"a": there}
        assert the_changes(store, application, 0).mark.counter == 1
        assert {
            each.key_id for each in store.of_scope(application, "a") if each.destroyed_by == "shredded"
        } == {record.key_id for record in stored}

    def test_tombstones_alone_close_what_was_reopened(self, store: KeyStore, application: str) -> None:
        tombstone = make_tombstone(application, "a", KeyPurpose.DATA)
        (stored,) = store.set_states([], next_mark=next_mark, tombstones=[tombstone])
        assert store.active(application, ["a"]) == {"a": stored}
        assert store.set_states([], next_mark=refuse_mark) == []

    def test_a_tombstone_for_a_slot_that_is_taken_undoes_it_all(
        self, store: KeyStore, application: str
    ) -> None:
        data = store.add_active([make_record(application, "a")])["a"]
        field = store.add_active([make_record(application, "a", purpose=KeyPurpose.FIELD)])["a"]
        tombstone = make_tombstone(application, "a", KeyPurpose.FIELD)
        ended = moved(data, KeyState.DESTROYED, destroyed_by="shredded", keep_slot=True)
        assert store.set_states([ended], next_mark=next_mark, tombstones=[tombstone]) == []
        assert store.active(application, ["a"], purpose=KeyPurpose.FIELD) == {"a": field}
        assert store.get([data.key_id, tombstone.key_id]) == {data.key_id: data}
        assert the_changes(store, application, -1).mark.counter == 0

    def test_keys_that_seal_nothing_of_a_scope_are_none_of_it(
        self, store: KeyStore, application: str
    ) -> None:
        branch = add_branch(store, application)
        data = store.add_active([make_record(application, branch.scope)])[branch.scope]
        ended = moved(data, KeyState.DESTROYED, destroyed_by="shredded")
        assert len(store.set_states([ended], next_mark=next_mark, whole_scope=branch.scope)) == 1

    def test_a_branch_key_that_is_needed_is_not_destroyed(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        branch = add_branch(store, application)
        data = other_store.add_active([wrapped_under(branch, make_record(application, "a"))])["a"]
        tombstone = moved(branch, KeyState.DESTROYED, destroyed_by="retired")
        assert store.set_states([tombstone], next_mark=next_mark) == []
        assert store.get([branch.key_id]) == {branch.key_id: branch}
        deactivated = moved(branch, KeyState.DEACTIVATED)  # this is no end
        assert len(store.set_states([deactivated], next_mark=next_mark)) == 1
        store.set_states([moved(data, KeyState.DESTROYED, destroyed_by="retired")], next_mark=next_mark)
        tombstone = moved(deactivated, KeyState.DESTROYED, destroyed_by="retired")
        assert len(store.set_states([tombstone], next_mark=next_mark)) == 1

    def test_nothing_is_stored_that_a_destroyed_branch_key_has_wrapped(
        self, store: KeyStore, application: str
    ) -> None:
        branch = add_branch(store, application)
        old = store.add_active([make_record(application, "a")])["a"]
        store.set_states([moved(branch, KeyState.DESTROYED, destroyed_by="retired")], next_mark=next_mark)
        first, second = [wrapped_under(branch, make_record(application, scope)) for scope in ("b", "a")]
        closed = moved(old, KeyState.DEACTIVATED)
        for store_it in (
            lambda: store.add_active([first]),
            lambda: store.replace_active(old, closed, second, next_mark=next_mark),
            lambda: store.put_wrappings({old.key_id: first.wrappings[0]}),
        ):
            with pytest.raises(KeyDestroyedError) as caught:
                store_it()
            assert caught.value.key_id == branch.key_id
        assert store.get([old.key_id, first.key_id, second.key_id]) == {old.key_id: old}
