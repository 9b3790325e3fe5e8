"""``eventseal rotate``."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventseal.cli.confirmation import confirm
from eventseal.cli.exit_codes import ExitCode
from eventseal.cli.interruption import RUN_AGAIN, resumable
from eventseal.cli.options import Config, DryRun, Json, Options, Yes
from eventseal.cli.output import print_json
from eventseal.cli.progress import shown_progress
from eventseal.cli.reencrypting import print_reencrypted, reencrypt_shown
from eventseal.cli.results import print_failures, print_retired_rows
from eventseal.errors import ConfigurationError, JobError
from eventseal.rotation import mark_compromised, rotate_keys
from eventseal.rotation import retire as retire_keys
from eventseal.rotation.did_you_mean import known_keys, refuse_unknown_scopes
from eventseal.rotation.rows_set_aside import AsideRows
from eventseal.rotation.sealed_store import registered_tables
from eventseal.rotation.status.key_totals import active_data_keys, replaced_data_keys, settled_at
from eventseal.rotation.table_checks import refuse_unregistered_tables
from eventseal.rotation.uncertain_rows import refuse_damaged_rows
from eventseal.storage.database.transactions import read

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


def rotate(
    context: typer.Context,
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
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the re-encryption.")] = 1,
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """
    Give every scope a new active key. No item is touched, unless it is asked for.

    The old keys open what they sealed. With --reencrypt all items of these scopes
    are sealed again under the new ones, also what earlier runs have left under
    older keys. With --retire all old keys of the scopes are then destroyed, which
    cannot be undone. Without --retire it tells from when on `retire` is worth
    running.
    """
    options = Options.of(context, config=config, as_json=as_json, yes=yes, dry_run=dry_run)
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
            refuse_unknown_scopes(seal.datastore, application, scope, stored_as=seal.keyring.scope_named)
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


class _Run:
    """The steps of one rotation; each is shown when it is done, or all at once as JSON."""

    def __init__(
        self,
        options: Options,
        seal: EventSeal,
        *,
        scopes: Collection[str] | None,
        keys: Collection[UUID] | None,
        compromised: bool,
        give_up: bool,
        workers: int,
    ) -> None:
        self._options = options
        self._seal = seal
        self._scopes = scopes
        self._keys = keys
        self._of_every_scope = scopes is None and keys is None
        self._compromised = compromised
        self._give_up = give_up
        self._workers = workers
        self._steps: dict[str, JobResult] = {}
        self._retire_after: datetime | None = None
        self.remedy = RUN_AGAIN

    @property
    def failed(self) -> bool:
        """Whether a step could not deal with some item or key."""
        return any(result.failed for result in self._steps.values())

    @property
    def unfinished(self) -> bool:
        """Whether the re-encryption has left items: it was paused, or another run took it over."""
        return "reencrypt" in self._steps and self._steps["reencrypt"].unfinished

    def take(self, *, reencrypt: bool, retire: bool) -> None:
        """Take the steps that are asked for."""
        if self._options.dry_run:
            self._tell_what_would_be_done(reencrypt=reencrypt)
            return
        if reencrypt:
            refuse_unregistered_tables(self._seal)  # before anything is rotated, not after it
        if retire:
            tables = registered_tables(self._seal.datastore, self._seal.cipher.application)
            aside = AsideRows(self._seal.datastore.engine, tables, self._seal.rows_set_aside)
            # It would stop the last step, after the wait.
            refuse_damaged_rows(self._seal, tables, aside, give_up=self._give_up)
            many = self._count_scopes() + (len(self._old_keys()) if self._keys is None else 0)
            what = "old keys" if self._keys is None else "keys"
            confirm(self._options, f"{many:,} {what} are about to be destroyed for good.")
        self._rotate()
        old = self._old_keys()  # also those of earlier runs that did not get to the end
        if reencrypt and old:
            self._reencrypt()
            if retire and not self.unfinished:
                self._wait()
                if self._steps["reencrypt"].settles_at is not None:
                    self._reencrypt()  # what was appended under an old key meanwhile
                if not self.unfinished:
                    self._retire(old)
        self._tell()

    def _rotate(self) -> None:
        self.remedy = "Scopes that were rotated stay so. Run again, it rotates all of them, these once more."
        with shown_progress("rotate", "scopes") as progress:
            if self._keys is not None:
                result = mark_compromised(self._seal, self._keys, progress=progress)
            else:
                result = rotate_keys(
                    self._seal, scopes=self._scopes, compromised=self._compromised, progress=progress
                )
        self.remedy = "The keys are rotated. To go on: eventseal reencrypt, then eventseal retire"
        self._show("rotate", result)
        look = partial(settled_at, application=self._seal.settings.application)
        self._retire_after = read(
            self._seal.datastore.key_engine, look, doing="reading when keys were rotated"
        )

    def _old_keys(self) -> Collection[UUID]:
        """Give the keys that seal no more: of the scopes, or those that were named."""
        if self._keys is not None:
            return self._keys
        scopes = None if self._scopes is None else {*map(self._seal.keyring.scope_named, self._scopes)}
        look = partial(replaced_data_keys, application=self._seal.settings.application, scopes=scopes)
        return read(self._seal.datastore.key_engine, look, doing="looking for keys that seal no more")

    def _reencrypt(self) -> None:
        keys = None if self._of_every_scope else self._old_keys()
        result = reencrypt_shown(self._options, self._seal, keys=keys, workers=self._workers)
        self._show("reencrypt", result)

    def _wait(self) -> None:
        """Wait until every process has noticed: it saves work; what keeps items safe is the fence."""
        if self._retire_after is None:
            return
        store = self._seal.key_store
        left = (self._retire_after - store.now()).total_seconds()
        if left > 0:
            typer.echo(f"rotate: waiting {left:.0f} s, until every process has noticed", err=True)
        while left > 0:
            time.sleep(min(left, _LONGEST_SLEEP))
            left = (self._retire_after - store.now()).total_seconds()

    def _retire(self, old: Collection[UUID]) -> None:
        named = None if self._of_every_scope and len(old) > MOST_NAMED else old
        self.remedy = "Keys that were destroyed stay so. To go on: eventseal retire"
        with shown_progress("retire", "keys") as progress:
            try:
                result = retire_keys(
                    self._seal, keys=named, give_up_set_aside=self._give_up, progress=progress
                )
            except JobError as error:
                # Where a row could not be moved, its key stays: the row has been named, and is what failed.
                # So does the key of a row that is set aside.
                if not hasattr(error, "result") or not (self.failed or hasattr(error, "set_aside")):
                    raise
                result = error.result
        self._retire_after = None
        self._show("retire", result)

    def _tell_what_would_be_done(self, *, reencrypt: bool) -> None:
        scopes = self._count_scopes()
        if reencrypt:  # of what is under old keys already; what is under the active ones now would be added
            keys = None if self._scopes is None else self._old_keys()
            result = reencrypt_shown(self._options, self._seal, keys=keys, workers=self._workers)
            self._steps["reencrypt"] = result
        if self._options.as_json:
            steps = {name: result.to_json() for name, result in self._steps.items()}
            print_json({"verb": "rotate", "dry_run": True, "scopes": scopes, **steps})
            return
        would = (
            "scopes would get a new active key" if self._keys is None else "keys would be marked compromised"
        )
        typer.echo(f"{scopes:,} {would}")
        for result in self._steps.values():
            typer.echo("beside what is under these active keys now:")
            print_reencrypted(result, dry_run=True)

    def _count_scopes(self) -> int:
        named = self._keys or self._scopes
        if named is not None:
            return len(set(named))
        look = partial(active_data_keys, application=self._seal.settings.application)
        return read(self._seal.datastore.key_engine, look, doing="counting active keys")

    def _show(self, step: str, result: JobResult) -> None:
        self._steps[step] = result
        if self._options.as_json:
            return
        if step == "rotate":
            print_failures(result.failures)
            did = "scopes have a new active key" if self._keys is None else "keys are marked compromised"
            typer.echo(f"{result.done:,} {did}, {result.failed:,} failed")
        elif step == "reencrypt":
            print_reencrypted(result, dry_run=False)
        else:
            print_failures(result.failures)
            typer.echo(f"{result.done:,} keys were destroyed, {result.left:,} stay, {result.failed:,} failed")
            print_retired_rows(result, did="were")

    def _tell(self) -> None:
        if self._options.as_json:
            print_json(self._as_json())
        elif self._retire_after is not None:
            moment = self._retire_after.isoformat(timespec="seconds")
            typer.echo(f"`eventseal retire` is worth running from {moment} by the database's clock")

    def _as_json(self) -> dict[str, Any]:
        first, *rest = self._steps
        after = None if self._retire_after is None else self._retire_after.isoformat(timespec="seconds")
        return {
            **self._steps[first].to_json(),
            "dry_run": False,
            **{step: self._steps[step].to_json() for step in rest},
            "retire_after": after,
        }
