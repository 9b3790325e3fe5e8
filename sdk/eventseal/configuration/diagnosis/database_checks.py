"""Checks of the databases: reachable, recent enough, writable, durable; and whether their clock is right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

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


OLDEST_POSTGRESQL = 120_000
"""Materialized common table expressions begin with release 12."""

OLDEST_SQLITE = (3, 35, 0)
"""RETURNING begins with release 3.35."""

MOST_SKEW = timedelta(seconds=30)
_SQLITE_FULL = 2

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
    Give the engine of each database by what is in it; one entry if the keys are beside the items.

    Args:
        datastore: Connects on first use.
    """
    if datastore.key_engine is datastore.engine:
        return {"items and keys": datastore.engine}
    return {"items": datastore.engine, "keys": datastore.key_engine}


@DATABASE.check
def check_database(what: str, engine: Engine) -> Iterator[Finding]:
    """
    Look at one database.

    Args:
        what: Is in it.
        engine: Of it.

    Raises:
        StoreError: It does not answer; nothing that is in it can be looked at.
        ConfigurationError: It is no database.
    """
    doing = f"connecting to {redacted(engine.url)}"
    if engine.dialect.name == "postgresql":
        facts = read(engine, lambda connection: connection.execute(_SERVER_FACTS).one(), doing=doing)
        yield from _check_server(what, facts)
    else:
        yield from read(engine, lambda connection: list(_check_file(what, connection)), doing=doing)


@DATABASE.check
def check_writable(engine: Engine) -> Iterator[Finding]:
    """
    Begin to write into a SQLite file, and roll back: only then does it say whether it can be written.

    Args:
        engine: Of a database that answers.

    Raises:
        StoreReadOnlyError: It cannot.
        StoreUnavailableError: Another process holds the lock for longer than the busy timeout.
    """
    with translated(f"beginning to write into {redacted(engine.url)}"), engine.connect() as connection:
        begin_writing(connection)
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        connection.exec_driver_sql(f"PRAGMA user_version = {int(version)}")  # the lock alone says nothing
        connection.rollback()
    yield from ()


@CLOCK.check
def check_clock(what: str, engine: Engine) -> Iterator[Finding]:
    """
    Compare a database's clock with this machine's.

    Args:
        what: Is in the database.
        engine: Of it.
    """

    def ask(connection: Connection) -> tuple[datetime, datetime, datetime]:
        connection.execute(text("SELECT 1"))  # connected: what is measured is the question alone
        before = datetime.now(UTC)
        return before, connection.execute(select(DatabaseClock())).scalar_one(), datetime.now(UTC)

    before, there, after = read(engine, ask, doing="asking the time")
    skew = there - before if there < before else max(there - after, timedelta(0))
    seconds = f"{abs(skew.total_seconds()):.0f} s {'behind' if skew < timedelta(0) else 'before'}"
    if abs(skew) > MOST_SKEW:
        yield CLOCK.warning(
            f"the clock of the database of the {what} is {seconds} this machine's",
            "Have both set by NTP (`timedatectl set-ntp true`): KMS requests are signed by this "
            "machine's clock, the age of keys goes by the database's.",
        )
    else:
        yield CLOCK.ok(f"the {what} and this machine agree")


def _check_server(what: str, facts: Row[tuple[object, ...]]) -> Iterator[Finding]:
    yield DATABASE.ok(
        f"{what}: PostgreSQL {facts.version}, database {facts.name}, role {facts.role}, "
        f"{facts.isolation} by default"
    )
    if facts.number < OLDEST_POSTGRESQL:
        yield DATABASE.error(
            ConfigurationError,
            f"{what}: PostgreSQL {facts.version} is older than 12, and lacks what the fences need",
            "Upgrade the server.",
        )
    if facts.in_recovery:
        yield _read_only(what, "the server is a replica", "Use a connection to the primary.")
    elif facts.read_only == "on":
        remedy = f"ALTER ROLE {facts.role} SET default_transaction_read_only = off;"
        yield _read_only(what, "transactions are read-only by default", remedy)
    if facts.encoding != "UTF8":
        yield DATABASE.error(
            ConfigurationError,
            f"{what}: the database's encoding is {facts.encoding}, which cannot hold every scope and id",
            f"CREATE DATABASE {facts.name}_utf8 ENCODING 'UTF8' TEMPLATE template0; then move to it.",
        )
    yield from _check_durability(what, facts)


def _check_durability(what: str, facts: Row[tuple[object, ...]]) -> Iterator[Finding]:
    """A key that was handed out and then lost takes with it all that it has sealed elsewhere."""
    for name in ("fsync", "full_page_writes"):
        if getattr(facts, name) == "off":
            yield DATABASE.warning(
                f"{what}: {name} is off; a crash of the server may lose keys, and all that they sealed",
                f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();",
            )
    if facts.synchronous_commit == "off":
        yield DATABASE.warning(
            f"{what}: synchronous_commit is off; a crash of the server may lose the newest keys",
            f"ALTER ROLE {facts.role} SET synchronous_commit = on;",
        )


def _check_file(what: str, connection: Connection) -> Iterator[Finding]:
    version = connection.exec_driver_sql("SELECT sqlite_version()").scalar_one()
    journal = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
    patience = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() / 1000
    yield DATABASE.ok(f"{what}: SQLite {version}, journal mode {journal}, busy timeout {patience:g} s")
    if tuple(map(int, version.split("."))) < OLDEST_SQLITE:
        yield DATABASE.error(
            ConfigurationError,
            f"{what}: SQLite {version} is older than 3.35, and lacks RETURNING",
            "Use a Python that is built with a newer SQLite.",
        )
    if journal != "wal":
        yield DATABASE.warning(
            f"{what}: the journal mode is {journal}, so that readers and the writer block each other",
            "sqlite3 FILE 'PRAGMA journal_mode = WAL' (as a user who may write its folder)",
        )
    if patience < 1:
        yield DATABASE.warning(
            f"{what}: the busy timeout is {patience:g} s: who meets another writer fails at once",
            "Leave `timeout` out of the database's URL: then it is 5 s.",
        )
    if connection.exec_driver_sql("PRAGMA synchronous").scalar_one() < _SQLITE_FULL:
        yield DATABASE.warning(
            f"{what}: PRAGMA synchronous is below FULL; a loss of power may lose keys",
            "Use a SQLite that is built with SQLITE_DEFAULT_SYNCHRONOUS=2 and, for WAL, the same.",
        )


def _read_only(what: str, why: str, remedy: str) -> Finding:
    return DATABASE.error(StoreReadOnlyError, f"{what}: {why}, so nothing can be appended or rotated", remedy)
