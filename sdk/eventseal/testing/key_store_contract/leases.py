"""Leasing items under active keys."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from eventseal.keys.states import KeyState
from eventseal.keys.store import HARD_LIMIT
from eventseal.testing.key_store_contract.fixtures import KeyStoreFixtures
from eventseal.testing.key_store_contract.records import (
    in_threads,
    make_record,
    moved,
    next_mark,
    the_changes,
)

if TYPE_CHECKING:
    from eventseal.keys.store import KeyStore


class LeasesContract(KeyStoreFixtures):
    """Leasing items under active keys."""

    def test_leases_add_up(self, store: KeyStore, other_store: KeyStore, application: str) -> None:
        stored = store.add_active(
            [make_record(application, scope, items_reserved=10) for scope in ("a", "b")]
        )
        first, second = stored["a"].key_id, stored["b"].key_id
        assert store.reserve({first: 5, second: 7}) == {first: 15, second: 17}
        assert other_store.reserve({first: 1}) == {first: 16}
        assert store.get([first])[first].items_reserved == 16

    def test_a_lease_leaves_version_and_counter(self, store: KeyStore, application: str) -> None:
        record = store.add_active([make_record(application, "a")])["a"]
        store.reserve({record.key_id: 5})
        assert store.get([record.key_id])[record.key_id] == replace(record, items_reserved=5)
        assert the_changes(store, application, -1).mark.counter == 0

    def test_a_lease_past_the_limit_is_refused_and_takes_nothing(
        self, store: KeyStore, application: str
    ) -> None:
        stored = store.add_active(
            [make_record(application, scope, items_reserved=90) for scope in ("a", "b")]
        )
        first, second = stored["a"].key_id, stored["b"].key_id
        assert store.reserve({first: 11, second: 10}, limit=100) == {second: 100}
        assert store.reserve({first: 10}, limit=100) == {first: 100}
        assert store.reserve({first: 1, second: 1}, limit=100) == {}

    def test_the_hard_limit_is_the_last_item(self, store: KeyStore, application: str) -> None:
        record = store.add_active([make_record(application, "a", items_reserved=HARD_LIMIT - 5)])["a"]
        assert store.reserve({record.key_id: 6}) == {}
        assert store.reserve({record.key_id: 5}) == {record.key_id: HARD_LIMIT}

    def test_only_active_keys_are_leased(self, store: KeyStore, application: str) -> None:
        record = store.add_active([make_record(application, "a")])["a"]
        store.set_states([moved(record, KeyState.DEACTIVATED)], next_mark=next_mark)
        assert store.reserve({record.key_id: 1, uuid4(): 1}) == {}

    def test_racing_leases_never_pass_the_limit(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        key_id = store.add_active([make_record(application, "a")])["a"].key_id

        def lease(number: int) -> list[int]:
            handle = store if number % 2 else other_store
            return [total for _ in range(10) for total in handle.reserve({key_id: 3}, limit=100).values()]

        totals = sorted(total for granted in in_threads(lease) for total in granted)
        assert totals == list(range(3, 100, 3))
        assert store.get([key_id])[key_id].items_reserved == 99
