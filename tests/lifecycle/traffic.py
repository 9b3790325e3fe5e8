"""Where a client meets the KMS and its databases: each call can fail, stop, or be the client's last."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import psycopg

from eventseal.errors import (
    EventSealError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from eventseal.keys.store import KeyStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Engine

    from eventseal.keys import InMemoryKeyStore
    from eventseal.testing import FakeKms

PATIENCE = 60.0
"""Seconds that a thread may take to its next stop: it waits for nothing but its own work."""

KmsFault = Literal["unavailable", "throttled", "denied", "disabled"]
DatabaseFault = Literal["busy", "lost", "full", "readonly", "serialization"]

KMS_FAULTS: tuple[KmsFault, ...] = ("unavailable", "throttled", "denied", "disabled")
DATABASE_FAULTS: tuple[DatabaseFault, ...] = ("busy", "lost", "full", "readonly", "serialization")


class Crash(BaseException):
    """The client's process ends here: none of its calls is made any more."""


@dataclass(frozen=True)
class Fault:
    """
    What goes wrong at a call.

    Attributes:
        at: The number of the place, from 0; before and after each call is one.
        kind: ``fail`` once, ``fail_on`` from then on, ``crash``, or ``stall`` until the world lets it go on.
        kms: How, if the call is the KMS's.
        database: How, if it is a database's.
    """

    at: int
    kind: Literal["fail", "fail_on", "crash", "stall"]
    kms: KmsFault = "unavailable"
    database: DatabaseFault = "busy"


@dataclass
class Watch:
    """One operation as its calls see it."""

    faults: tuple[Fault, ...] = ()
    places: list[str] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)
    stalled_at: str | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def stall(self, place: str) -> None:
        self.stalled_at = place
        self.stopped.set()
        assert self.go_on.wait(PATIENCE), f"nobody let {place} go on"
        self.go_on.clear()
        self.stalled_at = None


class Traffic:
    """The calls of one client, from its first to its last."""

    def __init__(self) -> None:
        self.dead = False
        self.kms_fault: KmsFault | None = None
        self.database_fault: DatabaseFault | None = None
        self._watches = threading.local()

    def watch(self, watch: Watch | None) -> None:
        """Have the calling thread's calls counted by *watch*."""
        self._watches.current = watch

    def heal(self) -> None:
        self.kms_fault = self.database_fault = None

    @property
    def failing(self) -> bool:
        return self.kms_fault is not None or self.database_fault is not None

    def kms(self, name: str, call: Callable[[], Any], uri: str) -> Any:
        self._pass(f"kms {name}", lambda fault: self._fail_kms(fault, uri), before=True)
        if self.kms_fault is not None:
            self._fail_kms(self.kms_fault, uri)
        answer = call()
        self._pass(f"kms {name}", lambda fault: self._fail_kms(fault, uri), before=False)
        return answer

    def database(
        self, name: str, call: Callable[[], Any], fail: Callable[[DatabaseFault, bool], None]
    ) -> Any:
        self._pass(name, lambda fault: self._fail_database(fault, fail, done=False), before=True)
        if self.database_fault is not None:
            self._fail_database(self.database_fault, fail, done=False)
        answer = call()
        self._pass(name, lambda fault: self._fail_database(fault, fail, done=True), before=False)
        return answer

    def _pass(self, name: str, fail: Callable[[Any], None], *, before: bool) -> None:
        watch: Watch | None = getattr(self._watches, "current", None)
        if self.dead:
            raise Crash
        if watch is None:
            return
        number = len(watch.places)
        place = f"{'before' if before else 'after'} {name}"
        watch.places.append(place)
        for fault in watch.faults:
            if fault.at == number:
                self._happen(fault, watch, place, fail)

    def _happen(self, fault: Fault, watch: Watch, place: str, fail: Callable[[Any], None]) -> None:
        is_kms = " kms " in f" {place}"
        match fault.kind:
            case "crash":
                self.dead = True
                raise Crash
            case "stall":
                watch.stall(place)
                if self.dead:
                    raise Crash
            case "fail_on" | "fail":
                if fault.kind == "fail_on" and is_kms:
                    self.kms_fault = fault.kms
                elif fault.kind == "fail_on":
                    self.database_fault = fault.database
                fail(fault.kms if is_kms else fault.database)

    def _fail_kms(self, fault: KmsFault, uri: str) -> None:
        self._note(fault)
        raise kms_error(fault, uri)

    def _fail_database(
        self, fault: DatabaseFault, fail: Callable[[DatabaseFault, bool], None], *, done: bool
    ) -> None:
        self._note(fault)
        fail(fault, done)

    def _note(self, fault: str) -> None:
        watch: Watch | None = getattr(self._watches, "current", None)
        if watch is not None:
            watch.fired.append(fault)


def kms_error(fault: KmsFault, uri: str) -> EventSealError:
    match fault:
        case "unavailable":
            return KmsUnavailableError(f"{uri} does not answer", kek_uri=uri)
        case "throttled":
            return KmsUnavailableError(f"{uri} is throttled", kek_uri=uri, retry_after=1.0)
        case "denied":
            return KmsForbiddenError(f"{uri} denied the call", kek_uri=uri)
        case "disabled":
            return KmsKeyStateError(f"{uri} is disabled", kek_uri=uri)


# --- the KMS ---


class WatchedKms:
    """A client's way to a KMS that all clients share."""

    def __init__(self, kms: FakeKms, traffic: Traffic) -> None:
        self._kms = kms
        self._traffic = traffic

    @property
    def uri(self) -> str:
        return self._kms.uri

    def generate_data_key(self, context: Any) -> Any:
        return self._call("generate_data_key", context)

    def wrap(self, key: Any, context: Any) -> Any:
        return self._call("wrap", key, context)

    def unwrap(self, wrapped: Any, context: Any) -> Any:
        return self._call("unwrap", wrapped, context)

    def _call(self, name: str, *arguments: Any) -> Any:
        method = getattr(self._kms, name)
        return self._traffic.kms(name, lambda: method(*arguments), self.uri)


class WatchedBatchKms(WatchedKms):
    """The same for a KMS that takes several keys in one call."""

    def wrap_many(self, keys: Any) -> Any:
        return self._call("wrap_many", keys)

    def unwrap_many(self, keys: Any) -> Any:
        return self._call("unwrap_many", keys)


class WatchedEndingKms(WatchedBatchKms):
    """The same for one whose older versions can be ended."""

    def rewrap_many(self, keys: Any) -> Any:
        return self._call("rewrap_many", keys)

    def current_version(self) -> str:
        return str(self._call("current_version"))

    def rotate(self) -> str:
        return str(self._call("rotate"))

    def versions_before(self, version: str) -> list[str]:
        return list(self._call("versions_before", version))

    def forbid_versions_before(self, version: str) -> None:
        self._call("forbid_versions_before", version)

    def delete_versions_before(self, version: str) -> None:
        self._call("delete_versions_before", version)


# --- databases ---


def watch_engine(engine: Engine, traffic_of: Callable[[], Traffic], rewrite: Callable[[str], str]) -> None:
    """
    Have every statement and COMMIT of *engine* pass the traffic that is its client's at the moment.

    Args:
        engine: A client's.
        traffic_of: Gives the traffic.
        rewrite: Gives the statement that is executed instead of one.
    """
    dialect = engine.dialect
    fail = _fail_on_sqlite if dialect.name == "sqlite" else _fail_on_postgresql

    def executing(method: Callable[..., Any]) -> Callable[..., Any]:
        def execute(cursor: Any, statement: str, *arguments: Any) -> Any:
            with _abandoned_on_crash(cursor.connection, cursor):
                return traffic_of().database(
                    _short(statement),
                    lambda: method(cursor, rewrite(statement), *arguments),
                    lambda fault, done: (
                        # A BEGIN that has answered holds its lock: nobody is in its way any more.
                        None
                        if done and fault in {"busy", "serialization"} and statement.startswith("BEGIN")
                        else fail(fault, cursor.connection, commit=False)
                    ),
                )

        return execute

    def committing(method: Callable[..., Any]) -> Callable[..., Any]:
        def commit(connection: Any) -> Any:
            raw = getattr(connection, "dbapi_connection", connection)
            with _abandoned_on_crash(raw):
                return traffic_of().database(
                    "COMMIT",
                    lambda: method(connection),
                    lambda fault, done: fail("lost" if done else fault, raw, commit=True),
                )

        return commit

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        setattr(dialect, name, executing(getattr(dialect, name)))
    dialect.do_commit = committing(dialect.do_commit)  # type: ignore[method-assign]


@contextmanager
def _abandoned_on_crash(connection: Any, cursor: Any = None) -> Iterator[None]:
    """Do at once what the server does when a process is gone; SQLAlchemy would leave it to the collector."""
    try:
        yield
    except Crash:
        if cursor is not None:
            cursor.close()
        connection.rollback()
        raise


def _short(statement: str) -> str:
    words = statement.split()
    return " ".join(words[:3]) if words[0] != "SELECT" else "SELECT from " + _after(words, "FROM")


def _after(words: list[str], keyword: str) -> str:
    return words[words.index(keyword) + 1] if keyword in words[:-1] else "nothing"


_SQLITE = {
    "busy": (sqlite3.SQLITE_BUSY, "database is locked"),
    "serialization": (sqlite3.SQLITE_BUSY_SNAPSHOT, "database is locked"),
    "lost": (sqlite3.SQLITE_IOERR, "disk I/O error"),
    "full": (sqlite3.SQLITE_FULL, "database or disk is full"),
    "readonly": (sqlite3.SQLITE_READONLY, "attempt to write a readonly database"),
}


def _fail_on_sqlite(fault: DatabaseFault, connection: Any, *, commit: bool) -> None:
    if fault in {"lost", "full"}:
        connection.rollback()  # as SQLite may do by itself after these
    code, text = _SQLITE[fault]
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    raise error


def _fail_on_postgresql(fault: DatabaseFault, connection: Any, *, commit: bool) -> None:
    if fault == "lost":
        connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")
    if commit:
        connection.rollback()
    else:
        _abort(connection)
    raise {
        "busy": psycopg.errors.LockNotAvailable("canceling statement due to lock timeout"),
        "full": psycopg.errors.DiskFull("could not extend file: No space left on device"),
        "readonly": psycopg.errors.ReadOnlySqlTransaction("cannot execute in a read-only transaction"),
        "serialization": psycopg.errors.SerializationFailure("could not serialize access"),
    }[fault]


def _abort(connection: Any) -> None:
    """Let the server abort its transaction too, as it does after any error of its own."""
    try:
        connection.execute("SELECT 1/0")
    except psycopg.Error:
        return


# --- the key store in memory ---


class WatchedStore:
    """A client's way to a key store in memory that all clients share."""

    def __init__(self, store: InMemoryKeyStore, traffic: Traffic) -> None:
        self._store = store
        self._traffic = traffic


def _watched(name: str) -> Callable[..., Any]:
    def call(self: WatchedStore, *arguments: Any, **options: Any) -> Any:
        method = getattr(self._store, name)
        return self._traffic.database(f"store.{name}", lambda: method(*arguments, **options), _fail_in_memory)

    return call


def _fail_in_memory(fault: DatabaseFault, _done: bool) -> None:
    if fault == "readonly":
        raise StoreReadOnlyError("the key store in memory is read-only")
    raise StoreUnavailableError("the key store in memory is away")


for _name in (name for name in vars(KeyStore) if not name.startswith("_")):
    setattr(WatchedStore, _name, _watched(_name))
