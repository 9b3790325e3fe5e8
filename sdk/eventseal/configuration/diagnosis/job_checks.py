"""Checks of the jobs: that every re-encryption and migration that was begun has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.configuration.diagnosis.findings import Finding, Severity
from eventseal.rotation.advice import unfinished_job
from eventseal.rotation.status import job_standings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventseal.configuration.stores import Stores

AREA = "jobs"


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
        yield Finding.of(problem, AREA)
    in_order = [standing for standing in standings if standing.problem is None]
    left = [step for standing in in_order if (step := unfinished_job(standing, now))]
    for step in left:
        yield Finding(severity=Severity.WARNING, area=AREA, text=step.reason, remedy=step.command)
    if not left and not problems:
        yield Finding(
            severity=Severity.OK, area=AREA, text="no re-encryption or migration was left half done"
        )
