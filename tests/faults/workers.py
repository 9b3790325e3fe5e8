"""
Processes that work on one store at once: writers, readers and rotators, until their standard input ends.

Run as a program it is one of them; :class:`Crew` starts several and gives what each says at the end. A line
like ``done 5`` on its standard input asks the process to print a line after 5 more completed steps.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fixtures.sealed_shops import TENANTS, SealedShop, datastore_at, stream_of, text_of

from eventseal.errors import KmsUnavailableError, StoreUnavailableError
from eventseal.keys import CachePolicy
from eventseal.kms import adapter_from_uri
from eventseal.rotation import reencrypt, retire, rotate_keys
from eventseal_kms.local import DevelopmentKeyWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

WRITER, READER, ROTATOR = "writer", "reader", "rotator"
POOLER = "WORKERS_POOLER"
"""The variable that tells them the datastore's ``pooler``."""
ROOT = Path(__file__).parents[2]
LARGEST_BATCH = 4
REFRESH = 0.5
"""Seconds after which processes look for changed keys."""
NEVER = 3_600.0
"""For every other writer: it learns only from a closed fence that its key is gone."""
_STALE_PAUSE = 3.0
"""Seconds at most between two of its appends: its key must be idle now and then, to be destroyed under it."""
_PATIENCE = 240
"""Seconds after which a process hangs."""


class Worker:
    """
    One process on the store.

    Args:
        shop: Its own.
        number: Of the stream that it writes; every one reads those of all *writers*.
        writers: How many there are.
        tolerant: Whether an outage is met by another try.
        stale: Whether it writes now and then only, and does not look for changed keys.
    """

    def __init__(
        self, shop: SealedShop, number: int, writers: int, *, tolerant: bool, stale: bool = False
    ) -> None:
        self.shop = shop
        self.tenant = tenant_of(number)
        self.number, self.writers = number, writers
        self.seen = [0] * writers
        self.tolerant = tolerant
        self.stale = stale
        self.done = self.outages = self.retired = 0
        self.position = length_of(shop, number) if number < writers else 0
        self._sure = False
        self._counted = threading.Condition()

    def run(self, role: str, stopped: threading.Event) -> dict[str, Any]:
        """Work until *stopped*; tell how much, and how often the database or the KMS was away."""
        step: Callable[[], None] = getattr(self, role)
        while not stopped.is_set():
            try:
                step()
                with self._counted:
                    self.done += 1
                    self._counted.notify_all()
            except (StoreUnavailableError, KmsUnavailableError):
                if not self.tolerant:
                    raise
                with self._counted:
                    self.outages += 1
                    self._counted.notify_all()
                stopped.wait(0.02)
                self._sure = False
        return {
            "role": role,
            "number": self.number,
            "done": self.done,
            "outages": self.outages,
            "retired": self.retired,
            "position": self.position,
        }

    def wait_for(self, what: str, more: int) -> None:
        """Wait in another thread until ``done`` or ``outages`` is so many more."""
        with self._counted:
            target = getattr(self, what) + more
            self._counted.wait_for(lambda: getattr(self, what) >= target)

    def writer(self) -> None:
        """Append an event, or a batch of them; after an outage see first what became of the last ones."""
        count = 1 + self.position % LARGEST_BATCH
        if not self._sure:
            stored = length_of(self.shop, self.number)
            assert stored - self.position in {0, count}, (stored, self.position)
            self.position, self._sure = stored, True
            count = 1 + self.position % LARGEST_BATCH
        if self.stale:
            time.sleep(random.uniform(0, _STALE_PAUSE))
        self.shop.append(self.tenant, self.position, count, number=self.number)
        self.position += count

    def reader(self) -> None:
        """Replay each stream: nothing that was there is gone, and everything says what it should."""
        for number in range(self.writers):
            length = length_of(self.shop, number)
            assert length >= self.seen[number]
            self.seen[number] = length

    def rotator(self) -> None:
        """Take everything to new keys, and destroy the old ones."""
        rotate_keys(self.shop)
        moved = reencrypt(self.shop)
        retired = retire(self.shop)
        assert (moved.failed, retired.failed) == (0, 0), (moved.failures, retired.failures)
        self.retired += retired.done


def tenant_of(number: int) -> str:
    """Whose stream a writer writes: two after the other write for one tenant."""
    return TENANTS[number // 2 % len(TENANTS)]


def length_of(shop: SealedShop, number: int) -> int:
    """Replay a writer's stream, see that it is whole, and give its length."""
    stream = stream_of(tenant_of(number), number)
    events = shop.events.get_domain_events(stream)
    assert [event.originator_version for event in events] == list(range(len(events)))
    for event in events:
        assert event.text == text_of(stream, event.originator_version)
    return len(events)


class Crew:
    """
    Starts processes and waits until each is ready.

    Args:
        url: Of the store.
        keks: The URIs of its KEKs.
        roles: Of the processes.
        tolerant: Whether they try again after an outage.
        environment: Variables for them, beside this process's.
    """

    def __init__(
        self,
        url: str,
        keks: Sequence[str],
        roles: Sequence[str],
        *,
        tolerant: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        writers = roles.count(WRITER)
        numbers = {role: iter(range(len(roles))) for role in roles}
        self._commands = [
            [
                *(sys.executable, "-W", "error", "-m", "tests.faults.workers"),
                *(url, ",".join(keks), role, str(next(numbers[role])), str(writers), str(int(tolerant))),
            ]
            for role in roles
        ]
        self._environment = {**os.environ, **(environment or {})}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.processes = [
            self._stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, env=self._environment, text=True, **pipes)
            )
            for command in self._commands
        ]
        for process in self.processes:
            self._await(process, "ready\n")
        return self

    def wait_for(self, what: str, more: int, processes: slice = slice(None)) -> None:
        """
        Wait until each process has made progress.

        Args:
            what: ``done`` counts completed steps, ``outages`` those that met an outage.
            more: How many more there must be.
            processes: Which processes; by default all.
        """
        for process in self.processes[processes]:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it failed: its error is raised below
                process.stdin.write(f"{what} {more}\n")
                process.stdin.flush()
        for process in self.processes[processes]:
            self._await(process, "reached\n")

    def _await(self, process: subprocess.Popen[str], word: str) -> None:
        assert process.stdout is not None
        if process.stdout.readline() != word:
            raise AssertionError(process.communicate(timeout=_PATIENCE)[1])

    def stop(self) -> list[dict[str, Any]]:
        """End them; give what each says. An error of one is raised here."""
        answers = []
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        for process in self.processes:
            out, errors = process.communicate(timeout=_PATIENCE)
            assert process.returncode == 0, errors
            answers.append(json.loads(out))
        return answers

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        self._stack.close()


def main(url: str, keks: str, role: str, number: str, writers: str, tolerant: str) -> None:
    """Be one of them."""
    warnings.simplefilter("ignore", DevelopmentKeyWarning)
    stopped = threading.Event()

    def obey() -> None:
        for line in sys.stdin:
            what, more = line.split()
            worker.wait_for(what, int(more))
            print("reached", flush=True)
        stopped.set()

    adapters = [adapter_from_uri(kek) for kek in keks.split(",")]
    stale = role == WRITER and int(number) % 2 == 1
    cache = CachePolicy(refresh_interval=NEVER if stale else REFRESH)
    datastore = datastore_at(url, pooler=os.environ.get(POOLER))
    with closing(datastore), SealedShop(datastore, adapters, cache=cache) as shop:
        worker = Worker(shop, int(number), int(writers), tolerant=tolerant == "1", stale=stale)
        threading.Thread(target=obey, daemon=True).start()
        print("ready", flush=True)
        print(json.dumps(worker.run(role, stopped)))


if __name__ == "__main__":
    main(*sys.argv[1:])
