"""``eventseal upgrade``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from eventseal.cli.output import confirm, print_json, printable
from eventseal.cli.shared_options import Options, load_modules, with_options
from eventseal.configuration.upgrade import upgrade as upgrade_store

if TYPE_CHECKING:
    from eventseal.configuration.upgrade import SetupStep

EXAMPLES = """\b
Examples:
  eventseal upgrade --dry-run
  eventseal upgrade --yes
"""


@with_options("yes", "dry_run")
def upgrade(options: Options) -> None:
    """
    Bring a store of an earlier release up to date.

    It renames EventSeal's own tables, adds missing columns, tables and indexes, and
    upgrades the key tables. Your items are not changed. If it is interrupted, run
    it again.

    No earlier release can use the store after that. Make a backup, and stop the
    processes of earlier releases first. Processes of this release can run on.
    """
    load_modules(tables=options.settings().tables)
    steps = upgrade_store(options.config, dry_run=True)
    if not options.dry_run and any(step.changed for step in steps):
        what = "The tables are about to be upgraded. No earlier release can use them after that."
        confirm(options, what, show=lambda: _print(steps, dry_run=True))
        steps = upgrade_store(options.config)
    if options.as_json:
        print_json(_as_json(steps, dry_run=options.dry_run))
    else:
        _print(steps, dry_run=options.dry_run)


def _as_json(steps: list[SetupStep], *, dry_run: bool) -> dict[str, Any]:
    return {
        "verb": "upgrade",
        "dry_run": dry_run,
        "changed": any(step.changed for step in steps),
        "steps": [{"name": step.name, "changed": step.changed, "detail": step.detail} for step in steps],
    }


def _print(steps: list[SetupStep], *, dry_run: bool) -> None:
    upgraded, current = "would upgrade" if dry_run else "upgraded", "up to date"
    width = max(len(upgraded), len(current))
    for step in steps:
        typer.echo(f"{upgraded if step.changed else current:{width}}  {printable(step.detail)}")
    if not any(step.changed for step in steps):
        typer.echo("Nothing was changed: the store is up to date.")
