"""The diagnosis: first the settings, then the KMS, then the databases."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from eventseal.configuration.assembly import Stores, configured_keks
from eventseal.configuration.diagnosis.database_checks import (
    check_clock,
    check_database,
    check_pooler,
    check_writable,
    databases,
)
from eventseal.configuration.diagnosis.findings import DATABASE, SETTINGS
from eventseal.configuration.diagnosis.kek_checks import build_adapters, check_kek, check_wrappings
from eventseal.configuration.diagnosis.key_checks import check_keys, check_ledger
from eventseal.configuration.diagnosis.registry_checks import (
    check_encrypted,
    check_jobs,
    check_migration,
    check_registry,
)
from eventseal.configuration.diagnosis.table_checks import check_fences, check_rights, check_tables
from eventseal.configuration.loading import environment_names, load_settings, settings_file
from eventseal.configuration.roles import Role, kek_uses
from eventseal.errors import EventSealError, MissingTableError, StoreReadOnlyError
from eventseal.wording import counted, shell_word

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from eventseal.configuration.diagnosis.findings import Finding
    from eventseal.configuration.settings import Settings
    from eventseal.kms import KmsAdapter


_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LOCAL = "local://"


def diagnose(path: Path | None = None, *, role: Role | None = None) -> Iterator[Finding]:
    """
    Check everything that EventSeal needs, and report problems. Nothing is changed.

    Args:
        path: The settings file. If it is ``None``: the file that ``EVENTSEAL_CONFIG`` names, else
            ``eventseal.toml`` if it exists.
        role: Check only what this role needs. With ``None``, check everything.

    Returns:
        The findings, one after the other. A check that an earlier problem makes impossible is left out.
    """
    try:
        settings = load_settings(path)
    except EventSealError as error:
        yield SETTINGS.raised(error)
        return
    yield from _check_settings(path, settings)
    by_uri: dict[str, KmsAdapter] = {}
    if settings.kms_key:
        yield from build_adapters(settings, by_uri)
    for uri, adapter in by_uri.items():
        uses = None if role is None else kek_uses(settings, role)[uri]
        yield from check_kek(adapter, settings.application, is_first=uri == settings.kms_key[0], uses=uses)
    stores: list[Stores] = []
    yield from _open(settings, stores)
    for opened in stores:
        try:
            yield from _check_stores(opened, list(by_uri.values()), role)
        finally:
            opened.close()


@SETTINGS.check
def _check_settings(path: Path | None, settings: Settings) -> Iterator[Finding]:
    """Report the sources of the settings, and doubtful values."""
    file = settings_file(path)
    variables = sorted(environment_names().values())
    sources = [str(file)] if file is not None else []
    if variables:
        sources.append(f"{counted(len(variables), 'variable')}: {', '.join(variables)}")
    yield SETTINGS.ok(f"application {settings.application}, from {' and '.join(sources) or 'defaults only'}")
    mode = 0 if file is None else stat.S_IMODE(file.stat().st_mode)
    if mode & _OTHERS:
        yield SETTINGS.warning(
            f"{file} may hold passwords, and its mode is {mode:04o}: users other than its owner can use it",
            f"chmod 600 {shell_word(str(file))}",
        )
    local = [uri for uri in configured_keks(settings) if uri.startswith(_LOCAL)]
    if local:
        yield SETTINGS.note(
            f"{', '.join(local)} {'is a key file' if len(local) == 1 else 'are key files'}, for development "
            "and not for production",
            "For production, put another KMS key first in kms_key, then run: eventseal rewrap",
        )


@SETTINGS.check
def _open(settings: Settings, stores: list[Stores]) -> Iterator[Finding]:
    stores.append(Stores(settings))
    yield from ()


def _check_stores(stores: Stores, adapters: list[KmsAdapter], role: Role | None) -> Iterator[Finding]:
    if not stores.are_present():
        yield DATABASE.raised(stores.missing_file())
        return
    engines = databases(stores.datastore)
    writes = role is None or role.writes
    found = [
        finding for what, engine in engines.items() for finding in check_database(what, engine, writes=writes)
    ]
    for what, engine in engines.items():
        if engine.dialect.name == "postgresql" and not any(finding.cause for finding in found):
            found += check_pooler(what, engine, stores.settings.pooler)
    yield from found
    if any(
        finding.cause is not None and not isinstance(finding.cause, StoreReadOnlyError) for finding in found
    ):
        return  # each further check would only report the same
    for what, engine in engines.items():
        yield from check_clock(what, engine)
        if writes and engine.dialect.name == "sqlite":
            yield from check_writable(engine)
    found = list(check_tables(stores.datastore, role))
    yield from found
    if any(isinstance(finding.cause, MissingTableError) for finding in found):
        return
    if role is not None:
        found = list(check_rights(stores, role))
        yield from found
        if any(finding.severity.asks_for_action for finding in found):
            return  # the other checks need these rights
    checks_all = role is None or role.reads_all
    if checks_all:
        yield from check_registry(stores)
        yield from check_fences(stores)
    yield from check_keys(stores, adapters)
    yield from check_wrappings(stores, adapters)
    if checks_all:
        yield from check_ledger(stores, adapters)
        yield from check_migration(stores)
        yield from check_encrypted(stores)
        yield from check_jobs(stores)
