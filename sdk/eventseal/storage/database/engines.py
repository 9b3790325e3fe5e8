"""Engines: how EventSeal connects to SQLite and PostgreSQL."""

from __future__ import annotations

import os
import random
import re
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import quote, unquote_to_bytes

from sqlalchemy import URL, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import QueuePool

from eventseal.errors import ConfigurationError
from eventseal.storage.database.layout import follow_layout
from eventseal.storage.database.sqlite_files import explain_failed_opening

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

IN_MEMORY = "sqlite:///:memory:"
SQLITE_BUSY_TIMEOUT = 30.0
"""Seconds that a statement waits for another connection's write lock. A crowd needs several."""
_MEMORY_TIMEOUT = 5.0
_LONGEST_PAUSE = 0.05

Pooler: TypeAlias = Literal["transaction"]

_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite+pysqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
"""The usable drivers, by their names in URLs. They run statements in the calling thread."""

_PORTS = {"postgresql": 5432}

# SQLAlchemy ends a password at the first @, and takes what follows for the host and the database, which
# messages show. As in RFC 3986, an @ stands only behind the password, and the password has no / ? # or %.
_SERVER_URL = re.compile(
    r"""
    [\w+]+://
    (?:(?P<user>(?:[^/?\#@%]|%[0-9A-Fa-f]{2})*)@)?
    (?:[\w.,-]*|\[[\w:.%]+\])(?::[0-9]{1,5})?
    (?:/[^?@]*)?
    (?:\?[^@]*)?
    """,
    re.VERBOSE,
)
_ENCODE = (
    "Percent-encode the user name and the password in the URL, and write %40 for any other @. To encode a "
    "password, run `python -c 'from getpass import *; from urllib.parse import *; "
    """print(quote(getpass(), ""))'`."""
)
_USE_A_URL = "Use sqlite:///<file> or postgresql://<user>@<host>/<database>."
_MYSQL = ("mysql", "mariadb")


class SQLAlchemySettings:
    """
    The address of a database, and how to connect to it.

    Args:
        uri: The URI in SQLAlchemy's form: ``sqlite:///file``, ``postgresql://user:password@host/database``
            (through psycopg). It is a secret. Neither the repr nor messages show it.
        schema: The PostgreSQL schema of all tables that name none themselves. It must exist.
        pooler: ``"transaction"`` if you connect through a pooler, such as PgBouncer, that gives each
            transaction any of its connections. Then no statement is prepared.
        engine_options: Further arguments for SQLAlchemy's ``create_engine``.

    Raises:
        ConfigurationError: The URI cannot be read, names another database than SQLite or PostgreSQL or a
            driver that EventSeal cannot use, or an option would disable transactions. Or a schema is given
            for SQLite.
    """

    def __init__(
        self,
        uri: str = IN_MEMORY,
        *,
        schema: str | None = None,
        pooler: Pooler | None = None,
        **engine_options: Any,
    ) -> None:
        self.url = _parsed(uri)
        self.schema = schema
        self.pooler = pooler
        if schema is not None and self.url.get_backend_name() != "postgresql":
            raise ConfigurationError(
                "a schema can be chosen only on PostgreSQL", remedy="Remove the setting `database_schema`."
            )
        self.engine_options = engine_options
        if engine_options.get("isolation_level") == "AUTOCOMMIT":
            raise ConfigurationError(
                "isolation_level is AUTOCOMMIT, but EventSeal writes items in transactions",
                remedy="Remove the option isolation_level.",
            )

    @property
    def in_memory(self) -> bool:
        """Whether the database is in the memory of this process. Only SQLite has such databases."""
        return is_in_memory(self.url)

    @property
    def file(self) -> Path | None:
        """
        The file of a SQLite database.

        ``None`` for other databases, and if only SQLite itself can read the name.
        """
        if self.url.get_backend_name() != "sqlite" or self.in_memory or "uri" in self.url.query:
            return None
        return Path(str(self.url.database))

    @property
    def is_there(self) -> bool:
        """Whether the database exists, as far as files show. If not, a connection would create the file."""
        return self.file is None or os.access(self.file, os.F_OK)

    def __repr__(self) -> str:
        return f"<SQLAlchemySettings {redacted(self.url)}>"


def redacted(url: URL) -> str:
    """Return *url* without its user, password and option values."""
    return URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()


def is_in_memory(url: URL) -> bool:
    """Return whether *url* names SQLite's in-memory database."""
    if url.get_backend_name() != "sqlite":
        return False
    return url.database in {None, "", ":memory:", "file::memory:"} or url.query.get("mode") == "memory"


def database_identity(url: URL) -> tuple[object, ...]:
    """
    Return the values that distinguish one database from another.

    They do not depend on how a URL is written.
    """
    backend = url.get_backend_name()
    if backend == "sqlite":
        return backend, str(Path(str(url.database)).resolve())
    host = url.host or url.query.get("host")
    return backend, host, url.port or url.query.get("port") or _PORTS.get(backend), url.database


def make_engine(
    settings: SQLAlchemySettings, *, holds_keys: bool = False, reads_only: bool = False
) -> Engine:
    """
    Create an engine, without opening a connection.

    Args:
        settings: The settings of the database.
        holds_keys: Whether SQLite zeroes deleted content, and pages that are no longer used.
        reads_only: Whether nothing may be written there. Then SQLite changes no byte of the file, and creates
            no file.

    Raises:
        ConfigurationError: An option is unknown.
        ImportError: The database's driver is not installed. The message has the install command.
    """
    # Parameters may be plaintext items, so they stay out of logs and messages.
    options: dict[str, Any] = {"hide_parameters": True, **settings.engine_options}
    url = settings.url
    sqlite = url.get_backend_name() == "sqlite"
    if sqlite:
        options = _sqlite_options(url, options)
        url = _read_only_file(url) if reads_only else url
    elif settings.pooler is not None:
        # The pooler lends the same server to others, who find our prepared statements there.
        options["connect_args"] = {**options.get("connect_args", {}), "prepare_threshold": None}
    try:
        engine = create_engine(url, **options)
    except (TypeError, ArgumentError) as error:
        raise ConfigurationError(f"an engine option of the database is wrong: {error}") from None
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise ImportError(
            "PostgreSQL needs psycopg: pip install 'eventseal[postgres]'", name=error.name
        ) from error
    if settings.schema is not None:
        engine.update_execution_options(schema_translate_map={None: settings.schema})
    follow_layout(engine, schema=settings.schema)
    if sqlite:
        event.listen(engine, "connect", _read_any_text)
    if settings.file is not None:
        explain_failed_opening(engine, settings.file)
    if reads_only:
        event.listen(engine, "connect", _write_nothing if sqlite else _only_read)
    elif sqlite and not settings.in_memory:
        event.listen(engine, "connect", _use_write_ahead_log)
        if holds_keys:
            event.listen(engine, "connect", _zero_what_is_deleted)
    return engine


def _sqlite_options(url: URL, options: dict[str, Any]) -> dict[str, Any]:
    connect_args = dict(options.pop("connect_args", {}))
    if "timeout" not in url.query:
        connect_args.setdefault("timeout", SQLITE_BUSY_TIMEOUT)
    if is_in_memory(url):
        # One connection for all, lent to one at a time: all see the same tables, each in its own transaction.
        connect_args.setdefault("check_same_thread", False)
        if "poolclass" not in options:
            one = {
                "poolclass": QueuePool,
                "pool_size": 1,
                "max_overflow": 0,
                "pool_timeout": _MEMORY_TIMEOUT,
            }
            options = {**one, **options}
    return {**options, "connect_args": connect_args}


def _read_any_text(connection: sqlite3.Connection, _record: object) -> None:
    """
    Read text that is not UTF-8 with lone surrogates.

    So an edited row is refused, and hides no other row.
    """
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")


def _use_write_ahead_log(connection: sqlite3.Connection, _record: object) -> None:
    """Let readers and one writer work at the same time. A read-only file stays as it is."""
    if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        return
    (patience,) = connection.execute("PRAGMA busy_timeout").fetchone()
    ends_at = time.monotonic() + patience / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF
            if code == sqlite3.SQLITE_READONLY:
                return
            # If two connections to a new file switch together, SQLite refuses one of them without any wait.
            if code != sqlite3.SQLITE_BUSY or time.monotonic() >= ends_at:
                raise
            time.sleep(random.uniform(0, _LONGEST_PAUSE))  # noqa: S311 - jitter, not a secret
        else:
            return


def _write_nothing(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA query_only = ON")


def _read_only_file(url: URL) -> URL:
    """
    Return a URL by which SQLite neither creates nor changes the file.

    A URL with a SQLite URI already says how to open the file.
    """
    if is_in_memory(url) or "uri" in url.query:
        return url
    name = quote(str(url.database))
    return url.set(database=f"file:{name}").update_query_dict({"mode": "ro", "uri": "true"})


def _only_read(connection: Any, _record: object) -> None:
    connection.read_only = True  # of each transaction: behind a pooler, others would get a session's setting


def _zero_what_is_deleted(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA secure_delete = ON")


def _parsed(uri: str) -> URL:
    try:
        url = make_url(uri)
    except (ArgumentError, TypeError, ValueError):
        # The URI is a secret, and SQLAlchemy's message may quote it.
        raise _unreadable(uri) from None
    backend, _, driver = url.drivername.partition("+")
    if backend in _MYSQL:
        raise ConfigurationError(
            f"the database is {backend}, but EventSeal supports only SQLite and PostgreSQL",
            remedy=f"{_USE_A_URL} The decision record on MySQL and MariaDB says what support would need.",
        )
    if backend not in _DRIVERS:
        raise ConfigurationError(
            f"the database is {backend}, but EventSeal supports only SQLite and PostgreSQL",
            remedy="Use a URL that begins with sqlite:// or postgresql://.",
        )
    if url.drivername not in _DRIVERS:
        raise ConfigurationError(
            f"EventSeal cannot use the driver {driver}",
            remedy=f"Write {_DRIVERS[backend]}:// instead of {url.drivername}://.",
        )
    if not (_is_file_url(url) if backend == "sqlite" else _is_server_url(str(uri))):
        raise _unreadable(uri)
    return url.set(drivername=_DRIVERS[url.drivername])


def _is_file_url(url: URL) -> bool:
    return (url.username, url.host, url.port) == (None, None, None)


def _is_server_url(uri: str) -> bool:
    match = _SERVER_URL.fullmatch(uri)
    if match is None:
        return False
    try:
        unquote_to_bytes(match["user"] or "").decode()
    except UnicodeDecodeError:  # SQLAlchemy would put other characters there
        return False
    return True


def _unreadable(uri: object) -> ConfigurationError:
    remedy = _ENCODE if "@" in str(uri) else _USE_A_URL
    return ConfigurationError("the database's URL cannot be read", remedy=remedy)
