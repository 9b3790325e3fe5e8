"""``eventseal keys``."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID  # noqa: TC003 - read at run time, for the options' types

import typer

from eventseal.cli.output import print_columns, print_json, printable, time_shown, time_text
from eventseal.cli.shared_options import Options, with_options
from eventseal.keys.authentication.row_macs import unreadable_row
from eventseal.keys.states import KeyState  # noqa: TC001 - read at run time, for the options' types
from eventseal.rotation.status.application_status import KeyPage, list_keys
from eventseal.storage.database.rows import UNREADABLE
from eventseal.wording import counted

if TYPE_CHECKING:
    from eventseal.keys.records import KeyRecord
    from eventseal.rotation.status.application_status import ListedKey

_HEADING = ("KEY", "PURPOSE", "SCOPE", "STATE", "ITEMS", "RESERVED", "CREATED", "WRAPPED BY")

EXAMPLES = """\b
Examples:
  eventseal keys
  eventseal keys --state active
  eventseal keys --scope tenant:acme --json
"""


@with_options()
def keys(
    options: Options,
    *,
    scope: Annotated[str | None, typer.Option(metavar="SCOPE", help="Only keys of this scope.")] = None,
    state: Annotated[KeyState | None, typer.Option(help="Only keys in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The most keys to list.")] = 100,
    after: Annotated[
        UUID | None, typer.Option(metavar="KEY", help="Start after this key, the last one of a page.")
    ] = None,
) -> None:
    """
    List the application's keys, and the number of their items.

    It reads the tables and needs no KMS key, except to find a scope if
    scope_digest is set. It does not check that rows are authentic. To detect
    edited rows, run `eventseal verify`, which unwraps the keys.
    """
    with closing(options.open_stores()) as stores:
        page = list_keys(
            stores.key_store,
            stores.datastore,
            stores.settings.application,
            scopes=None if scope is None else _stored(options, scope),
            state=state,
            after=after,
            limit=limit,
        )
    if options.as_json:
        print_json(_as_json(page))
    else:
        _print(page)


def _stored(options: Options, scope: str) -> set[str]:
    """Return the names that a scope may have in the key tables. Scopes of branch keys are never digests."""
    if not options.settings().scope_digest:
        return {scope}
    with options.open_seal() as seal:
        return {scope, seal.keyring.tables.scope_named(scope)}


def _as_json(page: KeyPage) -> dict[str, Any]:
    return {
        "verb": "keys",
        "application": page.application,
        "keys": [_key_as_json(listed) for listed in page.keys],
        "next": None if page.next is None else str(page.next),
        "plain_items": page.plain_items,
        "unreadable": [{"message": str(problem), "remedy": problem.remedy} for problem in page.unreadable],
        "items_by_unknown_key": {str(key_id): count for key_id, count in page.unknown_keys.items()},
    }


def _key_as_json(listed: ListedKey) -> dict[str, Any]:
    record = listed.record
    return {
        "key_id": str(record.key_id),
        "purpose": record.purpose.value,
        "scope": record.scope,
        "state": _state(record),
        "items": listed.items,
        "items_reserved": record.items_reserved,
        "wrapped_by": [wrapped.kek_uri for wrapped in record.wrappings],
        "created_at": time_text(record.created_at) or None,
        "deactivated_at": time_text(record.deactivated_at) or None,
        "compromised_at": time_text(record.compromised_at) or None,
        "destroyed_at": time_text(record.destroyed_at) or None,
        "destroyed_by": record.destroyed_by,
    }


def _state(record: KeyRecord) -> str:
    return UNREADABLE if record.unreadable else record.state.value


def _print(page: KeyPage) -> None:
    rows = [
        (
            str(listed.record.key_id),
            listed.record.purpose.value,
            listed.record.scope,
            _state(listed.record),
            listed.items,
            listed.record.items_reserved,
            time_shown(listed.record.created_at),
            ", ".join([wrapped.kek_uri for wrapped in listed.record.wrappings]) or "nothing",
        )
        for listed in page.keys
    ]
    print_columns(_HEADING, rows)
    if not rows:
        typer.echo("No key matches.")
    if page.plain_items:
        typer.echo(f"\n{counted(page.plain_items, 'plaintext item')}")
    problems = [unreadable_row(listed.record) for listed in page.keys if listed.record.unreadable]
    for problem in (*problems, *page.unreadable):
        typer.echo(f"\n{printable(str(problem))}")
    for key_id, count in page.unknown_keys.items():
        typer.echo(f"\napplication {page.application} has no key {key_id}, named by {counted(count, 'item')}")
    if page.next is not None:
        typer.echo(f"\nNext page: eventseal keys --after {page.next}")
