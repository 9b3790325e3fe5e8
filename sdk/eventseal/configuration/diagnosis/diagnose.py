"""Checks of the settings: that they can be read and built, and that nobody else reads their file."""

from __future__ import annotations

import stat
from functools import partial
from typing import TYPE_CHECKING

from eventseal.configuration.assembly import configured_keks
from eventseal.configuration.diagnosis import (
    database_checks,
    fence_checks,
    kek_checks,
    key_checks,
    migration_checks,
    registry_checks,
    table_checks,
)
from eventseal.configuration.diagnosis.findings import Finding, Severity, guarded
from eventseal.configuration.loading import environment_names, load_settings, settings_file
from eventseal.configuration.stores import Stores
from eventseal.errors import EventSealError, MissingTableError, StoreReadOnlyError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from eventseal.configuration.settings import Settings
    from eventseal.kms import KmsAdapter


AREA = "settings"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LOCAL = "local://"


def check_settings(path: Path | None, settings: Settings) -> Iterator[Finding]:
    """
    Say where the settings come from, and what is doubtful about them.

    Args:
        path: The file that the caller named, if any.
        settings: As they were read.

    Raises:
        ConfigurationError: No KEK is configured, or fewer than the quorum.
    """
    file = settings_file(path)
    variables = sorted(environment_names().values())
    sources = [str(file)] if file is not None else []
    if variables:
        sources.append(f"{len(variables)} variables: {', '.join(variables)}")
    yield Finding(
        severity=Severity.OK,
        area=AREA,
        text=f"application {settings.application}, from {' and '.join(sources) or 'defaults alone'}",
    )
    if file is not None:
        yield from _check_mode(file)
    yield from _check_keks(configured_keks(settings))


def _check_mode(file: Path) -> Iterator[Finding]:
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & _OTHERS:
        yield Finding(
            severity=Severity.WARNING,
            area=AREA,
            text=f"{file} may hold passwords, and its mode is {mode:04o}: others than its owner may use it",
            remedy=f"chmod 600 {file}",
        )


def _check_keks(uris: tuple[str, ...]) -> Iterator[Finding]:
    local = [uri for uri in uris if uri.startswith(_LOCAL)]
    if local:
        yield Finding(
            severity=Severity.NOTE,
            area=AREA,
            text=f"{', '.join(local)} is a key file: for development, not for production",
            remedy="Name a KMS key before it in kms_key, then run: eventseal rewrap",
        )


_NO_FILE = "the SQLite file that store_url or key_store_url names is not there"


def diagnose(path: Path | None = None) -> Iterator[Finding]:
    """
    Look at everything that EventSeal needs, and say what is amiss. Nothing is changed.

    Args:
        path: The settings file; ``None``: ``EVENTSEAL_CONFIG``, else ``eventseal.toml`` if it is there.

    Returns:
        The findings as they are made; what cannot be looked at, because something before it is amiss, is left
        out.
    """
    try:
        settings = load_settings(path)
    except EventSealError as error:
        yield Finding.of(error, AREA)
        return
    yield from guarded(AREA, partial(check_settings, path, settings))
    adapters: list[KmsAdapter] = []
    if settings.kms_key:
        yield from _check_kms(settings, adapters)
    stores: list[Stores] = []
    yield from guarded(AREA, partial(_open, settings, stores))
    for opened in stores:
        try:
            yield from _check_stores(opened, adapters)
        finally:
            opened.close()


def _check_kms(settings: Settings, adapters: list[KmsAdapter]) -> Iterator[Finding]:
    yield from guarded(kek_checks.KMS, partial(kek_checks.build_adapters, settings, adapters))
    for number, adapter in enumerate(adapters):
        check = partial(kek_checks.check_kek, adapter, settings.application, is_first=number == 0)
        yield from guarded(kek_checks.KMS, check)


def _open(settings: Settings, stores: list[Stores]) -> Iterator[Finding]:
    stores.append(Stores(settings))
    yield from ()


def _check_stores(stores: Stores, adapters: list[KmsAdapter]) -> Iterator[Finding]:
    if not stores.are_present():
        error = StoreUnavailableError(_NO_FILE, remedy="eventseal init")
        yield Finding.of(error, database_checks.AREA)
        return
    found = []
    for what, engine in database_checks.databases(stores.datastore).items():
        found += list(guarded(database_checks.AREA, partial(database_checks.check_database, what, engine)))
    yield from found
    if any(
        finding.cause is not None and not isinstance(finding.cause, StoreReadOnlyError) for finding in found
    ):
        return  # each further check would only say the same
    yield from _check_contents(stores, adapters)


def _check_contents(stores: Stores, adapters: list[KmsAdapter]) -> Iterator[Finding]:
    for what, engine in database_checks.databases(stores.datastore).items():
        yield from guarded("clock", partial(database_checks.check_clock, what, engine))
        if engine.dialect.name == "sqlite":
            yield from guarded(database_checks.AREA, partial(database_checks.check_writable, engine))
    found = list(guarded(table_checks.AREA, partial(table_checks.check_tables, stores.datastore)))
    yield from found
    if any(isinstance(finding.cause, MissingTableError) for finding in found):
        return
    yield from guarded(registry_checks.AREA, partial(registry_checks.check_registry, stores))
    yield from guarded(fence_checks.AREA, partial(fence_checks.check_fences, stores))
    yield from guarded(key_checks.KEYS, partial(key_checks.check_keys, stores, adapters))
    yield from guarded(key_checks.KEYS, partial(kek_checks.check_wrappings, stores, adapters))
    yield from guarded(key_checks.KEYS, partial(key_checks.check_ledger, stores, adapters))
    yield from guarded(migration_checks.MIGRATION, partial(migration_checks.check_migration, stores))
    yield from guarded(migration_checks.MIGRATION, partial(migration_checks.check_encrypted, stores))
    yield from guarded(migration_checks.MIGRATION, partial(migration_checks.check_jobs, stores))
