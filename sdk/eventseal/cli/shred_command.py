"""``eventseal shred`` and ``eventseal reopen``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.output import (
    confirm,
    exit_by,
    print_columns,
    print_failures,
    printable,
    report,
    show_result,
)
from eventseal.cli.receipt_command import ReceiptFile, refuse_receipt_file, write_receipt
from eventseal.cli.shared_options import Options, with_options
from eventseal.erasure import reopen as reopen_scope
from eventseal.erasure import shred as shred_scope
from eventseal.errors import ConfigurationError, JobError
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.rotation.did_you_mean import refuse_unknown_scopes

if TYPE_CHECKING:
    from pathlib import Path

    from eventseal.configuration import EventSeal
    from eventseal.erasure import ShredResult

EXAMPLES = """\b
Examples:
  eventseal shred subject:customer-42 --dry-run
  eventseal shred subject:customer-42 --receipt customer-42.html
  eventseal shred tenant:acme --yes --json
"""

REOPEN_EXAMPLES = """\b
Examples:
  eventseal reopen subject:customer-42
"""

_RECEIPT_AGAIN = "Run it again with another file: shredding a shredded scope gives a receipt, too."


@with_options("yes", "dry_run")
def shred(
    options: Options,
    scope: Annotated[str, typer.Argument(metavar="SCOPE", help="Whose keys, such as subject:customer-42.")],
    *,
    receipt: ReceiptFile = None,
    destroy_application_items: Annotated[
        bool,
        typer.Option(
            "--destroy-application-items",
            help="Allow the scope application: every item for which no other scope was chosen.",
        ),
    ] = False,
    restorable_without_ledger: Annotated[
        bool,
        typer.Option(
            "--restorable-without-ledger",
            help="Shred although no ledger is configured: a restored backup undoes it, and nobody can tell.",
        ),
    ] = False,
) -> None:
    """
    Destroy every key of a scope for good, so that nothing of it opens again.

    The ledger is told first; if it cannot be written, nothing is destroyed. The
    scope is closed until `eventseal reopen`. It asks before it destroys; --dry-run
    shows the keys, and the items by table. Interrupted, it is run again.
    """
    with options.open_seal() as seal:
        _refuse(seal, scope, receipt, even_application=destroy_application_items)
        if seal.ledger is None and not restorable_without_ledger and not options.dry_run:
            raise ConfigurationError(
                "no ledger is configured: a restored backup would bring the keys back, unnoticed",
                remedy="Name a file or a database outside of the keys': `ledger` in eventseal.toml, or "
                "EVENTSEAL_LEDGER. To shred all the same: --restorable-without-ledger",
            )
        would = shred_scope(seal, scope, destroy_application_items=destroy_application_items, dry_run=True)
        if options.dry_run:
            report(options, would, lambda: _print(scope, would, dry_run=True))
            return
        confirm(options, _sentence(scope, would), show=lambda: _print(scope, would, dry_run=True))
        result = shred_scope(seal, scope, destroy_application_items=destroy_application_items)
    show_result(options, result, lambda: _print(scope, result, dry_run=False))
    write_receipt(receipt, result.receipt, done="all is shredded", remedy=_RECEIPT_AGAIN)
    exit_by(result)


@with_options("yes")
def reopen(
    options: Options,
    scope: Annotated[str, typer.Argument(metavar="SCOPE", help="One that was shredded.")],
) -> None:
    """
    Let a scope that was shredded have keys again. What was shredded stays so.

    The ledger is told, so that what is sealed from now on outlives a restore.
    """
    if options.dry_run:  # given before the command, where every command takes it
        raise ConfigurationError("reopen has no dry run: it destroys nothing", remedy="Leave out --dry-run.")
    with options.open_seal() as seal:
        _refuse_unknown_scope(seal, scope)
        result = reopen_scope(seal, scope)
    did = "is open again" if result.done else "was open"
    report(options, result, lambda: typer.echo(f"scope {printable(scope)} {did}"))


def _refuse(seal: EventSeal, scope: str, receipt: Path | None, *, even_application: bool) -> None:
    """Refuse what is wrong before anything is destroyed."""
    if scope == DEFAULT_SCOPE and not even_application:
        raise JobError(
            f"the scope {scope} is everybody's: every item for which no other scope was chosen",
            remedy="Name the scope of a subject or a tenant. If really all is meant: "
            "--destroy-application-items",
        )
    refuse_receipt_file(receipt)
    if receipt is not None and seal.ledger is None:
        raise ConfigurationError("there is no receipt without a ledger, and none is configured")
    _refuse_unknown_scope(seal, scope)


def _refuse_unknown_scope(seal: EventSeal, scope: str) -> None:
    """Refuse a scope that has no keys, without a guess which one was meant: nobody is to shred that."""
    refuse_unknown_scopes(
        seal.datastore,
        seal.settings.application,
        [scope],
        stored_as=seal.keyring.tables.scope_named,
        guess=False,
    )


def _sentence(scope: str, would: ShredResult) -> str:
    items = sum(counts["erased"] for counts in would.by_table.values())
    return (
        f"{would.done:,} keys of scope {printable(scope)} are about to be destroyed for good; "
        f"{items:,} items name keys of it, beside the fields that are sealed inside of others."
    )


def _print(scope: str, result: ShredResult, *, dry_run: bool) -> None:
    if result.by_key:
        print_columns(("KEY", "ITEMS"), [(str(key_id), count) for key_id, count in result.by_key.items()])
    if result.by_table:
        tables = result.by_table.items()
        print_columns(("TABLE", "ITEMS"), [(table, counts["erased"]) for table, counts in tables])
    print_failures(result.failures)
    did = "would be" if dry_run else "were"
    typer.echo(f"{result.done:,} keys of scope {printable(scope)} {did} destroyed")
    if result.receipt is not None:
        told = result.receipt
        typer.echo(f"{printable(told.ledger)}: entries {told.intent_entry} and {told.done_entry}")
