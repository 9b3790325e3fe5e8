"""Pages of records, places beside tables, and the clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

from eventseal.keys.records import KeyRecord
from eventseal.keys.states import KeyState
from eventseal.testing.key_store_contract.fixtures import KeyStoreFixtures
from eventseal.testing.key_store_contract.records import (
    assert_same,
    make_record,
    moved,
    next_mark,
)

if TYPE_CHECKING:
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.store import KeyStore


class PagesContract(KeyStoreFixtures):
    """Pages of records, places beside tables, and the clock."""

    def test_pages_come_in_order_of_id(self, store: KeyStore, application: str) -> None:
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
        stored = store.add_active([make_record(application, scope) for scope in ("a", "b")])
        store.set_states([moved(stored["a"], KeyState.DEACTIVATED)], next_mark=next_mark)
        closed = store.page(application, state=KeyState.DEACTIVATED)
        assert [record.key_id for record in closed] == [stored["a"].key_id]
        assert stored["a"].key_id not in {
            record.key_id for record in store.page(application, state=KeyState.ACTIVE)
        }

    def test_the_clock_is_in_utc_and_goes_on(self, store: KeyStore, other_store: KeyStore) -> None:
        first, second = store.now(), other_store.now()
        assert first.utcoffset() == second.utcoffset() == timedelta(0)
        assert second >= first - timedelta(seconds=1)

    def test_a_place_is_remembered_once_and_by_every_handle(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        """No program may retire a key while it does not know where its items are."""
        names = [f"{application}-{which}" for which in ("b", "a")]
        for name in [*names, *names]:
            store.add_place(application, name, "items")
        other_store.add_place(f"{application}-other", names[0], "items")
        assert [name for name in other_store.places() if name in names] == sorted(names)
