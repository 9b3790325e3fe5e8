"""
Set aside damaged rows that nothing can save.

The ledger excuses such rows as long as they stay unchanged.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from eventseal.erasure.ledger.entries import RESTORE_LEDGER, SET_ASIDE, WITHDRAWN
from eventseal.erasure.ledger.recording import prepare_ledger
from eventseal.erasure.shredding import own_ledger
from eventseal.errors import ConfigurationError, IntegrityError, JobError
from eventseal.rotation.results import MAX_FAILURES, Failure, JobResult, Run
from eventseal.rotation.set_aside_rows import SetAside
from eventseal.storage.database.rows import chunks
from eventseal.storage.items.rows import stored_row
from eventseal.storage.items.swaps import place_from_json, place_to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from eventseal.erasure.ledger.entries import LedgerEntry
    from eventseal.erasure.ledger.ledger import Ledger
    from eventseal.items.sealed_places import Place
    from eventseal.rotation.row_damage import DamagedRow, DamagedRows
    from eventseal.rotation.sealed_store import SealedStore


ROWS_IN_AN_ENTRY = 1000
LONGEST_REASON = 500
"""The limit in characters. An entry holds the reason once, for up to 1,000 rows."""

NO_LEDGER = 'Add a line to eventseal.toml: ledger = "erasures.jsonl"'


def set_aside(
    store: SealedStore,
    found: DamagedRows,
    *,
    reason: str,
    ledger: Ledger | None = None,
    dry_run: bool = False,
) -> JobResult:
    """
    Record in the ledger that nothing can save these rows.

    Each row is excused as long as it stays unchanged.

    Args:
        store: An ``EventSeal``, or another ``SealedStore``.
        found: The result of :func:`eventseal.rotation.row_damage.damaged_rows`.
        reason: Why nothing can save the rows, in up to 500 characters. Do not write personal data: a ledger
            is kept permanently.
        ledger: The erasure ledger. ``None``: the store's own ledger.
        dry_run: Whether to write nothing.

    Returns:
        The result. Its ``set_aside`` lists the rows that the ledger now excuses. Its ``failed`` counts rows
        that were refused, and rows that were changed since they were found.

    Raises:
        ConfigurationError: There is no ledger, or the reason is empty or too long.
        IntegrityError: The ledger was changed. Nothing was set aside.
        StoreError: The database or the ledger rejects a request or fails. Run it again.
    """
    run = Run(verb="set-aside")
    ledger = required_ledger(store, ledger)
    reason = _checked_reason(reason)
    still, changed = _as_they_were(store, found.rows)
    written: list[SetAside] = []
    if still and not dry_run:
        prepare_ledger(store, ledger)
        withdraw_places(store, ledger, {(row.table.table, row.place) for row in still})
        for some in chunks(still, ROWS_IN_AN_ENTRY):
            rows = [_row_to_json(row.table.table, row.place, row.sha256) for row in some]
            written += rows_of(ledger.append(store, SET_ASIDE, details={"reason": reason, "rows": rows}))
    return run.result(
        complete=True,
        done=len(still),
        failed=len(found.refused) + len(changed),
        failures=tuple([*found.refused, *changed][:MAX_FAILURES]),
        set_aside=tuple(written),
    )


def withdraw(
    store: SealedStore, rows: Sequence[SetAside], *, ledger: Ledger | None = None, dry_run: bool = False
) -> JobResult:
    """
    Withdraw rows that are set aside.

    From then on, these rows are failures again if they do not open.

    Args:
        store: An ``EventSeal``, or another ``SealedStore``.
        rows: Rows from :func:`rows_in_force`.
        ledger: The erasure ledger. ``None``: the store's own ledger.
        dry_run: Whether to write nothing.

    Returns:
        The result, whose ``set_aside`` lists the withdrawn rows.

    Raises:
        ConfigurationError: There is no ledger.
        IntegrityError: The ledger was changed. Nothing was withdrawn.
        JobError: Another process has just changed which rows are set aside.
        StoreError: The ledger rejects a request or fails.
    """
    run = Run(verb="set-aside")
    ledger = required_ledger(store, ledger)
    taken = (
        list(rows) if dry_run else withdraw_places(store, ledger, {(row.table, row.place) for row in rows})
    )
    return run.result(complete=True, done=len(taken), set_aside=tuple(taken))


def rows_in_force(store: SealedStore, ledger: Ledger) -> list[SetAside]:
    """
    Return the rows that are set aside, from the verified ledger.

    There are none if the ledger does not exist yet.

    Raises:
        EventSealError: The ledger was changed, or cannot be read.
    """
    if not ledger.exists(store.keyring.application):
        return []
    return [row for entry in ledger.open_entries(store, SET_ASIDE) for row in rows_of(entry)]


def unverified_rows(ledger: Ledger, application: str) -> list[SetAside]:
    """
    Return the rows that are set aside, without verification.

    No KEK is needed. Show these rows only. Do not act on them.
    """
    found = ledger.unverified_open_entries(application, SET_ASIDE)
    return [row for entry in found for row in rows_of(entry)]


def required_ledger(store: SealedStore, ledger: Ledger | None = None) -> Ledger:
    """
    Return the given ledger, or the store's own.

    Raises:
        ConfigurationError: There is no ledger.
    """
    ledger = ledger or own_ledger(store)
    if ledger is None:
        raise ConfigurationError(
            "no erasure ledger is configured, and only a ledger records repaired and set-aside rows",
            remedy=NO_LEDGER,
        )
    return ledger


def rows_of(entry: LedgerEntry) -> list[SetAside]:
    """
    Return the rows of a set-aside entry.

    Raises:
        IntegrityError: The entry has no rows in the form that :func:`set_aside` writes.
    """
    details = entry.details
    try:
        at = datetime.fromisoformat(details["since"]) if "since" in details else entry.at
        return [
            SetAside(
                table=str(row["table"]),
                place=place_from_json(row["place"]),
                sha256=str(row["sha256"]),
                reason=str(details["reason"]),
                at=at,
                entry=entry.number,
            )
            for row in details["rows"]
        ]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise IntegrityError(
            f"entry {entry.number} of the ledger does not say which rows are set aside",
            remedy=RESTORE_LEDGER,
        ) from None


def withdraw_places(
    store: SealedStore, ledger: Ledger, places: Iterable[tuple[str, Place]]
) -> list[SetAside]:
    """
    Withdraw the set-aside rows at these places.

    Each entry that names one of the places is closed. One new entry repeats its other rows.

    Args:
        store: The store with the application and its KEKs.
        ledger: The erasure ledger, which must exist.
        places: Tables, and places in them.

    Returns:
        The withdrawn rows.

    Raises:
        JobError: Another process has just changed which rows are set aside.
        EventSealError: The ledger was changed, or cannot be written.
    """
    wanted = set(places)
    taken: list[SetAside] = []
    for entry in ledger.open_entries(store, SET_ASIDE):
        rows = rows_of(entry)
        leaving = [row for row in rows if (row.table, row.place) in wanted]
        if not leaving:
            continue
        staying = [row for row in rows if (row.table, row.place) not in wanted]
        details: dict[str, Any] = {"replaces": entry.number}
        if staying:
            details |= {
                "reason": staying[0].reason,
                "since": staying[0].at.isoformat(),
                "rows": [_row_to_json(row.table, row.place, row.sha256) for row in staying],
            }
        kind = SET_ASIDE if staying else WITHDRAWN
        judge = partial(_refuse_closed, entry.number)
        ledger.append(store, kind, details=details, closes=[entry.number], judge=judge)
        taken += leaving
    return taken


def _refuse_closed(number: int, last: LedgerEntry) -> None:
    # Repeating the other rows would restore rows that another process withdrew (docs/decisions/0026).
    if number not in last.open_intents:
        raise JobError(
            "somebody else has just changed which rows are set aside. The remaining rows stay as they are",
            remedy="Run the same command again.",
        )


def _as_they_were(store: SealedStore, rows: Sequence[DamagedRow]) -> tuple[list[DamagedRow], list[Failure]]:
    """Separate the rows that are still unchanged from the changed ones."""
    still: list[DamagedRow] = []
    changed: list[Failure] = []
    for row in rows:
        now = stored_row(store.datastore.engine, row.table, row.place)
        if now is not None and now.digest == row.sha256:
            still.append(row)
        else:
            error = JobError(
                "the row was changed meanwhile, so it was not set aside", remedy="Run the same command again."
            )
            changed.append(row.failure(error))
    return still, changed


def _checked_reason(reason: str) -> str:
    reason = " ".join(reason.split())
    if not 0 < len(reason) <= LONGEST_REASON:
        raise ConfigurationError(
            f"a reason has 1 to {LONGEST_REASON} characters",
            remedy='Explain why nothing can save the rows, such as --reason "disk failure, no backup".',
        )
    return reason


def _row_to_json(table: str, place: Any, sha256: str) -> dict[str, Any]:
    return {"table": table, "place": place_to_json(place), "sha256": sha256}
