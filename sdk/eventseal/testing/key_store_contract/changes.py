"""What a refresh reads."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

from eventseal.keys.states import KeyState
from eventseal.testing.key_store_contract.fixtures import KeyStoreFixtures
from eventseal.testing.key_store_contract.records import (
    GivenMark,
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
        assert (changes.records, changes.root) == ((), b"")
        assert changes.refresh_interval > 0
        assert abs(changes.now - store.now()) < timedelta(minutes=1)

    def test_a_mark_is_kept_as_it_was_given(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        record = store.add_active([make_record(application, "a")])["a"]
        keep = GivenMark()
        store.set_states([moved(record, KeyState.DEACTIVATED)], next_mark=keep)
        assert the_changes(other_store, application, 0).mark == keep.given

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

    def test_a_change_gives_the_root_of_the_revocation_tree(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        record = store.add_active([make_record(application, "a")])["a"]
        rooted = GivenMark({b"": b"the root\0", b"\xff": b"a node"})
        store.set_states([moved(record, KeyState.DEACTIVATED)], next_mark=rooted)
        assert the_changes(other_store, application, 0).root == b"the root\0"
        assert the_changes(other_store, application, 1).root == b""  # nothing has changed since

    def test_a_change_gives_no_key_of_another_application(self, store: KeyStore, application: str) -> None:
        theirs = store.add_active([make_record(f"{application}-other", "a")])["a"]
        assert the_changes(store, application, -1, [theirs.key_id]).records == ()

    def test_making_a_key_leaves_the_counter(self, store: KeyStore, application: str) -> None:
        store.add_active([make_record(application, "a")])
        assert the_changes(store, application, -1).mark.counter == 0
