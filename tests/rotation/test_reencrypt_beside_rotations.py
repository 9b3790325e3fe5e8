"""A process that re-encrypts need not be the one that rotated."""

from __future__ import annotations

from eventseal.rotation import reencrypt, rotate_keys


def test_items_go_to_the_key_that_another_process_has_just_made(shop) -> None:
    other = shop.again()
    items = shop.append(3)
    other.append(1)  # it seals under the key, and has leased items with it
    rotate_keys(shop.seal)
    result = reencrypt(other.seal)
    assert (result.done, result.left) == (4, 0)
    active = shop.seal.keyring.sealing_keys({"application": 0})["application"].key_id
    stored = shop.strategy().get_items(items[0].sequence_id)
    assert {item.key_id for item in stored} == {active}
