"""Samples of a table's older items. They show the formats and wrong keys."""

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
from eventseal.wording import counted

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
"""The places to read in a table, and the rows at each."""

_WHOLE = 4
"""The duration of the whole work, relative to reading and opening."""


@dataclass(frozen=True, slots=True)
class Sample:
    """
    The results for some rows of a table.

    Attributes:
        table: The table's name.
        items: The number of rows.
        opened: The number of rows that opened, by format.
        refused: Rows that look like a format, or name a key, and do not open.
        failures: Rows that did not open, or that name a forbidden class, with the error.
        seconds: The time for each row, in seconds.
    """

    table: str
    items: int
    opened: Mapping[str, int]
    refused: int
    failures: Sequence[Failure] = ()
    seconds: float = 0.0


def sample_of(store: SealedStore, source: OldSources, accepted: AcceptedFormats) -> Sample:
    """
    Open rows from all parts of a table. Small tables are opened whole.

    Args:
        store: The store of the items and keys.
        source: The contents of the table.
        accepted: The accepted formats.

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
    Refuse a key that opens nothing although rows need one.

    Args:
        samples: The samples of all tables.
        accepted: The configured formats.

    Raises:
        ConfigurationError: A key is wrong, or the items are in other formats. The message names it. Nothing
            was written.
    """
    opened: Counter[str] = Counter()
    for sample in samples:
        opened.update(sample.opened)
    items, refused = sum(sample.items for sample in samples), sum(sample.refused for sample in samples)
    for old in accepted.formats if refused else ():
        if old.key_id is None or any(opened[o.name] for o in accepted.formats if o.key_id == old.key_id):
            continue
        raise ConfigurationError(
            f"the key of {old.name}, whose check value is {old.key_id}, opens nothing: of "
            f"{counted(items, 'checked item')}, {refused:,} did not open. Nothing was written",
            remedy="Configure the key that the old application encrypted with. If nothing is in this format, "
            "remove it from old_formats.",
            key_id=old.key_id,
        )
    if items and not opened:
        names = ", ".join([old.name for old in accepted.formats])
        raise ConfigurationError(
            f"of {counted(items, 'checked item')}, none is in one of the formats {names}. "
            "Nothing was written",
            remedy="In old_formats, name the formats that the old application wrote, with their keys.",
        )


def sampled(
    store: SealedStore,
    sources: Sequence[OldSources],
    accepted: AcceptedFormats,
    *,
    registered: bool,
) -> list[Sample]:
    """
    Take a sample of each table, and refuse wrong keys.

    If a migration with the same keys has already migrated items, keys are not refused. The remaining items
    may all be damaged, so items that do not open prove nothing about the keys.

    Args:
        store: The store of the items and keys.
        sources: The contents of the tables.
        accepted: The configured formats.
        registered: Whether a table accepts only the formats that the registry lists for it.

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
    """Return formats and their key ids as a job stores them."""
    return [[old.name, None if old.key_id is None else str(old.key_id)] for old in accepted.formats]


@reads("looking for earlier migrations")
def _has_moved(connection: Connection, application: str, formats: list[list[str | None]]) -> bool:
    """Return whether an earlier migration with these formats and keys did anything."""
    return any(
        _has_done(connection, job)
        for job in jobs.load_jobs(connection, application)
        if not job.unreadable and verb_of(job.options) == MIGRATE and job.options["formats"] == formats
    )


def _has_done(connection: Connection, job: jobs.Job) -> bool:
    try:
        totals = job_shards.load_totals(connection, job)
    except IntegrityError:  # the edited range belongs to another job
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
    Return the result of a check of the tables before a migration.

    Args:
        store: The store of the items and keys.
        sources: The contents of the tables.
        samples: The samples of the tables that hold older items.
        run: The run that made the check.
        workers: The workers that would migrate. They determine the estimated time.
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
        store: The store of the items and keys.
        result: The result of the migration.
        sources: The current contents of the tables.
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
    Refuse ids that may have another type than the registry says.

    Args:
        store: The store of the items and keys.
        sources: The contents of the tables.

    Raises:
        ConfigurationError: The sealed items of a table are bound to ids of the other type. Or the ids are
            registered as text but look like UUIDs, and no sealed item shows which type is right.
        StoreError: The database refused or failed.
    """
    if store.datastore.engine.dialect.name != "sqlite":
        return
    tables = [source.table for source in sources if not source.table.has_key_ids]
    shown = [_is_shown(store, table) for table in tables]  # a list: any() must not skip a wrong table
    if any(shown):
        return
    for source in sources:
        if source.pending and source.table in tables:
            _refuse_digits_as_text(store, source.table)


def _is_shown(store: SealedStore, table: SealedTable) -> bool:
    """Return whether a sealed item opens, which proves the table's id type."""
    sealed = _rows(store, table, Selection(keys=None))
    found = opened_page(store, sealed, table.collection)
    if any(isinstance(outcome, Opened) for _, outcome in found):
        return True
    places = [_of_the_other_type(context) for context, _ in found]
    others = store.cipher.open_many(list(zip(sealed.envelopes, places, strict=True)))
    if any(isinstance(outcome, Opened) for outcome in others):
        other = "uuid" if _has_text(table) else "text"
        raise ConfigurationError(
            f"the sealed items of {table.table} are bound to ids of another type than "
            "originator_id_type says. Nothing was written",
            remedy=f'Set originator_id_type = "{other}", like ORIGINATOR_ID_TYPE in the application. Then '
            "run `eventseal init`.",
        )
    return False


def _refuse_digits_as_text(store: SealedStore, table: SealedTable) -> None:
    if not _has_text(table):
        return
    ids = _rows(store, table, Selection(keys=None, plain=True)).sequence_ids
    if all(isinstance(an_id, str) and _DIGITS.fullmatch(an_id) for an_id in ids):
        raise ConfigurationError(
            f"the ids of {table.table} look like UUIDs, but originator_id_type is text. Nothing was written",
            remedy='If the application does not set ORIGINATOR_ID_TYPE=text, set originator_id_type = "uuid" '
            "and run `eventseal init`. If it does, let it first write a sealed event, which shows the type.",
        )


def _has_text(table: SealedTable) -> bool:
    return table.columns["sequence_id"].kind is ColumnKind.DATABASE_TEXT


def _rows(store: SealedStore, table: SealedTable, selection: Selection) -> Page:
    return TablePlace(store.datastore.engine, table).pages(selection, None, _ROWS_TO_LOOK_AT)


def _of_the_other_type(place: ItemContext) -> ItemContext:
    found: Any = place.sequence_id  # an edit may have written any value
    if isinstance(found, UUID):
        return replace(place, sequence_id=found.hex)
    if isinstance(found, str) and _DIGITS.fullmatch(found):
        return replace(place, sequence_id=UUID(found))
    return place
