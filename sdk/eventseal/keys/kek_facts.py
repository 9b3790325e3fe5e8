"""What a rewrap knows of KEKs: which wrappings are theirs, and which version is the newest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError, KekNotConfiguredError, KmsError, KmsForbiddenError
from eventseal.kms.adapter import SupportsAliases, SupportsRewrap, TellsVersion

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventseal.keys.records import KeyRecord
    from eventseal.kms.adapter import KmsAdapter, WrappedKey


def is_under(adapter: KmsAdapter, kek_uri: str) -> bool:
    """
    Say whether a wrapping that names *kek_uri* is under a KEK.

    Raises:
        KmsError: The KEK is configured as an alias, which could not be resolved.
    """
    return kek_uri == adapter.uri or (isinstance(adapter, SupportsAliases) and adapter.is_named(kek_uri))


def concerns_the_kek(error: Exception) -> bool:
    """Whether an error is about a KEK, or the way to it, rather than about one wrapping or key."""
    if isinstance(error, ConfigurationError):
        return not isinstance(error, KekNotConfiguredError)
    # A KMS's plain refusal may be of one wrapping alone; so is that of one version of the KEK.
    return (
        isinstance(error, KmsError)
        and type(error) is not KmsError
        and not getattr(error, "kek_version", None)
    )


class KekFacts:
    """
    Remembers, for one run, what KEKs are called in wrappings and what wraps now. A KEK is asked once.

    Args:
        adapters: Those that may be asked: nothing else is ever contacted.
    """

    def __init__(self, adapters: Iterable[KmsAdapter]) -> None:
        self._adapters = tuple(adapters)
        self._under: dict[tuple[str, str], bool] = {}
        self._newest: dict[str, str | None] = {}

    def is_configured(self, wrapped: WrappedKey) -> bool:
        """Whether a wrapping is under one of the KEKs."""
        return any(self.is_under(adapter, wrapped) for adapter in self._adapters)

    def is_under(self, adapter: KmsAdapter, wrapped: WrappedKey) -> bool:
        """Whether a wrapping is under this KEK."""
        place = adapter.uri, wrapped.kek_uri
        if place not in self._under:
            self._under[place] = is_under(adapter, wrapped.kek_uri)
        return self._under[place]

    def learn(self, adapter: KmsAdapter, made: WrappedKey) -> None:
        """Take from a wrapping that a KEK has just made what it is called there, and what wraps now."""
        self._under[adapter.uri, made.kek_uri] = True
        if made.kek_version is not None and isinstance(adapter, TellsVersion):
            self._newest[adapter.uri] = made.kek_version

    def ask_newest(self, adapter: KmsAdapter) -> None:
        """
        Ask a KEK for its newest version, unless that is known.

        Whoever may not ask, but may rewrap, learns it from the first wrapping that comes back.

        Raises:
            KmsError: The KMS refused or failed.
        """
        if adapter.uri in self._newest:
            return
        try:
            self._newest[adapter.uri] = (
                adapter.current_version() if isinstance(adapter, TellsVersion) else None
            )
        except KmsForbiddenError:
            if not isinstance(adapter, SupportsRewrap):
                raise

    def knows_newest(self, adapter: KmsAdapter) -> bool:
        """Whether the KEK's newest version, or that it has none, is known."""
        return adapter.uri in self._newest

    def is_current(self, adapter: KmsAdapter, wrapped: WrappedKey) -> bool:
        """Whether a wrapping is under this KEK and its newest version; a KEK without versions has one."""
        if not self.is_under(adapter, wrapped):
            return False
        if adapter.uri not in self._newest:
            return False
        newest = self._newest[adapter.uri]
        return newest is None or wrapped.kek_version == newest

    def current(self, adapter: KmsAdapter, record: KeyRecord) -> WrappedKey | None:
        """Give a key's wrapping under a KEK's newest version, a verified one if there is one."""
        found = [wrapped for wrapped in record.wrappings if self.is_current(adapter, wrapped)]
        return next((wrapped for wrapped in found if wrapped in record.verified), next(iter(found), None))

    def confirmed_newest(self, adapter: KmsAdapter) -> str | None:
        """
        Ask again for the version that wraps: some KMS do not say under which one they made a wrapping.

        Returns:
            The version, if it is still the one that was known before they were made.

        Raises:
            KmsError: The KMS refused or failed.
        """
        before = self._newest.get(adapter.uri)
        if before is None or not isinstance(adapter, TellsVersion):
            return None
        return before if adapter.current_version() == before else None
