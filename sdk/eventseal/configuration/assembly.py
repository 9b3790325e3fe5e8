"""Makes working objects from settings. Making them calls no KMS and reads no database."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from eventseal.cipher import AESCipher
from eventseal.cipher.compression import EventZstd, NoCompression, Zlib
from eventseal.configuration.loading import load_settings, with_urls_hidden
from eventseal.configuration.old_formats import configured_formats
from eventseal.erasure import DatabaseLedger, FileLedger
from eventseal.erasure.ledger.entries import INTENT
from eventseal.erasure.setting_aside import rows_in_force
from eventseal.errors import ConfigurationError, EventSealError
from eventseal.items import SequencedItemMapper
from eventseal.items.acceptance import AcceptedFormats
from eventseal.items.event_modules import import_listed
from eventseal.keys import CachePolicy, Keyring, RotationPolicy
from eventseal.kms import adapter_from_uri
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.storage.database.engines import database_identity
from eventseal.storage.datastore import AcceptedNow
from eventseal.storage.items.tables import OWN_RECORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from pydantic import SecretStr
    from sqlalchemy import URL

    from eventseal.cipher.compression import Compression
    from eventseal.configuration.settings import Settings
    from eventseal.erasure import Ledger
    from eventseal.items.sealed_places import SealedPlace
    from eventseal.kms import KmsAdapter
    from eventseal.rotation.set_aside_rows import SetAside

T = TypeVar("T")

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
        elsewhere = settings.key_store_url
        self.datastore = SQLAlchemyDatastore(
            _items_database(settings),
            tables=tuple(dict.fromkeys((*OWN_RECORDS, *record_classes(settings.tables)))),
            key_settings=None if elsewhere is None else _made("key_store_url", SQLAlchemySettings, elsewhere),
            eventsourcing_tables=settings.eventsourcing_tables,
            originator_id_type=settings.originator_id_type,
        )
        self.key_store = SQLAlchemyKeyStore(self.datastore)

    def are_present(self) -> bool:
        """Whether there is a database to connect to; taken for granted of all but SQLite's files."""
        files = self.datastore.settings.file, self.datastore.key_settings.file
        return all(file is None or file.exists() for file in files)

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
    records: list[type[Any]] = []
    for name in names:
        module_name, _, class_name = name.partition(":")
        record = getattr(import_listed(module_name, "tables"), class_name, None)
        if not isinstance(record, type):
            raise ConfigurationError(f"tables: module {module_name} has no class {class_name}")
        records.append(record)
    return records


def old_database(settings: Settings) -> SQLAlchemySettings:
    """
    Give the database that old tables are copied from: the items', unless the settings name another one.

    Raises:
        ConfigurationError: No database is named, or a URL is none.
    """
    if settings.old_store_url is None:
        return _items_database(settings)
    return _made("old_store_url", SQLAlchemySettings, settings.old_store_url)


def _items_database(settings: Settings) -> SQLAlchemySettings:
    if settings.store_url is None:
        raise ConfigurationError("no database is configured: store_url is missing", remedy=_NO_STORE)
    return _made("store_url", SQLAlchemySettings, settings.store_url)


def _made(setting: str, make: Callable[[str], T], secret: SecretStr) -> T:
    """Make what a setting names; an error names the setting, and never its value."""
    try:
        return make(secret.get_secret_value())
    except ConfigurationError as error:
        message, remedy = str(error), error.remedy
    # A new error: the first one's traceback has frames with the URL among their locals.
    raise ConfigurationError(f"{setting}: {message}", remedy=remedy)


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
    return _made("ledger", partial(_ledger, settings), settings.ledger)


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
        if database_identity(ledger.settings.url) in places:
            raise ConfigurationError("it is in the database of the items or the keys", remedy=_APART)
        return ledger
    if not named:
        raise ConfigurationError("it is empty; it is the path of a file, or the URL of a database")
    if ("sqlite", str(Path(named).resolve())) in places:
        raise ConfigurationError("it is the database of the items or the keys", remedy=_APART)
    return FileLedger(named)


def _place(url: SecretStr) -> tuple[object, ...] | None:
    parsed = _parsed(url)
    return None if parsed is None else database_identity(parsed)


def _parsed(url: SecretStr) -> URL | None:
    try:
        return make_url(url.get_secret_value())
    except ArgumentError:
        return None  # whoever opens it says so


_COMPRESSIONS: dict[str, Callable[[], Compression]] = {"zstd": EventZstd, "zlib": Zlib, "none": NoCompression}
_NO_KEK = """Name one, with a line in eventseal.toml:
    kms_key = "local:///absolute/path/of/dev.key"
or with a variable:
    EVENTSEAL_KMS_KEY=local:///absolute/path/of/dev.key
(`eventseal init` makes that file; in production name a key of a KMS in its place)"""


class EventSeal:
    """
    A store of sealed items as the settings describe it: its databases, keys, cipher, mapper and ledger.

    Making one reads no table, calls no KMS and writes nothing: ``eventseal init`` does that, once.

    Args:
        settings: From :func:`eventseal.configuration.load_settings`.
        kms: Ready adapters in place of those that ``kms_key`` names.
        places: What holds sealed items beside the registered tables: the ``place`` of each record strategy of
            your own.

    Raises:
        ConfigurationError: No KEK or no database is configured, or what is configured cannot be built.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        kms: KmsAdapter | Sequence[KmsAdapter] | None = None,
        places: Sequence[SealedPlace] = (),
    ) -> None:
        self.settings = settings
        self.places = tuple(places)
        adapters = [adapter_from_uri(uri) for uri in configured_keks(settings)] if kms is None else kms
        self.stores = Stores(settings)
        self.datastore = self.stores.datastore
        self.key_store = self.stores.key_store
        self.keyring = Keyring(
            adapters,
            self.key_store,
            application=settings.application,
            policy=rotation_policy(settings),
            cache=_cache_policy(settings),
            branches=settings.branches,
            wrap_quorum=settings.wrap_quorum,
            fall_back_on_outage=settings.fall_back_on_outage,
            scope_digest=settings.scope_digest,
            key_tables=settings.key_tables,
        )
        self.cipher = AESCipher(
            self.keyring,
            compression=_COMPRESSIONS[settings.compression](),
            max_plaintext=settings.max_plaintext,
        )
        self.ledger = configured_ledger(settings)

    @cached_property
    def mapper(self) -> SequencedItemMapper:
        """Maps events to items and back."""
        return SequencedItemMapper(
            cipher=self.cipher,
            always_encrypt=self.settings.always_encrypt,
            accept=self.accepted_formats,
            event_modules=self.event_modules,
        )

    @cached_property
    def accepted_formats(self) -> AcceptedFormats:
        """
        The older formats that are read beside envelopes, while the registry says that they are accepted.

        Raises:
            ConfigurationError: A key of theirs is not where the settings say.
        """
        settings = self.settings
        return AcceptedFormats(
            configured_formats(settings.old_formats, max_plaintext=settings.max_plaintext),
            current=AcceptedNow(
                self.datastore,
                settings.application,
                interval=settings.cache_refresh_interval.total_seconds(),
            ),
        )

    @classmethod
    def from_settings(cls, path: str | Path | None = None, **overrides: Any) -> Self:
        """
        Read the settings and assemble.

        Args:
            path: The settings file; ``None``: ``EVENTSEAL_CONFIG``, else ``eventseal.toml`` if it is there.
            overrides: Settings by name; they win over the environment, which wins over the file.

        Raises:
            ConfigurationError: A setting is unknown, missing or not allowed.
        """
        overrides = with_urls_hidden(overrides)
        return cls(load_settings(path, **overrides))

    @property
    def always_encrypt(self) -> bool:
        """Whether every event is encrypted, and anything else refused."""
        return self.settings.always_encrypt

    @property
    def event_modules(self) -> tuple[str, ...]:
        """Modules whose classes an unauthenticated item may name."""
        return self.settings.event_modules

    @property
    def unsealed_tables(self) -> tuple[str, ...]:
        """Tables that look as if they held sealed items, and do not."""
        return self.settings.unsealed_tables

    def rows_set_aside(self) -> list[SetAside]:
        """
        Give the damaged rows that the ledger excuses, verified; none without a ledger.

        Raises:
            EventSealError: The ledger is not what was written, or cannot be read.
        """
        return [] if self.ledger is None else rows_in_force(self, self.ledger)

    def close(self) -> None:
        """Forget the keys and close the connections."""
        self.keyring.close()
        self.stores.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EventSeal application={self.settings.application!r}>"


def configured_keks(settings: Settings) -> tuple[str, ...]:
    """
    Give the URIs of the configured KEKs, in order.

    Raises:
        ConfigurationError: There is none, or fewer than ``wrap_quorum``.
    """
    if not settings.kms_key:
        raise ConfigurationError("no KEK is configured: kms_key is missing", remedy=_NO_KEK)
    if settings.wrap_quorum is not None and settings.wrap_quorum > len(settings.kms_key):
        raise ConfigurationError(
            f"wrap_quorum is {settings.wrap_quorum}, but kms_key lists {len(settings.kms_key)}",
            remedy="List as many KEKs in kms_key, or leave wrap_quorum out: then every KEK wraps every key.",
        )
    return settings.kms_key


def rotation_policy(settings: Settings) -> RotationPolicy:
    """Give the policy by which active keys are replaced."""
    return RotationPolicy(max_age=settings.rotation_max_age, max_items=settings.rotation_max_items)


def _cache_policy(settings: Settings) -> CachePolicy:
    return CachePolicy(
        max_keys=settings.cache_max_keys,
        ttl=settings.cache_ttl.total_seconds(),
        refresh_interval=settings.cache_refresh_interval.total_seconds(),
        open_grace=settings.cache_open_grace.total_seconds(),
        outage_grace=settings.cache_outage_grace.total_seconds(),
    )
