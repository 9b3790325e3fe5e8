"""The databases and the erasure ledger that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from eventseal.erasure import DatabaseLedger, FileLedger
from eventseal.erasure.ledger.entries import INTENT
from eventseal.errors import ConfigurationError, EventSealError
from eventseal.items.event_modules import import_listed
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.storage.database.engines import database_place
from eventseal.storage.items.tables import OWN_RECORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import SecretStr
    from sqlalchemy import URL

    from eventseal.configuration.settings import Settings
    from eventseal.erasure import Ledger


_NO_STORE = """Say where the items are, with a line in eventseal.toml:
    store_url = "sqlite:///events.sqlite"
or with a variable:
    EVENTSEAL_STORE_URL=sqlite:///events.sqlite"""


class Stores:
    """
    The items' datastore and the key store; no connection is opened until it is needed.

    Args:
        settings: Name the databases and the record classes.

    Raises:
        ConfigurationError: No database is named, a URL is none, or a record class cannot be imported.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        if settings.store_url is None:
            raise ConfigurationError("no database is configured: store_url is missing", remedy=_NO_STORE)
        elsewhere = settings.key_store_url
        self.datastore = SQLAlchemyDatastore(
            _database("store_url", settings.store_url),
            tables=tuple(dict.fromkeys((*OWN_RECORDS, *record_classes(settings.tables)))),
            key_settings=None if elsewhere is None else _database("key_store_url", elsewhere),
            eventsourcing_tables=settings.eventsourcing_tables,
            originator_id_type=settings.originator_id_type,
        )
        self.key_store = SQLAlchemyKeyStore(self.datastore)

    def are_present(self) -> bool:
        """Whether there is a database to connect to; taken for granted of all but SQLite's files."""
        return not any(map(_is_missing_file, (self.datastore.settings, self.datastore.key_settings)))

    def are_in_memory(self) -> bool:
        """Whether a database ends with its connections."""
        return self.datastore.settings.in_memory or self.datastore.key_settings.in_memory

    def close(self) -> None:
        """Close the connections."""
        self.datastore.close()


def record_classes(names: Sequence[str]) -> list[type[Any]]:
    """
    Import record classes.

    Args:
        names: Each as ``module:Class``; the module from Python's path.

    Raises:
        ConfigurationError: A module or a class is not there, or importing it fails.
    """
    return [_record_class(name) for name in names]


def _record_class(name: str) -> type[Any]:
    module_name, _, class_name = name.partition(":")
    module = import_listed(module_name, "tables")
    record = getattr(module, class_name, None)
    if not isinstance(record, type):
        raise ConfigurationError(f"tables: module {module_name} has no class {class_name}")
    return record


def old_database(settings: Settings) -> SQLAlchemySettings:
    """
    Give the database that old tables are copied from: the items', unless the settings name another one.

    Raises:
        ConfigurationError: No database is named, or a URL is none.
    """
    if settings.old_store_url is not None:
        return _database("old_store_url", settings.old_store_url)
    if settings.store_url is None:
        raise ConfigurationError("no database is configured: store_url is missing", remedy=_NO_STORE)
    return _database("store_url", settings.store_url)


def _database(setting: str, url: SecretStr) -> SQLAlchemySettings:
    try:
        return SQLAlchemySettings(url.get_secret_value())
    except ConfigurationError as error:
        message, remedy = str(error), error.remedy
    # A new error: the first one's traceback has frames with the URL among their locals.
    raise ConfigurationError(f"{setting}: {message}", remedy=remedy)


def _is_missing_file(settings: SQLAlchemySettings) -> bool:
    url = settings.url
    if url.get_backend_name() != "sqlite" or settings.in_memory:
        return False
    # With uri=true the name is a URI, which only SQLite itself reads.
    return "uri" not in url.query and not Path(str(url.database)).exists()


DEFAULT_NAME = "erasures.jsonl"
_APART = "Put the ledger elsewhere, where no restore of the keys sets it back too."


def configured_ledger(settings: Settings) -> Ledger | None:
    """
    Make the ledger that is configured; nothing is opened or written.

    Args:
        settings: Name it as a path or as a URL.

    Returns:
        ``None`` if none is.

    Raises:
        ConfigurationError: It cannot be one, or would be in a database that holds items or keys.
    """
    if settings.ledger is None:
        return None
    message, remedy = "", None
    try:
        return _ledger(settings, settings.ledger.get_secret_value())
    except ConfigurationError as error:
        message, remedy = str(error), error.remedy
    # A new error: the first one's traceback has frames with the URL among their locals.
    raise ConfigurationError(f"ledger: {message}", remedy=remedy)


def default_ledger(settings: Settings, file: Path) -> str | None:
    """
    Give the path of a ledger that fits these settings: beside a SQLite store, else beside the settings file.

    Args:
        settings: Those of a new settings file.
        file: Where that is written.

    Returns:
        ``None`` if another application has its ledger there.
    """
    folder = file.parent
    url = None if settings.store_url is None else _parsed(settings.store_url)
    if url is not None and url.get_backend_name() == "sqlite":
        folder = Path(str(url.database)).parent
    path = str(folder / DEFAULT_NAME)
    try:
        FileLedger(path).unverified_open_entries(settings.application, INTENT)
    except EventSealError:
        return None
    return path


def _ledger(settings: Settings, named: str) -> Ledger:
    places = [_place(url) for url in (settings.store_url, settings.key_store_url) if url is not None]
    if "://" in named:
        ledger = DatabaseLedger(named)
        if database_place(ledger.settings.url) in places:
            raise ConfigurationError("it is in the database of the items or the keys", remedy=_APART)
        return ledger
    if not named:
        raise ConfigurationError("it is empty; it is the path of a file, or the URL of a database")
    if ("sqlite", str(Path(named).resolve())) in places:
        raise ConfigurationError("it is the database of the items or the keys", remedy=_APART)
    return FileLedger(named)


def _place(url: SecretStr) -> tuple[object, ...] | None:
    parsed = _parsed(url)
    return None if parsed is None else database_place(parsed)


def _parsed(url: SecretStr) -> URL | None:
    try:
        return make_url(url.get_secret_value())
    except ArgumentError:
        return None  # whoever opens it says so
