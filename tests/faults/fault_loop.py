"""
The loop: let an operation's first dependency call fail, then its second, until it meets no fault any more.

After each, nothing may be lost, unreadable, doubled or left locked, and a second run must complete.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sqlalchemy import text
from tests.fixtures.dependencies import Fault, Faults, FaultyClock, count_database_calls, count_kms_calls
from tests.fixtures.sealed_shops import SealedShop, datastore_at

from eventseal.errors import KmsUnavailableError, StoreUnavailableError
from eventseal.testing import FakeBatchKms

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection
    from tests.faults.operations import Operation
    from tests.fixtures.profiles import Profile

    from eventseal.storage import SQLAlchemyDatastore

OUTAGES = (StoreUnavailableError, KmsUnavailableError, OSError)
"""What a fault may look like to the caller: ``OSError`` is the clock's own."""

NOTHING_HELD = """
SELECT state, query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
AND backend_type = 'client backend' AND state <> 'idle' UNION ALL SELECT 'advisory lock', mode FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

SERVER_NOTICES = 120.0
"""Seconds after which something hangs."""


class Seen(NamedTuple):
    """
    What a loop met.

    Attributes:
        points: Calls that failed, one in each run.
        survived: Runs that got over it by themselves.
        kinds: Of the calls that failed.
    """

    points: int
    survived: int
    kinds: Counter[str]


def fail_every_call(
    operation: type[Operation],
    profile: Profile,
    fault: Fault,
    url: str,
    copies_of: Callable[[str], Copies],
    *,
    sqlstate: str | None = None,
) -> Seen:
    """
    Run the loop.

    Args:
        operation: What runs.
        profile: How much it works on, and which of the calls fail.
        fault: How calls fail.
        url: An empty database, for the state before.
        copies_of: Makes copies of that state, one after the other at one place.
        sqlstate: With what the server refuses statements and COMMITs; by default it is gone.
    """
    keks = [FakeBatchKms("first"), FakeBatchKms("second")]
    with SealedShop(url, keks[:1], branches=operation.branches).set_up() as shop:
        operation(profile).prepare(shop)
    faults = Faults(sqlstate)
    for kek in keks:
        count_kms_calls(kek, faults)
    every = 1 if url.startswith("sqlite") and not operation.makes_many_calls else profile.sampled
    copies, survived, kinds = copies_of(url), 0, Counter[str]()
    # Used for every copy, since what costs most is that a new engine compiles its statements.
    with closing(datastore_at(copies.url)) as faulty, closing(datastore_at(copies.url)) as other:
        count_database_calls(faulty.engine, faults)
        trial = Trial(operation, profile, keks, faults, faulty, other)
        for points, at in enumerate(count(1, every)):
            copies.renew()
            outcome = trial.run(fault, at)
            if outcome is None:
                return Seen(points, survived, kinds)
            survived += outcome
            kinds[faults.kind] += 1
    raise AssertionError("the loop ends")


class Copies(Protocol):
    """A place for copies of a store."""

    url: str

    def renew(self) -> None:
        """Put a new copy there."""


@dataclass(frozen=True)
class Trial:
    """One operation, with and without faults, on one copy after the other."""

    operation: type[Operation]
    profile: Profile
    keks: list[FakeBatchKms]
    faults: Faults
    faulty: SQLAlchemyDatastore
    other: SQLAlchemyDatastore

    def run(self, fault: Fault, at: int) -> bool | None:
        """Whether the operation got over the fault; ``None`` if it did not meet it."""
        operation, faults = self.operation(self.profile), self.faults
        clock, mine = FaultyClock(faults), operation.keks(self.keks)
        with SealedShop(self.faulty, mine, branches=operation.branches, clock=clock) as shop:
            faults.arm(fault, at)
            error = None
            try:
                operation.run(shop)
            except OUTAGES as outage:
                error = outage
            met = faults.reached
            faults.disarm()
            assert met or error is None, error
            try:
                if error is not None:
                    self._see_what_is_left(operation)
                    operation.run(shop)
                self._see_what_is_left(operation, done=True)
            except BaseException as failure:
                failure.add_note(f"{fault.value}, call {at}, {faults.kind if met else 'not met'}: {error!r}")
                raise
        self.faulty.close()
        self.other.close()
        return error is None if met else None

    def _see_what_is_left(self, operation: Operation, *, done: bool = False) -> None:
        assert self.faulty.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        with self.other.engine.connect() as connection:
            _await_none_held(connection)
        with SealedShop(self.other, self.keks) as fresh:
            operation.assert_sound(fresh)
            if done:
                operation.check(fresh)


def _await_none_held(connection: Connection) -> None:
    """A server notices a moment later that a connection was closed: only then it frees what that held."""
    deadline = time.monotonic() + SERVER_NOTICES
    while held := _held(connection):
        connection.rollback()
        assert time.monotonic() < deadline, held
        time.sleep(0.05)


def _held(connection: Connection) -> list[tuple[str, str]]:
    """What others hold: on SQLite the write lock, on a server transactions and advisory locks."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # raises where somebody else holds the lock
        connection.rollback()
        return []
    return [(row[0], row[1]) for row in connection.execute(text(NOTHING_HELD))]
