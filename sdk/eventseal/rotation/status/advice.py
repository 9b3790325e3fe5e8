"""Status values, and the commands to run next. This module does no I/O."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import BRANCH_PREFIX, branch_uri
from eventseal.rotation.jobs.jobs import MIGRATE, resume_command, verb_of
from eventseal.storage.jobs.jobs import FINISHED, PAUSED, RUNNING, SETTLING
from eventseal.wording import counted, moment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from eventseal.errors import IntegrityError
    from eventseal.keys.records import KekUse
    from eventseal.rotation.status.key_totals import ClosedKey, KeyTotal, OverdueKeys
    from eventseal.storage.jobs.jobs import Job


PLAIN, UNKNOWN = "plain", "unknown"
"""Used instead of a key state for plaintext items and missing keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """
    A command to run next.

    Attributes:
        command: The command, as you type it.
        reason: Why it is useful.
        after: When it becomes useful, by the database's clock. ``None``: now.
    """

    command: str
    reason: str
    after: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """
    A re-encryption or migration, and its progress.

    Attributes:
        job: The job as its row describes it, as far as the row can be read.
        done: Items re-encrypted or migrated.
        failed: Items that could not be, in the job's last pass.
        problem: If set, *done* and *failed* are unknown: the row of the job or of one of its ranges was
            edited.
    """

    job: Job
    done: int
    failed: int
    problem: IntegrityError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """
    The contents of an application's tables at one moment.

    Attributes:
        application: The application that owns the keys and items.
        now: The database's clock.
        refresh_interval: The longest time until every process notices that a key has changed.
        keys: Counts of keys by purpose, kind of scope and state.
        closed: The first 1,000 deactivated or compromised keys.
        overdue: Active data keys that are due for rotation.
        items: Items by table, and in each table by the state of their key, or ``plain``, ``unknown`` or
            ``set_aside``.
        items_by_key: Items by key, without the items that are set aside.
        keys_set_aside: Keys that rows which are set aside need.
        unreadable: By table, the items that no reader accepts. They are not encrypted where they must be,
            their key is missing, or their column names another key than their envelope.
        old_formats: By table, the older formats that readers also accept until a migration is finished.
        keks: Counts of wrappings by KEK and KEK version.
        jobs: The jobs that are not finished, and the last one that is.
        edited: Rows that cannot be read because they were edited. If a row of the registry was edited,
            *items* lacks its table. If a row of a key was edited, its state or purpose is unknown, or its
            scope cannot be read. Keys with an unreadable scope are counted together.
        next_steps: The commands to run next, the most urgent first.
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
        """
        Whether no unreadable item and no edited row was found.

        An item counts as readable if its key id says so. Status does not decrypt.
        """
        jobs_read = all(job_status.problem is None for job_status in self.jobs)
        return jobs_read and not self.unreadable and not self.edited


_AT_IT = timedelta(minutes=1)
_NAMED = 5
"""The most keys that a command names. With more keys, the command finds them itself."""


def next_steps(status: Status) -> tuple[Advice, ...]:
    """
    List the commands to run next, the most urgent first.

    Args:
        status: The application's status.
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
    Advise to upgrade old key tables before all other steps.

    Until then, the other commands are refused.

    Args:
        status: The status of an application whose key tables are of an earlier release.
    """
    upgrade = Advice(
        command="eventseal upgrade",
        reason="the key tables are of an earlier release. Until you upgrade them, nothing can change keys or "
        "re-encrypt items. First stop all processes of that release",
    )
    return replace(status, next_steps=(upgrade, *status.next_steps))


def unfinished_job(job_status: JobStatus, now: datetime) -> Advice | None:
    """
    Return the command that continues a re-encryption or migration.

    Args:
        job_status: The job's status.
        now: The database's clock.

    Returns:
        ``None`` if the job is finished, or its row changed within the last minute. Then a process may be
        working on it.
    """
    job = job_status.job
    if job_status.problem is not None:
        return Advice(
            command=f"eventseal {verb_of(job.options)}",
            reason=f"{job_status.problem}. The command starts a new job. {job_status.problem.remedy}",
        )
    if job.state == FINISHED or (job.state == RUNNING and now - job.updated_at < _AT_IT):
        return None
    what = "migration" if verb_of(job.options) == MIGRATE else "re-encryption"
    reason = (
        f"a {what} {'is paused' if job.state == PAUSED else 'is not finished'}: "
        f"{job_status.done:,} of {counted(job.total, 'item')} done. "
        f"Last change: {moment(job.updated_at, now)}"
    )
    if job.state == SETTLING:
        reason = (
            f"a {what} of {counted(job_status.done, 'item')} is done, except for a last check: processes "
            "that had not noticed the new keys may have added items under old ones"
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
            reason="rows cannot be read because they were edited. First restore them from a backup, as the "
            "messages above say",
        )
    if status.unreadable:
        counts = ", ".join(
            f"{counted(count, 'item')} of {table}" for table, count in status.unreadable.items()
        )
        yield Advice(
            command="eventseal verify",
            reason=f"no reader accepts {counts}. Either an item is not encrypted, its key is missing, or its "
            "column names another key than its envelope. `eventseal verify` lists each",
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
            reason=f"{counted(items, 'item')} under {_keys_in(KeyState.COMPROMISED, keys)} "
            "must be re-encrypted",
        )


def _migrate(status: Status) -> Iterator[Advice]:
    """Advise to finish a migration. Until then, readers accept items that nothing authenticates."""
    accepting = status.old_formats
    jobs = [job_status.job for job_status in status.jobs]
    if not accepting or any(verb_of(job.options) == MIGRATE and job.state != FINISHED for job in jobs):
        return  # an unfinished job has its own advice
    formats = ", ".join(sorted({name for names in accepting.values() for name in names}))
    old = [status.items.get(table, {}).get(state, 0) for table in accepting for state in (PLAIN, UNKNOWN)]
    if any(old):
        yield Advice(
            command="eventseal migrate",
            reason=f"{counted(sum(old), 'item')} must be migrated from {formats}. Until then, readers accept "
            "these formats",
        )
    else:
        yield Advice(
            command="eventseal migrate finish",
            reason=f"every item is an envelope, but readers of {counted(len(accepting), 'table')} "
            f"still accept {formats}. First stop every process that writes these formats",
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
        reason = f"keys are wrapped under several versions of these KMS keys: {', '.join(sorted(several))}"
    elif len(set(wrappings.values())) > 1:
        reason = f"not every key is wrapped under each of the KMS keys in use: {', '.join(sorted(wrappings))}"
    else:
        return
    yield Advice(command="eventseal rewrap", reason=reason)


def _rotate(status: Status) -> Iterator[Advice]:
    overdue = status.overdue
    if overdue.keys:
        scopes = "".join(f" --scope {shlex.quote(scope)}" for scope in overdue.scopes)
        yield Advice(
            command=f"eventseal rotate{scopes if overdue.keys == len(overdue.scopes) else ''}",
            reason=f"{counted(overdue.keys, 'active data key')} should be rotated: the policy's maximum age "
            "or number of items is reached",
        )


def _reencrypt(status: Status) -> Iterator[Advice]:
    items, keys = _items_under(status, KeyState.DEACTIVATED)
    if items:
        yield Advice(
            command="eventseal reencrypt",
            reason=f"{counted(items, 'item')} under {_keys_in(KeyState.DEACTIVATED, keys)} "
            "can be re-encrypted",
        )


def _retire(status: Status) -> Iterator[Advice]:
    empty = _needed_by_nothing(status)
    moments = [_settled_at(status, key) for key in empty]
    settled = [time for time in moments if time <= status.now]
    if empty:
        destroyed = "deactivated or compromised key"
        keys = len(settled or empty)
        count = f"{keys:,} or more {destroyed}s" if _are_more(status) else counted(keys, destroyed)
        yield Advice(
            command="eventseal retire",
            reason=f"`eventseal retire` can destroy {count} that nothing needs",
            after=None if settled else min(moments),
        )


def _items_under(status: Status, state: KeyState) -> tuple[int, Sequence[ClosedKey]]:
    """Count items under keys in a state. Return also the keys if all are listed."""
    items = sum(counts.get(state, 0) for counts in status.items.values())
    keys = [key for key in status.closed if key.state == state and status.items_by_key.get(key.key_id)]
    known = sum(status.items_by_key[key.key_id] for key in keys)
    return items, keys if known == items else ()


def _keys_in(state: KeyState, keys: Sequence[ClosedKey]) -> str:
    return counted(len(keys), f"{state} key") if keys else f"{state} keys"


def _needed_by_nothing(status: Status) -> list[ClosedKey]:
    """Return the keys that no item names and no key needs."""
    wrapping = {use.kek_uri for use in status.keks}
    return [
        key
        for key in status.closed
        if not status.items_by_key.get(key.key_id)
        and key.key_id not in status.keys_set_aside
        and branch_uri(key.key_id) not in wrapping
    ]


def _are_more(status: Status) -> bool:
    """Return whether more deactivated or compromised keys exist than the listed ones."""
    listed = KeyPurpose.DATA, KeyPurpose.BRANCH
    there = sum(
        total.keys
        for total in status.keys
        if total.purpose in listed and total.state in (KeyState.DEACTIVATED, KeyState.COMPROMISED)
    )
    return there > len(status.closed)


def _noticed_at(status: Status) -> datetime:
    """Return when the last process notices that the listed keys changed."""
    return max([_settled_at(status, key) for key in status.closed], default=status.now)


def _settled_at(status: Status, key: ClosedKey) -> datetime:
    """Return when every process has noticed that the key is inactive."""
    return status.now if key.since is None else key.since + status.refresh_interval


def _named(keys: Sequence[ClosedKey]) -> str:
    return "".join(f" --key {key.key_id}" for key in keys) if len(keys) <= _NAMED else ""
