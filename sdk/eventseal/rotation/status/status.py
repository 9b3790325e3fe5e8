"""Where an application's keys and items stand, and what is worth running next. No KEK is called."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError, IntegrityError
from eventseal.keys.authentication.row_macs import unreadable_row
from eventseal.keys.policy import RotationPolicy
from eventseal.rotation.rows_set_aside import SET_ASIDE, AsideRows
from eventseal.rotation.sealed_store import registered_tables
from eventseal.rotation.status.advice import PLAIN, UNKNOWN, JobStanding, Status, advice, with_upgrade_first
from eventseal.rotation.status.key_totals import (
    UNREADABLE_KIND,
    closed_keys,
    key_states,
    key_totals,
    overdue_keys,
    refresh_interval,
)
from eventseal.rotation.table_checks import has_old_key_tables
from eventseal.storage.database.rows import UNREADABLE
from eventseal.storage.database.transactions import read
from eventseal.storage.items.key_counts import count_by_key, count_differing, count_unreadable
from eventseal.storage.jobs import jobs
from eventseal.storage.jobs import shards as job_shards
from eventseal.storage.key_store import SQLAlchemyKeyStore
from eventseal.storage.keys.rows import of_unknown_kind

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.keys.store import KeyStore
    from eventseal.rotation.rows_set_aside import SetAside
    from eventseal.rotation.status.key_totals import KeyTotal
    from eventseal.storage import SQLAlchemyDatastore
    from eventseal.storage.items.tables import SealedTable


MOST_CLOSED_KEYS = 1000
"""Keys that seal no more which are looked at one by one."""


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
    Read where everything stands.

    Args:
        key_store: Has the keys.
        datastore: Has the items, the registry of their tables, and the key tables.
        application: Whose.
        policy: Says which keys are due for rotation.
        always_encrypt: Whether every event is encrypted, as the setting says.
        said: The rows that the ledger excuses: those that are still what they were are counted by themselves.

    Raises:
        ConfigurationError: A registered table is not there, or no table is; or the key store is not the
            datastore's: what is counted are rows of the key tables.
        StoreError: The database refused or failed.
    """
    if not isinstance(key_store, SQLAlchemyKeyStore):
        raise ConfigurationError(
            f"status counts the rows of key tables, and a {type(key_store).__name__} has none",
            remedy="Give it the SQLAlchemyKeyStore of the datastore. A key store of your own lists its keys "
            "by page().",
        )
    engine, now = datastore.key_engine, key_store.now()
    due = partial(overdue_keys, application=application, policy=policy or RotationPolicy(), now=now)
    closed = partial(closed_keys, application=application, limit=MOST_CLOSED_KEYS)
    edited: list[IntegrityError] = []
    tables = registered_tables(datastore, application, unreadable=edited)
    look = partial(of_unknown_kind, application=application)
    unknown = read(engine, look, doing="looking for rows of unknown kinds")
    totals = read(engine, partial(key_totals, application=application), doing="counting keys")
    aside = AsideRows(datastore.engine, tables, lambda: said)
    items, items_by_key, unreadable = _items(
        datastore, application, tables, aside, always_encrypt=always_encrypt
    )
    found = Status(
        application=application,
        now=now,
        refresh_interval=read(
            engine, partial(refresh_interval, application=application), doing="reading the refresh interval"
        ),
        keys=tuple(totals),
        closed=tuple(read(engine, closed, doing="looking for keys that seal no more")),
        overdue=read(engine, due, doing="looking for keys that are to be rotated"),
        items=items,
        items_by_key=items_by_key,
        keys_set_aside=frozenset(
            key_id for table in tables for here in aside.of(table.table) for key_id in here.stored.keys
        ),
        unreadable=unreadable,
        old_formats={table.table: table.old_formats for table in tables if table.old_formats},
        keks=tuple(key_store.kek_uses(application)),
        jobs=tuple(job_standings(datastore, application)),
        edited=(
            *edited,
            *map(unreadable_row, unknown),
            *(_unreadable_scope(total) for total in totals if total.kind == UNREADABLE_KIND),
        ),
    )
    found = replace(found, next_steps=advice(found))
    return with_upgrade_first(found) if has_old_key_tables(key_store, application) else found


def job_standings(datastore: SQLAlchemyDatastore, application: str) -> list[JobStanding]:
    """
    Tell how far re-encryptions are that did not end, and the last one that did.

    One that was edited so that nobody can tell has the state ``unreadable``.

    Args:
        datastore: Has the jobs beside the items.
        application: Whose.

    Raises:
        StoreError: The database refused or failed.
    """
    return read(
        datastore.engine, partial(_job_standings, application=application), doing="reading how far jobs are"
    )


def _job_standings(connection: Connection, application: str) -> list[JobStanding]:
    every = jobs.load_jobs(connection, application)
    open_jobs = [job for job in every if job.state != jobs.FINISHED]
    ended = [job for job in every if job.state == jobs.FINISHED]
    standings = []
    for job in (*ended[-1:], *open_jobs):
        try:
            jobs.refuse_unreadable(connection, job)
            counts = job_shards.load_totals(connection, job).by_table.values()
        except IntegrityError as problem:
            standing = JobStanding(job=replace(job, state=UNREADABLE), done=0, failed=0, problem=problem)
        else:
            done, failed = (sum(of_table[outcome] for of_table in counts) for outcome in ("done", "failed"))
            standing = JobStanding(job=job, done=done, failed=failed)
        standings.append(standing)
    return standings


def _unreadable_scope(total: KeyTotal) -> IntegrityError:
    keys = f"{total.keys:,} {total.state} {total.purpose} key{'s' * (total.keys > 1)}"
    return IntegrityError(
        f"the scope of {keys} was edited and cannot be read",
        remedy="Find the rows with `eventseal keys`, and restore them from a backup.",
    )


def _items(
    datastore: SQLAlchemyDatastore,
    application: str,
    tables: Sequence[SealedTable],
    aside: AsideRows,
    *,
    always_encrypt: bool,
) -> tuple[dict[str, dict[str, int]], Counter[UUID], dict[str, int]]:
    """Count items by table and state, by key, and by table those that no reader takes."""
    by_table: dict[str, dict[str, int]] = {}
    by_key: Counter[UUID] = Counter()
    unreadable: dict[str, int] = {}
    for table in tables:
        doing = f"counting {table.table}"
        counts = Counter(read(datastore.engine, partial(count_by_key, table=table), doing=doing))
        differing = Counter(read(datastore.engine, partial(count_differing, table=table), doing=doing))
        set_aside = aside.of(table.table)
        has_plain = counts[None] > 0
        counts -= Counter(here.stored.header_key for here in set_aside)
        differing -= Counter(here.stored.header_key for here in set_aside if here.stored.differs)
        without = counts[None]
        if has_plain and table.accepts_plain(always_encrypt=always_encrypt):
            without = read(datastore.engine, partial(count_unreadable, table=table), doing=doing)
            for here in set_aside:
                look = partial(count_unreadable, table=table, place=here.said.place)
                without -= read(datastore.engine, look, doing=doing)
        named = {key_id: count for key_id, count in counts.items() if key_id is not None}
        states = read(
            datastore.key_engine,
            partial(key_states, application=application, key_ids=list(named)),
            doing="reading the states of keys",
        )
        wrong = _unreadable(table, counts, differing, states, without=without)
        if wrong:
            unreadable[table.table] = wrong
        if table.is_others:  # of what is theirs, nobody here can say how it stands
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
    """Count what no reader takes, as far as the key ids alone tell; *without* an envelope are so many."""
    # Another application's key, or, while a migration lasts, what an older item has at that place by chance.
    may_be_no_key = table.is_others or bool(table.old_formats)
    wrong = {key_id: count for key_id, count in differing.items() if key_id in known or not may_be_no_key}
    if not table.is_others:
        wrong[None] = without
    # In a shared table the key may be another application's, too.
    if table.application is not None and not may_be_no_key:
        wrong |= {key_id: count for key_id, count in counts.items() if key_id and key_id not in known}
    return sum(wrong.values())
