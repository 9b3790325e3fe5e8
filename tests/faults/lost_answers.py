"""Loses the answers of COMMITs under a rotation."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from tests.fixtures.commit_proxy import commit_proxy
from tests.fixtures.sealed_shops import TENANTS, SealedShop, assert_sound, datastore_at, places_of

from eventseal.keys.states import KeyState
from eventseal.rotation import reencrypt, retire, rotate_keys
from eventseal.testing import FakeBatchKms

if TYPE_CHECKING:
    from tests.fixtures.profiles import Profile

EVERY = 2
"""Of so many COMMITs one is not answered: each transaction is run again sooner or later."""


def lose_answers(url: str, profile: Profile) -> None:
    """
    Append, rotate, re-encrypt and retire behind a proxy that loses answers.

    Args:
        url: An empty database.
        profile: How many answers are lost at least.
    """
    kms, count = FakeBatchKms(), max(2, profile.lost_answers)
    with SealedShop(url, kms) as shop:
        shop.set_up().append_for_all(0, 1)
    with (
        commit_proxy(url) as proxy,
        closing(datastore_at(proxy.url)) as behind,
        SealedShop(behind, kms) as shop,
    ):
        proxy.lose_answers(every=EVERY)
        for position in range(1, count):
            shop.append_for_all(position, position + 1)
        assert proxy.lost >= count // EVERY
        assert rotate_keys(shop).done == len(TENANTS)
        before = proxy.lost
        moved = reencrypt(shop, batch=2)
        # Each item is counted once, although its transaction ran twice.
        assert (moved.done, moved.failed, moved.left) == (len(TENANTS) * count, 0, 0), moved
        assert proxy.lost - before >= count // EVERY
        lost = proxy.lost
        proxy.lose_answers(every=EVERY)
        retired = retire(shop)
        assert (retired.done, retired.failed, retired.left) == (len(TENANTS), 0, 0), retired
        assert proxy.lost > lost
        proxy.lose_answers(every=0)
    with SealedShop(url, kms) as shop:
        assert_sound(shop, {place for tenant in TENANTS for place in places_of(tenant, count)})
        assert shop.items_by_key().keys() == set(shop.active_keys().values())
        assert shop.key_states() == {KeyState.ACTIVE: len(TENANTS), KeyState.DESTROYED: len(TENANTS)}
