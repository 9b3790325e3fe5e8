"""``eventseal shred``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.confirmation import confirm
from eventseal.cli.interruption import RUN_AGAIN, resumable
from eventseal.cli.options import Config, DryRun, Json, Options, Yes
from eventseal.cli.output import print_columns, printable
from eventseal.cli.receipt_files import ReceiptFile, refuse_receipt_file, write_receipt
from eventseal.cli.results import exit_by, finish, print_failures, tell
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

_RECEIPT_AGAIN = "Run it again with another file: shredding a shredded scope gives a receipt, too."


def shred(
    context: typer.Context,
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
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """
    Destroy every key of a scope for good, so that nothing of it opens again.

    The ledger is told first; if it cannot be written, nothing is destroyed. The
    scope is closed until `eventseal reopen`. It asks before it destroys; --dry-run
    shows the keys, and the items by table. Interrupted, it is run again.
    """
    options = Options.of(context, config=config, as_json=as_json, yes=yes, dry_run=dry_run)
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
            finish(options, would, lambda: _print(scope, would, dry_run=True))
            return
        if not options.as_json and not options.yes:
            _print(scope, would, dry_run=True)
        confirm(options, _sentence(scope, would))
        with resumable(lambda: RUN_AGAIN):
            result = shred_scope(seal, scope, destroy_application_items=destroy_application_items)
    tell(options, result, lambda: _print(scope, result, dry_run=False))
    write_receipt(receipt, result.receipt, done="all is shredded", remedy=_RECEIPT_AGAIN)
    exit_by(result)


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
    refuse_unknown_scopes(
        seal.datastore,
        seal.settings.application,
        [scope],
        stored_as=seal.keyring.scope_named,
        guess=False,
    )


def _sentence(scope: str, would: ShredResult) -> str:
    items = sum(counts["erased"] for counts in would.by_table.values())
    return (
        f"{would.done:,} keys of scope {printable(scope)} are about to be destroyed for good; "
        f"{items:,} items name keys of it, beside the fields that are sealed inside of others."
    )


def _print(scope: str, result: ShredResult, *, dry_run: bool) -> None:
    keys = [(str(key_id), f"{count:,}") for key_id, count in result.by_key.items()]
    if keys:
        print_columns(("KEY", "ITEMS"), keys, numbers=frozenset({"ITEMS"}))
    tables = [(table, f"{counts['erased']:,}") for table, counts in result.by_table.items()]
    if tables:
        print_columns(("TABLE", "ITEMS"), tables, numbers=frozenset({"ITEMS"}))
    print_failures(result.failures)
    did = "would be" if dry_run else "were"
    typer.echo(f"{result.done:,} keys of scope {printable(scope)} {did} destroyed")
    if result.receipt is not None:
        told = result.receipt
        typer.echo(f"{printable(told.ledger)}: entries {told.intent_entry} and {told.done_entry}")
