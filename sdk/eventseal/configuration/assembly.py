"""From settings to working objects. Nothing here calls a KMS or a database."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from eventseal.cipher import AESCipher
from eventseal.cipher.envelopes import EventZstd, NoCompression, Zlib
from eventseal.configuration.loading import load_settings, with_urls_hidden
from eventseal.configuration.old_formats import configured_formats
from eventseal.configuration.stores import Stores, configured_ledger
from eventseal.erasure.setting_aside import rows_in_force
from eventseal.errors import ConfigurationError
from eventseal.items import SequencedItemMapper
from eventseal.items.acceptance import AcceptedFormats
from eventseal.keys import CachePolicy, Keyring, RotationPolicy
from eventseal.kms import adapter_from_uri
from eventseal.storage.datastore import AcceptedNow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from eventseal.cipher.envelopes import Compression
    from eventseal.configuration.settings import Settings
    from eventseal.items.sealed_places import SealedPlace
    from eventseal.kms import KmsAdapter
    from eventseal.rotation.rows_set_aside import SetAside

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
