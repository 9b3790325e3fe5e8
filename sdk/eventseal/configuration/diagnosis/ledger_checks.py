"""Checks of the erasure ledger: that there is one where it is needed, and that it verifies."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from eventseal.configuration.assembly import EventSeal
from eventseal.configuration.diagnosis.findings import Finding, Severity
from eventseal.erasure.restore_scan import Reading, unrecorded_keys
from eventseal.errors import ConfigurationError, IntegrityError
from eventseal.rotation.key_totals import key_totals
from eventseal.storage.transactions import read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eventseal.configuration.stores import Stores
    from eventseal.erasure import Ledger
    from eventseal.kms import KmsAdapter

AREA = "ledger"
_SUBJECT = "subject"
_INIT = "eventseal init"


def check_ledger(stores: Stores, adapters: Sequence[KmsAdapter]) -> Iterator[Finding]:
    """
    Read and verify the whole ledger, and compare it with the tombstones of the key tables.

    Args:
        stores: The databases, and the settings.
        adapters: Those that could be made; with none, what needs the ledger's key is left out.
    """
    if stores.settings.ledger is None:
        yield from _without_ledger(stores)
    elif adapters:
        with EventSeal(stores.settings, kms=adapters) as seal:
            if seal.ledger is not None:
                yield from _check(seal, seal.ledger)


def _without_ledger(stores: Stores) -> Iterator[Finding]:
    look = partial(key_totals, application=stores.settings.application)
    kinds = {total.kind for total in read(stores.datastore.key_engine, look, doing="counting keys")}
    subjects = "there are subjects to erase, and no ledger: a restore would bring erased keys back"
    nobody = "no erasure ledger is configured: no erasure outlives a restore, and no damaged row is set aside"
    yield Finding(
        severity=Severity.WARNING,
        area=AREA,
        text=subjects if _SUBJECT in kinds else nobody,
        remedy=f'Name a file or a database: ledger = "erasures.jsonl" in eventseal.toml, then: {_INIT}',
    )


def _check(seal: EventSeal, ledger: Ledger) -> Iterator[Finding]:
    application = seal.settings.application
    if not ledger.exists(application):
        error = ConfigurationError(
            f"{ledger.name} has no entry of application {application!r}",
            remedy=f"Put it back from its copy. If there never was one: {_INIT}",
        )
        yield Finding.of(error, AREA, severity=Severity.WARNING)
        return
    reading = Reading.of(seal, ledger)
    unrecorded = {record.scope for record in unrecorded_keys(seal, ledger)}
    for scope in sorted(reading.open_scopes):
        yield Finding(
            severity=Severity.WARNING,
            area=AREA,
            text=f"a shred of scope {scope!r} was begun and is not done",
            remedy=f"eventseal shred {scope}",
        )
    if unrecorded:
        lack = IntegrityError(
            f"{len(unrecorded):,} scopes were shredded, such as {min(unrecorded)!r}, and {ledger.name} does "
            "not say so: entries are missing at its end, or they were shredded without it",
            remedy="Put it back from its newest copy. eventseal verify --after-restore --dry-run lists them.",
        )
        yield Finding.of(lack, AREA)
    else:
        yield Finding(
            severity=Severity.OK, area=AREA, text=f"{ledger.name}: all {reading.entries:,} entries verify"
        )
