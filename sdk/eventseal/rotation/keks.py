"""What hangs on which KEK and which version of it, and whether one may go."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from eventseal.errors import ConfigurationError, JobError
from eventseal.keys.kek_facts import is_under
from eventseal.kms import adapter_from_uri

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from eventseal.keys import KekUse
    from eventseal.rotation.sealed_store import SealedStore

_CHECK_VALUE = 8
"""The version of a UUID that is computed from a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KekReport:
    """
    What hangs on each KEK.

    Attributes:
        application: Whose keys.
        uses: Wrappings of live keys by KEK and version, branch keys included, in order of both.
    """

    application: str
    uses: Sequence[KekUse]

    @property
    def by_kek(self) -> Mapping[str, int]:
        """Wrappings by KEK, over its versions."""
        counts: Counter[str] = Counter()
        for use in self.uses:
            counts[use.kek_uri] += use.wrappings
        return counts

    def to_json(self) -> dict[str, Any]:
        """Give it as ``--json`` prints it."""
        return {
            "application": self.application,
            "keks": [
                {
                    "kek": use.kek_uri,
                    "version": use.kek_version,
                    "wrappings": use.wrappings,
                    "verified": use.verified,
                }
                for use in self.uses
            ],
        }


def kek_report(store: SealedStore) -> KekReport:
    """
    Tell what hangs on which KEK, and on which version of it: one query, and no KEK is asked.

    Args:
        store: Whose keyring names the application.

    Raises:
        StoreError: The key store refused or failed.
    """
    application = store.keyring.application
    return KekReport(application=application, uses=tuple(store.key_store.kek_uses(application)))


def refuse_needed_kek(store: SealedStore, uri: str, version: str | None = None) -> int:
    """
    Refuse that a KEK, or one version of it, is taken away while keys need it.

    A key needs it if it has a wrapping there, and none that was verified under another KEK that the store is
    configured with; for a version, also none under another version.

    Args:
        store: Whose keyring has the KEKs that are to stay.
        uri: The KEK: as it is configured, or as the key tables name it.
        version: As the report tells it; ``None``: the whole KEK.

    Returns:
        How many wrappings are still there under it; none of them is needed.

    Raises:
        ConfigurationError: *uri* names no KEK, or *version* is not written as the key tables write it.
        JobError: Keys need it; the message says how many.
        KmsError: An alias had to be resolved, and could not be.
        StoreError: The key store refused or failed.
    """
    report = kek_report(store)
    named = _names_of(uri, store, report)
    if version is not None:
        _refuse_misspelt(version, uri, [use.kek_version for use in report.uses if use.kek_uri in named])
    elsewhere = {use.kek_uri for use in report.uses if _is_configured(store, use.kek_uri)}
    needing = store.key_store.count_dependents(
        report.application, named, kek_version=version, elsewhere=elsewhere
    )
    if needing:
        what = uri if version is None else f"version {version} of {uri}"
        raise JobError(
            f"{what} is needed: {needing} live keys have no verified wrapping elsewhere",
            remedy="Run `eventseal rewrap`, then `eventseal verify`, which opens every key, then `eventseal "
            "rewrap` once more; then ask again.",
            kek_uri=uri,
            kek_version=version,
            keys=needing,
        )
    return sum(
        use.wrappings for use in report.uses if use.kek_uri in named and version in {None, use.kek_version}
    )


def _names_of(uri: str, store: SealedStore, report: KekReport) -> set[str]:
    """Give the names that a KEK has in the key tables; none if nothing hangs on it."""
    stored = {use.kek_uri for use in report.uses}
    if uri in stored:
        return {uri}
    if _is_of_a_key_file(uri):
        return set()
    configured = [adapter for adapter in store.keyring.keks if adapter.uri == uri]
    try:
        adapter = configured[0] if configured else adapter_from_uri(uri)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"no key is wrapped under {uri}, and it names no KEK: {error}",
            remedy=f"Name one of: {', '.join(sorted(stored)) or 'none, since there are no keys'}.",
        ) from error
    return {kek_uri for kek_uri in stored if is_under(adapter, kek_uri)}


def _is_of_a_key_file(uri: str) -> bool:
    """Whether the key tables name a key file so: by a check value of its key, and not by its path."""
    scheme, _, name = uri.partition("://")
    try:
        return scheme == "local" and str(UUID(name)) == name and UUID(name).version == _CHECK_VALUE
    except ValueError:
        return False


def _refuse_misspelt(version: str, uri: str, known: Sequence[str | None]) -> None:
    """Refuse ``1`` where ``v1`` is meant: nothing is under a version that is not there, and it might go."""
    typed = version.casefold()
    for there in known:
        if there is not None and there != version and there.casefold().endswith(typed):
            raise ConfigurationError(
                f"no key is wrapped under version {version!r} of {uri}", remedy=f"Did you mean {there}?"
            )


def _is_configured(store: SealedStore, kek_uri: str) -> bool:
    return any(is_under(adapter, kek_uri) for adapter in store.keyring.keks)
