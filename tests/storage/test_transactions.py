"""Transactions of EventSeal's own."""

from __future__ import annotations

import sqlite3
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from eventseal.errors import StoreError, StoreUnavailableError
from eventseal.storage.database import transactions
from eventseal.storage.database.faults import store_error
from eventseal.storage.database.transactions import ATTEMPTS, begin_writing, holds_sqlite_lock, read, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection


class SerializationFailureError(Exception):
    """As the driver raises it."""

    sqlstate = "40001"
    diag = None


def failing(times: int) -> tuple[list[int], Callable[[Connection], str]]:
    """Work that meets another transaction so many times before it is done; gives its attempts, too."""
    attempts: list[int] = []

    def work(_connection: Connection) -> str:
        attempts.append(len(attempts))
        if len(attempts) <= times:
            raise OperationalError("statement", {}, SerializationFailureError("met another"))
        return "done"

    return attempts, work


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(transactions, "_LONGEST_PAUSE", 0)


@pytest.mark.postgres
@pytest.mark.parametrize("default", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_isolation_is_chosen_whatever_the_default(postgres_url, open_datastore, default):
    datastore = open_datastore(postgres_url, setup=False, isolation_level=default)

    def isolation(connection: Connection) -> str:
        return str(connection.execute(text("SHOW transaction_isolation")).scalar_one())

    assert write(datastore.engine, isolation, doing="asking") == "read committed"
    assert write(datastore.engine, isolation, doing="asking", wait=False) == "read committed"
    assert read(datastore.engine, isolation, doing="asking") == "repeatable read"
    with datastore.engine.connect() as connection:
        assert isolation(connection) == default.lower()


def test_on_sqlite_the_write_lock_is_taken_before_anything_is_read(sqlite_url, open_datastore):
    engine = open_datastore(sqlite_url, setup=False).engine
    assert write(engine, holds_sqlite_lock, doing="asking")
    assert write(engine, holds_sqlite_lock, doing="asking", wait=False)


def test_sqlites_lock_is_taken_in_a_short_moment_without_a_writer(sqlite_url, open_datastore, monkeypatch):
    """SQLite's own wait soon sleeps for 100 ms at a time, and misses every shorter moment."""
    engine = open_datastore(sqlite_url, setup=False, connect_args={"timeout": 1}).engine
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 50:
            holder.rollback()

    monkeypatch.setattr(transactions, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep))
    with engine.connect() as holder, engine.connect() as waiting:
        begin_writing(holder)
        assert holds_sqlite_lock(begin_writing(waiting))
        assert waiting.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 1000
    assert len(pauses) == 50
    assert max(pauses) < 0.01


def test_sqlites_lock_is_tried_until_the_busy_timeout_is_over(sqlite_url, open_datastore, monkeypatch):
    engine = open_datastore(sqlite_url, setup=False, connect_args={"timeout": 1}).engine
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += max(seconds, 1e-3)

    monkeypatch.setattr(transactions, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    with engine.connect() as holder:
        begin_writing(holder)
        with pytest.raises(StoreUnavailableError, match="locked") as refused:
            write(engine, holds_sqlite_lock, doing="asking")
        assert "End long transactions" in refused.value.remedy
        waited = clock[0]
        assert waited == pytest.approx(1, abs=0.01)
        with pytest.raises(StoreUnavailableError, match="locked"):
            write(engine, holds_sqlite_lock, doing="asking", wait=False)
        assert clock[0] == pytest.approx(waited + 0.1, abs=0.01)


@pytest.mark.parametrize(
    ("error", "code", "raised"),
    [
        (sqlite3.OperationalError, sqlite3.SQLITE_IOERR, StoreUnavailableError),
        (sqlite3.DatabaseError, sqlite3.SQLITE_CORRUPT, StoreError),
    ],
    ids=["disk", "damage"],
)
def test_an_error_while_sqlites_lock_is_tried_is_not_taken_for_a_lock(
    sqlite_url, open_datastore, error, code, raised
):
    class Failing(sqlite3.Connection):
        """Its BEGINs meet a lock once, and fail from then on."""

        begins = 0

        def execute(self, sql, *parameters):
            return self._failing(sql) or super().execute(sql, *parameters)

        def cursor(self, *arguments):
            return FailingCursor(self)

        def _failing(self, sql):
            if sql == "BEGIN IMMEDIATE":
                self.begins += 1
                failure = (
                    sqlite3.OperationalError("database is locked") if self.begins == 1 else error("broken")
                )
                failure.sqlite_errorcode = sqlite3.SQLITE_BUSY if self.begins == 1 else code
                raise failure

    class FailingCursor(sqlite3.Cursor):
        def execute(self, sql, *parameters):
            self.connection._failing(sql)
            return super().execute(sql, *parameters)

    engine = open_datastore(sqlite_url, setup=False, connect_args={"factory": Failing}).engine
    with pytest.raises(raised, match=r"broken|DatabaseError") as refused:
        write(engine, holds_sqlite_lock, doing="asking")
    assert "lock" not in str(refused.value)
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection.begins == 3


def test_an_interrupt_while_sqlites_lock_is_tried_leaves_the_busy_timeout(
    sqlite_url, open_datastore, monkeypatch
):
    engine = open_datastore(sqlite_url, setup=False, connect_args={"timeout": 1}).engine

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transactions, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep))
    with engine.connect() as holder, engine.connect() as waiting:
        begin_writing(holder)
        with pytest.raises(KeyboardInterrupt):
            begin_writing(waiting)
        assert waiting.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 1000
        holder.rollback()
        assert holds_sqlite_lock(begin_writing(waiting))


def test_an_interrupt_while_sqlites_lock_is_taken_arrives_as_it_is(sqlite_url, open_datastore):
    engine = open_datastore(sqlite_url, setup=False).engine

    @event.listens_for(engine, "do_execute")
    def interrupt(cursor, statement, parameters, context):
        raise KeyboardInterrupt

    with engine.connect() as connection, pytest.raises(KeyboardInterrupt):
        begin_writing(connection)
    event.remove(engine, "do_execute", interrupt)
    assert write(engine, holds_sqlite_lock, doing="asking")


@pytest.mark.parametrize("run", [read, write])
def test_a_transaction_that_met_another_is_run_again(datastore, run):
    attempts, work = failing(ATTEMPTS - 1)
    assert run(datastore.engine, work, doing="trying") == "done"
    assert len(attempts) == ATTEMPTS


@pytest.mark.parametrize("run", [read, write])
def test_a_transaction_that_always_meets_another_is_unavailable(datastore, run):
    attempts, work = failing(ATTEMPTS)
    with pytest.raises(StoreUnavailableError, match="trying"):
        run(datastore.engine, work, doing="trying")
    assert len(attempts) == ATTEMPTS


def test_what_was_done_before_an_error_is_undone(datastore):
    def work(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE half (id INTEGER)"))
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError):
        write(datastore.engine, work, doing="trying")
    with datastore.engine.connect() as connection, pytest.raises(Exception, match="half"):
        connection.execute(text("SELECT * FROM half"))


class CommitFails(sqlite3.Connection):
    """Its COMMITs fail as on a full disk, and are not executed."""

    def commit(self) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error


@pytest.mark.parametrize("wait", [True, False])
def test_a_commit_that_failed_leaves_no_lock_with_the_connection(sqlite_url, open_datastore, wait):
    def work(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE made (id INTEGER)"))

    broken = open_datastore(sqlite_url, setup=False, connect_args={"factory": CommitFails})
    other = open_datastore(sqlite_url, setup=False, connect_args={"timeout": 0})
    with pytest.raises(StoreUnavailableError, match="full"):
        write(broken.engine, work, doing="trying", wait=wait)
    write(other.engine, work, doing="trying")


@pytest.mark.parametrize(
    ("code", "said", "remedy"),
    [
        (sqlite3.SQLITE_FULL, "database or disk is full", "Make room"),
        (sqlite3.SQLITE_IOERR | 19 << 8, "disk I/O error", "full or failing"),  # no room for the -shm file
    ],
    ids=["full", "no shared memory"],
)
def test_of_a_full_disk_the_remedy_says_so(code, said, remedy) -> None:
    error = sqlite3.OperationalError(said)
    error.sqlite_errorcode = code
    found = store_error(OperationalError("INSERT", None, error), "appending")
    assert isinstance(found, StoreUnavailableError)
    assert remedy in found.remedy


def test_of_a_servers_full_disk_the_remedy_says_so() -> None:
    class DiskFullError(Exception):
        sqlstate = "53100"

    found = store_error(OperationalError("INSERT", None, DiskFullError("no room")), "appending")
    assert isinstance(found, StoreUnavailableError)
    assert "Make room" in found.remedy
