"""Keys that nothing needs are destroyed, and no other."""

from __future__ import annotations

import pytest

from eventseal.errors import ConfigurationError, JobError, KeyDestroyedError, KeyNotFoundError
from eventseal.keys import KeyState
from eventseal.keys.key_ids import new_key_id
from eventseal.rotation import mark_compromised, reencrypt, retire, rotate_keys


def states(shop) -> dict:
    return {r.key_id: r.state for r in shop.seal.key_store.page("shop") if r.purpose == "data"}


def test_a_key_without_items_is_destroyed_and_one_with_items_stays(shop) -> None:
    (item,) = shop.append(scope="a")
    rotate_keys(shop.seal)
    empty = shop.seal.keyring.sealing_keys({"b": 0})["b"].key_id
    rotate_keys(shop.seal)
    result = retire(shop.seal)
    assert (result.done, result.left, result.failed, result.complete) == (2, 1, 0, True)
    assert result.by_key[item.key_id] == 1
    assert result.by_key[empty] == 0
    assert states(shop)[item.key_id] is KeyState.DEACTIVATED
    assert shop.seal.key_store.get([empty])[empty].destroyed_by == "retired"
