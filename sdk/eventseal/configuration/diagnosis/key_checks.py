"""Checks of the key tables and of the erasure ledger."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from eventseal.configuration.assembly import EventSeal, rotation_policy
from eventseal.configuration.diagnosis.findings import KEYS, LEDGER, Severity
from eventseal.erasure.restore import Reading
from eventseal.errors import ConfigurationError, EventSealError, IntegrityError
from eventseal.keys import Keyring
from eventseal.keys.authentication.revocations import NEW_KEY_TABLES
from eventseal.keys.records import STORE_SCOPE
from eventseal.keys.states import KeyPurpose
from eventseal.rotation.sealed_store import key_pages
from eventseal.rotation.status.key_totals import keys_by_kind, overdue_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eventseal.configuration.assembly import Stores
    from eventseal.configuration.diagnosis.findings import Finding
    from eventseal.erasure import Ledger
    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.kms import KmsAdapter


MOST_SEALS = 100_000
"""Rows whose seal is checked: some ten seconds' work; ``eventseal verify`` checks all."""

_SHOWN = 20
_INIT = "eventseal init"


@KEYS.check
def check_keys(stores: Stores, adapters: Sequence[KmsAdapter]) -> Iterator[Finding]:
    """
    Check the store key, what it seals, and the age of the keys.

    Args:
        stores: The databases, and the settings.
        adapters: Those that could be made; with none, what needs the store key is left out.
    """
    application = stores.settings.application
    held = stores.key_store.active(application, [STORE_SCOPE], purpose=KeyPurpose.STORE)
    if STORE_SCOPE not in held:
        yield _no_store_key(stores)
        return
    if adapters:
        yield from _check_seals(stores, adapters)
    yield from _check_age(stores)


def _no_store_key(stores: Stores) -> Finding:
    application = stores.settings.application
    if stores.key_store.page(application, limit=1) or stores.key_store.changes(application, -1, []):
        return KEYS.error(
            IntegrityError,
            f"application {application} has keys, and no store key: somebody deleted it",
            "Find out who changed the key tables, and restore the store key from a backup.",
        )
    return KEYS.warning(f"application {application} has no keys yet", _INIT)


def _check_seals(stores: Stores, adapters: Sequence[KmsAdapter]) -> Iterator[Finding]:
    settings = stores.settings
    with closing(
        Keyring(
            adapters,
            stores.key_store,
            application=settings.application,
            scope_digest=settings.scope_digest,
            key_tables=settings.key_tables,
        )
    ) as keyring:
        age = keyring.tables.age()
        # Deleted since it was read: seals() would create another, and a diagnosis writes nothing.
        if age is None:
            yield _no_store_key(stores)
            return
        yield from _check_format(age, settings.key_tables)
        seals = keyring.tables.seals()
    checked, broken = _broken_seals(stores, seals)
    for error in broken[:_SHOWN]:
        yield KEYS.raised(error)
    if len(broken) > _SHOWN:
        yield KEYS.error(
            IntegrityError, f"{len(broken) - _SHOWN:,} more rows of keys do not match their seals", ""
        )
    if not broken:
        which = f"the first {checked:,}" if checked >= MOST_SEALS else f"all {checked:,}"
        yield KEYS.ok(f"the store key opens, and the seals of {which} keys fit")


def _check_format(found: str | None, expected: int) -> Iterator[Finding]:
    """Check the change mark, and whether an old copy of the key tables would be refused."""
    if found == "old":
        yield KEYS.error(
            ConfigurationError,
            "the key tables are of an earlier release: keys can be used, but not created or changed",
            "Stop all processes of the earlier release. Then upgrade the tables: `eventseal init`.",
        )
    elif found == "upgraded" and expected < NEW_KEY_TABLES:
        yield KEYS.error(
            ConfigurationError,
            "the key tables were upgraded, but an old copy of them would still be accepted",
            "Set key_tables = 2 in eventseal.toml, or EVENTSEAL_KEY_TABLES=2, for every process.",
        )


def _broken_seals(stores: Stores, seals: Seals) -> tuple[int, list[EventSealError]]:
    checked = 0
    broken: list[EventSealError] = []
    for page in key_pages(stores.key_store, stores.settings.application):
        for record in page:
            try:
                seals.check(record)
            except IntegrityError as error:
                broken.append(error)
        checked += len(page)
        if checked >= MOST_SEALS:
            break
    return checked, broken


def _check_age(stores: Stores) -> Iterator[Finding]:
    settings = stores.settings
    overdue = overdue_keys(
        stores.datastore.key_engine,
        application=settings.application,
        policy=rotation_policy(settings),
        now=stores.key_store.now(),
    )
    if not overdue.keys:
        yield KEYS.ok("no active data key is over the age or the items at which it is replaced")
        return
    shown = ", ".join(overdue.scopes) + (", ..." if overdue.keys > len(overdue.scopes) else "")
    words = "".join(f" --scope {scope}" for scope in overdue.scopes)
    yield KEYS.note(
        f"{overdue.keys:,} active data keys are due for rotation, at the next item of: {shown}",
        f"eventseal rotate{words if overdue.keys <= len(overdue.scopes) else ''}",
    )


@LEDGER.check
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
    totals = keys_by_kind(stores.datastore.key_engine, application=stores.settings.application)
    kinds = {total.kind for total in totals}
    subjects = "there are subjects to erase, and no ledger: a restore would bring erased keys back"
    nobody = "no erasure ledger is configured: no erasure outlives a restore, and no damaged row is set aside"
    yield LEDGER.warning(
        subjects if "subject" in kinds else nobody,
        f'Name a file or a database: ledger = "erasures.jsonl" in eventseal.toml, then: {_INIT}',
    )


def _check(seal: EventSeal, ledger: Ledger) -> Iterator[Finding]:
    application = seal.settings.application
    if not ledger.exists(application):
        yield LEDGER.error(
            ConfigurationError,
            f"{ledger.name} has no entry of application {application!r}",
            f"Put it back from its copy. If there never was one: {_INIT}",
            Severity.WARNING,
        )
        return
    reading = Reading.of(seal, ledger)
    unrecorded = {record.scope for record in reading.unrecorded}
    for scope in sorted(reading.open_scopes):
        yield LEDGER.warning(
            f"a shred of scope {scope!r} was begun and is not done", f"eventseal shred {scope}"
        )
    if unrecorded:
        yield LEDGER.error(
            IntegrityError,
            f"{len(unrecorded):,} scopes were shredded, such as {min(unrecorded)!r}, and {ledger.name} does "
            "not say so: entries are missing at its end, or they were shredded without it",
            "Put it back from its newest copy. eventseal verify --after-restore --dry-run lists them.",
        )
    else:
        yield LEDGER.ok(f"{ledger.name}: all {reading.entries:,} entries verify")
