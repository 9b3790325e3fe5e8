"""Set aside: the ledger excuses damaged rows that nothing can save, as long as they stay as they are."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from eventseal.erasure.ledger.entries import SET_ASIDE, WITHDRAWN
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
"""Characters. An entry repeats the reason once for up to a thousand rows."""

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
    Write into the ledger that nothing can save these rows. Each is excused as long as it stays as it is.

    Args:
        store: An ``EventSeal``, or any object with its four.
        found: As :func:`eventseal.rotation.row_damage.damaged_rows` gives it.
        reason: Why, in up to 500 characters. No personal data: a ledger is kept for good.
        ledger: ``None``: the store's own.
        dry_run: Whether to write nothing.

    Returns:
        ``set_aside`` has what the ledger says now. ``failed`` counts rows that were refused, and those that
        were changed since they were found.

    Raises:
        ConfigurationError: There is no ledger, or no reason.
        IntegrityError: The ledger is not what was written; nothing was set aside.
        StoreError: The database or the ledger refused or failed. Run it again.
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
    Withdraw what the ledger says of rows. From then on they are failures again, if they do not open.

    Args:
        store: An ``EventSeal``, or any object with its four.
        rows: As :func:`rows_in_force` gives them.
        ledger: ``None``: the store's own.
        dry_run: Whether to write nothing.

    Returns:
        ``set_aside`` has the rows of which it was withdrawn.

    Raises:
        ConfigurationError: There is no ledger.
        IntegrityError: The ledger is not what was written; nothing was withdrawn.
        JobError: Somebody else has just changed what is set aside.
        StoreError: The ledger refused or failed.
    """
    run = Run(verb="set-aside")
    ledger = required_ledger(store, ledger)
    taken = (
        list(rows) if dry_run else withdraw_places(store, ledger, {(row.table, row.place) for row in rows})
    )
    return run.result(complete=True, done=len(taken), set_aside=tuple(taken))


def rows_in_force(store: SealedStore, ledger: Ledger) -> list[SetAside]:
    """
    Give what the ledger says of rows, verified; nothing if it is not made yet.

    Raises:
        EventSealError: The ledger is not what was written, or cannot be read.
    """
    if not ledger.exists(store.keyring.application):
        return []
    return [row for entry in ledger.open_entries(store, SET_ASIDE) for row in rows_of(entry)]


def unverified_rows(ledger: Ledger, application: str) -> list[SetAside]:
    """Give what the ledger says of rows, without any KEK: to show, not to act by."""
    found = ledger.unverified_open_entries(application, SET_ASIDE)
    return [row for entry in found for row in rows_of(entry)]


def required_ledger(store: SealedStore, ledger: Ledger | None = None) -> Ledger:
    """
    Give the ledger that was named, or the store's own.

    Raises:
        ConfigurationError: There is none.
    """
    ledger = ledger or own_ledger(store)
    if ledger is None:
        raise ConfigurationError(
            "no erasure ledger is configured, and nothing else keeps what becomes of damaged rows",
            remedy=NO_LEDGER,
        )
    return ledger


def rows_of(entry: LedgerEntry) -> list[SetAside]:
    """
    Read the rows of an entry.

    Raises:
        IntegrityError: It has none as :func:`set_aside` writes them.
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
            remedy="Find out who changed the ledger, and put it back from its copy.",
        ) from None


def withdraw_places(
    store: SealedStore, ledger: Ledger, places: Iterable[tuple[str, Place]]
) -> list[SetAside]:
    """
    Close each entry that names one of these places, and say the rest of it again, in one entry.

    Args:
        store: Whose application and KEKs.
        ledger: It exists.
        places: Tables, and places in them.

    Returns:
        What was withdrawn.

    Raises:
        JobError: Somebody else has just changed what is set aside.
        EventSealError: The ledger is not what was written, or cannot be written.
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
    # To say the rest of it again would bring back what somebody else has withdrawn (docs/decisions/0026).
    if number not in last.open_intents:
        raise JobError(
            "somebody else has just changed what is set aside; the rest stays as it is",
            remedy="Run it again.",
        )


def _as_they_were(store: SealedStore, rows: Sequence[DamagedRow]) -> tuple[list[DamagedRow], list[Failure]]:
    """Part the rows that are what they were when they were found from those that are not."""
    still: list[DamagedRow] = []
    changed: list[Failure] = []
    for row in rows:
        now = stored_row(store.datastore.engine, row.table, row.place)
        if now is not None and now.digest == row.sha256:
            still.append(row)
        else:
            error = JobError("the row was changed meanwhile, and is not set aside", remedy="Run it again.")
            changed.append(row.failure(error))
    return still, changed


def _checked_reason(reason: str) -> str:
    reason = " ".join(reason.split())
    if not 0 < len(reason) <= LONGEST_REASON:
        raise ConfigurationError(
            f"a reason has 1 to {LONGEST_REASON} characters",
            remedy='Say why nothing can save the rows, such as --reason "disk failure, no backup".',
        )
    return reason


def _row_to_json(table: str, place: Any, sha256: str) -> dict[str, Any]:
    return {"table": table, "place": place_to_json(place), "sha256": sha256}
