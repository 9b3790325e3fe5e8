"""
Kills a rotation at random calls of its database, again and again, and looks at what is left.

Run it as a program, because a process with threads should not fork. This one has one thread, opens no
database, and lets children do everything. They inherit its imports, so a kill costs milliseconds.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import socket
import sys
import traceback
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from tests.fixtures.dependencies import COMMIT, Faults, count_database_calls
from tests.fixtures.sealed_shops import TENANTS, SealedShop, places_of

from eventseal.keys import CachePolicy
from eventseal.keys.states import KeyState
from eventseal.rotation import reencrypt, retire, rewrap, rotate_keys, verify
from eventseal.testing import ManualClock
from eventseal_kms.local import DevelopmentKeyWarning, LocalKmsAdapter

if TYPE_CHECKING:
    from collections.abc import Callable

ROUND = 10
"""Kills after which a rotation may end. Each of them hits another of as many equal parts of the rotation."""
BATCH = 10
_PATIENCE = 3_600  # s
_STREAMS = 3


@dataclass
class Report:
    """
    What happened.

    Attributes:
        seed: Determines at which calls the kills are.
        kills: SIGKILLs that hit a running rotation.
        mid_state: Kills after which a rotation had begun and was not complete.
        unfinished_items: Kills after which the items of a scope were under several keys.
        lost: Events that were missing after a kill, the sum of all looks.
        unreadable: Items and keys that did not open.
        completed: Rotations that were not killed, and ended with everything on the newest keys.
        outran: Rotations that ended before their kill.
    """

    seed: int
    kills: int = 0
    mid_state: int = 0
    unfinished_items: int = 0
    lost: int = 0
    unreadable: int = 0
    completed: int = 0
    outran: int = 0


class Calls(Faults):
    """
    Counts database calls. At one of them it reports to the parent, and it stops before the next.

    Args:
        at: The number of that call, from 1. By default there is none.
        parent: A socket to the process that kills this one.
    """

    def __init__(self, at: int = sys.maxsize, parent: socket.socket | None = None) -> None:
        super().__init__()
        self._kill_at, self._parent = at, parent

    def met(self, kind: str) -> None:
        """Count a call, and let it happen."""
        self.stop_if_reached()
        self.calls.append(kind)
        if len(self.calls) == self._kill_at:
            self._report()

    def stop_if_reached(self) -> None:
        """Wait for the kill if the call was made."""
        if len(self.calls) >= self._kill_at:
            self._report().recv(1)  # nothing comes: this returns only if the parent has died
            os._exit(1)

    def _report(self) -> socket.socket:
        assert self._parent is not None
        self._parent.send(b"!")
        return self._parent


class Killer:
    """
    One store and its kills.

    Args:
        url: An empty database.
        key_files: The files of two KEKs. Every rotation re-wraps the keys under them.
        items: How many items the store holds.
        seed: Determines at which calls the kills are.
    """

    def __init__(self, url: str, key_files: list[str], items: int, seed: int) -> None:
        self._url, self._key_files, self._items = url, key_files, items
        self._random = random.Random(seed)
        self.report = Report(seed)
        self._places = {
            place
            for tenant in TENANTS
            for number in range(_STREAMS)
            for place in places_of(tenant, items // len(TENANTS) // _STREAMS, number=number)
        }

    def run(self, kills: int) -> Report:
        """Kill so many times."""
        self._in_child(self._fill)
        self._in_child(self._complete)  # the first rotation of a store makes a few calls more than later ones
        calls = self._in_child(self._complete)
        while self.report.kills < kills:
            # The last parts come first: a run that resumes a job makes fewer calls, and may end sooner.
            # The first part begins before the first transaction. It comes last, when the store is half-way.
            between = self._random.sample(range(1, ROUND - 2), ROUND - 3)
            for part in [ROUND - 1, ROUND - 2, *between, 0][: kills - self.report.kills]:
                while not self._kill_one(1 + int(calls * (part + self._random.random()) / ROUND)):
                    self.report.outran += 1
                self.report.kills += 1
                self._look()
            self._in_child(self._complete)
            self.report.completed += 1
        return self.report

    # --- what children do ---

    def _shop(self) -> SealedShop:
        keks = [LocalKmsAdapter.from_uri(f"local://{key_file}") for key_file in self._key_files]
        # Every machine makes the same calls: no time refreshes a key, and a rotation settles at once.
        return SealedShop(self._url, keks, clock=ManualClock(), cache=CachePolicy(refresh_interval=1e-6))

    def _fill(self) -> None:
        with self._shop().set_up() as shop:
            for tenant in TENANTS:
                for number in range(_STREAMS):
                    shop.append(tenant, 0, self._items // len(TENANTS) // _STREAMS, number=number)

    def _rotate(self, calls: Calls) -> None:
        """Do all of it."""
        with self._shop() as shop:
            shop.keyring.refresh()
            count_database_calls(shop.datastore.engine, calls)
            for result in (rotate_keys(shop), rewrap(shop), reencrypt(shop, batch=BATCH), retire(shop)):
                assert result.failed == 0, result.failures
            calls.stop_if_reached()

    def _examine(self) -> tuple[int, int, bool, bool]:
        """Lost, unreadable, whether a rotation is half-way, and whether items are."""
        with self._shop() as shop:
            lost = len(self._places - shop.readable_places())
            unreadable = verify(shop).failed
            states = shop.key_states()
            items = shop.items_by_key()
            assert len(shop.active_keys()) == len(TENANTS)
            half_way = states[KeyState.DEACTIVATED] > 0
            return lost, unreadable, half_way, len(items) > len(TENANTS)

    def _complete(self) -> int:
        """Rotate to the end; give the number of calls before the COMMIT that destroys the old keys."""
        calls = Calls()
        self._rotate(calls)
        with self._shop() as shop:
            assert shop.readable_places() == self._places
            assert shop.items_by_key().keys() == set(shop.active_keys().values())
            assert shop.key_states().keys() <= {KeyState.ACTIVE, KeyState.DESTROYED}
        # The last COMMIT is a later one: it only drops what was noted about those keys.
        return [number for number, kind in enumerate(calls.calls) if kind == COMMIT][-2]

    # --- what the parent does ---

    def _kill_one(self, at: int) -> bool:
        """Start a rotation and kill it in its call number *at* or right after it, if there are so many."""
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            ours.close()
            _be_child(lambda: self._rotate(Calls(at, theirs)))
        theirs.close()
        with ours:
            reached = ours.recv(1)
            if reached:
                if self._random.random() < 0.5:
                    ours.recv(1)  # the call was made, and the child stands before the next
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        assert status == (signal.SIGKILL if reached else 0), "a rotation failed; its traceback is above"
        return bool(reached)

    def _look(self) -> None:
        lost, unreadable, half_way, items_half_way = self._in_child(self._examine)
        self.report.lost += lost
        self.report.unreadable += unreadable
        self.report.mid_state += half_way
        self.report.unfinished_items += items_half_way

    def _in_child(self, work: Callable[[], Any]) -> Any:
        """Have a child do something; give what it gives."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            _be_child(lambda: os.write(write, pickle.dumps(work())))
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            answer = pipe.read()
        assert os.waitpid(child, 0)[1] == 0, "a child failed; its traceback is above"
        return pickle.loads(answer)


def _be_child(work: Callable[[], object]) -> NoReturn:
    try:
        work()
    except BaseException:  # noqa: BLE001 - the parent sees the exit code
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(url: str, kills: str, items: str, seed: str, *key_files: str) -> None:
    """Kill, and print the report."""
    warnings.simplefilter("ignore", DevelopmentKeyWarning)
    signal.alarm(_PATIENCE)
    report = Killer(url, list(key_files), int(items), int(seed)).run(int(kills))
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main(*sys.argv[1:])
