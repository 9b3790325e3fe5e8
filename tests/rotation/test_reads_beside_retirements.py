"""Who read rows before they were encrypted again, and opens them after their old key was retired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from eventseal.errors import KeyDestroyedError
from eventseal.eventstore import EventStore
from eventseal.items import SequencedItemMapper
from eventseal.rotation import reencrypt, retire, rotate_keys, verify

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Noted:
    originator_id: UUID
    originator_version: int
    text: str


STREAM = uuid4()
EVENTS = [Noted(STREAM, number, f"note {number}") for number in range(3)]


def event_store(shop: Any) -> EventStore:
    return EventStore(shop.strategy(), SequencedItemMapper(cipher=shop.seal.cipher))


def before_the_next_opening(shop: Any, act: Callable[[], object]) -> None:
    """Have something happen between a reading of rows and their opening."""
    open_many = shop.seal.cipher.open_many

    def late(items: Any) -> Any:
        shop.seal.cipher.open_many = open_many
        act()
        return open_many(items)

    shop.seal.cipher.open_many = late


def move_and_retire(shop: Any) -> None:
    rotate_keys(shop.seal)
    reencrypt(shop.seal)
    assert retire(shop.seal).done == 1


READS = {
    "one": lambda store: [store.get_domain_event(STREAM, event.originator_version) for event in EVENTS],
    "a stream": lambda store: store.get_domain_events(STREAM),
    "the last": lambda store: [*EVENTS[:2], store.get_most_recent_event(STREAM)],
    "page by page": lambda store: list(store.iterate_domain_events(STREAM, page_size=2)),
    "all": lambda store: list(store.all_domain_events()),
}


@pytest.mark.slow
@pytest.mark.parametrize("read", READS)
def test_events_are_read_although_their_key_is_retired_before_they_are_opened(shop, read: str) -> None:
    event_store(shop).append(EVENTS)
    reader = shop.again()
    before_the_next_opening(reader, lambda: move_and_retire(shop))
    assert READS[read](event_store(reader)) == EVENTS


@pytest.mark.slow
def test_events_are_read_although_the_next_key_is_retired_too_before_they_are_opened(shop) -> None:
    event_store(shop).append(EVENTS)
    reader = shop.again()

    def twice() -> None:
        move_and_retire(shop)
        before_the_next_opening(reader, lambda: move_and_retire(shop))

    before_the_next_opening(reader, twice)
    assert event_store(reader).get_domain_events(STREAM) == EVENTS


@pytest.mark.slow
def test_an_item_that_names_a_retired_key_for_good_is_an_error(shop) -> None:
    event_store(shop).append(EVENTS)
    (old,) = shop.strategy().get_items(STREAM, limit=1)
    move_and_retire(shop)
    shop.edit(old, data=old.data, key_id=old.key_id)
    with pytest.raises(KeyDestroyedError) as caught:
        event_store(shop.again()).get_domain_events(STREAM)
    assert caught.value.destroyed_by == "retired"


@pytest.mark.slow
def test_a_verification_finds_nothing_wrong_with_items_that_moved_meanwhile(shop) -> None:
    event_store(shop).append(EVENTS)
    verifier = shop.again()
    before_the_next_opening(verifier, lambda: (move_and_retire(shop), verifier.seal.keyring.refresh()))
    result = verify(verifier.seal)
    assert (result.done, result.failed) == (3, 0)


@pytest.mark.slow
def test_a_verification_names_an_item_whose_retired_key_stays(shop) -> None:
    event_store(shop).append(EVENTS)
    (old,) = shop.strategy().get_items(STREAM, limit=1)
    move_and_retire(shop)
    shop.edit(old, data=old.data, key_id=old.key_id)
    result = verify(shop.again().seal)
    assert (result.done, result.failed) == (2, 1)
    assert result.failures[0].error == "KeyDestroyedError"
