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
from eventseal.wording import counted, moment

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime
    from uuid import UUID

    from eventseal.configuration import EventSeal
    from eventseal.rotation import JobResult

MOST_NAMED = 10_000
"""The most replaced keys that are retired by name. With more, every old key is retired."""

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
        list[str] | None, typer.Option(metavar="SCOPE", help="Only this scope. Repeatable.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="With --compromised: mark this key, active or old. Repeatable."),
    ] = None,
    compromised: Annotated[
        bool,
        typer.Option(
            "--compromised", help="The old keys leaked: mark them, and refuse new items under them."
        ),
    ] = False,
    reencrypt: Annotated[
        bool,
        typer.Option("--reencrypt", help="Then re-encrypt the items of the scopes under the new keys."),
    ] = False,
    retire: Annotated[
        bool, typer.Option("--retire", help="Then wait for all processes, and destroy the old keys.")
    ] = False,
    give_up_set_aside: Annotated[
        bool,
        typer.Option(
            "--give-up-set-aside",
            help="With --retire: destroy keys even if rows that are set aside need them.",
        ),
    ] = False,
    workers: Workers = 1,
) -> None:
    """
    Create a new active key for every scope, or for named scopes.

    Old keys still decrypt their items, and no item is touched. With --reencrypt,
    all items of these scopes are then encrypted under the new keys, including items that
    earlier runs left under older keys. With --retire, all old keys of the scopes are
    then destroyed, which you cannot undo. Without --retire, the output says when to
    run `eventseal retire`.
    """
    if retire and not reencrypt:
        raise ConfigurationError(
            "--retire needs --reencrypt: a key with items cannot be destroyed",
            remedy="Pass both, or run `eventseal retire` for the keys that have no items.",
        )
    if give_up_set_aside and not retire:
        raise ConfigurationError(
            "--give-up-set-aside needs --retire: without it no key is destroyed",
            remedy="Add --reencrypt --retire, or leave --give-up-set-aside out.",
        )
    if key and (scope or not compromised):
        raise ConfigurationError(
            "--key needs --compromised, and excludes --scope",
            remedy="To rotate, name scopes with --scope. To mark and replace single keys, pass --compromised "
            "with --key.",
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
    """The steps of one rotation. Each is shown when it is done, or all together as JSON."""

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
    repeats: bool = False

    @property
    def is_of_every_scope(self) -> bool:
        """Whether neither scopes nor keys were named."""
        return self.scopes is None and self.keys is None

    @property
    def failed(self) -> bool:
        """Whether an item or a key failed in a step."""
        return any(result.failed for result in self.steps.values())

    @property
    def unfinished(self) -> bool:
        """Whether the re-encryption left items. It was paused, or another run took it over."""
        return "reencrypt" in self.steps and self.steps["reencrypt"].unfinished

    def take(self, *, reencrypt: bool, retire: bool) -> None:
        """Take the steps that the options request."""
        if self.options.dry_run:
            self._preview(reencrypt=reencrypt)
            return
        if reencrypt:
            refuse_unregistered_tables(self.seal)  # before anything is rotated, not after it
        if retire:
            tables = registered_tables(self.seal.datastore, self.seal.cipher.application)
            aside = AsideRows.of_store(self.seal, tables)
            # Damaged rows would stop the last step, after the wait.
            refuse_damaged_rows(self.seal, tables, aside, give_up=self.give_up)
            many = self._count_scopes() + (len(self._old_keys()) if self.keys is None else 0)
            what = "old key" if self.keys is None else "key"
            keys = counted(many, f"{what} is", f"{what}s are")
            confirm(self.options, f"{keys} about to be destroyed permanently.")
            self.repeats = True  # the re-encryption, after the wait: nobody needs the hint to do that
        self._rotate()
        old = self._old_keys()  # also the old keys of earlier runs that did not reach the end
        if reencrypt and old:
            self._reencrypt()
            if retire and not self.unfinished:
                self._wait()
                if self.steps["reencrypt"].settles_at is not None:
                    self._reencrypt()  # the items that were appended under an old key meanwhile
                if not self.unfinished:
                    self._retire(old)
        self._finish()

    def _rotate(self) -> None:
        self.remedy = (
            "Scopes that were rotated keep their new keys. If you run it again, it rotates all its scopes, "
            "these too."
        )
        with shown_progress("rotate", "scopes") as progress:
            if self.keys is not None:
                result = mark_compromised(self.seal, self.keys, progress=progress)
            else:
                result = rotate_keys(
                    self.seal, scopes=self.scopes, compromised=self.compromised, progress=progress
                )
        self.remedy = "The keys are rotated. To continue: run `eventseal reencrypt`, then `eventseal retire`."
        self._show("rotate", result)
        self.retire_after = noticed_at(self.seal)

    def _old_keys(self) -> Collection[UUID]:
        """Return the named keys, or the old keys of the scopes."""
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
        """
        Wait until every process has noticed the rotation.

        The wait saves work. The fence keeps items safe without it.
        """
        if self.retire_after is None:
            return
        store = self.seal.key_store
        left = (self.retire_after - store.now()).total_seconds()
        if left > 0:
            typer.echo(f"rotate: waiting {left:.0f} s until every process has noticed the new keys", err=True)
        while left > 0:
            time.sleep(min(left, _LONGEST_SLEEP))
            left = (self.retire_after - store.now()).total_seconds()

    def _retire(self, old: Collection[UUID]) -> None:
        named = None if self.is_of_every_scope and len(old) > MOST_NAMED else old
        self.remedy = "Destroyed keys stay destroyed. To continue: eventseal retire"
        with shown_progress("retire", "keys") as progress:
            try:
                result = retire_keys(self.seal, keys=named, give_up_set_aside=self.give_up, progress=progress)
            except JobError as error:
                # If a row could not be re-encrypted, its key stays. The output has named the row, and the run
                # counts it as failed. The key of a row that is set aside stays too.
                if not hasattr(error, "result") or not (self.failed or hasattr(error, "set_aside")):
                    raise
                result = error.result
        self.retire_after = None
        self._show("retire", result)

    def _preview(self, *, reencrypt: bool) -> None:
        scopes = self._count_scopes()
        if reencrypt:  # counts items under old keys: those under the active keys would be added
            keys = None if self.scopes is None else self._old_keys()
            self.steps["reencrypt"] = self._reencrypted(keys)
        if self.options.as_json:
            steps = {name: result.to_json() for name, result in self.steps.items()}
            print_json({"verb": "rotate", "dry_run": True, "scopes": scopes, **steps})
            return
        if self.keys is None:
            typer.echo(f"{counted(scopes, 'scope')} would get a new active key")
        else:
            typer.echo(f"{counted(scopes, 'key')} would be marked compromised")
        for result in self.steps.values():
            typer.echo(
                "Items under keys that are active now would be re-encrypted too. "
                "The counts below leave them out."
            )
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
            did = "Scopes with a new active key" if self.keys is None else "Keys marked compromised"
            typer.echo(f"{did}: {result.done:,}. Failed: {result.failed:,}.")
        elif step == "reencrypt":
            now = self.seal.key_store.now()
            print_reencrypted(result, dry_run=False, now=now, repeats=self.repeats)
        else:
            print_destroyed(result, dry_run=False)

    def _finish(self) -> None:
        if self.options.as_json:
            print_json(self._as_json())
        elif self.retire_after is not None:
            now = self.seal.key_store.now()
            after = f" after {moment(self.retire_after, now)}" if self.retire_after > now else ""
            before = "" if "reencrypt" in self.steps else "`eventseal reencrypt`, then "
            typer.echo(f"Next: run {before}`eventseal retire`{after}.")

    def _as_json(self) -> dict[str, Any]:
        first, *rest = self.steps
        return {
            **self.steps[first].to_json(),
            "dry_run": False,
            **{step: self.steps[step].to_json() for step in rest},
            "retire_after": time_text(self.retire_after) or None,
        }
