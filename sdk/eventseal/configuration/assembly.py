"""Builds working objects from settings, without calls to a KMS or database."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import make_url

from eventseal import erasure, items
from eventseal.cipher import AESCipher
from eventseal.cipher.compression import EventZstd, NoCompression, Zlib
from eventseal.configuration.loading import load_settings, with_urls_hidden
from eventseal.configuration.old_formats import configured_formats
from eventseal.erasure.ledger.entries import INTENT
from eventseal.errors import ConfigurationError, EventSealError, StoreUnavailableError
from eventseal.items.acceptance import AcceptedFormats
from eventseal.items.event_modules import import_listed
from eventseal.keys import CachePolicy, Keyring, RotationPolicy
from eventseal.keys.wrapping.keks import check_adapters
from eventseal.kms import adapter_from_uri
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.storage.accepted_formats import AcceptedNow
from eventseal.storage.database.engines import database_identity
from eventseal.storage.database.sqlite_files import opening_fault
from eventseal.storage.items.tables import OWN_RECORDS
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from pydantic import SecretStr
    from sqlalchemy import URL

    from eventseal.cipher.compression import Compression
    from eventseal.configuration.settings import Settings
    from eventseal.erasure import Ledger
    from eventseal.items import SequencedItemMapper
    from eventseal.items.sealed_places import SealedPlace
    from eventseal.kms import KmsAdapter
    from eventseal.rotation.set_aside_rows import SetAside
    from eventseal.storage.database.layout import StoreLayout

T = TypeVar("T")

_NEW_PROJECT = (
    "In a new project, run: eventseal init --kms-key local://dev.key --store-url sqlite:///events.sqlite"
)
_NO_STORE = f"""Set the items' database, with a line in eventseal.toml:
    store_url = "sqlite:///events.sqlite"
or with a variable:
    EVENTSEAL_STORE_URL=sqlite:///events.sqlite
{_NEW_PROJECT}"""


class Stores:
    """
    The items' datastore and the key store.

    No connection is opened until it is needed.

    Args:
        settings: The settings that name the databases and the record classes.

    Raises:
        ConfigurationError: No database is named, a database URL is not valid, or a record class cannot be
            imported.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        elsewhere, listed = settings.key_store_url, record_classes(settings.tables)
        # An application of the eventsourcing library needs no other tables, but may have some.
        unlisted = set(OWN_RECORDS).difference(listed) if settings.eventsourcing_tables else ()
        self.datastore = SQLAlchemyDatastore(
            _items_database(settings),
            tables=tuple(dict.fromkeys((*OWN_RECORDS, *listed))),
            key_settings=None if elsewhere is None else _database(settings, "key_store_url", elsewhere),
            eventsourcing_tables=settings.eventsourcing_tables,
            originator_id_type=settings.originator_id_type,
            only_if_there=unlisted,
        )
        self.key_store = SQLAlchemyKeyStore(self.datastore)

    def are_present(self) -> bool:
        """Check whether every SQLite file exists. Any other database is assumed to exist."""
        return self.datastore.settings.is_there and self.datastore.key_settings.is_there

    def wrong_path(self) -> ConfigurationError | None:
        """Return an error if SQLite cannot open or create a file."""
        return next(filter(None, map(opening_fault, self._files())), None)

    def missing_file(self) -> EventSealError:
        """Return the error for a SQLite file that does not exist."""
        return self.wrong_path() or StoreUnavailableError(
            "the SQLite file that store_url or key_store_url names does not exist",
            remedy="Correct the setting, or restore the file if it was lost. In a new project, create the "
            "file with `eventseal init`.",
        )

    def are_in_memory(self) -> bool:
        """Check whether a database is in memory. It ends with its connections."""
        return self.datastore.settings.in_memory or self.datastore.key_settings.in_memory

    def close(self) -> None:
        """Close the connections."""
        self.datastore.close()

    def _files(self) -> list[Path]:
        files = self.datastore.settings.file, self.datastore.key_settings.file
        return [file for file in files if file is not None]


def record_classes(names: Sequence[str]) -> list[type[Any]]:
    """
    Import record classes.

    Args:
        names: The names of the classes, each as ``module:Class``. Python's path must contain the module.

    Raises:
        ConfigurationError: A module or a class does not exist, or its import fails.
    """
    records: list[type[Any]] = []
    for name in names:
        module_name, _, class_name = name.partition(":")
        record = getattr(import_listed(module_name, "tables"), class_name, None)
        if not isinstance(record, type):
            raise ConfigurationError(
                f"tables: module {module_name} has no class {class_name}",
                remedy="Correct the setting `tables`. Name each class as module:Class.",
            )
        records.append(record)
    return records


def old_database(settings: Settings) -> SQLAlchemySettings:
    """
    Return the database from which old tables are copied.

    It is the items' database, unless the settings name another one.

    Raises:
        ConfigurationError: No database is named, or its URL is not valid.
    """
    if settings.old_store_url is None:
        return _items_database(settings)
    return _database(settings, "old_store_url", settings.old_store_url)


def _items_database(settings: Settings) -> SQLAlchemySettings:
    if settings.store_url is None:
        raise ConfigurationError("no database is configured: store_url is missing", remedy=_NO_STORE)
    return _database(settings, "store_url", settings.store_url)


def _database(settings: Settings, setting: str, url: SecretStr) -> SQLAlchemySettings:
    return _made(
        setting, partial(SQLAlchemySettings, pooler=settings.pooler, schema=settings.database_schema), url
    )


def _made(setting: str, make: Callable[[str], T], secret: SecretStr) -> T:
    """Build the object that a setting names. An error names the setting, and never its value."""
    try:
        return make(secret.get_secret_value())
    except ConfigurationError as error:
        message, remedy = str(error), error.remedy
    # A new error: the traceback of the first one has frames with the URL among their local variables.
    raise ConfigurationError(f"{setting}: {message}", remedy=remedy)


DEFAULT_NAME = "erasures.jsonl"
_APART = "Put the ledger in another place, so that a restore of the keys does not restore an old ledger too."


def configured_ledger(settings: Settings, layout: StoreLayout | None = None) -> Ledger | None:
    """
    Create the configured ledger, without opening or writing it.

    Args:
        settings: The settings, which name the ledger as a path or as a URL.
        layout: The store's databases. If the ledger is in a database, its table has the same kind of name.

    Returns:
        The ledger, or ``None`` if the settings name none.

    Raises:
        ConfigurationError: The value names no ledger, or the ledger would be in a database that holds items
            or keys.
    """
    if settings.ledger is None:
        return None
    ledger = _made("ledger", partial(_ledger, settings), settings.ledger)
    if layout is not None and isinstance(ledger, erasure.DatabaseLedger):
        layout.add(ledger.engine)
    return ledger


def default_ledger(settings: Settings, file: Path) -> str | None:
    """
    Return the default path of the ledger for new settings.

    It is in the directory of a SQLite store, or else of the settings file.

    Args:
        settings: The settings of a new settings file.
        file: The path of the settings file.

    Returns:
        The path, or ``None`` if another application's ledger has that path.
    """
    folder = file.parent
    url = None if settings.store_url is None else _parsed(settings.store_url)
    if url is not None and url.get_backend_name() == "sqlite":
        folder = Path(str(url.database)).parent
    path = str(folder / DEFAULT_NAME)
    try:
        erasure.FileLedger(path).unverified_open_entries(settings.application, INTENT)
    except EventSealError:
        return None
    return path


def _ledger(settings: Settings, named: str) -> Ledger:
    places = [_place(url) for url in (settings.store_url, settings.key_store_url) if url is not None]
    if "://" in named:
        on_server = make_url(named).get_backend_name() == "postgresql"
        ledger = erasure.DatabaseLedger(named, schema=settings.database_schema if on_server else None)
        if database_identity(ledger.settings.url) in places:
            raise ConfigurationError("it must not be in the database of the items or the keys", remedy=_APART)
        return ledger
    if not named:
        raise ConfigurationError(
            "it is empty", remedy="Set it to the path of a file, or to the URL of a database."
        )
    if ("sqlite", str(Path(named).resolve())) in places:
        raise ConfigurationError("it must not be the database of the items or the keys", remedy=_APART)
    return erasure.FileLedger(named)


def _place(url: SecretStr) -> tuple[object, ...] | None:
    parsed = _parsed(url)
    return None if parsed is None else database_identity(parsed)


def _parsed(url: SecretStr) -> URL | None:
    try:
        return SQLAlchemySettings(url.get_secret_value()).url
    except ConfigurationError:
        return None  # the code that opens the database reports it


_COMPRESSIONS: dict[str, Callable[[], Compression]] = {"zstd": EventZstd, "zlib": Zlib, "none": NoCompression}
_NO_KEK = f"""Set one, with a line in eventseal.toml:
    kms_key = "local:///absolute/path/of/dev.key"
or with a variable:
    EVENTSEAL_KMS_KEY=local:///absolute/path/of/dev.key
In production, name a KMS key instead of a key file.
{_NEW_PROJECT}"""


class EventSeal:
    """
    A store of sealed items, built from settings.

    It has the databases, the keys, the cipher, the mapper and the ledger. Building it reads no table, calls
    no KMS and writes nothing: ``eventseal init`` does that, once.

    Args:
        settings: The settings, from :func:`eventseal.configuration.load_settings`.
        kms: Adapters to use instead of the KMS keys in ``kms_key``.
        places: Further places of sealed items, in addition to the registered tables: the ``place`` of each
            record strategy that you wrote.

    Raises:
        ConfigurationError: No KEK or no database is configured, or an object cannot be built from the
            settings.
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
        adapters = configured_adapters(settings) if kms is None else kms
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
        self.ledger = configured_ledger(settings, self.datastore.layout)

    @cached_property
    def mapper(self) -> SequencedItemMapper:
        """Maps events to items and back."""
        return items.SequencedItemMapper(
            cipher=self.cipher,
            always_encrypt=self.settings.always_encrypt,
            accept=self.accepted_formats,
            event_modules=self.event_modules,
        )

    @cached_property
    def accepted_formats(self) -> AcceptedFormats:
        """
        The older formats that are read in addition to envelopes.

        They are read as long as the registry accepts them.

        Raises:
            ConfigurationError: The key of a format is not in the place that the settings name.
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
        Read the settings and build the store.

        Args:
            path: The settings file. If it is ``None``: the file that ``EVENTSEAL_CONFIG`` names, else
                ``eventseal.toml`` if it exists.
            overrides: Settings by name. They win over the environment, which wins over the file.

        Raises:
            ConfigurationError: A setting is unknown, missing or not allowed.
        """
        overrides = with_urls_hidden(overrides)
        return cls(load_settings(path, **overrides))

    @property
    def always_encrypt(self) -> bool:
        """Whether every event is encrypted, and plaintext is refused."""
        return self.settings.always_encrypt

    @property
    def event_modules(self) -> tuple[str, ...]:
        """The modules whose classes an unauthenticated item may name."""
        return self.settings.event_modules

    @property
    def unsealed_tables(self) -> tuple[str, ...]:
        """The tables that look like tables of sealed items, but are not."""
        return self.settings.unsealed_tables

    def rows_set_aside(self) -> list[SetAside]:
        """
        Return the damaged rows that the ledger excuses, after verifying the ledger.

        Without a ledger the list is empty.

        Raises:
            EventSealError: The ledger was changed, or cannot be read.
        """
        return [] if self.ledger is None else erasure.rows_in_force(self, self.ledger)

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
    Return the URIs of the configured KEKs, in order.

    Raises:
        ConfigurationError: No KEK is configured, or fewer than ``wrap_quorum``.
    """
    if not settings.kms_key:
        raise ConfigurationError("no KMS key is configured: kms_key is missing", remedy=_NO_KEK)
    if settings.wrap_quorum is not None and settings.wrap_quorum > len(settings.kms_key):
        raise ConfigurationError(
            f"wrap_quorum is {settings.wrap_quorum}, but kms_key lists "
            f"{counted(len(settings.kms_key), 'KMS key')}",
            remedy="List as many KMS keys in kms_key, or remove wrap_quorum. Then each wraps every key.",
        )
    return settings.kms_key


def configured_adapters(settings: Settings) -> list[KmsAdapter]:
    """
    Create the adapters of the configured KEKs, in order, without a call.

    Raises:
        ConfigurationError: No KEK is configured, one is listed twice, or an adapter refuses its URI or its
            options.
    """
    adapters = [adapter_from_uri(uri, settings.kms_options) for uri in configured_keks(settings)]
    check_adapters(adapters)
    return adapters


def rotation_policy(settings: Settings) -> RotationPolicy:
    """Return the policy for replacing active keys."""
    return RotationPolicy(max_age=settings.rotation_max_age, max_items=settings.rotation_max_items)


def _cache_policy(settings: Settings) -> CachePolicy:
    return CachePolicy(
        max_keys=settings.cache_max_keys,
        ttl=settings.cache_ttl.total_seconds(),
        refresh_interval=settings.cache_refresh_interval.total_seconds(),
        open_grace=settings.cache_open_grace.total_seconds(),
        outage_grace=settings.cache_outage_grace.total_seconds(),
    )
