"""``eventseal rewrap``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.long_runs import shown_progress
from eventseal.cli.output import print_failures, print_wrappings, report
from eventseal.cli.shared_options import Options, with_options
from eventseal.erasure.epoch_keks import rewrap_ledger_key
from eventseal.kms import adapter_from_uri
from eventseal.rotation import rewrap as rewrap_keys
from eventseal.rotation.rewrapping import WRAPPING_TABLE

if TYPE_CHECKING:
    from eventseal.rotation import JobResult

EXAMPLES = """\b
Examples:
  eventseal rewrap --dry-run
  eventseal rewrap
  eventseal rewrap --to aws-kms://arn:aws:kms:eu-west-1:111122223333:key/...
"""


@with_options("yes", "dry_run")
def rewrap(
    options: Options,
    *,
    to: Annotated[
        str | None, typer.Option(metavar="URI", help="The KEK that is to be the only one in the end.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Keys in one call.")] = 100,
) -> None:
    """
    Re-wrap keys under the current KMS keys. No item is touched.

    Keys move to the newest version of every configured KEK, and get the wrappings
    that they miss; data keys under branch keys move to the branch's active one.
    An old wrapping goes once a process has unwrapped the new one: run it again
    after that, with the right to unwrap. Interrupted, it is run again.
    """
    target = None if to is None else adapter_from_uri(to)
    with options.open_seal() as seal, shown_progress("rewrap", "keys") as progress:
        result = rewrap_keys(seal, to=target, batch=batch, dry_run=options.dry_run, progress=progress)
        if not options.dry_run:
            rewrap_ledger_key(seal, target)
    report(options, result, lambda: _print(result, dry_run=options.dry_run))


def _print(result: JobResult, *, dry_run: bool) -> None:
    print_wrappings(result)
    print_failures(result.failures)
    counts = result.by_table[WRAPPING_TABLE]
    if dry_run:
        typer.echo(
            f"{counts['to_move']:,} keys would be wrapped anew, {counts['awaiting']:,} wait until the new "
            f"wrapping was unwrapped, {counts['done']:,} are as they should be"
        )
        return
    typer.echo(
        f"{counts['done']:,} keys are wrapped as they should be: {counts['added']:,} wrappings were added, "
        f"{counts['dropped']:,} keys lost older ones; {counts['failed']:,} failed"
    )
    if counts["awaiting"]:
        typer.echo(
            f"{counts['awaiting']:,} keys keep old wrappings until a process has unwrapped the new one: "
            "run it again, with the right to unwrap, after the applications, or `eventseal verify`, have "
            "opened them"
        )
