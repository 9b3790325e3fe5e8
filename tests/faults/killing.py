"""
Kills a rotation at random moments, again and again, and looks at what is left.

Run as a program, because a process with threads should not fork: this one has one thread, opens no database,
and lets children do everything. They inherit its imports, so a kill costs milliseconds.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import select
import signal
import sys
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tests.fixtures.sealed_shops import TENANTS, SealedShop, places_of

from eventseal.keys import CachePolicy
from eventseal.keys.states import KeyState
from eventseal.rotation import reencrypt, retire, rewrap, rotate_keys, verify
from eventseal_kms.local import DevelopmentKeyWarning, LocalKmsAdapter

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE_BETWEEN_COMPLETIONS = 10
"""Kills after which a rotation is left to end."""
FROM_THE_BEGINNING = 20
"""Of so many kills one may come before the first transaction: nothing is half-way then."""
BATCH = 10
_PATIENCE = 3_600  # s
_STREAMS = 3


@dataclass
class Report:
    """
    What happened.

    Attributes:
        seed: Of the moments.
        kills: SIGKILLs that hit a rotation that was running.
        mid_state: How many of them left a rotation that had begun and was not complete.
        unfinished_items: How many of them left items under more than one key of a scope.
        lost: Events that were not there afterwards, of all looks together.
        unreadable: Items and keys that did not open.
        completed: Rotations that were left to end, and ended with everything on the newest keys.
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


class Killer:
    """
    One store and its kills.

    Args:
        url: An empty database.
        key_files: Of two KEKs: every rotation rewraps the keys under them.
        items: That the store holds.
        seed: Of the moments.
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
        longest = self._time_of_one()
        while self.report.kills < kills:
            at_once = self.report.kills % FROM_THE_BEGINNING == FROM_THE_BEGINNING - 1
            if not self._kill_one(self._random.uniform(0, longest), at_once=at_once):
                self.report.outran += 1
                continue
            self.report.kills += 1
            self._look()
            if self.report.kills % PAUSE_BETWEEN_COMPLETIONS == 0 or self.report.kills == kills:
                self._complete()
        return self.report

    # --- what children do ---

    def _shop(self) -> SealedShop:
        keks = [LocalKmsAdapter.from_uri(f"local://{key_file}") for key_file in self._key_files]
        return SealedShop(self._url, keks, cache=CachePolicy(refresh_interval=0.01))

    def _fill(self) -> None:
        with self._shop().set_up() as shop:
            for tenant in TENANTS:
                for number in range(_STREAMS):
                    shop.append(tenant, 0, self._items // len(TENANTS) // _STREAMS, number=number)

    def _rotate(
        self,
        started: Callable[[], object] = lambda: None,
        ended: Callable[[], object] = lambda: None,
        *,
        at_once: bool = True,
    ) -> float:
        """
        Do all of it.

        Args:
            started: Called when it begins.
            ended: Called when it is complete.
            at_once: Whether that is before its first transaction, or only behind it.

        Returns:
            The seconds that it took.
        """
        with self._shop() as shop:
            shop.keyring.refresh()
            if at_once:
                started()
            began = time.monotonic()
            rotated = rotate_keys(shop, progress=None if at_once else lambda _: started())
            for result in (rotated, rewrap(shop), reencrypt(shop, batch=BATCH), retire(shop)):
                assert result.failed == 0, result.failures
            seconds = time.monotonic() - began
            ended()
            return seconds

    def _examine(self) -> tuple[int, int, bool, bool]:
        """Lost, unreadable, whether a rotation is half-way, and whether items are."""
        with self._shop() as shop:
            lost = len(self._places - shop.places())
            unreadable = verify(shop).failed
            states = shop.key_states()
            items = shop.items_by_key()
            assert len(shop.active_keys()) == len(TENANTS)
            half_way = states[KeyState.DEACTIVATED] > 0
            return lost, unreadable, half_way, len(items) > len(TENANTS)

    def _complete_in_child(self) -> float:
        seconds = self._rotate()
        with self._shop() as shop:
            assert shop.places() == self._places
            assert shop.items_by_key().keys() == set(shop.active_keys().values())
            assert shop.key_states().keys() <= {KeyState.ACTIVE, KeyState.DESTROYED}
        return seconds

    # --- what the parent does ---

    def _time_of_one(self) -> float:
        return min(self._in_child(self._complete_in_child) for _ in range(3))

    def _kill_one(self, delay: float, *, at_once: bool) -> bool:
        """Start a rotation and kill it *delay* seconds after it began, if it still runs then."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            _be_child(
                lambda: self._rotate(
                    lambda: os.write(write, b"!"), lambda: os.write(write, b"."), at_once=at_once
                ),
                write,
            )
        os.close(write)
        assert os.read(read, 1) == b"!", "the rotation did not begin"
        ended, _, _ = select.select([read], [], [], delay)
        if not ended:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(read)
        if os.WIFSIGNALED(status):
            return True
        assert status == 0, "a rotation failed; its traceback is above"
        return False

    def _look(self) -> None:
        lost, unreadable, half_way, items_half_way = self._in_child(self._examine)
        self.report.lost += lost
        self.report.unreadable += unreadable
        self.report.mid_state += half_way
        self.report.unfinished_items += items_half_way

    def _complete(self) -> None:
        self._in_child(self._complete_in_child)
        self.report.completed += 1

    def _in_child(self, work: Callable[[], Any]) -> Any:
        """Have a child do something; give what it gives."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            _be_child(lambda: os.write(write, pickle.dumps(work())), write)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            answer = pipe.read()
        assert os.waitpid(child, 0)[1] == 0, "a child failed; its traceback is above"
        return pickle.loads(answer)


def _be_child(work: Callable[[], object], pipe: int) -> None:
    try:
        work()
    except BaseException:  # noqa: BLE001 - the parent sees the exit code
        traceback.print_exc()
        os._exit(1)
    os.close(pipe)
    os._exit(0)


def main(url: str, kills: str, items: str, seed: str, *key_files: str) -> None:
    """Kill, and print the report."""
    warnings.simplefilter("ignore", DevelopmentKeyWarning)
    signal.alarm(_PATIENCE)
    report = Killer(url, list(key_files), int(items), int(seed)).run(int(kills))
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main(*sys.argv[1:])
