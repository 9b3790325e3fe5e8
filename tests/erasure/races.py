"""A shred while threads of other processes read, write, rotate and take snapshots, on a database."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

from tests.fixtures.sealed_shops import APPLICATION, Noted, SealedShop, scope_of, stream_of, text_of

from eventseal.erasure import shred
from eventseal.errors import ConfigurationError, EventSealError, KeyClosedError, KeyDestroyedError
from eventseal.keys import CachePolicy, KeyPurpose, KeyState
from eventseal.rotation import reencrypt
from eventseal.testing import FakeKms, ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

INTERVAL = 60.0
PURPOSES = (KeyPurpose.DATA, KeyPurpose.FIELD)
SLOTS = {KeyPurpose.DATA, KeyPurpose.FIELD, KeyPurpose.INDEX}
SETTLED = (KeyDestroyedError, KeyClosedError)
KEPT = "somebody else"
MOST_TURNS = 4
PATIENCE = 60
"""Seconds that somebody waits for a lock, which others hold for moments."""


class Race:
    """
    One customer, whose scope is shredded in the midst of it all.

    Args:
        shops: Processes of the application: the first one shreds.
        name: The customer's.
    """

    def __init__(self, shops: list[SealedShop], name: str) -> None:
        self.shops = shops
        self.name = name
        self.scope = scope_of(name)
        self._gone = threading.Event()
        self._keys: set[UUID] = set()
        shops[1].append(name, 0, 3)
        shops[2].keyring.rotate(self.scope)

    def run(self, pool: ThreadPoolExecutor) -> None:
        """
        Let them race, and see that nothing of the scope is left.

        Raises:
            AssertionError: Something is.
        """
        _, one, two = self.shops
        whole = [text_of(event.originator_id, event.originator_version) for event in self._read(one)]
        works = [
            self._shred,
            lambda: self._over_and_over(lambda _: self._read(one)),
            lambda: self._over_and_over(lambda turn: one.append(self.name, 3 + turn)),
            lambda: self._over_and_over(lambda turn: self._snapshot(two, turn, whole)),
            lambda: self._over_and_over(lambda turn: self._maintain(two, turn)),
            lambda: self._over_and_over(
                lambda _: two.keyring.prepare([self.scope], purpose=KeyPurpose.FIELD)
            ),
        ]
        start = threading.Barrier(len(works))

        def begin(work: Callable[[], None]) -> None:
            start.wait(60)
            work()

        for future in [pool.submit(begin, work) for work in works]:
            future.result(120)

    def check(self, shop: SealedShop) -> None:
        """See that a process, which had the time to hear of it, opens and seals nothing of the scope."""
        rows = shop.key_store.of_scope(APPLICATION, self.scope)
        assert {row.key_id for row in rows} == self._keys, "a key was made for a closed scope"
        assert {row.state for row in rows} == {KeyState.DESTROYED}
        assert {row.destroyed_by for row in rows} == {"shredded"}
        assert not any(row.wrappings for row in shop.key_store.get(self._keys).values())
        assert {row.purpose for row in rows if row.active_scope == self.scope} == SLOTS
        for purpose in PURPOSES:
            ids = [row.key_id for row in rows if row.purpose is purpose]
            for outcome in shop.keyring.opening_keys(ids, purpose=purpose).values():
                assert isinstance(outcome, KeyDestroyedError), outcome
            assert is_refused(lambda purpose=purpose: shop.keyring.prepare([self.scope], purpose=purpose))
        items = self._items(shop)
        assert len(items) >= 3
        for item in items:  # under keys of the scope, each of which is gone
            assert item.key_id in self._keys
            assert is_refused(lambda item=item: shop.events.sequenced_item_mapper.from_sequenced_item(item))
        assert is_refused(lambda: shop.append(self.name, 1_000))
        assert [event.tenant for event in shop.events.get_domain_events(stream_of(KEPT))] == [KEPT]

    def _shred(self) -> None:
        result = shred(self.shops[0], self.scope)
        assert result.complete, result.failures
        self._keys = {row.key_id for row in self.shops[0].key_store.of_scope(APPLICATION, self.scope)}
        self._gone.set()

    def _over_and_over(self, work: Callable[[int], object]) -> None:
        """Work until the scope is gone and the work is told so, or for some turns."""
        for turn in range(MOST_TURNS):
            over = self._gone.is_set()
            try:
                work(turn)
            except SETTLED:
                if over:
                    return
            except EventSealError as error:
                raise AssertionError(f"neither done nor told of the end: {error!r}") from error

    def _read(self, shop: SealedShop) -> list[Noted]:
        events = shop.events.get_domain_events(stream_of(self.name))
        for event in events:
            assert event.text == text_of(event.originator_id, event.originator_version)
        return events

    def _snapshot(self, shop: SealedShop, turn: int, whole: list[str]) -> None:
        snapshot = Noted(
            originator_id=stream_of(self.name, 1),
            originator_version=turn,
            tenant=self.name,
            text="".join(whole),
        )
        shop.events.append(snapshot)

    def _maintain(self, shop: SealedShop, turn: int) -> None:
        if turn == 1:
            rows = shop.key_store.of_scope(APPLICATION, self.scope)
            old = [row.key_id for row in rows if row.state is KeyState.DEACTIVATED][-1:]
            try:
                reencrypt(shop, keys=old)
            except ConfigurationError as error:
                if "was destroyed (shredded)" not in str(error):  # since it was looked up
                    raise
        else:
            shop.keyring.rotate(self.scope)

    def _items(self, shop: SealedShop) -> list:
        strategy = shop.strategy
        return [item for number in (0, 1) for item in strategy.get_items(stream_of(self.name, number))]


def is_refused(work: Callable[[], object]) -> bool:
    """Whether *work* is told that a key was destroyed; anything else that it raises is raised."""
    try:
        work()
    except KeyDestroyedError:
        return True
    return False


def race(url: str, count: int) -> None:
    """
    Shred so many scopes in the midst of it all.

    Raises:
        AssertionError: Something of one came back, in a process that ran all the time or in a new one.
    """
    kms, clock = FakeKms(), ManualClock()
    patient_url = f"{url}?timeout={PATIENCE}" if url.startswith("sqlite") else url

    def process() -> SealedShop:
        return SealedShop(patient_url, kms, clock=clock, cache=CachePolicy(refresh_interval=INTERVAL))

    shops = [process().set_up(), process(), process()]
    try:
        shops[0].append(KEPT, 0)
        with ThreadPoolExecutor(6) as pool, _threads_that_change_often(), _patient_locks():
            for number in range(count):
                one = Race(shops, f"customer {number}")
                one.run(pool)
                clock.advance(INTERVAL + 0.001)
                for shop in shops:
                    one.check(shop)
                if number % 25 == 0:
                    with process() as fresh:
                        one.check(fresh)
    finally:
        for shop in shops:
            shop.close()


@contextmanager
def _patient_locks() -> Iterator[None]:
    """Let nobody give up a lock because the machine is busy: six threads take turns here without a pause."""
    with patch("eventseal.storage.items.fences.PATIENCE", PATIENCE):
        yield


@contextmanager
def _threads_that_change_often() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
