"""The status of an application's keys and items, read from its tables. No KEK is called."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError, IntegrityError
from eventseal.keys.authentication.row_macs import unreadable_row
from eventseal.keys.policy import RotationPolicy
from eventseal.rotation.sealed_store import key_pages, registered_tables
from eventseal.rotation.set_aside_rows import SET_ASIDE, AsideRows
from eventseal.rotation.status.advice import PLAIN, UNKNOWN, JobStatus, Status, next_steps, with_upgrade_first
from eventseal.rotation.status.key_totals import (
    UNREADABLE_KIND,
    closed_keys,
    key_states,
    keys_by_kind,
    overdue_keys,
    refresh_interval,
)
from eventseal.rotation.table_checks import has_old_key_tables
from eventseal.storage.database.rows import UNREADABLE
from eventseal.storage.database.transactions import reads
from eventseal.storage.items.key_counts import count_by_key, count_differing, count_unreadable
from eventseal.storage.jobs import jobs
from eventseal.storage.jobs import shards as job_shards
from eventseal.storage.key_store import SQLAlchemyKeyStore
from eventseal.storage.keys.rows import of_unknown_kind
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.keys.records import KeyRecord
    from eventseal.keys.states import KeyState
    from eventseal.keys.store import KeyStore
    from eventseal.rotation.set_aside_rows import SetAside
    from eventseal.rotation.status.key_totals import KeyTotal
    from eventseal.storage import SQLAlchemyDatastore
    from eventseal.storage.items.tables import SealedTable


MOST_CLOSED_KEYS = 1000
"""The most deactivated or compromised keys that are read one by one."""


def status(
    key_store: KeyStore,
    datastore: SQLAlchemyDatastore,
    application: str,
    *,
    policy: RotationPolicy | None = None,
    always_encrypt: bool = True,
    said: Collection[SetAside] = (),
) -> Status:
    """
    Return the status of an application's keys and items.

    Args:
        key_store: The store of the keys.
        datastore: The database of the items, of the registry of their tables, and of the key tables.
        application: The application that owns the keys and items.
        policy: The rotation policy, which decides which keys are overdue.
        always_encrypt: Whether every event is encrypted, as the setting says.
        said: The rows that the ledger lists as set aside. Unchanged ones are counted separately.

    Raises:
        ConfigurationError: A registered table does not exist, or no table does. Or the key store is not the
            datastore's: status counts rows of the key tables.
        StoreError: The database refused or failed.
    """
    if not isinstance(key_store, SQLAlchemyKeyStore):
        raise ConfigurationError(
            f"status counts the rows of key tables, and a {type(key_store).__name__} has none",
            remedy="Pass the SQLAlchemyKeyStore of the datastore. To list the keys of your own key store, "
            "call its page().",
        )
    engine, now = datastore.key_engine, key_store.now()
    edited: list[IntegrityError] = []
    tables = registered_tables(datastore, application, unreadable=edited)
    unknown = of_unknown_kind(engine, application=application)
    totals = keys_by_kind(engine, application=application)
    aside = AsideRows(datastore.engine, tables, lambda: said)
    items, items_by_key, unreadable = _items(
        datastore, application, tables, aside, always_encrypt=always_encrypt
    )
    found = Status(
        application=application,
        now=now,
        refresh_interval=refresh_interval(engine, application=application),
        keys=tuple(totals),
        closed=tuple(closed_keys(engine, application=application, limit=MOST_CLOSED_KEYS)),
        overdue=overdue_keys(engine, application=application, policy=policy or RotationPolicy(), now=now),
        items=items,
        items_by_key=items_by_key,
        keys_set_aside=frozenset(
            key_id for table in tables for here in aside.of(table.table) for key_id in here.stored.keys
        ),
        unreadable=unreadable,
        old_formats={table.table: table.old_formats for table in tables if table.old_formats},
        keks=tuple(key_store.kek_uses(application)),
        jobs=tuple(job_statuses(datastore.engine, application)),
        edited=(
            *edited,
            *map(unreadable_row, unknown),
            *(_unreadable_scope(total) for total in totals if total.kind == UNREADABLE_KIND),
        ),
    )
    found = replace(found, next_steps=next_steps(found))
    return with_upgrade_first(found) if has_old_key_tables(key_store, application) else found


@reads("reading the progress of jobs")
def job_statuses(connection: Connection, application: str) -> list[JobStatus]:
    """
    Return the progress of unfinished jobs and of the last finished one.

    If a job's row cannot be read because it was edited, its state is ``unreadable``.

    Args:
        connection: A connection to the items' database, which holds the jobs.
        application: The application that owns the jobs.

    Raises:
        StoreError: The database refused or failed.
    """
    every = jobs.load_jobs(connection, application)
    open_jobs = [job for job in every if job.state != jobs.FINISHED]
    ended = [job for job in every if job.state == jobs.FINISHED]
    found = []
    for job in (*ended[-1:], *open_jobs):
        try:
            jobs.refuse_unreadable(connection, job)
            counts = job_shards.load_totals(connection, job).by_table.values()
        except IntegrityError as problem:
            job_status = JobStatus(job=replace(job, state=UNREADABLE), done=0, failed=0, problem=problem)
        else:
            done, failed = (sum(of_table[outcome] for of_table in counts) for outcome in ("done", "failed"))
            job_status = JobStatus(job=job, done=done, failed=failed)
        found.append(job_status)
    return found


def _unreadable_scope(total: KeyTotal) -> IntegrityError:
    keys = counted(total.keys, f"{total.state} {total.purpose} key")
    return IntegrityError(
        f"the scope of {keys} was edited and cannot be read",
        remedy="To find the rows, run `eventseal keys`. Restore them from a backup.",
    )


def _items(
    datastore: SQLAlchemyDatastore,
    application: str,
    tables: Sequence[SealedTable],
    aside: AsideRows,
    *,
    always_encrypt: bool,
) -> tuple[dict[str, dict[str, int]], Counter[UUID], dict[str, int]]:
    """Count items by table and state, and by key. Also count unreadable items."""
    by_table: dict[str, dict[str, int]] = {}
    by_key: Counter[UUID] = Counter()
    unreadable: dict[str, int] = {}
    for table in tables:
        counts = Counter(count_by_key(datastore.engine, table))
        differing = Counter(count_differing(datastore.engine, table))
        set_aside = aside.of(table.table)
        has_plain = counts[None] > 0
        counts -= Counter(here.stored.header_key for here in set_aside)
        differing -= Counter(here.stored.header_key for here in set_aside if here.stored.differs)
        without = counts[None]
        if has_plain and table.accepts_plain(always_encrypt=always_encrypt):
            without = count_unreadable(datastore.engine, table)
            for here in set_aside:
                without -= count_unreadable(datastore.engine, table, place=here.said.place)
        named = {key_id: count for key_id, count in counts.items() if key_id is not None}
        states = key_states(datastore.key_engine, application=application, key_ids=list(named))
        wrong = _unreadable(table, counts, differing, states, without=without)
        if wrong:
            unreadable[table.table] = wrong
        if table.is_others:  # this application cannot know the state of another application's items
            named = {key_id: count for key_id, count in named.items() if key_id in states}
            counts.pop(None, None)
        by_state: Counter[str] = Counter()
        unknown = PLAIN if table.old_formats else UNKNOWN
        for key_id, count in named.items():
            by_state[states.get(key_id, unknown)] += count
        by_state[PLAIN] += counts[None]
        by_state[SET_ASIDE] += len(set_aside)
        by_table[table.table] = {state: count for state, count in by_state.items() if count}
        by_key.update(named)
    return by_table, by_key, unreadable


def _unreadable(
    table: SealedTable,
    counts: Mapping[UUID | None, int],
    differing: Mapping[UUID | None, int],
    known: Container[UUID | None],
    *,
    without: int,
) -> int:
    """
    Count the items that no reader accepts, as key ids show.

    *without* is the number of items without an envelope.
    """
    # The key may be another application's. During a migration, an older item may have any bytes there.
    may_be_no_key = table.is_others or bool(table.old_formats)
    wrong = {key_id: count for key_id, count in differing.items() if key_id in known or not may_be_no_key}
    if not table.is_others:
        wrong[None] = without
    # In a shared table, the key may be another application's too.
    if table.application is not None and not may_be_no_key:
        wrong |= {key_id: count for key_id, count in counts.items() if key_id and key_id not in known}
    return sum(wrong.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedKey:
    """
    A key as its row describes it, and its item count.

    Attributes:
        record: The key's row. Its MAC was not checked.
        items: Rows of the registered tables that name the key.
    """

    record: KeyRecord
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPage:
    """
    A page of an application's keys, ordered by id, so by age.

    Attributes:
        application: The application that owns the keys.
        keys: The keys of this page.
        next: The key after which the next page begins. ``None``: this is the last page.
        plain_items: Rows of the registered tables that name no key.
        unknown_keys: Rows by the key that they name, for keys that the application does not have.
        unreadable: Rows of the registry that were edited. The items of their tables are not counted.
    """

    application: str
    keys: tuple[ListedKey, ...]
    next: UUID | None
    plain_items: int
    unknown_keys: Mapping[UUID, int] = field(default_factory=dict)
    unreadable: tuple[IntegrityError, ...] = ()


def list_keys(
    key_store: KeyStore,
    datastore: SQLAlchemyDatastore,
    application: str,
    *,
    scopes: Collection[str] | None = None,
    state: KeyState | None = None,
    after: UUID | None = None,
    limit: int = 100,
) -> KeyPage:
    """
    List keys and count their items.

    Args:
        key_store: The store of the keys.
        datastore: The database of the items and of the registry of their tables.
        application: The application that owns the keys.
        scopes: Only keys of these scopes, as the key tables name them.
        state: Only keys in this state.
        after: The key after which the page begins.
        limit: The most keys to list.

    Raises:
        ConfigurationError: A registered table does not exist, or no table does.
        StoreError: The database refused or failed.
    """
    counts: Counter[UUID | None] = Counter()
    unreadable: list[IntegrityError] = []
    theirs: Counter[UUID | None] = Counter()
    for table in registered_tables(datastore, application, unreadable=unreadable):
        (theirs if table.is_others else counts).update(count_by_key(datastore.engine, table))
    found: list[KeyRecord] = []
    following = None
    pages = key_pages(key_store, application, state=state, after=after)
    for record in chain.from_iterable(pages):
        if scopes is not None and record.scope not in scopes:
            continue
        if len(found) == limit:
            following = found[-1].key_id
            break
        found.append(record)
    named = [key_id for key_id in counts if key_id is not None]
    known = {key_id for key_id, record in key_store.get(named).items() if record.application == application}
    return KeyPage(
        application=application,
        keys=tuple(
            [
                ListedKey(record=record, items=counts[record.key_id] + theirs[record.key_id])
                for record in found
            ]
        ),
        next=following,
        plain_items=counts[None],
        unreadable=tuple(unreadable),
        unknown_keys={key_id: counts[key_id] for key_id in named if key_id not in known},
    )
