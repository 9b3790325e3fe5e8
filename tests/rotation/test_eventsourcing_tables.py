"""The verbs over the eventsourcing library's own tables, in place, on both databases."""

from __future__ import annotations

import pytest
from tests.fixtures.eventsourcing_store import EVENTS, SECRET, SNAPSHOTS, LibraryStore

from eventseal.errors import JobError
from eventseal.rotation import reencrypt, retire, rotate_keys, verify
from eventseal.testing import FakeKms


@pytest.fixture
def open_library():
    opened = []

    def open_one(url, **options):
        opened.append(LibraryStore(url, FakeKms(), **options))
        return opened[-1].make()

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture(params=["uuid", "text"])
def library(request, open_library, store_url):
    return open_library(store_url, id_type=request.param)


def test_a_whole_rotation_of_their_tables(library):
    events = library.append(7)
    snapshot = library.take_snapshot()
    old = library.active_key()
    rotate_keys(library.seal)
    new = library.active_key()
    with pytest.raises(JobError, match="7 items of stored_events, 1 items of stored_snapshots"):
        retire(library.seal, keys=[old])

    moved = reencrypt(library.seal)
    assert (moved.done, moved.failed, moved.left) == (8, 0, 0)
    assert moved.by_key == {old: 8}
    assert retire(library.seal).by_key == {old: 0}

    checked = verify(library.seal)
    assert (checked.done, checked.failed, checked.by_key) == (8, 0, {new: 8})
    assert {t: c["done"] for t, c in checked.by_table.items() if c["done"]} == {EVENTS: 7, SNAPSHOTS: 1}
    assert library.read(events[0].originator_id) == [SECRET] * 7
    (found,) = library.snapshots.select_events(snapshot.originator_id)
    assert found.state[3:19] == new.bytes
