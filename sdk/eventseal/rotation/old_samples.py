"""A sample of the older items of a table, opened: which formats they are in, and whether keys are right."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.cipher import ItemContext, Opened
from eventseal.errors import ConfigurationError, EventSealError, IntegrityError, KeyNotFoundError
from eventseal.items.acceptance import OldItem
from eventseal.items.sealed_places import Selection
from eventseal.rotation.jobs.collections import opened_page
from eventseal.rotation.jobs.jobs import MIGRATE, verb_of
from eventseal.rotation.jobs.older_formats import class_checks, old_items
from eventseal.rotation.jobs.sources import foreign
from eventseal.rotation.results import MAX_FAILURES, Failure, JobResult, Run
from eventseal.rotation.sealed_store import accepted_in
from eventseal.storage.database.transactions import reads
from eventseal.storage.items.places import TablePlace
from eventseal.storage.items.rows import range_bounds
from eventseal.storage.items.tables import ColumnKind
from eventseal.storage.jobs import jobs
from eventseal.storage.jobs import shards as job_shards

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.items.acceptance import AcceptedFormats
    from eventseal.items.sealed_places import Page
    from eventseal.rotation.jobs.sources import OldSources
    from eventseal.rotation.jobs.workers import Workers
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable


_PLACES, _ROWS = 20, 50
"""From so many places of a table, so many rows each."""

_WHOLE = 4
"""How often opening an item and reading its row stand for all of the work, as for a re-encryption."""


@dataclass(frozen=True, slots=True)
class Sample:
    """
    What a few rows of a table were.

    Attributes:
        table: Its name.
        items: How many rows.
        opened: By format.
        refused: Rows that look like a format, or name a key, and do not open.
        failures: Rows that did not open, or name a class that they may not name, with the reason.
        seconds: It took for each row.
    """

    table: str
    items: int
    opened: Mapping[str, int]
    refused: int
    failures: Sequence[Failure] = ()
    seconds: float = 0.0


def sample_of(store: SealedStore, source: OldSources, accepted: AcceptedFormats) -> Sample:
    """
    Open rows from all over a table; small tables whole.

    Args:
        store: Its items and keys.
        source: What the table holds.
        accepted: The formats.

    Raises:
        KmsError: The KMS refused or failed.
        StoreError: The database refused or failed.
    """
    table = source.table
    started = time.perf_counter()
    opened: Counter[str] = Counter()
    failures: list[Failure] = []
    refused = items = 0
    classes = class_checks(store, is_library=not table.has_key_ids)
    for page in _pages(store, source):
        for number, (context, outcome) in enumerate(old_items(store, accepted, table, page)):
            items += 1
            if isinstance(outcome, OldItem):
                opened[outcome.format.name] += 1
                try:
                    classes.check(context.topic, outcome.plaintext)
                except EventSealError as error:
                    failures.append(_failure(table, page, number, error))
            else:
                refused += isinstance(outcome, IntegrityError | KeyNotFoundError)
                failures.append(_failure(table, page, number, outcome))
    seconds = (time.perf_counter() - started) / max(items, 1)
    return Sample(table.table, items, opened, refused, failures, seconds)


def refuse_wrong_keys(samples: Sequence[Sample], accepted: AcceptedFormats) -> None:
    """
    Refuse a key that opens nothing, where rows do not open; nothing was written then.

    Args:
        samples: Of all tables.
        accepted: The formats that are configured.

    Raises:
        ConfigurationError: A key is wrong, or the items are in other formats; the message names it.
    """
    opened: Counter[str] = Counter()
    for sample in samples:
        opened.update(sample.opened)
    items, refused = sum(sample.items for sample in samples), sum(sample.refused for sample in samples)
    for old in accepted.formats if refused else ():
        if old.key_id is None or any(opened[o.name] for o in accepted.formats if o.key_id == old.key_id):
            continue
        raise ConfigurationError(
            f"the key of {old.name}, whose check value is {old.key_id}, opens nothing: of {items} items that "
            f"were looked at, {refused} do not open. Nothing was written",
            remedy="Give the key that the old application encrypted with; if nothing is in this format, take "
            "it out of old_formats.",
            key_id=old.key_id,
        )
    if items and not opened:
        names = ", ".join([old.name for old in accepted.formats])
        raise ConfigurationError(
            f"of {items} items that were looked at, none is in one of the formats {names}. "
            "Nothing was written",
            remedy="Name the formats that the old application wrote, with their keys, in old_formats.",
        )


def sampled(
    store: SealedStore,
    sources: Sequence[OldSources],
    accepted: AcceptedFormats,
    *,
    registered: bool,
) -> list[Sample]:
    """
    Take a sample of each table, and refuse wrong keys, unless a migration has moved something with them.

    If one has, the items that are left may all be damaged: that they do not open says nothing of the keys.

    Args:
        store: Its items and keys.
        sources: What the tables hold.
        accepted: The formats that are configured.
        registered: Whether only those count that the registry says are accepted in a table.

    Raises:
        ConfigurationError: A key is wrong, or the items are in other formats.
        StoreError: The database refused or failed.
    """
    samples = [
        sample_of(store, source, accepted_in(accepted, source.table) if registered else accepted)
        for source in sources
        if source.pending
    ]
    if not _has_moved(store.datastore.engine, store.cipher.application, named_formats(accepted)):
        refuse_wrong_keys(samples, accepted)
    return samples


def named_formats(accepted: AcceptedFormats) -> list[list[str | None]]:
    """Name formats and their keys as a job keeps them."""
    return [[old.name, None if old.key_id is None else str(old.key_id)] for old in accepted.formats]


@reads("looking for migrations before")
def _has_moved(connection: Connection, application: str, formats: list[list[str | None]]) -> bool:
    """Say whether a migration with the same formats and keys has moved anything before."""
    return any(
        _has_done(connection, job)
        for job in jobs.load_jobs(connection, application)
        if not job.unreadable and verb_of(job.options) == MIGRATE and job.options["formats"] == formats
    )


def _has_done(connection: Connection, job: jobs.Job) -> bool:
    try:
        totals = job_shards.load_totals(connection, job)
    except IntegrityError:  # of a range of a job that is not this one's
        return False
    return any(counts["done"] for counts in totals.by_table.values())


def looked_at(
    store: SealedStore,
    sources: Sequence[OldSources],
    samples: Sequence[Sample],
    run: Run,
    workers: Workers | None = None,
) -> JobResult:
    """
    Give what a look at the tables found, before anything is moved.

    Args:
        store: Its items and keys.
        sources: What the tables hold.
        samples: Of those that hold something.
        run: That looked.
        workers: That would do the work, to say how long it would take.
    """
    by_sample = {sample.table: sample for sample in samples}
    by_table: dict[str, dict[str, int]] = {}
    for source in sources:
        sample = by_sample.get(source.table.table)
        found = {"sampled": sample.items, **sample.opened} if sample is not None else {}
        by_table[source.table.table] = {"left": source.pending, **found}
    left = {source.table.table: source.pending for source in sources}
    seconds = sum(_WHOLE * sample.seconds * left[sample.table] for sample in samples)
    failures = [failure for sample in samples for failure in sample.failures]
    failures += _foreign_failures(store, sources)
    return run.result(
        complete=True,
        left=sum(left.values()),
        failed=len(failures),
        by_table=by_table,
        failures=tuple(failures[:MAX_FAILURES]),
        estimated_seconds=None if workers is None else workers.in_time(sum(left.values()), seconds),
    )


def with_foreign(store: SealedStore, result: JobResult, sources: Sequence[OldSources]) -> JobResult:
    """
    Add the envelopes of other applications to the failures of a migration.

    Args:
        store: Its items and keys.
        result: Of the migration.
        sources: What the tables hold now.
    """
    failures = _foreign_failures(store, sources)
    if not failures:
        return result
    return replace(
        result,
        failed=result.failed + sum(sum((source.others or {}).values()) for source in sources),
        failures=(*failures, *result.failures)[:MAX_FAILURES],
    )


def _pages(store: SealedStore, source: OldSources) -> list[Page]:
    engine, table = store.datastore.engine, source.table
    place = TablePlace(engine, table)
    ((_, selection),) = source.selections(())
    whole = _PLACES * _ROWS
    bounds = [] if source.pending <= whole else range_bounds(engine, table, _PLACES)
    found = [place.pages(selection, after, _ROWS if bounds else whole) for after in (None, *bounds)]
    return [page for page in found if page]


def _failure(table: SealedTable, page: Page, number: int, error: EventSealError) -> Failure:
    place = page.sequence_ids[number], page.positions[number]
    return Failure.of_item(table.table, place, page.key_id(number), error)


def _foreign_failures(store: SealedStore, sources: Sequence[OldSources]) -> list[Failure]:
    return [
        Failure.of(source.table.table, {"application": str(error.found)}, None, error)
        for source in sources
        for error in foreign(source, store.cipher.application)
    ]


_ROWS_TO_LOOK_AT = 100
_DIGITS = re.compile("[0-9a-f]{32}")


def refuse_wrong_id_types(store: SealedStore, sources: Sequence[OldSources]) -> None:
    """
    Refuse ids that are, or may well be, of the other type than the registry says.

    Args:
        store: Its items and keys.
        sources: What the tables hold.

    Raises:
        ConfigurationError: What is sealed there is bound to ids of the other type; or ids that are said to be
            text are the digits of UUIDs, and nothing is sealed there yet that says which.
        StoreError: The database refused or failed.
    """
    if store.datastore.engine.dialect.name != "sqlite":
        return
    tables = [source.table for source in sources if not source.table.has_key_ids]
    shown = [_is_shown(store, table) for table in tables]  # each: one may be wrong
    if any(shown):
        return
    for source in sources:
        if source.pending and source.table in tables:
            _refuse_digits_as_text(store, source.table)


def _is_shown(store: SealedStore, table: SealedTable) -> bool:
    """Whether something that is sealed there opens."""
    sealed = _rows(store, table, Selection(keys=None))
    found = opened_page(store, sealed, table.collection)
    if any(isinstance(outcome, Opened) for _, outcome in found):
        return True
    places = [_of_the_other_type(context) for context, _ in found]
    others = store.cipher.open_many(list(zip(sealed.envelopes, places, strict=True)))
    if any(isinstance(outcome, Opened) for outcome in others):
        other = "uuid" if _has_text(table) else "text"
        raise ConfigurationError(
            f"what is sealed in {table.table} is bound to ids of another type than originator_id_type says. "
            "Nothing was written",
            remedy=f'Set originator_id_type = "{other}", as the application has ORIGINATOR_ID_TYPE; then '
            "run: eventseal init",
        )
    return False


def _refuse_digits_as_text(store: SealedStore, table: SealedTable) -> None:
    if not _has_text(table):
        return
    ids = _rows(store, table, Selection(keys=None, plain=True)).sequence_ids
    if all(isinstance(an_id, str) and _DIGITS.fullmatch(an_id) for an_id in ids):
        raise ConfigurationError(
            f"the ids of {table.table} look like UUIDs, and originator_id_type says text. "
            "Nothing was written",
            remedy='If the application has no ORIGINATOR_ID_TYPE=text, set originator_id_type = "uuid" and '
            "run: eventseal init. If it has, let it write a sealed event first, which says so.",
        )


def _has_text(table: SealedTable) -> bool:
    return table.columns["sequence_id"].kind is ColumnKind.DATABASE_TEXT


def _rows(store: SealedStore, table: SealedTable, selection: Selection) -> Page:
    return TablePlace(store.datastore.engine, table).pages(selection, None, _ROWS_TO_LOOK_AT)


def _of_the_other_type(place: ItemContext) -> ItemContext:
    found: Any = place.sequence_id  # what an edit put there, too
    if isinstance(found, UUID):
        return replace(place, sequence_id=found.hex)
    if isinstance(found, str) and _DIGITS.fullmatch(found):
        return replace(place, sequence_id=UUID(found))
    return place
