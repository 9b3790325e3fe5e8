"""Moving keys to other states."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from eventseal.keys.records import KeyRecord
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.testing.key_store_contract.fixtures import KeyStoreFixtures
from eventseal.testing.key_store_contract.records import (
    THREADS,
    GivenMark,
    RefusedMarkError,
    assert_same,
    in_threads,
    make_record,
    moved,
    next_mark,
    refuse_mark,
    the_changes,
)

if TYPE_CHECKING:
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.store import KeyStore


class StatesContract(KeyStoreFixtures):
    """Moving keys to other states."""

    def test_destroying_deletes_the_wrappings_and_keeps_the_row(
        self, store: KeyStore, application: str
    ) -> None:
        record = store.add_active([make_record(application, "a")])["a"]
        tombstone = moved(record, KeyState.DESTROYED, destroyed_by="retired")
        (stored,) = store.set_states([tombstone], next_mark=next_mark)
        assert_same(stored, replace(tombstone, wrappings=()))
        assert stored.destroyed_at is not None
        assert store.get([record.key_id]) == {record.key_id: stored}
        assert store.active(application, ["a"]) == {}

    def test_a_tombstone_that_keeps_its_slot_closes_the_scope(
        self, store: KeyStore, application: str
    ) -> None:
        record = store.add_active([make_record(application, "a")])["a"]
        tombstone = moved(record, KeyState.DESTROYED, destroyed_by="shredded", keep_slot=True)
        (stored,) = store.set_states([tombstone], next_mark=next_mark)
        assert store.active(application, ["a"]) == {"a": stored}
        late = make_record(application, "a")
        assert store.add_active([late]) == {"a": stored}
        rotation = make_record(application, "a")
        closed = moved(record, KeyState.DEACTIVATED)
        assert store.replace_active(record, closed, rotation, next_mark=refuse_mark) == stored
        assert store.get([late.key_id, rotation.key_id]) == {}

    def test_a_tombstone_takes_no_slot_that_another_key_holds(
        self, store: KeyStore, application: str
    ) -> None:
        first = store.add_active([make_record(application, "a")])["a"]
        closed = moved(first, KeyState.DEACTIVATED)
        second = store.replace_active(first, closed, make_record(application, "a"), next_mark=next_mark)
        tombstone = replace(
            moved(closed, KeyState.DESTROYED, destroyed_by="shredded"), active_scope=first.scope
        )
        assert store.set_states([tombstone], next_mark=next_mark) == []
        assert store.active(application, ["a"]) == {"a": second}
        assert store.get([first.key_id])[first.key_id].state is KeyState.DEACTIVATED

    def test_states_move_all_or_none(self, store: KeyStore, application: str) -> None:
        records = [store.add_active([make_record(application, scope)])[scope] for scope in ("a", "b")]
        stale = replace(moved(records[1], KeyState.DEACTIVATED), row_version=3)
        unknown = moved(make_record(application, "c"), KeyState.DEACTIVATED)
        for other in (stale, unknown):
            assert (
                store.set_states([moved(records[0], KeyState.DEACTIVATED), other], next_mark=next_mark) == []
            )
        assert store.active(application, ["a", "b"]) == {"a": records[0], "b": records[1]}
        assert the_changes(store, application, -1).mark.counter == 0
        moves = [moved(record, KeyState.DEACTIVATED) for record in records]
        assert [record.key_id for record in store.set_states(moves, next_mark=next_mark)] == [
            record.key_id for record in records
        ]
        assert the_changes(store, application, -1).mark.counter == 1

    def test_a_whole_scope_moves_only_if_no_live_key_is_left_out(
        self, store: KeyStore, application: str
    ) -> None:
        old = store.add_active([make_record(application, "a")])["a"]
        new = store.replace_active(
            old, moved(old, KeyState.DEACTIVATED), make_record(application, "a"), next_mark=next_mark
        )
        field = store.add_active([make_record(application, "a", purpose=KeyPurpose.FIELD)])["a"]
        store.add_active([make_record(application, "b"), make_record(application, "A")])
        old = store.get([old.key_id])[old.key_id]
        live = [moved(record, KeyState.DESTROYED, destroyed_by="shredded") for record in (old, new, field)]
        for left_out in range(len(live)):
            some = live[:left_out] + live[left_out + 1 :]
            assert store.set_states(some, next_mark=next_mark, whole_scope="a") == []
        assert len(store.set_states(live, next_mark=next_mark, whole_scope="a")) == len(live)
        late = store.add_active([make_record(application, "a")])["a"]  # tombstones are no live keys
        shredded = moved(late, KeyState.DESTROYED, destroyed_by="shredded")
        assert len(store.set_states([shredded], next_mark=next_mark, whole_scope="a")) == 1

    def test_a_live_key_may_be_left_out_by_name(self, store: KeyStore, application: str) -> None:
        stored = store.add_active([make_record(application, "a")])["a"]
        field = store.add_active([make_record(application, "a", purpose=KeyPurpose.FIELD)])["a"]
        ended = moved(stored, KeyState.DESTROYED, destroyed_by="shredded", keep_slot=True)
        assert store.set_states([ended], next_mark=next_mark, whole_scope="a") == []
        assert store.set_states([ended], next_mark=next_mark, whole_scope="a", left_out=[field.key_id])
        assert store.active(application, ["a"], purpose=KeyPurpose.FIELD) == {}  # it has lost its slot
        assert store.get([field.key_id])[field.key_id].active_scope is None

    def test_a_refused_mark_undoes_a_change_of_states(self, store: KeyStore, application: str) -> None:
        record = store.add_active([make_record(application, "a")])["a"]
        with pytest.raises(RefusedMarkError):
            store.set_states(
                [moved(record, KeyState.DESTROYED, destroyed_by="retired")], next_mark=refuse_mark
            )
        assert store.get([record.key_id]) == {record.key_id: record}

    def test_racing_changes_each_get_a_mark_of_their_own(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        records = store.add_active([make_record(application, str(number)) for number in range(THREADS)])
        marks = [GivenMark() for _ in range(THREADS)]

        def close(number: int) -> list[KeyRecord]:
            handle = store if number % 2 else other_store
            return handle.set_states(
                [moved(records[str(number)], KeyState.DEACTIVATED)], next_mark=marks[number]
            )

        assert all(len(closed) == 1 for closed in in_threads(close))
        assert the_changes(store, application, -1).mark.counter == THREADS
        assert {each.given.counter for each in marks if each.given} == set(range(1, THREADS + 1))
