"""The databases that the settings name: where the items are, and where the keys are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventseal.errors import ConfigurationError
from eventseal.items.event_modules import import_listed
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.storage.item_tables import OWN_RECORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import SecretStr

    from eventseal.configuration.settings import Settings

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
