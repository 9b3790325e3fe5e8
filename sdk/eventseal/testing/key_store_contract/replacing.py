"""Closing a scope's active key and making another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from eventseal.errors import KeyNotFoundError
from eventseal.keys.records import Replacement
from eventseal.keys.states import KeyState
from eventseal.testing.key_store_contract.fixtures import KeyStoreFixtures
from eventseal.testing.key_store_contract.records import (
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


class ReplacingContract(KeyStoreFixtures):
    """Closing a scope's active key and making another."""

    def test_replacing_closes_the_old_key_and_gives_its_slot_to_the_new(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        old = store.add_active([make_record(application, "a", items_reserved=1024)])["a"]
        closed, new = moved(old, KeyState.DEACTIVATED), make_record(application, "a", items_reserved=5)
        stored = store.replace_active(old, closed, new, next_mark=next_mark)
        assert_same(stored, new)
        assert stored.created_at is not None
        assert other_store.active(application, ["a"]) == {"a": stored}
        kept = other_store.get([old.key_id])[old.key_id]
        assert_same(kept, closed)
        assert kept.deactivated_at is not None
        assert kept.created_at == old.created_at

    def test_replacing_as_compromised_sets_that_time(self, store: KeyStore, application: str) -> None:
        old = store.add_active([make_record(application, "a")])["a"]
        closed = moved(old, KeyState.COMPROMISED)
        store.replace_active(old, closed, make_record(application, "a"), next_mark=next_mark)
        kept = store.get([old.key_id])[old.key_id]
        assert kept.state is KeyState.COMPROMISED
        assert kept.compromised_at is not None

    def test_replacing_keeps_what_was_leased_meanwhile(self, store: KeyStore, application: str) -> None:
        old = store.add_active([make_record(application, "a", items_reserved=1024)])["a"]
        assert store.reserve({old.key_id: 100}) == {old.key_id: 1124}
        closed = moved(old, KeyState.DEACTIVATED)
        store.replace_active(old, closed, make_record(application, "a"), next_mark=next_mark)
        assert store.get([old.key_id])[old.key_id].items_reserved == 1124

    def test_replacing_a_key_that_moved_on_gives_the_holder_and_changes_nothing(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        old = store.add_active([make_record(application, "a")])["a"]
        closed = moved(old, KeyState.DEACTIVATED)
        first = store.replace_active(old, closed, make_record(application, "a"), next_mark=next_mark)
        late = make_record(application, "a")
        assert other_store.replace_active(old, closed, late, next_mark=refuse_mark) == first
        assert store.get([late.key_id]) == {}
        assert the_changes(store, application, -1).mark.counter == 1

    def test_a_race_to_replace_has_one_winner(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        old = store.add_active([make_record(application, "a")])["a"]

        def replace_it(number: int) -> KeyRecord:
            handle = store if number % 2 else other_store
            closed = moved(old, KeyState.DEACTIVATED)
            return handle.replace_active(old, closed, make_record(application, "a"), next_mark=next_mark)

        winners = in_threads(replace_it)
        assert len({record.key_id for record in winners}) == 1
        assert store.active(application, ["a"]) == {"a": winners[0]}
        assert the_changes(store, application, -1).mark.counter == 1
        assert len(store.page(application)) == 3  # the store key, the old one, the winner

    def test_replacing_where_no_key_holds_the_slot_any_more_raises(
        self, store: KeyStore, application: str
    ) -> None:
        old = store.add_active([make_record(application, "a")])["a"]
        assert store.set_states([moved(old, KeyState.DEACTIVATED)], next_mark=next_mark)
        late = make_record(application, "a")
        with pytest.raises(KeyNotFoundError):
            store.replace_active(old, moved(old, KeyState.DEACTIVATED), late, next_mark=next_mark)
        assert store.get([late.key_id]) == {}

    def test_a_refused_mark_undoes_the_replacement(self, store: KeyStore, application: str) -> None:
        old = store.add_active([make_record(application, "a")])["a"]
        new = make_record(application, "a")
        with pytest.raises(RefusedMarkError):
            store.replace_active(old, moved(old, KeyState.DEACTIVATED), new, next_mark=refuse_mark)
        assert store.active(application, ["a"]) == {"a": old}
        assert store.get([new.key_id]) == {}

    def test_a_free_store_is_not_waited_for(self, store: KeyStore, application: str) -> None:
        old = store.add_active([make_record(application, "a")])["a"]
        new = make_record(application, "a")
        stored = store.replace_active(
            old, moved(old, KeyState.DEACTIVATED), new, next_mark=next_mark, wait=False
        )
        assert stored.key_id == new.key_id

    def test_keys_of_many_scopes_are_replaced_together(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
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
        olds = store.add_active([make_record(application, "a"), make_record(application, "b")])
        store.reserve({olds["a"].key_id: 100})
        store.replace_all_active([_replacement(old) for old in olds.values()], next_mark=next_mark)
        found = store.get([old.key_id for old in olds.values()])
        assert [found[olds[scope].key_id].items_reserved for scope in ("a", "b")] == [100, 0]

    def test_many_keys_are_replaced_all_or_none(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        olds = store.add_active([make_record(application, scope) for scope in ("a", "b", "c")])
        replacements = [_replacement(old) for old in olds.values()]
        first = store.replace_active(*_replacement(olds["b"]), next_mark=next_mark)
        assert store.set_states([moved(olds["c"], KeyState.DEACTIVATED)], next_mark=next_mark)
        holders = other_store.replace_all_active(replacements, next_mark=refuse_mark)
        assert holders == {"a": olds["a"], "b": first}
        assert store.active(application, ["a", "b", "c"]) == holders
        assert store.get([each.new.key_id for each in replacements]) == {}
        assert the_changes(store, application, -1).mark.counter == 2

    def test_a_refused_mark_undoes_all_replacements(self, store: KeyStore, application: str) -> None:
        olds = store.add_active([make_record(application, "a"), make_record(application, "b")])
        replacements = [_replacement(old) for old in olds.values()]
        with pytest.raises(RefusedMarkError):
            store.replace_all_active(replacements, next_mark=refuse_mark)
        assert store.active(application, ["a", "b"]) == olds
        assert store.get([each.new.key_id for each in replacements]) == {}

    def test_a_race_to_replace_many_has_one_winner(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
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
        assert store.replace_all_active([], next_mark=refuse_mark) == {}


def _replacement(old: KeyRecord) -> Replacement:
    new = make_record(old.application, old.scope)
    return Replacement(old, moved(old, KeyState.DEACTIVATED), new)
