"""Rows that are set aside in every kind of table, at every kind of place, and under the other verbs."""

from __future__ import annotations

import pytest
from tests.fixtures.eventsourcing_store import EVENTS

from eventseal.erasure import set_aside
from eventseal.errors import JobError, KeyNotFoundError
from eventseal.rotation import damaged_row, damaged_rows, reencrypt, retire, rotate_keys, verify
from eventseal.storage import TimestampSequencedItemRecord

ITEMS, TIMES = "integer_sequenced_items", "timestamp_sequenced_items"


@pytest.fixture
def ledger(tmp_path) -> str:
    return str(tmp_path / "erasures.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("id_type", ["uuid", "text"])
def test_a_table_without_a_column_of_key_ids(open_library, store_url, ledger, id_type) -> None:
    library = open_library(store_url, id_type=id_type, ledger=ledger)
    library.append(3)
    tail = "substring(state FROM 1 FOR 60)" if library.on_postgresql else "substr(state, 1, 60)"
    library.execute(f"UPDATE {EVENTS} SET state = {tail} WHERE originator_version = 1")
    assert verify(library.seal).failed == 1
    assert set_aside(library.seal, damaged_rows(library.seal, EVENTS), reason="cut").done == 1
    found = verify(library.seal)
    assert (found.failed, found.by_table[EVENTS]["set_aside"]) == (0, 1)
    old = library.active_key()
    rotate_keys(library.seal)
    assert reencrypt(library.seal).by_table[EVENTS]["set_aside"] == 1
    result = retire(library.seal, give_up_set_aside=True)
    assert (result.done, len(result.given_up)) == (1, 1)
    assert result.by_key == {old: 0}
    assert verify(library.seal).failed == 0
    library.execute(f"UPDATE {EVENTS} SET topic = 'other:Topic' WHERE originator_version = 1")
    assert verify(library.seal).failed == 2  # the row, and what the ledger says of it


@pytest.mark.slow
def test_a_position_that_is_a_decimal(open_shop, store_url, ledger) -> None:
    shop = open_shop(store_url, ledger=ledger)
    items = shop.append(3, record=TimestampSequencedItemRecord)
    (broken,) = shop.execute(
        f"SELECT max(position) FROM {TIMES} WHERE position < (SELECT max(position) FROM {TIMES})"
    )
    shop.execute(f"UPDATE {TIMES} SET topic = 'shop:Other' WHERE position = :at", at=broken[0])
    place = str(items[1].sequence_id).upper(), "1.5"
    found = damaged_row(shop.seal, TIMES, *place)
    (said,) = set_aside(shop.seal, found, reason="cut").set_aside
    assert shop.seal.rows_set_aside() == [said]
    assert verify(shop.seal).failed == 0
    shop.execute(f"DELETE FROM {TIMES} WHERE topic = 'shop:Other'")
    assert verify(shop.seal).failed == 1


@pytest.mark.parametrize(
    "sql", ["position = 'first'", "position = 1.5", "sequence_id = 'a text'", "sequence_id = x'00'"]
)
def test_a_place_that_only_an_edit_makes(open_shop, sqlite_url, ledger, sql) -> None:
    shop = open_shop(sqlite_url, ledger=ledger)
    shop.append(2)
    shop.execute(f"UPDATE {ITEMS} SET {sql} WHERE position = 1")
    assert verify(shop.seal).failed == 1
    assert set_aside(shop.seal, damaged_rows(shop.seal, ITEMS), reason="moved").done == 1
    assert verify(shop.seal).failed == 0
    shop.execute(f"DELETE FROM {ITEMS} WHERE NOT (typeof(position) = 'integer' AND position = 0)")
    assert verify(shop.seal).failed == 1


def test_one_application_does_not_excuse_rows_for_another(open_shop, store_url, ledger, tmp_path) -> None:
    shop = open_shop(store_url, ledger=ledger)
    other = open_shop(store_url, application="other", ledger=str(tmp_path / "other.jsonl"))
    other.append(1)
    (item,) = shop.append(1)
    shop.edit(item, data=b"x" * 90)
    assert set_aside(shop.seal, damaged_rows(shop.seal, ITEMS), reason="lost").done == 1
    assert (verify(shop.seal).failed, verify(other.seal).failed) == (0, 1)


def test_a_sound_row_of_a_key_that_is_not_there_is_refused_wherever_its_id_is(
    open_library, store_url, ledger
) -> None:
    library = open_library(store_url, ledger=ledger)
    (event,) = library.append(1)
    other = b"\x01" * 16
    state = event.state[:3] + other + event.state[19:]
    where = f"UPDATE {EVENTS} SET state = :state"
    library.execute(where, state=state)
    assert verify(library.seal).failures[0].error == KeyNotFoundError.__name__
    with pytest.raises(JobError, match="its key cannot be used"):
        damaged_row(library.seal, EVENTS, str(event.originator_id), str(event.originator_version))
