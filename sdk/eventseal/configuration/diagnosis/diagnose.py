"""The diagnosis: every check in the order in which one needs the other, and none that changes anything."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from eventseal.configuration.diagnosis import (
    database_checks,
    fence_checks,
    job_checks,
    key_checks,
    kms_checks,
    ledger_checks,
    migration_checks,
    registry_checks,
    settings_checks,
    table_checks,
    wrapping_checks,
)
from eventseal.configuration.diagnosis.findings import Finding, guarded
from eventseal.configuration.loading import load_settings
from eventseal.configuration.stores import Stores
from eventseal.errors import EventSealError, MissingTableError, StoreReadOnlyError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from eventseal.configuration.settings import Settings
    from eventseal.kms import KmsAdapter

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
        yield Finding.of(error, settings_checks.AREA)
        return
    yield from guarded(settings_checks.AREA, partial(settings_checks.check_settings, path, settings))
    adapters: list[KmsAdapter] = []
    if settings.kms_key:
        yield from _check_kms(settings, adapters)
    stores: list[Stores] = []
    yield from guarded(settings_checks.AREA, partial(_open, settings, stores))
    for opened in stores:
        try:
            yield from _check_stores(opened, adapters)
        finally:
            opened.close()


def _check_kms(settings: Settings, adapters: list[KmsAdapter]) -> Iterator[Finding]:
    yield from guarded(kms_checks.AREA, partial(kms_checks.build_adapters, settings, adapters))
    for number, adapter in enumerate(adapters):
        check = partial(kms_checks.check_kek, adapter, settings.application, is_first=number == 0)
        yield from guarded(kms_checks.AREA, check)


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
    yield from guarded(key_checks.AREA, partial(key_checks.check_keys, stores, adapters))
    yield from guarded(key_checks.AREA, partial(wrapping_checks.check_wrappings, stores, adapters))
    yield from guarded(ledger_checks.AREA, partial(ledger_checks.check_ledger, stores, adapters))
    yield from guarded(migration_checks.AREA, partial(migration_checks.check_migration, stores))
    yield from guarded(migration_checks.AREA, partial(migration_checks.check_encrypted, stores))
    yield from guarded(job_checks.AREA, partial(job_checks.check_jobs, stores))
