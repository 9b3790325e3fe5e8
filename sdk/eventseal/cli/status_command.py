"""``eventseal status``."""

from __future__ import annotations

import shlex
from contextlib import closing
from typing import TYPE_CHECKING, Any

import typer

from eventseal.cli.exits import ExitCode
from eventseal.cli.output import print_columns, print_json, print_rows_set_aside, printable, time_text
from eventseal.cli.shared_options import Options, with_options
from eventseal.configuration.assembly import configured_ledger, rotation_policy
from eventseal.erasure.ledger.entries import INTENT
from eventseal.erasure.setting_aside import unverified_rows
from eventseal.rotation.jobs.jobs import verb_of
from eventseal.rotation.rewrapping import KekReport
from eventseal.rotation.status.application_status import status as read_status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.erasure import Ledger
    from eventseal.rotation.status.advice import Advice, JobStatus, Status

EXAMPLES = """\b
Examples:
  eventseal status
  eventseal status --json | jq -r '.next[].command'
"""


@with_options()
def status(
    options: Options,
) -> None:
    """
    Tell where keys, items and jobs stand, and what is worth running next.

    It reads the tables and needs no KEK. Keys are counted by purpose, by the kind
    of their scope (what stands before the colon) and by state, items by the state
    of their keys, wrappings by KEK and version. It exits with 1 if items cannot be
    read or rows were edited, as far as that shows without a key: `verify` opens all.
    """
    with closing(options.open_stores()) as stores:
        ledger = configured_ledger(stores.settings)
        said = () if ledger is None else unverified_rows(ledger, stores.settings.application)
        found = read_status(
            stores.key_store,
            stores.datastore,
            stores.settings.application,
            policy=rotation_policy(stores.settings),
            always_encrypt=stores.settings.always_encrypt,
            said=said,
        )
        intents = [] if ledger is None else _open_intents(ledger, stores.settings.application)
    if options.as_json:
        rows = [row.to_json() for row in said]
        print_json({**_as_json(found), "open_intents": intents, "set_aside": rows})
    else:
        _print(found)
        print_rows_set_aside(said)
        _print_intents(intents)
    if not found.is_sound:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


def _open_intents(ledger: Ledger, application: str) -> list[dict[str, Any]]:
    """Read the shreds that were begun and are not done, as the ledger says; no KEK verifies it here."""
    entries = ledger.unverified_open_entries(application, INTENT)
    return [{"entry": entry.number, "scope": entry.scope, "at": time_text(entry.at)} for entry in entries]


def _as_json(found: Status) -> dict[str, Any]:
    return {
        "verb": "status",
        "application": found.application,
        "now": time_text(found.now),
        "refresh_interval": found.refresh_interval.total_seconds(),
        "keys": [
            {"purpose": total.purpose, "kind": total.kind, "state": total.state, "keys": total.keys}
            for total in found.keys
        ],
        "items": {table: dict(counts) for table, counts in found.items.items()},
        "unreadable": dict(found.unreadable),
        "old_formats": {table: list(names) for table, names in found.old_formats.items()},
        "keks": KekReport(application=found.application, uses=found.keks).to_json()["keks"],
        "edited": [{"message": str(problem), "remedy": problem.remedy} for problem in found.edited],
        "jobs": [_job_as_json(job_status) for job_status in found.jobs],
        "next": [_advice_as_json(advice) for advice in found.next_steps],
    }


def _job_as_json(job_status: JobStatus) -> dict[str, Any]:
    job = job_status.job
    return {
        "job_id": str(job.job_id),
        "verb": verb_of(job.options),
        "state": job.state,
        "done": job_status.done,
        "failed": job_status.failed,
        "total": job.total,
        "keys": job.options["keys"],
        "tables": job.options["tables"],
        "items_per_second": job.items_per_second,
        "release": job.release,
        "created_at": time_text(job.created_at),
        "updated_at": time_text(job.updated_at),
    }


def _advice_as_json(advice: Advice) -> dict[str, Any]:
    return {"command": advice.command, "reason": advice.reason, "after": time_text(advice.after) or None}


def _print(found: Status) -> None:
    typer.echo(f"application {printable(found.application)}\n")
    rows = [(total.purpose, total.kind, total.state, total.keys) for total in found.keys]
    _print_table(("PURPOSE", "KIND OF SCOPE", "STATE", "KEYS"), rows)
    counts = [
        (table, state, count) for table, by_state in found.items.items() for state, count in by_state.items()
    ]
    _print_table(("TABLE", "KEYS ARE", "ITEMS"), counts)
    keks = [(use.kek_uri, use.kek_version or "", use.wrappings, use.verified) for use in found.keks]
    _print_table(("KEK", "VERSION", "WRAPPINGS", "VERIFIED"), keks)
    jobs = [
        (
            str(job_status.job.job_id),
            verb_of(job_status.job.options),
            job_status.job.state,
            job_status.done,
            job_status.job.total,
            time_text(job_status.job.updated_at),
        )
        for job_status in found.jobs
    ]
    for problem in found.edited:
        typer.echo(f"{printable(str(problem))}\n  {printable(problem.remedy)}\n")
    _print_table(("JOB", "VERB", "STATE", "DONE", "OF", "LAST SEEN"), jobs)
    _print_next(found.next_steps)


def _print_table(heading: Sequence[str], rows: Sequence[Sequence[str | int]]) -> None:
    if rows:
        print_columns(heading, rows)
        typer.echo()


def _print_intents(intents: Sequence[dict[str, Any]]) -> None:
    for intent in intents:
        scope = printable(str(intent["scope"]))
        typer.echo(
            f"a shred was begun at {intent['at']} and is not done: eventseal shred {shlex.quote(scope)}"
        )


def _print_next(steps: Sequence[Advice]) -> None:
    if not steps:
        typer.echo("nothing is worth running now")
    for advice in steps:
        when = "now" if advice.after is None else f"from {time_text(advice.after)}"
        typer.echo(f"worth running {when}: {printable(advice.command)}\n  {printable(advice.reason)}")
