"""The erasure ledger that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from eventseal.erasure import DatabaseLedger, FileLedger
from eventseal.erasure.ledger_entries import INTENT
from eventseal.errors import ConfigurationError, EventSealError
from eventseal.storage.engines import database_place

if TYPE_CHECKING:
    from pydantic import SecretStr
    from sqlalchemy import URL

    from eventseal.configuration.settings import Settings
    from eventseal.erasure import Ledger

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
