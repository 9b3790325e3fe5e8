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
from eventseal.wording import counted

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
        str | None, typer.Option(metavar="URI", help="The KMS key that becomes the only one.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="The most keys in one call.")] = 100,
) -> None:
    """
    Re-wrap data keys under the current KMS keys. No item is touched.

    Keys move to the newest version of every configured KMS key, and get their
    missing wrappings. Data keys under branch keys move to the branch's active key.

    An old wrapping is deleted only after a process has unwrapped the new one. Let
    your applications run, or run `eventseal verify`. Then run this command again,
    with the permission of the KMS to unwrap. If a run is interrupted, run it again.
    """
    with options.open_seal() as seal, shown_progress("rewrap", "keys") as progress:
        target = None if to is None else adapter_from_uri(to, seal.settings.kms_options)
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
            f"Keys that would be re-wrapped: {counts['to_move']:,}. "
            f"Keys whose new wrapping must be unwrapped first: {counts['awaiting']:,}. "
            f"Keys that need no change: {counts['done']:,}."
        )
        return
    typer.echo(
        f"Keys wrapped under the current KMS keys: {counts['done']:,}. Wrappings added: {counts['added']:,}. "
        f"Keys whose old wrappings were deleted: {counts['dropped']:,}. Failed: {counts['failed']:,}."
    )
    if counts["awaiting"]:
        keys = counted(counts["awaiting"], "key keeps", "keys keep")
        typer.echo(
            f"{keys} old wrappings until a process has unwrapped the new ones.\n"
            "Next: run `eventseal verify`, or let your applications open items. Then run `eventseal rewrap` "
            "again, with the permission to unwrap."
        )
