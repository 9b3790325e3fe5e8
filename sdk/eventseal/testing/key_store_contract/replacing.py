"""Tests of replacing active keys, of leases, and of refreshes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from eventseal.keys.records import Replacement
from eventseal.keys.states import KeyState
from eventseal.keys.store import HARD_LIMIT
from eventseal.testing.key_store_contract.records import (
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


class ReplacingContract(KeyStoreFixtures):
    """The store closes a scope's active key and creates another."""

    def test_replacing_closes_the_old_key_and_gives_its_slot_to_the_new(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """A replacement must close the old key and pass on its slot."""
        old = store.add_active([make_record(application, "a", items_reserved=1024)])["a"]
        closed, new = in_state(old, KeyState.DEACTIVATED), make_record(application, "a", items_reserved=5)
        stored = replace_one(store, Replacement(old, closed, new), next_mark=next_mark)
        assert_same(stored, new)
        assert stored.created_at is not None
        assert other_store.active(application, ["a"]) == {"a": stored}
        kept = other_store.get([old.key_id])[old.key_id]
        assert_same(kept, closed)
        assert kept.deactivated_at is not None
        assert kept.created_at == old.created_at

    def test_replacing_as_compromised_sets_that_time(self, store: KeyStore, application: str) -> None:
        """Replacing a key as compromised must set ``compromised_at``."""
        old = store.add_active([make_record(application, "a")])["a"]
        closed = in_state(old, KeyState.COMPROMISED)
        replace_one(store, Replacement(old, closed, make_record(application, "a")), next_mark=next_mark)
        kept = store.get([old.key_id])[old.key_id]
        assert kept.state is KeyState.COMPROMISED
        assert kept.compromised_at is not None

    def test_replacing_a_key_that_moved_on_gives_the_holder_and_changes_nothing(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """A late replacement must change nothing, and return the slot's holder."""
        old = store.add_active([make_record(application, "a")])["a"]
        closed = in_state(old, KeyState.DEACTIVATED)
        first = replace_one(
            store, Replacement(old, closed, make_record(application, "a")), next_mark=next_mark
        )
        late = make_record(application, "a")
        assert replace_one(other_store, Replacement(old, closed, late), next_mark=refuse_mark) == first
        assert store.get([late.key_id]) == {}
        assert the_changes(store, application, -1).mark.counter == 1

    def test_replacing_where_no_key_holds_the_slot_any_more_gives_none(
        self, store: KeyStore, application: str
    ) -> None:
        """Replacing a key that has lost its slot must change nothing."""
        old = store.add_active([make_record(application, "a")])["a"]
        assert store.set_states([in_state(old, KeyState.DEACTIVATED)], next_mark=next_mark)
        late = _replacement(old)
        assert store.replace_all_active([late], next_mark=next_mark) == {}
        assert store.get([late.new.key_id]) == {}

    def test_a_free_store_is_not_waited_for(self, store: KeyStore, application: str) -> None:
        """With ``wait=False``, an unlocked store must replace the key."""
        old = store.add_active([make_record(application, "a")])["a"]
        new = make_record(application, "a")
        stored = store.replace_all_active(
            [Replacement(old, in_state(old, KeyState.DEACTIVATED), new)], next_mark=next_mark, wait=False
        )["a"]
        assert stored.key_id == new.key_id

    def test_keys_of_many_scopes_are_replaced_together(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """One call must replace keys of many scopes under one mark."""
        olds = store.add_active([make_record(application, f"s{n}") for n in range(3)])
        replacements = [_replacement(old) for old in olds.values()]
        holders = store.replace_all_active(replacements, next_mark=next_mark)
        for old, closed, new in replacements:
            assert_same(holders[old.scope], new)
            kept = other_store.get([old.key_id])[old.key_id]
            assert_same(kept, closed)
            assert kept.deactivated_at is not None
        assert other_store.active(application, list(olds)) == holders
        changes = the_changes(store, application, 0, [old.key_id for old in olds.values()])
        assert changes.mark.counter == 1
        assert {record.key_id for record in changes.records} == {old.key_id for old in olds.values()}

    def test_replacing_together_keeps_what_was_leased_meanwhile(
        self, store: KeyStore, application: str
    ) -> None:
        """A replacement must keep items that were leased in the meantime."""
        olds = store.add_active([make_record(application, "a"), make_record(application, "b")])
        store.reserve({olds["a"].key_id: 100})
        store.replace_all_active([_replacement(old) for old in olds.values()], next_mark=next_mark)
        found = store.get([old.key_id for old in olds.values()])
        assert [found[olds[scope].key_id].items_reserved for scope in ("a", "b")] == [100, 0]

    def test_many_keys_are_replaced_all_or_none(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """If one key moved, the store must replace none."""
        olds = store.add_active([make_record(application, scope) for scope in ("a", "b", "c")])
        replacements = [_replacement(old) for old in olds.values()]
        first = replace_one(store, _replacement(olds["b"]), next_mark=next_mark)
        assert store.set_states([in_state(olds["c"], KeyState.DEACTIVATED)], next_mark=next_mark)
        holders = other_store.replace_all_active(replacements, next_mark=refuse_mark)
        assert holders == {"a": olds["a"], "b": first}
        assert store.active(application, ["a", "b", "c"]) == holders
        assert store.get([each.new.key_id for each in replacements]) == {}
        assert the_changes(store, application, -1).mark.counter == 2

    def test_a_refused_mark_undoes_all_replacements(self, store: KeyStore, application: str) -> None:
        """If ``next_mark`` refuses, the store must replace no key."""
        olds = store.add_active([make_record(application, "a"), make_record(application, "b")])
        replacements = [_replacement(old) for old in olds.values()]
        with pytest.raises(RefusedMarkError):
            store.replace_all_active(replacements, next_mark=refuse_mark)
        assert store.active(application, ["a", "b"]) == olds
        assert store.get([each.new.key_id for each in replacements]) == {}

    def test_a_race_to_replace_many_has_one_winner(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """Threads that race to replace keys must get one result."""
        olds = store.add_active([make_record(application, f"s{n}") for n in range(5)])

        def replace_them(number: int) -> dict[str, KeyRecord]:
            handle = store if number % 2 else other_store
            ordered = sorted(olds.values(), key=lambda old: old.scope, reverse=number % 3 == 0)
            return handle.replace_all_active([_replacement(old) for old in ordered], next_mark=next_mark)

        won = in_threads(replace_them)
        assert all(holders == won[0] for holders in won)
        assert store.active(application, list(olds)) == won[0]
        assert the_changes(store, application, -1).mark.counter == 1
        assert len(store.page(application)) == 11  # the store key, the old ones, one winner's

    def test_replacing_no_key_does_nothing(self, store: KeyStore) -> None:
        """A call without replacements must not call ``next_mark``."""
        assert store.replace_all_active([], next_mark=refuse_mark) == {}


def _replacement(old: KeyRecord) -> Replacement:
    new = make_record(old.application, old.scope)
    return Replacement(old, in_state(old, KeyState.DEACTIVATED), new)


class LeasesContract(KeyStoreFixtures):
    """The store leases items under active keys."""

    def test_leases_add_up(self, store: KeyStore, other_store: KeyStore, application: str) -> None:
        """Leases through all handles must add up."""
        stored = store.add_active(
            [make_record(application, scope, items_reserved=10) for scope in ("a", "b")]
        )
        first, second = stored["a"].key_id, stored["b"].key_id
        assert store.reserve({first: 5, second: 7}) == {first: 15, second: 17}
        assert other_store.reserve({first: 1}) == {first: 16}
        assert store.get([first])[first].items_reserved == 16

    def test_a_lease_leaves_version_and_counter(self, store: KeyStore, application: str) -> None:
        """A lease must not change the row version or the counter."""
        record = store.add_active([make_record(application, "a")])["a"]
        store.reserve({record.key_id: 5})
        assert store.get([record.key_id])[record.key_id] == replace(record, items_reserved=5)
        assert the_changes(store, application, -1).mark.counter == 0

    def test_a_lease_past_the_limit_is_refused_and_takes_nothing(
        self, store: KeyStore, application: str
    ) -> None:
        """A lease past the limit must take nothing."""
        stored = store.add_active(
            [make_record(application, scope, items_reserved=90) for scope in ("a", "b")]
        )
        first, second = stored["a"].key_id, stored["b"].key_id
        assert store.reserve({first: 11, second: 10}, limit=100) == {second: 100}
        assert store.reserve({first: 10}, limit=100) == {first: 100}
        assert store.reserve({first: 1, second: 1}, limit=100) == {}

    def test_the_hard_limit_is_the_last_item(self, store: KeyStore, application: str) -> None:
        """The hard limit must be reachable, but not exceeded."""
        record = store.add_active([make_record(application, "a", items_reserved=HARD_LIMIT - 5)])["a"]
        assert store.reserve({record.key_id: 6}) == {}
        assert store.reserve({record.key_id: 5}) == {record.key_id: HARD_LIMIT}

    def test_only_active_keys_are_leased(self, store: KeyStore, application: str) -> None:
        """The store must not lease items of keys that are not active."""
        record = store.add_active([make_record(application, "a")])["a"]
        store.set_states([in_state(record, KeyState.DEACTIVATED)], next_mark=next_mark)
        assert store.reserve({record.key_id: 1, uuid4(): 1}) == {}

    def test_racing_leases_never_pass_the_limit(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """Leases that race must never pass the limit."""
        key_id = store.add_active([make_record(application, "a")])["a"].key_id

        def lease(number: int) -> list[int]:
            handle = store if number % 2 else other_store
            return [total for _ in range(10) for total in handle.reserve({key_id: 3}, limit=100).values()]

        totals = sorted(total for granted in in_threads(lease) for total in granted)
        assert totals == list(range(3, 100, 3))
        assert store.get([key_id])[key_id].items_reserved == 99


class ChangesContract(KeyStoreFixtures):
    """The store returns the changes that a refresh reads."""

    def test_an_application_without_a_store_key_has_no_mark(self, store: KeyStore) -> None:
        """Without a store key, ``changes()`` must return ``None``."""
        assert store.changes(f"contract-{uuid4().hex}", -1, []) is None

    def test_without_a_change_only_the_mark_is_read(self, store: KeyStore, application: str) -> None:
        """Without a change, ``changes()`` must return only the mark."""
        record = store.add_active([make_record(application, "a")])["a"]
        changes = the_changes(store, application, 0, [record.key_id])
        assert changes.mark.counter == 0
        assert (changes.records, changes.root) == ((), b"")
        assert changes.refresh_interval > 0
        assert abs(changes.now - store.now()) < timedelta(minutes=1)

    def test_a_mark_is_kept_as_it_was_given(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """The store must keep a mark unchanged."""
        record = store.add_active([make_record(application, "a")])["a"]
        keep = GivenMark()
        store.set_states([in_state(record, KeyState.DEACTIVATED)], next_mark=keep)
        assert the_changes(other_store, application, 0).mark == keep.given

    def test_a_change_gives_the_asked_for_keys_that_moved_without_wrappings(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """The store must return requested keys that changed, without wrappings."""
        stored = store.add_active([make_record(application, scope) for scope in ("a", "b", "c")])
        ids = {scope: record.key_id for scope, record in stored.items()}
        store.set_states([in_state(stored["a"], KeyState.DEACTIVATED)], next_mark=next_mark)
        store.set_states([in_state(stored["b"], KeyState.COMPROMISED)], next_mark=next_mark)
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
        """After a change, ``changes()`` must return the root."""
        record = store.add_active([make_record(application, "a")])["a"]
        rooted = GivenMark({b"": b"the root\0", b"\xff": b"a node"})
        store.set_states([in_state(record, KeyState.DEACTIVATED)], next_mark=rooted)
        assert the_changes(other_store, application, 0).root == b"the root\0"
        assert the_changes(other_store, application, 1).root == b""  # nothing has changed since

    def test_a_change_gives_no_key_of_another_application(self, store: KeyStore, application: str) -> None:
        """The store must not return another application's keys."""
        theirs = store.add_active([make_record(f"{application}-other", "a")])["a"]
        assert the_changes(store, application, -1, [theirs.key_id]).records == ()

    def test_making_a_key_leaves_the_counter(self, store: KeyStore, application: str) -> None:
        """A new key must not raise the counter."""
        store.add_active([make_record(application, "a")])
        assert the_changes(store, application, -1).mark.counter == 0
