"""``eventseal shred``."""

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
from eventseal.erasure import shred as shred_scope
from eventseal.errors import ConfigurationError, JobError
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.rotation.did_you_mean import refuse_unknown_scopes
from eventseal.wording import counted

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

_RECEIPT_AGAIN = "Run the command again with another file: a shredded scope gives a receipt too."


@with_options("yes", "dry_run")
def shred(
    options: Options,
    scope: Annotated[str, typer.Argument(metavar="SCOPE", help="The scope, such as subject:customer-42.")],
    *,
    receipt: ReceiptFile = None,
    destroy_application_items: Annotated[
        bool,
        typer.Option(
            "--destroy-application-items",
            help="Allow the scope application, which holds every event without its own scope.",
        ),
    ] = False,
    restorable_without_ledger: Annotated[
        bool,
        typer.Option(
            "--restorable-without-ledger",
            help="Shred without a ledger: a restored backup undoes it, and EventSeal cannot detect that.",
        ),
    ] = False,
) -> None:
    """
    Destroy every key of a scope, so its items never open again.

    The destruction is permanent. The ledger is written first. If it cannot be
    written, nothing is destroyed. The scope stays closed until `eventseal reopen`.

    It asks before it destroys keys. --dry-run shows the keys, and the items for
    each table. If a run is interrupted, run it again.
    """
    with options.open_seal() as seal:
        _refuse(seal, scope, receipt, even_application=destroy_application_items)
        if seal.ledger is None and not restorable_without_ledger and not options.dry_run:
            raise ConfigurationError(
                "no erasure ledger is configured: a restored backup would bring the keys back, unnoticed. "
                "Nothing was destroyed",
                remedy="Add a ledger outside of the keys' database: a line in eventseal.toml, such as "
                'ledger = "erasures.jsonl", or EVENTSEAL_LEDGER. Then run `eventseal init`. To shred without '
                "a ledger, pass --restorable-without-ledger.",
            )
        would = shred_scope(seal, scope, destroy_application_items=destroy_application_items, dry_run=True)
        if options.dry_run:
            report(options, would, lambda: _print(scope, would, dry_run=True))
            return
        confirm(options, _sentence(scope, would), show=lambda: _print(scope, would, dry_run=True))
        result = shred_scope(seal, scope, destroy_application_items=destroy_application_items)
    show_result(options, result, lambda: _print(scope, result, dry_run=False))
    write_receipt(receipt, result.receipt, done="the scope is shredded", remedy=_RECEIPT_AGAIN)
    exit_by(result)


def _refuse(seal: EventSeal, scope: str, receipt: Path | None, *, even_application: bool) -> None:
    """Refuse wrong arguments before anything is destroyed."""
    if scope == DEFAULT_SCOPE and not even_application:
        raise JobError(
            f"refused: scope `{scope}` holds every event without its own scope. Shredding it erases "
            "them all.",
            remedy="Pass the scope of a subject or a tenant. To erase all these events, add "
            "--destroy-application-items.",
        )
    refuse_receipt_file(receipt)
    if receipt is not None and seal.ledger is None:
        raise ConfigurationError(
            "a receipt needs an erasure ledger, and none is configured",
            remedy='Add a line to eventseal.toml, such as ledger = "erasures.jsonl", then run `eventseal '
            "init`. Or leave --receipt out.",
        )
    refuse_unknown_scope(seal, scope)


def refuse_unknown_scope(seal: EventSeal, scope: str) -> None:
    """Refuse a scope without keys. Suggest no other scope, so that nobody shreds the wrong one."""
    refuse_unknown_scopes(
        seal.datastore,
        seal.settings.application,
        [scope],
        stored_as=seal.keyring.tables.scope_named,
        guess=False,
    )


def _sentence(scope: str, would: ShredResult) -> str:
    if not would.done:
        return f"Scope {printable(scope)}: its keys were all destroyed before. This run destroys none."
    items = sum(counts["erased"] for counts in would.by_table.values())
    keys = counted(would.done, "key is", "keys are")
    return (
        f"Scope {printable(scope)}: {keys} about to be destroyed permanently. "
        f"{counted(items, 'item')} and the encrypted fields of this scope become unreadable."
    )


def _print(scope: str, result: ShredResult, *, dry_run: bool) -> None:
    if result.by_key:
        print_columns(("KEY", "ITEMS"), [(str(key_id), count) for key_id, count in result.by_key.items()])
    if result.by_table:
        tables = result.by_table.items()
        print_columns(("TABLE", "ITEMS"), [(table, counts["erased"]) for table, counts in tables])
    print_failures(result.failures)
    did = "Keys that would be destroyed" if dry_run else "Keys destroyed"
    typer.echo(f"Scope {printable(scope)}. {did}: {result.done:,}.")
    if result.receipt is not None:
        recorded = result.receipt
        entries = f"entries {recorded.intent_entry} and {recorded.done_entry}"
        typer.echo(f"Recorded in {printable(recorded.ledger)}, {entries}.")
