"""Checks of jobs and migrations: that each has ended, and what readers accept meanwhile."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from eventseal.configuration.diagnosis.findings import Finding, Severity
from eventseal.configuration.diagnosis.registry_checks import reachable_tables
from eventseal.configuration.old_formats import configured_formats
from eventseal.errors import EncryptionRequiredError
from eventseal.rotation.status.advice import unfinished_job
from eventseal.rotation.status.status import job_standings
from eventseal.storage.database.transactions import read
from eventseal.storage.items.key_counts import count_unreadable
from eventseal.storage.items.rows import count_plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eventseal.configuration.stores import Stores
    from eventseal.storage.items.tables import SealedTable


JOBS = "jobs"


def check_jobs(stores: Stores) -> Iterator[Finding]:
    """
    Look for re-encryptions and migrations that did not end, and that nobody is at.

    Args:
        stores: The databases, and the settings.
    """
    now = stores.key_store.now()
    standings = job_standings(stores.datastore, stores.settings.application)
    problems = [standing.problem for standing in standings if standing.problem is not None]
    for problem in problems:
        yield Finding.of(problem, JOBS)
    in_order = [standing for standing in standings if standing.problem is None]
    left = [step for standing in in_order if (step := unfinished_job(standing, now))]
    for step in left:
        yield Finding(severity=Severity.WARNING, area=JOBS, text=step.reason, remedy=step.command)
    if not left and not problems:
        yield Finding(
            severity=Severity.OK, area=JOBS, text="no re-encryption or migration was left half done"
        )


MIGRATION = "migration"


def check_migration(stores: Stores) -> Iterator[Finding]:
    """
    Compare the older formats that the settings name with those that the registry says are accepted.

    Args:
        stores: The databases, and the settings.

    Raises:
        ConfigurationError: A key of an older format is not where the settings say.
    """
    tables = reachable_tables(stores)
    accepting = [table for table in tables if table.old_formats]
    named = [entry.split()[0] for entry in stores.settings.old_formats]
    if accepting:
        yield from _check_accepted(accepting, named)
        if not stores.settings.event_modules:
            yield Finding(
                severity=Severity.WARNING,
                area=MIGRATION,
                text="a migration has begun, and event_modules is not set: `eventseal migrate` leaves "
                "every item whose classes no listed module defines or registers",
                remedy="List the modules that define your events in eventseal.toml, such as: "
                'event_modules = ["shop"]',
            )
    elif named:
        yield from _check_named(tables, named)
    else:
        yield Finding(
            severity=Severity.OK, area=MIGRATION, text="no older format is accepted, and none is named"
        )
        return
    settings = stores.settings
    configured_formats(settings.old_formats, max_plaintext=settings.max_plaintext)  # have the keys read


def check_encrypted(stores: Stores) -> Iterator[Finding]:
    """
    Count the items that are not encrypted where no reader takes them; `verify` opens the others.

    Args:
        stores: The databases, and the settings.
    """
    for table in reachable_tables(stores):
        if table.is_others:
            continue
        accepts_plain = table.accepts_plain(always_encrypt=stores.settings.always_encrypt)
        look = partial(count_unreadable if accepts_plain else count_plain, table=table)
        items = read(stores.datastore.engine, look, doing=f"counting {table.table}")
        if items:
            error = EncryptionRequiredError(
                f"{items:,} items of {table.table} are not encrypted, and no reader takes them",
                remedy="If an older application wrote them, name their format in old_formats, then: "
                "eventseal migrate begin. Else find out who wrote them: eventseal verify names each.",
            )
            yield Finding.of(error, MIGRATION)


def _check_accepted(accepting: Sequence[SealedTable], named: Sequence[str]) -> Iterator[Finding]:
    formats = sorted({name for table in accepting for name in table.old_formats})
    unnamed = [name for name in formats if name not in named]
    if unnamed:
        tables = ", ".join(table.table for table in accepting if {*table.old_formats} & {*unnamed})
        yield Finding(
            severity=Severity.WARNING,
            area=MIGRATION,
            text=f"the readers of {tables} are to accept {', '.join(unnamed)}, which old_formats does not "
            "name here: this process refuses such items",
            remedy="Name them in old_formats, with where their keys are; or, if none is left: "
            "eventseal migrate finish",
        )
    tables = ", ".join(table.table for table in accepting)
    yield Finding(
        severity=Severity.NOTE,
        area=MIGRATION,
        text=f"a migration was begun and is not finished: beside envelopes, {', '.join(formats)} is accepted "
        f"in {tables}",
        remedy="eventseal status tells what is left; last: eventseal migrate finish",
    )


def _check_named(tables: Sequence[SealedTable], named: Sequence[str]) -> Iterator[Finding]:
    formats = ", ".join(dict.fromkeys(named))
    if tables and all(table.is_migrated for table in tables):
        yield Finding(
            severity=Severity.WARNING,
            area=MIGRATION,
            text=f"old_formats names {formats}, and the migration has ended: a line in the registry "
            "would have it accepted again",
            remedy="Take old_formats out of the settings, and destroy the old keys.",
        )
    else:
        yield Finding(
            severity=Severity.NOTE,
            area=MIGRATION,
            text=f"old_formats names {formats}, which no table accepts yet",
            remedy="To migrate items in their rows: eventseal migrate begin",
        )
