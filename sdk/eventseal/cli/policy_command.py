"""``eventseal policy``."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventseal.cli.output import print_json, printable, verbatim
from eventseal.cli.shared_options import Options, with_options
from eventseal.configuration.assembly import Stores
from eventseal.configuration.roles import Role, kek_uses, quoted, store_policies
from eventseal.kms import SupportsPolicy
from eventseal.kms.key_uris import adapter_class, without_query

if TYPE_CHECKING:
    from eventseal.configuration import Settings
    from eventseal.configuration.roles import StorePolicy

EXAMPLES = """\b
Roles:
  writer     appends events, and reads them
  reader     reads events, and writes nothing
  rotator    rotates, rewraps, re-encrypts and retires
  custodian  shreds, reopens, retires, repairs, sets aside, rolls epochs
  auditor    verifies and reports, and writes nothing

\b
Examples:
  eventseal policy --role reader
  eventseal policy --role writer --sql-role shop_writer
  eventseal policy --role writer --json | jq -r '.kms[0].policy'
  eventseal policy --role rotator --json | jq -r '.databases[].statements[]' | psql shop
"""


@with_options()
def policy(
    options: Options,
    *,
    role: Annotated[Role, typer.Option(help="The role.", show_default=False)],
    sql_role: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The role in the database. Default: eventseal_ and the role."),
    ] = None,
) -> None:
    """
    Print the rights that a role needs, for these settings.

    It prints the policy of each KMS key: JSON for AWS KMS, and HCL for Vault. It
    prints the SQL of each PostgreSQL database. It calls nothing and changes nothing.
    To check a process that has these rights, run `eventseal doctor --role ROLE` in it.
    """
    settings = options.settings()
    to = sql_role or f"eventseal_{role}"
    kms = [(uri, _kms_policy(settings, role, uri)) for uri in kek_uses(settings, role)]
    with closing(Stores(settings)) as stores:
        stored = store_policies(stores, role)
    if options.as_json:
        print_json(_as_json(settings, role, kms, {each.holds: each.statements(to) for each in stored}))
    else:
        _print(kms, stored, to)


def _kms_policy(settings: Settings, role: Role, uri: str) -> str:
    kind = adapter_class(uri)
    if not isinstance(kind, SupportsPolicy):
        return "# The adapter of this KMS key writes no policies."
    return kind.policy(uri, kek_uses(settings, role)[uri], settings.application)


def _as_json(
    settings: Settings, role: Role, kms: list[tuple[str, str]], statements: dict[str, list[str]]
) -> dict[str, Any]:
    return {
        "verb": "policy",
        "application": settings.application,
        "role": role.value,
        "kms": [{"kms_key": without_query(uri), "policy": text} for uri, text in kms],
        "databases": [{"holds": holds, "statements": lines} for holds, lines in statements.items()],
    }


def _print(kms: list[tuple[str, str]], stored: list[StorePolicy], to: str) -> None:
    for uri, text in kms:
        typer.echo(f"# KMS key {printable(without_query(uri))}")
        typer.echo("\n".join([verbatim(line) for line in text.splitlines()]) + "\n")
    if any(each.is_on_server for each in stored):
        typer.echo(f"-- Once for each database server: CREATE ROLE {verbatim(quoted(to))}\n")
    for each in stored:
        typer.echo(f"-- {each.holds}")
        typer.echo("\n".join([verbatim(line) for line in each.statements(to)]) + "\n")
