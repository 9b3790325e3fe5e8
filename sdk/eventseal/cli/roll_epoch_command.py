"""``eventseal roll-epoch``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.long_runs import shown_progress
from eventseal.cli.output import (
    confirm,
    exit_by,
    print_failures,
    print_wrappings,
    report,
    show_result,
    time_text,
)
from eventseal.cli.receipt_command import ReceiptFile, refuse_receipt_file, write_receipt
from eventseal.cli.shared_options import Options, with_options
from eventseal.erasure import Ending
from eventseal.erasure import roll_epoch as roll_epoch_of
from eventseal.kms import adapter_from_uri
from eventseal.rotation.rewrapping import WRAPPING_TABLE

if TYPE_CHECKING:
    from eventseal.configuration import EventSeal
    from eventseal.erasure import EndedKek, EpochResult
    from eventseal.kms import KmsAdapter

EXAMPLES = """\b
Examples:
  eventseal roll-epoch --dry-run
  eventseal roll-epoch --receipt epoch.html
  eventseal roll-epoch --to aws-kms://arn:aws:kms:eu-west-1:111122223333:key/... --pending-window-days 7
"""

_RECEIPT_AGAIN = (
    "What was printed has its dates. Run again with another file, it gives the receipt of the next epoch, or "
    "this one's from the ledger if the old KEK has its date."
)


@with_options("yes", "dry_run")
def roll_epoch(
    options: Options,
    *,
    to: Annotated[
        str | None,
        typer.Option(metavar="URI", help="The KEK that takes the place of all, as on AWS; list it before."),
    ] = None,
    pending_window_days: Annotated[
        int, typer.Option(min=7, max=30, help="Days until AWS deletes the old KMS key.")
    ] = 30,
    batch: Annotated[int, typer.Option(min=1, help="Keys in one call.")] = 100,
    receipt: ReceiptFile = None,
) -> None:
    """
    Make backups of the key tables useless: they open nothing any more.

    Branches get new keys, KEKs new versions (or --to takes their place), every
    live key moves there and is unwrapped once; then the old versions, or the old
    KEKs, are ended for good. No item is touched. Interrupted, it is run again.
    Take a backup of the key tables right afterwards.
    """
    refuse_receipt_file(receipt)
    with options.open_seal() as seal:
        target = None if to is None else _configured(seal, to)
        would = roll_epoch_of(seal, to=target, dry_run=True)
        if options.dry_run:
            report(options, would, lambda: _print_foreseen(would))
            return
        confirm(options, _sentence(would, target), show=lambda: _print_foreseen(would))
        with shown_progress("roll-epoch", "keys") as progress:
            result = roll_epoch_of(
                seal, to=target, pending_window_days=pending_window_days, batch=batch, progress=progress
            )
    show_result(options, result, lambda: _print(result))
    write_receipt(receipt, result.receipt, done="the epoch is rolled", remedy=_RECEIPT_AGAIN)
    exit_by(result)


def _configured(seal: EventSeal, uri: str) -> KmsAdapter:
    """Give the adapter that the store has for a KEK; else a new one, which will be refused as not listed."""
    named = adapter_from_uri(uri)
    return next((adapter for adapter in seal.keyring.keks if adapter.uri == named.uri), named)


def _sentence(would: EpochResult, target: KmsAdapter | None) -> str:
    what = "every older version of the KEK" if target is None else f"every KEK but {target.uri}"
    others = ""
    if would.others:
        others = (
            f" The applications {', '.join(sorted(would.others))} have keys in these tables, too: each "
            "rewraps its own first, or this is refused."
        )
    return (
        f"{what} is about to be ended for good, and with it every backup of the key tables.{others} Whatever "
        "else is wrapped under it, in other databases, by other programs or in other applications' ledgers, "
        "is lost with it: nobody here can see that."
    )


def _print_foreseen(would: EpochResult) -> None:
    counts = would.by_table[WRAPPING_TABLE]
    print_wrappings(would)
    typer.echo(
        f"{counts['under_branch_keys']:,} wrappings under branch keys would be made anew here, and "
        f"{counts['under_keks']:,} by the KMS"
    )
    for application, count in sorted(would.others.items()):
        typer.echo(f"application {application} has {count:,} wrappings under these KEKs: it rewraps first")


def _print(result: EpochResult) -> None:
    print_failures(result.failures)
    if result.finished_at is None:
        typer.echo(f"{result.failed:,} keys could not be moved, and no KEK was ended")
        return
    counts = result.by_table[WRAPPING_TABLE]
    typer.echo(
        f"{result.done:,} keys are wrapped as they should be: {counts['added']:,} wrappings were added, "
        f"{counts['dropped']:,} keys lost older ones"
    )
    for kek in result.keks:
        typer.echo(_ended(kek))
    if result.covers_before is None:
        typer.echo("backups open nothing if they are older than the KEK that stays")
    else:
        moment = time_text(result.covers_before)
        typer.echo(f"backups of the key tables that are older than {moment} open nothing once that is done")
    typer.echo("take a backup of the key tables now: there is no other one that opens")


def _ended(kek: EndedKek) -> str:
    if kek.ending is Ending.BY_HAND:
        return (
            f"{kek.name}: no key needs it. Delete it, and every copy of it: it opens old backups until then"
        )
    since, end = time_text(kek.closed_at), time_text(kek.ends_at)
    if kek.ending is Ending.SCHEDULED:
        return f"{kek.name}: opens nothing since {since}; deleted on {end}, until then it can be taken back"
    return f"{kek.name}: deleted for good at {end}"
