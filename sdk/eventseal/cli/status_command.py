"""``eventseal status``."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from eventseal.cli.exits import ExitCode
from eventseal.cli.output import (
    print_columns,
    print_json,
    print_rows_set_aside,
    printable,
    time_shown,
    time_text,
    verbatim,
)
from eventseal.cli.shared_options import Options, with_options
from eventseal.configuration.assembly import configured_ledger, rotation_policy
from eventseal.erasure.ledger.entries import INTENT
from eventseal.erasure.setting_aside import unverified_rows
from eventseal.rotation.jobs.jobs import verb_of
from eventseal.rotation.rewrapping import KekReport
from eventseal.rotation.status.application_status import status as read_status
from eventseal.wording import moment, shell_word

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
    Show the state of keys, items and jobs, and the next commands.

    It reads the tables and needs no KMS key. It counts keys by purpose, by the kind
    of their scope (the part before the colon) and by state. It counts items by the
    state of their keys, and wrappings by KMS key and version.

    The exit code is 1 if items cannot be read or rows were edited, as far as that
    is visible without a key. To open every item, run `eventseal verify`.
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
    """Read the unfinished shreds from the ledger, which is not verified."""
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
        (table, state.replace("_", " "), count)
        for table, by_state in found.items.items()
        for state, count in by_state.items()
    ]
    _print_table(("TABLE", "STATE", "ITEMS"), counts)
    keks = [(use.kek_uri, use.kek_version or "", use.wrappings, use.verified) for use in found.keks]
    _print_table(("KMS KEY", "VERSION", "WRAPPINGS", "VERIFIED"), keks)
    jobs = [
        (
            str(job_status.job.job_id),
            verb_of(job_status.job.options),
            job_status.job.state,
            job_status.done,
            job_status.job.total,
            time_shown(job_status.job.updated_at),
        )
        for job_status in found.jobs
    ]
    for problem in found.edited:
        typer.echo(f"{printable(str(problem))}\n  {verbatim(problem.remedy)}\n")
    _print_table(("JOB", "VERB", "STATE", "DONE", "OF", "LAST SEEN"), jobs)
    _print_next(found)


def _print_table(heading: Sequence[str], rows: Sequence[Sequence[str | int]]) -> None:
    if rows:
        print_columns(heading, rows)
        typer.echo()


def _print_intents(intents: Sequence[dict[str, Any]]) -> None:
    for intent in intents:
        scope = printable(str(intent["scope"]))
        begun = moment(datetime.fromisoformat(intent["at"]))
        typer.echo(
            f"A shred began at {begun} and is not done. Next: run `eventseal shred {shell_word(scope)}`."
        )


def _print_next(found: Status) -> None:
    if not found.next_steps:
        typer.echo("No command needs to run now.")
    for advice in found.next_steps:
        after = "" if advice.after is None else f" after {moment(advice.after, found.now)}"
        typer.echo(f"Next: run `{verbatim(advice.command)}`{after}.\n  {printable(advice.reason)}")
