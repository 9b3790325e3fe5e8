"""The status of keys and items as values, and the commands worth running next. No I/O."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import BRANCH_PREFIX, branch_uri
from eventseal.rotation.jobs.jobs import MIGRATE, resume_command, verb_of
from eventseal.storage.jobs.jobs import FINISHED, RUNNING, SETTLING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from eventseal.errors import IntegrityError
    from eventseal.keys.records import KekUse
    from eventseal.rotation.status.key_totals import ClosedKey, KeyTotal, OverdueKeys
    from eventseal.storage.jobs.jobs import Job


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
class JobStatus:
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
    jobs: tuple[JobStatus, ...]
    edited: tuple[IntegrityError, ...] = ()
    next_steps: tuple[Advice, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether every item can be read as far as its key id tells, and no row that was read was edited."""
        jobs_read = all(job_status.problem is None for job_status in self.jobs)
        return jobs_read and not self.unreadable and not self.edited


_AT_IT = timedelta(minutes=1)
_NAMED = 5
"""Keys that a command names one by one; of more it is left to find them."""


def next_steps(status: Status) -> tuple[Advice, ...]:
    """
    Say what is worth running, the most urgent first.

    Args:
        status: Of the application.
    """
    return (
        *_unreadable(status),
        *_jobs(status),
        *_compromised(status),
        *_migrate(status),
        *_rewrap(status),
        *_rotate(status),
        *_reencrypt(status),
        *_retire(status),
    )


def with_upgrade_first(status: Status) -> Status:
    """
    Put the upgrade of key tables of an earlier release before all other advice, which is refused until then.

    Args:
        status: Of an application with such key tables.
    """
    upgrade = Advice(
        command="eventseal init",
        reason="the key tables are of an earlier release: until they are upgraded, nothing changes keys or "
        "encrypts items again. Stop all processes of that release first",
    )
    return replace(status, next_steps=(upgrade, *status.next_steps))


def unfinished_job(job_status: JobStatus, now: datetime) -> Advice | None:
    """
    Say how a re-encryption, or a migration, is gone on with.

    Args:
        job_status: Of the job.
        now: The database's clock.

    Returns:
        ``None`` if it ended, or has moved on within the last minute: then somebody is at it.
    """
    job = job_status.job
    if job_status.problem is not None:
        return Advice(
            command=f"eventseal {verb_of(job.options)}",
            reason=f"{job_status.problem}; the command begins a job anew. {job_status.problem.remedy}",
        )
    if job.state == FINISHED or (job.state == RUNNING and now - job.updated_at < _AT_IT):
        return None
    what = "migration" if verb_of(job.options) == MIGRATE else "re-encryption"
    reason = (
        f"a {what} did not end: {job_status.done:,} of {job.total:,} items were moved, it is "
        f"{job.state} since {job.updated_at.isoformat(timespec='seconds')}"
    )
    if job.state == SETTLING:
        reason = (
            f"a {what} has moved all {job_status.done:,} items, and is to look once more when every process "
            "has noticed the new keys"
        )
    elif "function" in job.options.get("key_scope", {}):
        reason += _REMINDER
    return Advice(command=resume_command(job), reason=reason)


_REMINDER = (
    ". Check that the function is yours: its name comes from the job's row, which is not authenticated"
)


def _unreadable(status: Status) -> Iterator[Advice]:
    if status.edited:
        yield Advice(
            command="eventseal verify",
            reason="rows were edited so that they cannot be read. Restore them from a backup first, as said "
            "above",
        )
    if status.unreadable:
        counts = ", ".join(f"{count:,} items of {table}" for table, count in status.unreadable.items())
        yield Advice(
            command="eventseal verify",
            reason=f"{counts} are not encrypted, or their key is not there: no reader takes them, and verify "
            "names each",
        )


def _jobs(status: Status) -> Iterator[Advice]:
    for job_status in status.jobs:
        step = unfinished_job(job_status, status.now)
        if step is not None:
            settles = _noticed_at(status) if job_status.job.state == SETTLING else status.now
            yield step if settles <= status.now else replace(step, after=settles)


def _compromised(status: Status) -> Iterator[Advice]:
    items, keys = _items_under(status, KeyState.COMPROMISED)
    if items:
        yield Advice(
            command=f"eventseal reencrypt{_named(keys)}",
            reason=f"{items:,} items are under {_counted(keys)}compromised keys",
        )


def _migrate(status: Status) -> Iterator[Advice]:
    """A migration that was begun is to be finished: until then, readers take what nothing authenticates."""
    accepting = status.old_formats
    jobs = [job_status.job for job_status in status.jobs]
    if not accepting or any(verb_of(job.options) == MIGRATE and job.state != FINISHED for job in jobs):
        return  # of a job that did not end, its own step tells
    formats = ", ".join(sorted({name for names in accepting.values() for name in names}))
    old = [status.items.get(table, {}).get(state, 0) for table in accepting for state in (PLAIN, UNKNOWN)]
    if any(old):
        yield Advice(
            command="eventseal migrate",
            reason=f"{sum(old):,} items are to be migrated from {formats}, which readers accept until then",
        )
    else:
        yield Advice(
            command="eventseal migrate finish",
            reason=f"every item is an envelope, and readers of {len(accepting):,} tables accept {formats} "
            "still; stop what writes it first",
        )


def _rewrap(status: Status) -> Iterator[Advice]:
    versions: dict[str, set[str | None]] = {}
    wrappings: Counter[str] = Counter()
    for use in status.keks:
        if use.kek_uri.startswith(BRANCH_PREFIX):
            continue
        versions.setdefault(use.kek_uri, set()).add(use.kek_version)
        wrappings[use.kek_uri] += use.wrappings
    several = [uri for uri, found in versions.items() if len(found) > 1]
    if several:
        reason = f"several versions are in use of {', '.join(sorted(several))}"
    elif len(set(wrappings.values())) > 1:
        reason = f"not every key is under each of the KEKs in use: {', '.join(sorted(wrappings))}"
    else:
        return
    yield Advice(command="eventseal rewrap", reason=reason)


def _rotate(status: Status) -> Iterator[Advice]:
    overdue = status.overdue
    if overdue.keys:
        scopes = "".join(f" --scope {shlex.quote(scope)}" for scope in overdue.scopes)
        yield Advice(
            command=f"eventseal rotate{scopes if overdue.keys == len(overdue.scopes) else ''}",
            reason=f"{overdue.keys:,} active data keys are over the policy's age or items",
        )


def _reencrypt(status: Status) -> Iterator[Advice]:
    items, keys = _items_under(status, KeyState.DEACTIVATED)
    if items:
        yield Advice(
            command="eventseal reencrypt",
            reason=f"{items:,} items are under {_counted(keys)}keys that seal no more",
        )


def _retire(status: Status) -> Iterator[Advice]:
    empty = _needed_by_nothing(status)
    moments = [_settled_at(status, key) for key in empty]
    settled = [moment for moment in moments if moment <= status.now]
    if empty:
        yield Advice(
            command="eventseal retire",
            reason=f"{len(settled or empty):,}{_or_more(status)} keys seal no more, and nothing needs them",
            after=None if settled else min(moments),
        )


def _items_under(status: Status, state: KeyState) -> tuple[int, Sequence[ClosedKey]]:
    """Count the items under keys in a state, and name the keys; none if more were replaced than listed."""
    items = sum(counts.get(state, 0) for counts in status.items.values())
    keys = [key for key in status.closed if key.state == state and status.items_by_key.get(key.key_id)]
    known = sum(status.items_by_key[key.key_id] for key in keys)
    return items, keys if known == items else ()


def _counted(keys: Sequence[ClosedKey]) -> str:
    return f"{len(keys):,} " if keys else ""


def _needed_by_nothing(status: Status) -> list[ClosedKey]:
    """Those that no item names and, of branch keys, under which no key is wrapped."""
    wrapping = {use.kek_uri for use in status.keks}
    return [
        key
        for key in status.closed
        if not status.items_by_key.get(key.key_id)
        and key.key_id not in status.keys_set_aside
        and branch_uri(key.key_id) not in wrapping
    ]


def _or_more(status: Status) -> str:
    """Say so where there are more keys that seal no more than were looked at."""
    listed = KeyPurpose.DATA, KeyPurpose.BRANCH
    there = sum(
        total.keys
        for total in status.keys
        if total.purpose in listed and total.state in (KeyState.DEACTIVATED, KeyState.COMPROMISED)
    )
    return " or more" if there > len(status.closed) else ""


def _noticed_at(status: Status) -> datetime:
    """When the last process has noticed the last replacement of a key, as far as those were looked at."""
    return max([_settled_at(status, key) for key in status.closed], default=status.now)


def _settled_at(status: Status, key: ClosedKey) -> datetime:
    """When the last process has seen that the key seals no more."""
    return status.now if key.since is None else key.since + status.refresh_interval


def _named(keys: Sequence[ClosedKey]) -> str:
    return "".join(f" --key {key.key_id}" for key in keys) if len(keys) <= _NAMED else ""
