"""Where an application's keys and items stand, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta
    from uuid import UUID

    from eventseal.errors import IntegrityError
    from eventseal.keys.records import KekUse
    from eventseal.rotation.key_totals import ClosedKey, KeyTotal, OverdueKeys
    from eventseal.storage.jobs import Job

PLAIN, UNKNOWN = "plain", "unknown"
"""Stand in place of a key's state for items in plain, and for items of keys that are not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """
    One thing that is worth running.

    Attributes:
        command: As it is typed.
        reason: Why.
        after: From when on, by the database's clock; ``None``: now.
    """

    command: str
    reason: str
    after: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStanding:
    """
    A re-encryption, and how far it is.

    Attributes:
        job: As its row says, as far as it can be read.
        done: Items that were moved.
        failed: Items that could not be, in its last pass.
        problem: Why neither is known: the job's row, or one of its ranges', was edited.
    """

    job: Job
    done: int
    failed: int
    problem: IntegrityError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """
    What stands in the tables at one moment.

    Attributes:
        application: Whose keys and items.
        now: The database's clock.
        refresh_interval: How long it takes at most until every process has seen a change of a key.
        keys: How many, by purpose, kind of scope and state.
        closed: The first thousand keys that seal no more and were not destroyed.
        overdue: Active data keys that are due for rotation.
        items: By table, and in it by the state of their keys, or ``plain``, or ``unknown``, or ``set_aside``.
        items_by_key: Items by key, without those that are set aside.
        keys_set_aside: Keys that rows need which are set aside.
        unreadable: By table, items that no reader takes: they are not encrypted where they must be, their
            key is not there, or their column names another key than their envelope.
        old_formats: What readers accept beside envelopes while a migration lasts, by table.
        keks: What hangs on which KEK and version.
        jobs: Re-encryptions that did not end, and the last one that did.
        edited: Rows that were edited so that they cannot be read. Of the registry: *items* lack their tables.
            Of keys: their state or purpose is none that there is, or their scope cannot be read; the latter
            are counted together.
        next_steps: What is worth running, the most urgent first.
    """

    application: str
    now: datetime
    refresh_interval: timedelta
    keys: tuple[KeyTotal, ...]
    closed: tuple[ClosedKey, ...]
    overdue: OverdueKeys
    items: Mapping[str, Mapping[str, int]]
    items_by_key: Mapping[UUID, int] = field(repr=False)
    keys_set_aside: frozenset[UUID] = frozenset()
    unreadable: Mapping[str, int] = field(default_factory=dict)
    old_formats: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keks: tuple[KekUse, ...]
    jobs: tuple[JobStanding, ...]
    edited: tuple[IntegrityError, ...] = ()
    next_steps: tuple[Advice, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether every item can be read as far as its key id tells, and no row that was read was edited."""
        jobs_read = all(standing.problem is None for standing in self.jobs)
        return jobs_read and not self.unreadable and not self.edited
