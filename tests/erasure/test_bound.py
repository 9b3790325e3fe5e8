"""How long another process goes on after a shred that nobody tells it of: no longer than its interval."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update
from tests.erasure import bystander
from tests.fixtures.sealed_shops import SealedShop, scope_of, stream_of

from eventseal.erasure import shred
from eventseal.errors import KeyDestroyedError, StoreUnavailableError
from eventseal.keys import CachePolicy, DataKey, KeyPurpose
from eventseal.keys.policy import BootClock
from eventseal.storage.keys.tables import key_changes
from eventseal.testing import FakeKms, ManualClock
from eventseal_kms.local import LocalKmsAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TENANT = "acme"
SCOPE = scope_of(TENANT)
INTERVAL = 60.0
AN_INSTANT = 0.001


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def start(store_url: str, clock: ManualClock) -> Iterator[Callable[..., SealedShop]]:
    """Starts processes on one store."""
    kms, started = FakeKms(), []

    def start(**cache: float) -> SealedShop:
        policy = CachePolicy(**{"refresh_interval": INTERVAL, **cache})
        started.append(SealedShop(store_url, kms, clock=clock, cache=policy))
        return started[-1]

    start().set_up()
    yield start
    for shop in started:
        shop.close()


def holds(shop: SealedShop) -> None:
    """Have a process make the scope's keys, and read with them."""
    shop.append(TENANT, 0)
    shop.keyring.prepare([SCOPE], purpose=KeyPurpose.FIELD)
    assert shop.events.get_domain_event(stream_of(TENANT), 0)


def assert_nothing_of_the_scope(shop: SealedShop) -> None:
    with pytest.raises(KeyDestroyedError):
        shop.events.get_domain_event(stream_of(TENANT), 0)
    with pytest.raises(KeyDestroyedError):
        shop.append(TENANT, 1)
    for purpose in (KeyPurpose.DATA, KeyPurpose.FIELD):
        with pytest.raises(KeyDestroyedError):
            shop.keyring.sealing_keys({SCOPE: 1}, purpose=purpose)


def test_another_process_stops_when_the_interval_is_over_and_not_later(start, clock) -> None:
    other, eraser = start(), start()
    holds(other)
    handle = other.keyring.sealing_keys({SCOPE: 0})[SCOPE]
    clock.advance(INTERVAL / 2)  # it confirmed what it knows before the shred, and not when that came
    assert shred(eraser, SCOPE).complete
    clock.advance(INTERVAL / 2)
    assert other.events.get_domain_event(stream_of(TENANT), 0)
    clock.advance(AN_INSTANT)
    assert_nothing_of_the_scope(other)
    assert handle.closed


def test_the_bound_holds_whenever_the_process_looked_last(start, clock) -> None:
    eraser = start()
    holds(eraser)
    others = [start() for _ in range(4)]
    for other in others:
        assert other.events.get_domain_event(stream_of(TENANT), 0)
        clock.advance(INTERVAL / 4 - AN_INSTANT)
    assert shred(eraser, SCOPE).complete
    clock.advance(INTERVAL + AN_INSTANT)
    for other in others:
        assert_nothing_of_the_scope(other)


def test_the_stores_interval_bounds_a_process_that_was_given_a_longer_one(start, clock) -> None:
    eraser = start()
    with eraser.datastore.key_engine.begin() as connection:
        eraser.keyring.prepare(["tenant:another"])
        connection.execute(update(key_changes).values(refresh_interval=10.0))
    other = start()
    holds(other)
    assert shred(eraser, SCOPE).complete
    clock.advance(10 + AN_INSTANT)
    assert_nothing_of_the_scope(other)


def test_open_grace_counts_into_the_bound_only_while_the_keys_database_is_away(
    start, clock, monkeypatch
) -> None:
    other, eraser = start(open_grace=30.0), start()
    holds(other)
    (key_id,) = [row.key_id for row in eraser.key_store.of_scope("shop", SCOPE) if row.purpose == "data"]
    assert shred(eraser, SCOPE).complete

    def away(*_: object) -> None:
        raise StoreUnavailableError("the keys' database is away")

    with monkeypatch.context() as patch:
        patch.setattr(other.key_store, "changes", away)
        clock.advance(INTERVAL + AN_INSTANT)
        assert isinstance(other.keyring.opening_keys([key_id])[key_id], DataKey)
        with pytest.raises(StoreUnavailableError):  # it lengthens the interval for opening only
            other.keyring.sealing_keys({SCOPE: 1})
        clock.advance(30.0)
        with pytest.raises(StoreUnavailableError):
            other.keyring.opening_keys([key_id])
    assert_nothing_of_the_scope(other)


def test_no_outage_of_the_kms_prolongs_what_was_shredded(start, clock) -> None:
    other, eraser = start(ttl=50.0), start()
    holds(other)
    eraser.keyring.refresh()  # so that it has the store key
    clock.advance(INTERVAL - AN_INSTANT)  # its keys are past their TTL, and would serve through an outage
    other.keyring.refresh()
    (kms,) = other.keyring.keks
    kms.fail_always()
    assert other.events.get_domain_event(stream_of(TENANT), 0)
    assert shred(eraser, SCOPE).complete
    clock.advance(INTERVAL + AN_INSTANT)
    assert_nothing_of_the_scope(other)


class Bystander:
    """Another process that reads or writes, and what it has said."""

    def __init__(self, operation: str, url: str, key_file: Path, interval: float) -> None:
        command = [bystander.__file__, operation, url, str(key_file), TENANT, str(interval)]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=bystander.ROOT,
        )
        self.said: list[tuple[float, str]] = []

    def listen(self, count: int, *, since: float = 0.0) -> None:
        """Take what it says, until it has begun so many operations after a moment."""
        assert self.process.stdout is not None
        while count:
            began, outcome = json.loads(self.process.stdout.readline())
            self.said.append((began, outcome))
            count -= began > since

    def end(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::eventseal_kms.local.DevelopmentKeyWarning")
def test_a_real_process_stops_within_the_bound(store_url: str, tmp_path: Path) -> None:
    """By the system's clock, which all of them read: what began beyond the bound was refused, each time."""
    interval = 1.0
    kms = LocalKmsAdapter.create(tmp_path / "dev.key")
    with SealedShop(store_url, kms) as eraser:
        eraser.set_up()
        eraser.append(TENANT, 0)
        others = [Bystander(what, store_url, tmp_path / "dev.key", interval) for what in ("read", "write")]
        for other in others:
            other.listen(5)
            assert {outcome for _, outcome in other.said} == {"done"}
        assert shred(eraser, SCOPE).complete
        bound = BootClock().now() + interval
        for other in others:
            other.listen(5, since=bound)
            other.end()
            assert {outcome for began, outcome in other.said if began > bound} == {"KeyDestroyedError"}
        # What was written meanwhile is as unreadable as the rest: nothing is under a key that opens.
        for number in (0, 1):
            items = eraser.strategy.get_items(stream_of(TENANT, number))
            assert items
            for item in items:
                found = eraser.keyring.opening_keys([item.key_id])[item.key_id]
                assert isinstance(found, KeyDestroyedError)
