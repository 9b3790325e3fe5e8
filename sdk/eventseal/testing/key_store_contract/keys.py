"""Tests of creating and reading keys, of pages, and of races."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest

from eventseal.errors import StoreError
from eventseal.keys.records import STORE_SCOPE, ChangeMark, KeyRecord
from eventseal.keys.states import KeyPurpose, KeyState
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
    from eventseal.keys.store import KeyStore


MANY_IDS = 40_000
"""More than the number of variables in one statement of SQLite."""


class MakingContract(KeyStoreFixtures):
    """The store creates keys and reads them back."""

    def test_a_record_comes_back_as_it_was_stored(self, store: KeyStore, application: str) -> None:
        """The store must return a record unchanged."""
        record = make_record(application, "tenant:acme", items_reserved=1024)
        stored = store.add_active([record])["tenant:acme"]
        assert_same(stored, record)
        assert_same(store.get([record.key_id])[record.key_id], record)
        assert_same(store.active(application, ["tenant:acme"])["tenant:acme"], record)

    def test_the_slot_is_that_of_active_scope_whatever_the_scope(
        self, store: KeyStore, application: str
    ) -> None:
        """The slot of a key must be its ``active_scope``, not its scope."""
        first = replace(make_record(application, "a:digest"), active_scope="a")
        assert store.add_active([first])["a"].key_id == first.key_id
        (stored,) = store.active(application, ["a", "a:digest"]).values()
        assert (stored.key_id, stored.scope, stored.active_scope) == (first.key_id, "a:digest", "a")
        assert store.add_active([make_record(application, "a")])["a"].key_id == first.key_id

    def test_a_new_record_has_the_time_of_the_store_and_no_other(
        self, store: KeyStore, application: str
    ) -> None:
        """The store must set ``created_at`` in UTC, and no other time."""
        before = store.now()
        stored = store.add_active([make_record(application, "a")])["a"]
        assert stored.created_at is not None
        assert stored.created_at.utcoffset() == timedelta(0)
        assert before - timedelta(seconds=1) <= stored.created_at <= store.now() + timedelta(seconds=1)
        assert (stored.deactivated_at, stored.compromised_at, stored.destroyed_at) == (None, None, None)
        assert store.get([stored.key_id])[stored.key_id].created_at == stored.created_at

    def test_another_handle_sees_a_record_at_once(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """A second handle must see a new record immediately."""
        record = store.add_active([make_record(application, "a")])["a"]
        assert other_store.get([record.key_id])[record.key_id] == record

    def test_what_is_absent_is_left_out(self, store: KeyStore, application: str) -> None:
        """The store must leave out ids and scopes without a record."""
        record = store.add_active([make_record(application, "a")])["a"]
        assert set(store.get([record.key_id, uuid4()])) == {record.key_id}
        assert set(store.active(application, ["a", "b"])) == {"a"}

    def test_asking_for_nothing_gives_nothing(self, store: KeyStore, application: str) -> None:
        """A call without arguments must return an empty result."""
        assert store.get([]) == {}
        assert store.active(application, []) == {}
        assert store.reserve({}) == {}
        assert store.add_active([]) == {}
        assert store.set_states([], next_mark=next_mark) == []

    def test_more_ids_and_scopes_than_a_statement_takes_are_asked_for(
        self, store: KeyStore, application: str
    ) -> None:
        """A read must accept more ids than one statement does."""
        record = store.add_active([make_record(application, "a")])["a"]
        ids = [UUID(int=number) for number in range(MANY_IDS)] + [record.key_id]
        scopes = [f"tenant:{number}" for number in range(MANY_IDS)] + ["a"]
        assert set(store.get(ids)) == {record.key_id}
        assert set(store.active(application, scopes)) == {"a"}
        assert [changed.key_id for changed in the_changes(store, application, -1, ids).records] == [
            record.key_id
        ]

    def test_many_records_are_made_in_one_call(self, store: KeyStore, application: str) -> None:
        """One call must be able to create many records."""
        records = [make_record(application, f"tenant:{number}") for number in range(1_500)]
        stored = store.add_active(records)
        assert {scope: record.key_id for scope, record in stored.items()} == {
            record.scope: record.key_id for record in records
        }
        assert len(store.page(application, limit=2_000)) == len(records) + 1

    @pytest.mark.parametrize(
        "scopes",
        [
            ("tenant:a", "tenant:A"),
            ("a", "a "),
            ("stra\N{LATIN SMALL LETTER SHARP S}e", "strasse"),
            ("\N{LATIN SMALL LETTER E WITH ACUTE}", "e"),
            ("x" * 200, "x" * 199),
            ("\N{CAT FACE}" * 50, "\N{DOG FACE}" * 50),
            ("it's", 'it"s'),
            ("100%", "100_"),
        ],
    )
    def test_scopes_are_compared_byte_for_byte(
        self, store: KeyStore, application: str, scopes: tuple[str, str]
    ) -> None:
        """The store must compare scopes byte by byte."""
        stored = store.add_active([make_record(application, scope) for scope in scopes])
        assert {scope: stored[scope].scope for scope in scopes} == dict(zip(scopes, scopes, strict=True))
        assert store.active(application, [scopes[1]]) == {scopes[1]: stored[scopes[1]]}

    def test_purposes_have_slots_of_their_own(self, store: KeyStore, application: str) -> None:
        """Each purpose must have its own slot in a scope."""
        purposes = [KeyPurpose.DATA, KeyPurpose.FIELD, KeyPurpose.INDEX, KeyPurpose.BRANCH]
        made = {
            purpose: store.add_active([make_record(application, "a", purpose=purpose)])["a"]
            for purpose in purposes
        }
        assert len({record.key_id for record in made.values()}) == len(purposes)
        for purpose, record in made.items():
            assert store.active(application, ["a"], purpose=purpose) == {"a": record}

    def test_applications_have_slots_of_their_own(self, store: KeyStore, application: str) -> None:
        """Each application must have its own slot in a scope."""
        ours = store.add_active([make_record(application, "a")])["a"]
        other = f"{application}-other"
        theirs = store.add_active([make_record(other, "a")])["a"]
        assert store.active(application, ["a"]) == {"a": ours}
        assert store.active(other, ["a"]) == {"a": theirs}
        assert set(store.get([ours.key_id, theirs.key_id])) == {ours.key_id, theirs.key_id}

    def test_an_id_is_never_used_again(self, store: KeyStore, application: str) -> None:
        """The store must refuse a key id that exists already."""
        record = store.add_active([make_record(application, "a")])["a"]
        again = replace(make_record(application, "b"), key_id=record.key_id)
        with pytest.raises(StoreError):
            store.add_active([again])
        assert store.get([record.key_id]) == {record.key_id: record}
        assert store.active(application, ["b"]) == {}


class PagesContract(KeyStoreFixtures):
    """The store has pages of records, places, and a clock."""

    def test_pages_come_in_order_of_id(self, store: KeyStore, application: str) -> None:
        """Pages must list each key of the application once, by id."""
        records = [replace(make_record(application, str(number)), key_id=uuid4()) for number in range(25)]
        store.add_active(records)
        store.add_active([make_record(f"{application}-other", "a")])
        seen: list[KeyRecord] = []
        while page := store.page(application, after=seen[-1].key_id if seen else None, limit=10):
            assert len(page) <= 10
            seen.extend(page)
        assert [record.key_id for record in seen] == sorted(record.key_id for record in seen)
        assert {record.key_id for record in seen} >= {record.key_id for record in records}
        assert len(seen) == 1 + len(records)
        by_id = {record.key_id: record for record in seen}
        assert_same(by_id[records[0].key_id], records[0])

    def test_a_page_of_one_state_holds_no_other(self, store: KeyStore, application: str) -> None:
        """A page of one state must hold only keys in that state."""
        stored = store.add_active([make_record(application, scope) for scope in ("a", "b")])
        store.set_states([in_state(stored["a"], KeyState.DEACTIVATED)], next_mark=next_mark)
        closed = store.page(application, state=KeyState.DEACTIVATED)
        assert [record.key_id for record in closed] == [stored["a"].key_id]
        assert stored["a"].key_id not in {
            record.key_id for record in store.page(application, state=KeyState.ACTIVE)
        }

    def test_the_clock_is_in_utc_and_goes_on(self, store: KeyStore, other_store: KeyStore) -> None:
        """The store's clock must be in UTC and must not go back."""
        first, second = store.now(), other_store.now()
        assert first.utcoffset() == second.utcoffset() == timedelta(0)
        assert second >= first - timedelta(seconds=1)

    def test_a_place_is_remembered_once_and_by_every_handle(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """Every handle must list each place once. A program must know every place before it retires a key."""
        names = [f"{application}-{which}" for which in ("b", "a")]
        for name in [*names, *names]:
            store.add_place(application, name, "items")
        other_store.add_place(f"{application}-other", names[0], "items")
        assert [name for name in other_store.places() if name in names] == sorted(names)


class RacingContract(KeyStoreFixtures):
    """A scope has one active key, however many callers create one."""

    def test_who_comes_second_gets_the_winner_whole(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """The second creator of a key must get the first creator's key."""
        winner = store.add_active([make_record(application, "a")])["a"]
        loser = make_record(application, "a")
        free = make_record(application, "b")
        stored = other_store.add_active([loser, free])
        assert stored["a"] == winner
        assert stored["b"].key_id == free.key_id
        assert store.get([loser.key_id]) == {}

    def test_a_race_for_a_slot_has_one_winner(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """All threads that race for a slot must get one key."""

        def make(number: int) -> KeyRecord:
            handle = store if number % 2 else other_store
            return handle.add_active([make_record(application, "a"), make_record(application, f"b{number}")])[
                "a"
            ]

        winners = in_threads(make)
        assert len({record.key_id for record in winners}) == 1
        assert store.active(application, ["a"]) == {"a": winners[0]}
        assert len(store.page(application)) == 2 + THREADS  # the store key, one for "a", one for each "b"

    def test_the_first_mark_comes_with_the_store_key(self, store: KeyStore, other_store: KeyStore) -> None:
        """The store must keep the mark of the store key that won."""
        name = f"contract-{uuid4().hex[:12]}"

        def make(number: int) -> tuple[KeyRecord, ChangeMark]:
            handle = store if number % 2 else other_store
            record = make_record(name, STORE_SCOPE, purpose=KeyPurpose.STORE)
            mark = ChangeMark(application=name, counter=0, revoked=bytes(32), seal=record.seal)
            return handle.add_active([record], mark=mark)[STORE_SCOPE], mark

        assert store.changes(name, -1, []) is None
        winners = {record.key_id: record for record, _ in in_threads(make)}
        (winner,) = winners.values()
        assert the_changes(store, name, -1).mark.seal == winner.seal
