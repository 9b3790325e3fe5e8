"""One active key a scope, however many ask at once."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from eventseal.keys.records import STORE_SCOPE, ChangeMark, KeyRecord
from eventseal.keys.states import KeyPurpose
from eventseal.testing.key_store_contract.fixtures import KeyStoreFixtures
from eventseal.testing.key_store_contract.records import (
    THREADS,
    in_threads,
    make_record,
    the_changes,
)

if TYPE_CHECKING:
    from eventseal.keys.store import KeyStore


class RacingContract(KeyStoreFixtures):
    """One active key a scope, however many ask at once."""

    def test_who_comes_second_gets_the_winner_whole(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
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
