"""Checks of the databases: answers, durable writes, and the right time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, text

from eventseal.configuration.diagnosis.findings import CLOCK, DATABASE
from eventseal.errors import ConfigurationError, StoreReadOnlyError
from eventseal.storage.database.column_types import DatabaseClock
from eventseal.storage.database.engines import redacted
from eventseal.storage.database.faults import translated
from eventseal.storage.database.transactions import begin_writing, read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection, Engine, Row

    from eventseal.configuration.diagnosis.findings import Finding
    from eventseal.storage import SQLAlchemyDatastore
    from eventseal.storage.database.engines import Pooler


OLDEST_POSTGRESQL = 120_000
"""PostgreSQL has materialized common table expressions since release 12."""

OLDEST_SQLITE = (3, 35, 0)
"""SQLite has RETURNING since release 3.35."""

MOST_SKEW = timedelta(seconds=30)
_SQLITE_FULL = 2
_LOOKS = 3
"""Fewer than psycopg runs a statement before it prepares it."""

_SET_POOLER = 'pooler = "transaction" in the settings of each program that uses this database'

_SERVER_FACTS = text(
    "SELECT current_setting('server_version_num')::int AS number,"
    " current_setting('server_version') AS version,"
    " pg_is_in_recovery() AS in_recovery,"
    " current_setting('transaction_read_only') AS read_only,"
    " current_setting('default_transaction_isolation') AS isolation,"
    " current_setting('synchronous_commit') AS synchronous_commit,"
    " current_setting('fsync') AS fsync,"
    " current_setting('full_page_writes') AS full_page_writes,"
    " current_setting('server_encoding') AS encoding,"
    " current_database() AS name, current_user AS role"
)


def databases(datastore: SQLAlchemyDatastore) -> dict[str, Engine]:
    """
    Return the engine of each database, by its content.

    If one database holds items and keys, there is one entry.

    Args:
        datastore: The datastore, which connects on first use.
    """
    if datastore.key_engine is datastore.engine:
        return {"items and keys": datastore.engine}
    return {"items": datastore.engine, "keys": datastore.key_engine}


@DATABASE.check
def check_database(what: str, engine: Engine, *, writes: bool) -> Iterator[Finding]:
    """
    Check one database.

    Args:
        what: The content of the database, for messages.
        engine: The engine of the database.
        writes: Whether it must be possible to write, and durably.

    Raises:
        StoreError: The database does not answer, so nothing in it can be checked.
        ConfigurationError: The file or URL is not a database.
    """
    doing = f"connecting to {redacted(engine.url)}"
    if engine.dialect.name == "postgresql":
        facts = read(engine, lambda connection: connection.execute(_SERVER_FACTS).one(), doing=doing)
        yield from _check_server(what, facts, writes=writes)
    else:
        yield from read(engine, lambda connection: list(_check_file(what, connection)), doing=doing)


@DATABASE.check
def check_writable(engine: Engine) -> Iterator[Finding]:
    """
    Begin to write to a SQLite file, and roll back.

    Only an attempt shows whether SQLite can write the file.

    Args:
        engine: The engine of a database that answers.

    Raises:
        StoreReadOnlyError: The file cannot be written.
        StoreUnavailableError: Another process holds the lock for longer than the busy timeout.
    """
    with translated(f"beginning to write to {redacted(engine.url)}"), engine.connect() as connection:
        begin_writing(connection)
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        connection.exec_driver_sql(f"PRAGMA user_version = {int(version)}")  # the lock alone proves nothing
        connection.rollback()
    yield from ()


@DATABASE.check
def check_pooler(what: str, engine: Engine, pooler: Pooler | None) -> Iterator[Finding]:
    """
    Find out whether a pooler is between this process and PostgreSQL.

    A pooler must invent the process id that a client gets for its cancel requests, because the server's
    process changes. Nothing is set on the server's connection, which may be another client's a moment later.

    Args:
        what: The content of the database, for messages.
        engine: The engine of a PostgreSQL database that answers.
        pooler: The setting.
    """
    with translated("looking for a pooler"), engine.connect() as one:
        if _promised_pid(one) == _server_pid(one):
            return
        if pooler is not None:
            yield DATABASE.ok(f"{what}: reached through a pooler, and pooler = {pooler}")
            return
        with engine.connect() as other:
            pids = [(_server_pid(one), _server_pid(other)) for _ in range(_LOOKS)]
    # In session mode, each client keeps a server connection of its own.
    if len(set(pids)) > 1 or pids[0][0] == pids[0][1]:
        yield DATABASE.problem(
            ConfigurationError,
            f"{what}: reached through a pooler in transaction mode, but the setting pooler does not say so. "
            "A prepared statement may fail, or be mistaken for that of another process",
            _SET_POOLER,
        )
    else:
        yield DATABASE.note(
            f"{what}: reached through a pooler that seems to run in session mode, which needs no setting",
            f"If it runs in transaction mode: {_SET_POOLER}",
        )


def _promised_pid(connection: Connection) -> int:
    driver: Any = connection.connection.driver_connection
    return int(driver.info.backend_pid)


def _server_pid(connection: Connection) -> int:
    """Return the process id of the server in one transaction."""
    pid = int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
    connection.rollback()
    return pid


@CLOCK.check
def check_clock(what: str, engine: Engine) -> Iterator[Finding]:
    """
    Compare a database's clock with the clock of this machine.

    Args:
        what: The content of the database, for messages.
        engine: The engine of the database.
    """

    def ask(connection: Connection) -> tuple[datetime, datetime, datetime]:
        connection.execute(text("SELECT 1"))  # connect first, so that only the question is measured
        before = datetime.now(UTC)
        return before, connection.execute(select(DatabaseClock())).scalar_one(), datetime.now(UTC)

    before, there, after = read(engine, ask, doing="asking the time")
    skew = there - before if there < before else max(there - after, timedelta(0))
    seconds = f"{abs(skew.total_seconds()):.0f} s {'slow' if skew < timedelta(0) else 'fast'}"
    if abs(skew) > MOST_SKEW:
        yield CLOCK.warning(
            f"the clock of the database ({what}) is {seconds}, compared with this machine",
            "Set both clocks by NTP (`timedatectl set-ntp true`): KMS requests are signed by this machine's "
            "clock, and the age of keys depends on the database's clock.",
        )
    else:
        yield CLOCK.ok(f"the clock of the database ({what}) agrees with this machine")


def _check_server(what: str, facts: Row[tuple[object, ...]], *, writes: bool) -> Iterator[Finding]:
    yield DATABASE.ok(
        f"{what}: PostgreSQL {facts.version}, database {facts.name}, role {facts.role}, "
        f"{facts.isolation} by default"
    )
    if facts.number < OLDEST_POSTGRESQL:
        yield DATABASE.problem(
            ConfigurationError,
            f"{what}: PostgreSQL {facts.version} is older than 12, which the fences need",
            "Upgrade the server.",
        )
    if facts.encoding != "UTF8":
        yield DATABASE.problem(
            ConfigurationError,
            f"{what}: the database's encoding is {facts.encoding}, which cannot hold every scope and id",
            f"CREATE DATABASE {_quoted(f'{facts.name}_utf8')} ENCODING 'UTF8' TEMPLATE template0; then move "
            "all data.",
        )
    if writes:
        yield from _check_writes(what, facts)
        yield from _check_durability(what, facts)


def _check_writes(what: str, facts: Row[tuple[object, ...]]) -> Iterator[Finding]:
    if facts.in_recovery:
        yield _read_only(what, "the server is a replica", "Use a connection to the primary.")
    elif facts.read_only == "on":
        remedy = f"ALTER ROLE {_quoted(facts.role)} SET default_transaction_read_only = off;"
        yield _read_only(what, "transactions are read-only by default", remedy)


def _quoted(name: str) -> str:
    """Return the name of a role or database for SQL."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _check_durability(what: str, facts: Row[tuple[object, ...]]) -> Iterator[Finding]:
    """
    Check that the server loses no key in a crash.

    If a key was used and is then lost, everything that it encrypted in other places is lost too.
    """
    for name in ("fsync", "full_page_writes"):
        if getattr(facts, name) == "off":
            yield DATABASE.warning(
                f"{what}: {name} is off. A crash of the server may lose keys, and all that they encrypted",
                f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();",
            )
    if facts.synchronous_commit == "off":
        yield DATABASE.warning(
            f"{what}: synchronous_commit is off. A crash of the server may lose the newest keys",
            f"ALTER ROLE {_quoted(facts.role)} SET synchronous_commit = on;",
        )


def _check_file(what: str, connection: Connection) -> Iterator[Finding]:
    version = connection.exec_driver_sql("SELECT sqlite_version()").scalar_one()
    journal = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
    patience = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() / 1000
    yield DATABASE.ok(f"{what}: SQLite {version}, journal mode {journal}, busy timeout {patience:g} s")
    if tuple(map(int, version.split("."))) < OLDEST_SQLITE:
        yield DATABASE.problem(
            ConfigurationError,
            f"{what}: SQLite {version} is older than 3.35, and lacks RETURNING",
            "Use a Python that is built with a newer SQLite.",
        )
    if journal != "wal":
        yield DATABASE.warning(
            f"{what}: the journal mode is {journal}, so readers and the writer block each other",
            "sqlite3 FILE 'PRAGMA journal_mode = WAL' (as a user who can write to its directory)",
        )
    if patience < 1:
        yield DATABASE.warning(
            f"{what}: the busy timeout is {patience:g} s: a writer that meets another one fails immediately",
            "Remove `timeout` from the database's URL: then it is 30 s.",
        )
    if connection.exec_driver_sql("PRAGMA synchronous").scalar_one() < _SQLITE_FULL:
        yield DATABASE.warning(
            f"{what}: PRAGMA synchronous is below FULL. A loss of power may lose keys",
            "Use a SQLite that is built with SQLITE_DEFAULT_SYNCHRONOUS=2 and "
            "SQLITE_DEFAULT_WAL_SYNCHRONOUS=2.",
        )


def _read_only(what: str, why: str, remedy: str) -> Finding:
    return DATABASE.problem(
        StoreReadOnlyError, f"{what}: {why}, so nothing can be appended or rotated", remedy
    )
