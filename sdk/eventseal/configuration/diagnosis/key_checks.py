"""Checks of the key tables and of the erasure ledger."""

from __future__ import annotations

import shlex
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
from eventseal.wording import counted, shell_word

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eventseal.configuration.assembly import Stores
    from eventseal.configuration.diagnosis.findings import Finding
    from eventseal.erasure import Ledger
    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.kms import KmsAdapter


MOST_SEALS = 100_000
"""
The most rows whose MAC is checked.

That takes about ten seconds. ``eventseal verify`` checks all rows.
"""

_SHOWN = 20
_INIT = "eventseal init"


@KEYS.check
def check_keys(stores: Stores, adapters: Sequence[KmsAdapter]) -> Iterator[Finding]:
    """
    Check the store key, its rows, and the age of the keys.

    Args:
        stores: The databases, and the settings.
        adapters: The adapters that could be created. Without any, checks that need the store key are left
            out.
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
        return KEYS.problem(
            IntegrityError,
            f"application {application} has keys, but its store key was deleted",
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
        # The store key was deleted meanwhile: seals() would create another, and a diagnosis writes nothing.
        if age is None:
            yield _no_store_key(stores)
            return
        yield from _check_format(age, settings.key_tables)
        seals = keyring.tables.seals()
    checked, broken = _broken_seals(stores, seals)
    for error in broken[:_SHOWN]:
        yield KEYS.raised(error)
    if len(broken) > _SHOWN:
        yield KEYS.problem(
            IntegrityError, f"further rows of keys that do not match their MACs: {len(broken) - _SHOWN:,}", ""
        )
    if not broken:
        which = "the first " if checked >= MOST_SEALS else ""
        rows = counted(checked, "key is authentic", "keys are authentic")
        yield KEYS.ok(f"the store key opens, and {which}{rows}")


def _check_format(found: str | None, expected: int) -> Iterator[Finding]:
    """Check the change mark, and that old key tables would be refused."""
    if found == "old":
        yield KEYS.problem(
            ConfigurationError,
            "the key tables are of an earlier release: you can use keys, but not create or change them",
            "Stop all processes of the earlier release. Then upgrade the tables: eventseal upgrade",
        )
    elif found == "upgraded" and expected < NEW_KEY_TABLES:
        yield KEYS.problem(
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
        yield KEYS.ok("no active data key is due for rotation")
        return
    shown = ", ".join(overdue.scopes) + (", ..." if overdue.keys > len(overdue.scopes) else "")
    words = "".join(f" --scope {shlex.quote(scope)}" for scope in overdue.scopes)
    yield KEYS.note(
        f"{counted(overdue.keys, 'active data key is', 'active data keys are')} due for rotation, at the "
        f"next item of: {shown}",
        f"eventseal rotate{words if overdue.keys <= len(overdue.scopes) else ''}",
    )


@LEDGER.check
def check_ledger(stores: Stores, adapters: Sequence[KmsAdapter]) -> Iterator[Finding]:
    """
    Verify the whole ledger, and compare it with the tombstones.

    Args:
        stores: The databases, and the settings.
        adapters: The adapters that could be created. Without any, checks that need the ledger's key are left
            out.
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
    subjects = (
        "no erasure ledger is configured, but subjects have keys: a restore would bring erased keys back"
    )
    nobody = (
        "no erasure ledger is configured: a restore of the keys undoes erasures, and you cannot set damaged "
        "rows aside"
    )
    yield LEDGER.warning(
        subjects if "subject" in kinds else nobody,
        f'Add a line such as ledger = "erasures.jsonl" to eventseal.toml, then run: {_INIT}',
    )


def _check(seal: EventSeal, ledger: Ledger) -> Iterator[Finding]:
    application = seal.settings.application
    if not ledger.exists(application):
        yield LEDGER.problem(
            ConfigurationError,
            f"{ledger.name} has no entry of application {application!r}",
            f"Restore the ledger from its copy. If it never existed, run: {_INIT}",
            Severity.WARNING,
        )
        return
    reading = Reading.of(seal, ledger)
    unrecorded = {record.scope for record in reading.unrecorded}
    for scope in sorted(reading.open_scopes):
        yield LEDGER.warning(
            f"a shred of scope {scope!r} began and is not done", f"eventseal shred {shell_word(scope)}"
        )
    if unrecorded:
        yield LEDGER.problem(
            IntegrityError,
            f"{counted(len(unrecorded), 'scope was', 'scopes were')} shredded, such as {min(unrecorded)!r}, "
            f"but {ledger.name} has no entry of that. Its last entries are missing, or the shred had no "
            "ledger",
            "Restore the ledger from its newest copy. To list the scopes: eventseal verify --after-restore "
            "--dry-run",
        )
    else:
        yield LEDGER.ok(f"{ledger.name}: {counted(reading.entries, 'entry', 'entries')} verified")
