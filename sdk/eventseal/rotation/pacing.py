"""The throttle of a job: one pace for all its workers, wherever they run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from eventseal.storage.jobs import lock_job_pace, store_job_pace
from eventseal.storage.transactions import write

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection, Engine

    from eventseal.storage.jobs import Job

_SLICE = 0.5
"""Seconds that a worker sleeps at most before it shows that it lives, and looks whether it is to stop."""


class Pacer:
    """
    Holds a job's workers back, so that all together move no more items a second than they may.

    Each batch takes its time out of the job's row before it begins; who comes while others have taken more
    than has passed waits for the difference.

    Args:
        engine: Of the items' database.
        job: As it was read.
        sleep: Waits for seconds.
        now: Seconds by one clock for all workers; ``None``: the database's.
    """

    def __init__(
        self,
        engine: Engine,
        job: Job,
        *,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._engine = engine
        self._job_id = job.job_id
        self._rate = job.items_per_second
        self._sleep = sleep
        self._now = now

    def most(self, batch: int) -> int:
        """Say how many items a batch may have: at most about a second's worth, and at least one."""
        return batch if self._rate is None else max(1, min(batch, int(self._rate)))

    def wait(self, items: int, between: Callable[[], None]) -> None:
        """
        Take the time of *items*, and wait until it has come.

        Args:
            items: That are about to be moved.
            between: Called again and again while waiting.
        """
        rate = self._rate
        if rate is None or not items:
            return

        def take(connection: Connection) -> float:
            paced_until, stored_now = lock_job_pace(connection, self._job_id)
            now = stored_now if self._now is None else self._now()
            begins = max(now, paced_until or now)
            store_job_pace(connection, self._job_id, begins + items / rate)
            return begins - now

        left = write(self._engine, take, doing="taking a job's pace")
        while left > 0:
            self._sleep(min(left, _SLICE))
            left -= _SLICE
            between()
