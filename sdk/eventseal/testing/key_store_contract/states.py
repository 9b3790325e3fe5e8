"""Tests of key states, of ending scopes and branches, and of revocations."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from eventseal.errors import KeyDestroyedError
from eventseal.keys.records import Replacement
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import branch_uri
from eventseal.kms.adapter import WrappedKey
from eventseal.testing.key_store_contract.records import (
    THREADS,
    GivenAdmission,
    GivenMark,
    KeyStoreFixtures,
    RefusedMarkError,
    assert_same,
    in_state,
    in_threads,
    make_record,
    next_mark,
    refuse_mark,
    replace_one,
    the_changes,
)

if TYPE_CHECKING:
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.store import KeyStore


class StatesContract(KeyStoreFixtures):
    """The store moves keys to other states."""

    def test_destroying_deletes_the_wrappings_and_keeps_the_row(
        self, store: KeyStore, application: str
    ) -> None:
        """A destroyed key must lose its wrappings, but not its row."""
        record = store.add_active([make_record(application, "a")])["a"]
        tombstone = in_state(record, KeyState.DESTROYED, destroyed_by="retired")
        (stored,) = store.set_states([tombstone], next_mark=next_mark)
        assert_same(stored, replace(tombstone, wrappings=()))
        assert stored.destroyed_at is not None
        assert store.get([record.key_id]) == {record.key_id: stored}
        assert store.active(application, ["a"]) == {}

    def test_a_tombstone_that_keeps_its_slot_closes_the_scope(
        self, store: KeyStore, application: str
    ) -> None:
        """No key may be created while a tombstone holds the slot."""
        record = store.add_active([make_record(application, "a")])["a"]
        tombstone = in_state(record, KeyState.DESTROYED, destroyed_by="shredded", keep_slot=True)
        (stored,) = store.set_states([tombstone], next_mark=next_mark)
        assert store.active(application, ["a"]) == {"a": stored}
        late = make_record(application, "a")
        assert store.add_active([late]) == {"a": stored}
        rotation = make_record(application, "a")
        closed = in_state(record, KeyState.DEACTIVATED)
        assert replace_one(store, Replacement(record, closed, rotation), next_mark=refuse_mark) == stored
        assert store.get([late.key_id, rotation.key_id]) == {}

    def test_a_tombstone_takes_no_slot_that_another_key_holds(
        self, store: KeyStore, application: str
    ) -> None:
        """A tombstone must not take the slot of another key."""
        first = store.add_active([make_record(application, "a")])["a"]
        closed = in_state(first, KeyState.DEACTIVATED)
        second = replace_one(
            store, Replacement(first, closed, make_record(application, "a")), next_mark=next_mark
        )
        tombstone = replace(
            in_state(closed, KeyState.DESTROYED, destroyed_by="shredded"), active_scope=first.scope
        )
        assert store.set_states([tombstone], next_mark=next_mark) == []
        assert store.active(application, ["a"]) == {"a": second}
        assert store.get([first.key_id])[first.key_id].state is KeyState.DEACTIVATED

    def test_states_move_all_or_none(self, store: KeyStore, application: str) -> None:
        """If one record is stale or unknown, no state may change."""
        records = [store.add_active([make_record(application, scope)])[scope] for scope in ("a", "b")]
        stale = replace(in_state(records[1], KeyState.DEACTIVATED), row_version=3)
        unknown = in_state(make_record(application, "c"), KeyState.DEACTIVATED)
        for other in (stale, unknown):
            assert (
                store.set_states([in_state(records[0], KeyState.DEACTIVATED), other], next_mark=next_mark)
                == []
            )
        assert store.active(application, ["a", "b"]) == {"a": records[0], "b": records[1]}
        assert the_changes(store, application, -1).mark.counter == 0
        moves = [in_state(record, KeyState.DEACTIVATED) for record in records]
        assert [record.key_id for record in store.set_states(moves, next_mark=next_mark)] == [
            record.key_id for record in records
        ]
        assert the_changes(store, application, -1).mark.counter == 1

    def test_a_whole_scope_moves_only_if_no_live_key_is_left_out(
        self, store: KeyStore, application: str
    ) -> None:
        """With ``whole_scope``, the store must refuse to leave out a key."""
        old = store.add_active([make_record(application, "a")])["a"]
        new = replace_one(
            store,
            Replacement(old, in_state(old, KeyState.DEACTIVATED), make_record(application, "a")),
            next_mark=next_mark,
        )
        field = store.add_active([make_record(application, "a", purpose=KeyPurpose.FIELD)])["a"]
        store.add_active([make_record(application, "b"), make_record(application, "A")])
        old = store.get([old.key_id])[old.key_id]
        live = [in_state(record, KeyState.DESTROYED, destroyed_by="shredded") for record in (old, new, field)]
        for left_out in range(len(live)):
            some = live[:left_out] + live[left_out + 1 :]
            assert store.set_states(some, next_mark=next_mark, whole_scope="a") == []
        assert len(store.set_states(live, next_mark=next_mark, whole_scope="a")) == len(live)
        # Tombstones are destroyed, so they do not count.
        late = store.add_active([make_record(application, "a")])["a"]
        shredded = in_state(late, KeyState.DESTROYED, destroyed_by="shredded")
        assert len(store.set_states([shredded], next_mark=next_mark, whole_scope="a")) == 1

    def test_a_live_key_may_be_left_out_by_name(self, store: KeyStore, application: str) -> None:
        """A key in ``left_out`` must lose its slot, but stay."""
        stored = store.add_active([make_record(application, "a")])["a"]
        field = store.add_active([make_record(application, "a", purpose=KeyPurpose.FIELD)])["a"]
        ended = in_state(stored, KeyState.DESTROYED, destroyed_by="shredded", keep_slot=True)
        assert store.set_states([ended], next_mark=next_mark, whole_scope="a") == []
        assert store.set_states([ended], next_mark=next_mark, whole_scope="a", left_out=[field.key_id])
        assert store.active(application, ["a"], purpose=KeyPurpose.FIELD) == {}  # it lost its slot
        assert store.get([field.key_id])[field.key_id].active_scope is None

    def test_a_refused_mark_undoes_a_change_of_states(self, store: KeyStore, application: str) -> None:
        """If ``next_mark`` refuses, no state may change."""
        record = store.add_active([make_record(application, "a")])["a"]
        with pytest.raises(RefusedMarkError):
            store.set_states(
                [in_state(record, KeyState.DESTROYED, destroyed_by="retired")], next_mark=refuse_mark
            )
        assert store.get([record.key_id]) == {record.key_id: record}

    def test_racing_changes_each_get_a_mark_of_their_own(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """Changes that race must each get their own counter."""
        records = store.add_active([make_record(application, str(number)) for number in range(THREADS)])
        marks = [GivenMark() for _ in range(THREADS)]

        def close(number: int) -> list[KeyRecord]:
            handle = store if number % 2 else other_store
            return handle.set_states(
                [in_state(records[str(number)], KeyState.DEACTIVATED)], next_mark=marks[number]
            )

        assert all(len(closed) == 1 for closed in in_threads(close))
        assert the_changes(store, application, -1).mark.counter == THREADS
        assert {each.given.counter for each in marks if each.given} == set(range(1, THREADS + 1))


def make_tombstone(application: str, scope: str, purpose: KeyPurpose) -> KeyRecord:
    """Return the record of a shredded key that never existed."""
    record = make_record(application, scope, purpose=purpose)
    return replace(record, state=KeyState.DESTROYED, destroyed_by="shredded", wrappings=())


def wrapped_under(branch: KeyRecord, record: KeyRecord) -> KeyRecord:
    """Return *record*, wrapped under a branch key."""
    wrapped = WrappedKey(kek_uri=branch_uri(branch.key_id), kek_version=None, ciphertext=b"wrapped")
    return replace(record, wrappings=(wrapped,))


def add_branch(store: KeyStore, application: str) -> KeyRecord:
    """Add a branch key."""
    return store.add_active([make_record(application, "branch:0", purpose=KeyPurpose.BRANCH)])["branch:0"]


class EndingContract(KeyStoreFixtures):
    """The store ends whole scopes and branch keys."""

    def test_a_scope_gives_all_its_keys_and_tombstones(self, store: KeyStore, application: str) -> None:
        """The store must list all keys of a scope, without wrappings."""
        first = store.add_active([make_record(application, "a")])["a"]
        second = replace_one(
            store,
            Replacement(first, in_state(first, KeyState.DEACTIVATED), make_record(application, "a")),
            next_mark=next_mark,
        )
        field = store.add_active([make_record(application, "a", purpose=KeyPurpose.FIELD)])["a"]
        tombstone = in_state(field, KeyState.DESTROYED, destroyed_by="shredded")
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
        """The store must add tombstones in the same transaction."""
        data = store.add_active([make_record(application, "a")])["a"]
        ended = in_state(data, KeyState.DESTROYED, destroyed_by="shredded", keep_slot=True)
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
        """The store must add tombstones without a change of states."""
        tombstone = make_tombstone(application, "a", KeyPurpose.DATA)
        (stored,) = store.set_states([], next_mark=next_mark, tombstones=[tombstone])
        assert store.active(application, ["a"]) == {"a": stored}
        assert store.set_states([], next_mark=refuse_mark) == []

    def test_a_tombstone_for_a_slot_that_is_taken_undoes_it_all(
        self, store: KeyStore, application: str
    ) -> None:
        """A tombstone for a taken slot must undo the whole change."""
        data = store.add_active([make_record(application, "a")])["a"]
        field = store.add_active([make_record(application, "a", purpose=KeyPurpose.FIELD)])["a"]
        tombstone = make_tombstone(application, "a", KeyPurpose.FIELD)
        ended = in_state(data, KeyState.DESTROYED, destroyed_by="shredded", keep_slot=True)
        assert store.set_states([ended], next_mark=next_mark, tombstones=[tombstone]) == []
        assert store.active(application, ["a"], purpose=KeyPurpose.FIELD) == {"a": field}
        assert store.get([data.key_id, tombstone.key_id]) == {data.key_id: data}
        assert the_changes(store, application, -1).mark.counter == 0

    def test_keys_that_seal_nothing_of_a_scope_are_none_of_it(
        self, store: KeyStore, application: str
    ) -> None:
        """Branch keys must not count as keys of a scope."""
        branch = add_branch(store, application)
        data = store.add_active([make_record(application, branch.scope)])[branch.scope]
        ended = in_state(data, KeyState.DESTROYED, destroyed_by="shredded")
        assert len(store.set_states([ended], next_mark=next_mark, whole_scope=branch.scope)) == 1

    def test_a_branch_key_that_is_needed_is_not_destroyed(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """The store must not destroy a branch key with wrappings."""
        branch = add_branch(store, application)
        data = other_store.add_active([wrapped_under(branch, make_record(application, "a"))])["a"]
        tombstone = in_state(branch, KeyState.DESTROYED, destroyed_by="retired")
        assert store.set_states([tombstone], next_mark=next_mark) == []
        assert store.get([branch.key_id]) == {branch.key_id: branch}
        deactivated = in_state(branch, KeyState.DEACTIVATED)  # deactivation does not destroy it
        assert len(store.set_states([deactivated], next_mark=next_mark)) == 1
        store.set_states([in_state(data, KeyState.DESTROYED, destroyed_by="retired")], next_mark=next_mark)
        tombstone = in_state(deactivated, KeyState.DESTROYED, destroyed_by="retired")
        assert len(store.set_states([tombstone], next_mark=next_mark)) == 1

    def test_nothing_is_stored_that_a_destroyed_branch_key_has_wrapped(
        self, store: KeyStore, application: str
    ) -> None:
        """The store must refuse wrappings under a destroyed branch key."""
        branch = add_branch(store, application)
        old = store.add_active([make_record(application, "a")])["a"]
        store.set_states([in_state(branch, KeyState.DESTROYED, destroyed_by="retired")], next_mark=next_mark)
        first, second = [wrapped_under(branch, make_record(application, scope)) for scope in ("b", "a")]
        closed = in_state(old, KeyState.DEACTIVATED)
        for store_it in (
            lambda: store.add_active([first]),
            lambda: replace_one(store, Replacement(old, closed, second), next_mark=next_mark),
            lambda: store.put_wrappings({old.key_id: first.wrappings[0]}),
        ):
            with pytest.raises(KeyDestroyedError) as caught:
                store_it()
            assert caught.value.key_id == branch.key_id
        assert store.get([old.key_id, first.key_id, second.key_id]) == {old.key_id: old}


_NODES = {b"": b"root", b"\x00": b"\x00node", b"\x00\xff": b"a leaf"}


class RevocationsContract(KeyStoreFixtures):
    """The store keeps the nodes of the revocation tree with their mark."""

    def test_an_application_without_a_store_key_has_no_nodes(self, store: KeyStore) -> None:
        """Without a store key, ``revocations()`` must return ``None``."""
        assert store.revocations(f"contract-{uuid4().hex}", [b""]) is None

    def test_nodes_are_stored_with_the_mark_and_given_by_path(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """The store must keep nodes with their mark, by path."""
        first = GivenMark(_NODES)
        store.advance(application, next_mark=first)
        assert other_store.revocations(application, [b"", b"\x00\xff", b"\x01"]) == (
            first.given,
            {b"": b"root", b"\x00\xff": b"a leaf"},
        )
        assert the_changes(other_store, application, 0).mark.counter == 1

    def test_a_change_is_given_the_nodes_that_it_asks_for_and_replaces_them(
        self, store: KeyStore, application: str
    ) -> None:
        """The store must pass the nodes in ``paths``, and replace them."""
        store.advance(application, next_mark=GivenMark(_NODES))
        second = GivenMark({b"\x00": b"another"}, paths=[b"", b"\x00", b"\x07"])
        record = store.add_active([make_record(application, "a")])["a"]
        store.set_states([in_state(record, KeyState.DEACTIVATED)], next_mark=second)
        assert second.found == {b"": b"root", b"\x00": b"\x00node"}
        assert store.revocations(application, _NODES) == (second.given, {**_NODES, b"\x00": b"another"})

    def test_a_rotation_stores_nodes_too(self, store: KeyStore, application: str) -> None:
        """A replacement must store the nodes of its mark."""
        old = store.add_active([make_record(application, "a")])["a"]
        rooted = GivenMark({b"": b"root"})
        closed = in_state(old, KeyState.COMPROMISED)
        replace_one(store, Replacement(old, closed, make_record(application, "a")), next_mark=rooted)
        assert store.revocations(application, [b""]) == (rooted.given, {b"": b"root"})

    def test_a_mark_that_is_refused_stores_nothing(self, store: KeyStore, application: str) -> None:
        """If ``next_mark`` refuses, the store must keep the old mark."""
        with pytest.raises(RefusedMarkError):
            store.advance(application, next_mark=refuse_mark)
        assert the_changes(store, application, -1).mark.counter == 0

    def test_nodes_of_another_application_are_its_own(self, store: KeyStore, application: str) -> None:
        """The store must keep the nodes of applications apart."""
        store.advance(application, next_mark=GivenMark(_NODES))
        found = store.revocations(f"{application}-other", list(_NODES))
        assert found is None or found[1] == {}

    def test_erased_items_are_listed_once_and_by_application(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """The store must list erased items by application, each once."""
        first, second, third = (bytes([number]) * 32 for number in range(3))
        store.list_erased(application, [first, second])
        other_store.list_erased(application, [second, second])
        assert other_store.find_erased(application, [first, second, third]) == {first, second}
        assert store.find_erased(f"{application}-other", [first]) == set()
        assert store.find_erased(application, []) == set()

    def test_keys_are_admitted_without_a_question_while_nothing_was_revoked(
        self, store: KeyStore, application: str
    ) -> None:
        """Before any revocation, the store must not call ``admit``."""
        admission = GivenAdmission(the_changes(store, application, -1).mark.revoked, admits=False)
        assert store.add_active([make_record(application, "a")], admit=admission)["a"].scope == "a"
        assert admission.asked is None

    @pytest.mark.parametrize("admits", [True, False])
    def test_else_it_is_asked_with_the_mark_and_the_nodes_as_they_are_now(
        self, store: KeyStore, other_store: KeyStore, application: str, admits: bool
    ) -> None:
        """After a revocation, ``admit`` must decide, with the current nodes."""
        admission = GivenAdmission(
            the_changes(store, application, -1).mark.revoked, admits=admits, paths=[b"", b"\x07"]
        )
        following = GivenMark(_NODES)
        other_store.advance(application, next_mark=following)
        late = make_record(application, "b")
        kept = store.add_active([late], admit=admission)
        assert admission.asked == (following.given, {b"": b"root"})
        assert list(kept) == (["b"] if admits else [])
        assert list(store.get([late.key_id])) == ([late.key_id] if admits else [])
        assert list(store.active(application, ["b"])) == (["b"] if admits else [])
