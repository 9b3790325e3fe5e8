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
    printable,
    report,
    show_result,
    time_shown,
)
from eventseal.cli.receipt_command import ReceiptFile, refuse_receipt_file, write_receipt
from eventseal.cli.shared_options import Options, with_options
from eventseal.erasure import Ending
from eventseal.erasure import roll_epoch as roll_epoch_of
from eventseal.kms import adapter_from_uri
from eventseal.rotation.rewrapping import WRAPPING_TABLE
from eventseal.wording import counted, moment

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
    "The output above has its dates. If the old KMS key already has a deletion date, run the command again "
    "with another file to get this receipt from the ledger. Otherwise, another run gives the receipt of the "
    "next epoch."
)


@with_options("yes", "dry_run")
def roll_epoch(
    options: Options,
    *,
    to: Annotated[
        str | None,
        typer.Option(metavar="URI", help="The KMS key that replaces all others. List it in kms_key first."),
    ] = None,
    pending_window_days: Annotated[
        int, typer.Option(min=7, max=30, help="Days until AWS deletes the old KMS key.")
    ] = 30,
    batch: Annotated[int, typer.Option(min=1, help="The most keys in one call.")] = 100,
    receipt: ReceiptFile = None,
) -> None:
    """
    Make old backups of the key tables useless.

    Branches get new keys, and KMS keys get new versions. With --to, one KMS key
    replaces all others, as AWS requires. Every key that is not destroyed is wrapped
    under the new ones, and unwrapped once. Then the old versions, or the old KMS
    keys, end permanently: the KMS destroys them, or you delete them. After that, old
    backups open nothing.

    No item is touched. If a run is interrupted, run it again. Take a backup of the
    key tables immediately afterwards.
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
    """
    Return the store's adapter of a KEK.

    If the KEK is not listed, return a new adapter, which `roll_epoch` refuses.
    """
    named = adapter_from_uri(uri, seal.settings.kms_options)
    return next((adapter for adapter in seal.keyring.keks if adapter.uri == named.uri), named)


def _sentence(would: EpochResult, target: KmsAdapter | None) -> str:
    what = "Every older version of the KMS keys" if target is None else f"Every KMS key except {target.uri}"
    others = ""
    if would.others:
        others = (
            f" Other applications have keys in these tables: {', '.join(sorted(would.others))}. Run "
            "`eventseal rewrap` for each of them first. Without that, this run is refused."
        )
    return printable(
        f"{what} is about to end permanently: the KMS destroys it, or you delete it. After that, every "
        "backup of the key tables is useless. Everything else that is wrapped under it is lost too: in other "
        "databases, by other programs, or in the ledgers of other applications. EventSeal cannot see such "
        f"uses.{others}"
    )


def _print_foreseen(would: EpochResult) -> None:
    counts = would.by_table[WRAPPING_TABLE]
    print_wrappings(would)
    typer.echo(
        f"Wrappings that would be replaced: {counts['under_branch_keys']:,} under branch keys (by this "
        f"process), and {counts['under_keks']:,} under KMS keys (by the KMS)."
    )
    for application, count in sorted(would.others.items()):
        wrappings = counted(count, "wrapping")
        typer.echo(
            f"Application {printable(application)} has {wrappings} under these KMS keys. Run `eventseal "
            "rewrap` for it first."
        )


def _print(result: EpochResult) -> None:
    print_failures(result.failures)
    if result.finished_at is None:
        typer.echo(f"{counted(result.failed, 'key')} could not be re-wrapped. No KMS key was destroyed.")
        return
    counts = result.by_table[WRAPPING_TABLE]
    typer.echo(
        f"Keys wrapped under the current KMS keys: {result.done:,}. Wrappings added: {counts['added']:,}. "
        f"Keys whose old wrappings were deleted: {counts['dropped']:,}."
    )
    for kek in result.keks:
        typer.echo(printable(_ended(kek, result)))
    _print_backups(result)
    typer.echo("Next: take a backup of the key tables now. No older backup opens.")


def _print_backups(result: EpochResult) -> None:
    """Show which backups of the key tables are useless."""
    if any(kek.ending is Ending.BY_HAND for kek in result.keks):
        return  # the line of the KEK says it
    if result.covers_before is None:
        typer.echo("Backups of the key tables from before the current KMS key was created open nothing.")
    else:
        before = moment(result.covers_before)
        typer.echo(f"Backups of the key tables taken before {before} open nothing after that.")


def _ended(kek: EndedKek, result: EpochResult) -> str:
    if kek.ending is Ending.BY_HAND:
        taken = "from before the current KMS key was created"
        if result.covers_before is not None:
            taken = f"taken before {moment(result.covers_before)}"
        what = "key file" if kek.kek_uri.startswith("local://") else "KMS key"
        return (
            f"Backups of the key tables {taken} become useless once you delete the old {what}: {kek.name}. "
            "No key needs it. Remove it from kms_key of every application, then delete it and all copies."
        )
    if kek.ending is Ending.SCHEDULED:
        return (
            f"{kek.name}: opens nothing since {time_shown(kek.closed_at)}. The KMS deletes it on "
            f"{time_shown(kek.ends_at)}. Until then you can cancel the deletion."
        )
    return f"{kek.name}: deleted permanently at {time_shown(kek.ends_at)}"
