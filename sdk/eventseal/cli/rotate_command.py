"""``eventseal rotate``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventseal.cli.exits import RUN_AGAIN, ExitCode, resumable
from eventseal.cli.long_runs import run_job, shown_progress
from eventseal.cli.output import confirm, print_failures, print_json, time_text
from eventseal.cli.reencrypt_command import print_reencrypted
from eventseal.cli.retire_command import print_destroyed
from eventseal.cli.shared_options import Options, Workers, with_options
from eventseal.errors import ConfigurationError, JobError
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.rotation import mark_compromised, rotate_keys
from eventseal.rotation import reencrypt as reencrypt_items
from eventseal.rotation import retire as retire_keys
from eventseal.rotation.did_you_mean import known_keys, refuse_unknown_scopes
from eventseal.rotation.jobs.jobs import REENCRYPT
from eventseal.rotation.sealed_store import registered_tables
from eventseal.rotation.set_aside_rows import AsideRows
from eventseal.rotation.status.key_totals import expected_keys, noticed_at, replaced_data_keys
from eventseal.rotation.table_checks import refuse_damaged_rows, refuse_unregistered_tables

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime
    from uuid import UUID

    from eventseal.configuration import EventSeal
    from eventseal.rotation import JobResult

MOST_NAMED = 10_000
"""Replaced keys of all scopes that are retired by name; if there are more, every old key is."""

_LONGEST_SLEEP = 1.0


EXAMPLES = """\b
Examples:
  eventseal rotate --scope tenant:acme
  eventseal rotate --dry-run
  eventseal rotate --reencrypt --retire --yes
  eventseal rotate --scope tenant:acme --compromised --reencrypt
  eventseal rotate --compromised --key 0190f3a2-5b1c-7a53-8f2e-8a1f3f6e6f0a
"""


@with_options("yes", "dry_run")
def rotate(
    options: Options,
    *,
    scope: Annotated[
        list[str] | None, typer.Option(metavar="SCOPE", help="Only this scope; several times.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="With --compromised: this key, also one replaced long ago."),
    ] = None,
    compromised: Annotated[
        bool, typer.Option("--compromised", help="The old keys leaked: mark them, and refuse late items.")
    ] = False,
    reencrypt: Annotated[
        bool,
        typer.Option(
            "--reencrypt", help="Then seal again all of their items that are not under the new keys."
        ),
    ] = False,
    retire: Annotated[
        bool, typer.Option("--retire", help="Then wait until every process has noticed, and destroy them.")
    ] = False,
    give_up_set_aside: Annotated[
        bool,
        typer.Option("--give-up-set-aside", help="With --retire: rows that are set aside keep no key."),
    ] = False,
    workers: Workers = 1,
) -> None:
    """
    Give every scope a new active key. No item is touched, unless it is asked for.

    The old keys open what they sealed. With --reencrypt all items of these scopes
    are sealed again under the new ones, also what earlier runs have left under
    older keys. With --retire all old keys of the scopes are then destroyed, which
    cannot be undone. Without --retire it tells from when on `retire` is worth
    running.
    """
    if retire and not reencrypt:
        raise ConfigurationError(
            "--retire needs --reencrypt: a key with items cannot be destroyed",
            remedy="Give both, or run `eventseal retire` for the keys that have no items.",
        )
    if give_up_set_aside and not retire:
        raise ConfigurationError("--give-up-set-aside needs --retire: without it no key is destroyed")
    if key and (scope or not compromised):
        raise ConfigurationError(
            "--key needs --compromised, and excludes --scope",
            remedy="To rotate, name scopes; a single key can be marked compromised, and is replaced then.",
        )
    with options.open_seal() as seal:
        application = seal.settings.application
        if scope:
            refuse_unknown_scopes(
                seal.datastore, application, scope, stored_as=seal.keyring.tables.scope_named
            )
        keys = known_keys(seal.datastore, application, key) if key else None
        run = _Run(
            options,
            seal,
            scopes=scope,
            keys=keys,
            compromised=compromised,
            give_up=give_up_set_aside,
            workers=workers,
        )
        with resumable(lambda: run.remedy):
            run.take(reencrypt=reencrypt, retire=retire)
    if run.failed or run.unfinished:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


@dataclass
class _Run:
    """The steps of one rotation; each is shown when it is done, or all at once as JSON."""

    options: Options
    seal: EventSeal
    scopes: Collection[str] | None
    keys: Collection[UUID] | None
    compromised: bool
    give_up: bool
    workers: int
    steps: dict[str, JobResult] = field(default_factory=dict)
    retire_after: datetime | None = None
    remedy: str = RUN_AGAIN

    @property
    def is_of_every_scope(self) -> bool:
        """Whether neither scopes nor keys were named."""
        return self.scopes is None and self.keys is None

    @property
    def failed(self) -> bool:
        """Whether a step could not deal with some item or key."""
        return any(result.failed for result in self.steps.values())

    @property
    def unfinished(self) -> bool:
        """Whether the re-encryption has left items: it was paused, or another run took it over."""
        return "reencrypt" in self.steps and self.steps["reencrypt"].unfinished

    def take(self, *, reencrypt: bool, retire: bool) -> None:
        """Take the steps that are asked for."""
        if self.options.dry_run:
            self._tell_what_would_be_done(reencrypt=reencrypt)
            return
        if reencrypt:
            refuse_unregistered_tables(self.seal)  # before anything is rotated, not after it
        if retire:
            tables = registered_tables(self.seal.datastore, self.seal.cipher.application)
            aside = AsideRows.of_store(self.seal, tables)
            # It would stop the last step, after the wait.
            refuse_damaged_rows(self.seal, tables, aside, give_up=self.give_up)
            many = self._count_scopes() + (len(self._old_keys()) if self.keys is None else 0)
            what = "old keys" if self.keys is None else "keys"
            confirm(self.options, f"{many:,} {what} are about to be destroyed for good.")
        self._rotate()
        old = self._old_keys()  # also those of earlier runs that did not get to the end
        if reencrypt and old:
            self._reencrypt()
            if retire and not self.unfinished:
                self._wait()
                if self.steps["reencrypt"].settles_at is not None:
                    self._reencrypt()  # what was appended under an old key meanwhile
                if not self.unfinished:
                    self._retire(old)
        self._tell()

    def _rotate(self) -> None:
        self.remedy = "Scopes that were rotated stay so. Run again, it rotates all of them, these once more."
        with shown_progress("rotate", "scopes") as progress:
            if self.keys is not None:
                result = mark_compromised(self.seal, self.keys, progress=progress)
            else:
                result = rotate_keys(
                    self.seal, scopes=self.scopes, compromised=self.compromised, progress=progress
                )
        self.remedy = "The keys are rotated. To go on: eventseal reencrypt, then eventseal retire"
        self._show("rotate", result)
        self.retire_after = noticed_at(self.seal)

    def _old_keys(self) -> Collection[UUID]:
        """Give the keys that seal no more: of the scopes, or those that were named."""
        if self.keys is not None:
            return self.keys
        scopes = None if self.scopes is None else {*map(self.seal.keyring.tables.scope_named, self.scopes)}
        application = self.seal.settings.application
        return replaced_data_keys(self.seal.datastore.key_engine, application=application, scopes=scopes)

    def _reencrypt(self) -> None:
        keys = None if self.is_of_every_scope else self._old_keys()
        self._show("reencrypt", self._reencrypted(keys))

    def _reencrypted(self, keys: Collection[UUID] | None) -> JobResult:
        verb = partial(reencrypt_items, self.seal, keys=keys)
        return run_job(self.options, REENCRYPT, verb, workers=self.workers)

    def _wait(self) -> None:
        """Wait until every process has noticed: it saves work; what keeps items safe is the fence."""
        if self.retire_after is None:
            return
        store = self.seal.key_store
        left = (self.retire_after - store.now()).total_seconds()
        if left > 0:
            typer.echo(f"rotate: waiting {left:.0f} s, until every process has noticed", err=True)
        while left > 0:
            time.sleep(min(left, _LONGEST_SLEEP))
            left = (self.retire_after - store.now()).total_seconds()

    def _retire(self, old: Collection[UUID]) -> None:
        named = None if self.is_of_every_scope and len(old) > MOST_NAMED else old
        self.remedy = "Keys that were destroyed stay so. To go on: eventseal retire"
        with shown_progress("retire", "keys") as progress:
            try:
                result = retire_keys(self.seal, keys=named, give_up_set_aside=self.give_up, progress=progress)
            except JobError as error:
                # Where a row could not be moved, its key stays: the row has been named, and is what failed.
                # So does the key of a row that is set aside.
                if not hasattr(error, "result") or not (self.failed or hasattr(error, "set_aside")):
                    raise
                result = error.result
        self.retire_after = None
        self._show("retire", result)

    def _tell_what_would_be_done(self, *, reencrypt: bool) -> None:
        scopes = self._count_scopes()
        if reencrypt:  # of what is under old keys already; what is under the active ones now would be added
            keys = None if self.scopes is None else self._old_keys()
            self.steps["reencrypt"] = self._reencrypted(keys)
        if self.options.as_json:
            steps = {name: result.to_json() for name, result in self.steps.items()}
            print_json({"verb": "rotate", "dry_run": True, "scopes": scopes, **steps})
            return
        would = (
            "scopes would get a new active key" if self.keys is None else "keys would be marked compromised"
        )
        typer.echo(f"{scopes:,} {would}")
        for result in self.steps.values():
            typer.echo("beside what is under these active keys now:")
            print_reencrypted(result, dry_run=True)

    def _count_scopes(self) -> int:
        named = self.keys or self.scopes
        if named is not None:
            return len(set(named))
        return expected_keys(self.seal, [KeyPurpose.DATA], [KeyState.ACTIVE])

    def _show(self, step: str, result: JobResult) -> None:
        self.steps[step] = result
        if self.options.as_json:
            return
        if step == "rotate":
            print_failures(result.failures)
            did = "scopes have a new active key" if self.keys is None else "keys are marked compromised"
            typer.echo(f"{result.done:,} {did}, {result.failed:,} failed")
        elif step == "reencrypt":
            print_reencrypted(result, dry_run=False)
        else:
            print_destroyed(result, did="were")

    def _tell(self) -> None:
        if self.options.as_json:
            print_json(self._as_json())
        elif self.retire_after is not None:
            moment = time_text(self.retire_after)
            typer.echo(f"`eventseal retire` is worth running from {moment} by the database's clock")

    def _as_json(self) -> dict[str, Any]:
        first, *rest = self.steps
        return {
            **self.steps[first].to_json(),
            "dry_run": False,
            **{step: self.steps[step].to_json() for step in rest},
            "retire_after": time_text(self.retire_after) or None,
        }
