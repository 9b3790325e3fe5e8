"""
The KEKs that stay and that end in an epoch roll.

The key of the erasure ledger moves from the ending KEKs to the staying ones.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from eventseal.erasure.epoch_receipt import EndedKek, Ending
from eventseal.erasure.shredding import own_ledger
from eventseal.errors import ConfigurationError, JobError
from eventseal.keys.wrapping.unwrapping import is_under
from eventseal.kms import SupportsDeletion, SupportsVersions
from eventseal.kms.key_uris import without_query
from eventseal.rotation.rewrapping import kek_names
from eventseal.wording import moment

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from eventseal.kms import KmsAdapter
    from eventseal.rotation.sealed_store import SealedStore


_NO_VERSIONS = (
    "Create a new KMS key, and list it after the old one in kms_key of every application. Then run "
    "`eventseal roll-epoch --to URI` with the new key."
)


class EpochKeks:
    """
    Decides which KEKs end as a whole, and which lose older versions.

    Args:
        keks: The configured KEKs.
        to: The KEK that replaces them all. ``None``: all stay, each with a new version.

    Attributes:
        staying: The KEKs that wrap keys after the roll.
        leaving: The KEKs that end as a whole.

    Raises:
        ConfigurationError: A KEK must stay but has no versions that can be ended, or *to* is not configured.
    """

    def __init__(self, keks: Sequence[KmsAdapter], to: KmsAdapter | None) -> None:
        if to is not None and all(adapter.uri != to.uri for adapter in keks):
            raise ConfigurationError(
                f"{to.uri} is not among the KMS keys of this store",
                remedy="List it in kms_key after the key that it replaces, here and in every application. "
                "Without it, they could not open their keys after the roll.",
            )
        self.staying = tuple(keks) if to is None else (to,)
        self.leaving = [adapter for adapter in keks if to is not None and adapter.uri != to.uri]
        for adapter in () if self.leaving else keks:
            if not isinstance(adapter, SupportsVersions):
                raise ConfigurationError(
                    f"{adapter.uri} cannot end its older versions alone, so another KMS key must replace it",
                    remedy=_NO_VERSIONS,
                )

    def deletion_dates(self) -> dict[str, datetime]:
        """
        Return the deletion dates of the ending KEKs that already have one.

        Raises:
            KmsError: A KEK rejects the request or fails.
        """
        dates: dict[str, datetime] = {}
        for adapter in self.leaving:
            ends_at = adapter.deletion_date() if isinstance(adapter, SupportsDeletion) else None
            if ends_at is not None:
                dates[adapter.uri] = ends_at
        return dates

    def refuse_ended(self, dates: Mapping[str, datetime]) -> None:
        """
        Refuse to begin if an ending KEK is already scheduled for deletion.

        With such a KEK, keys could neither be opened nor created.

        Args:
            dates: The result of :meth:`deletion_dates`.

        Raises:
            ConfigurationError: A KEK is scheduled for deletion.
        """
        if dates:
            uri, ends_at = min(dates.items())
            raise ConfigurationError(
                f"{uri} is already scheduled for deletion on {moment(ends_at, datetime.now(UTC))}",
                remedy="If the epoch was rolled, all is done: list only the KMS key that stays. If not, "
                "cancel the deletion, enable the KMS key, and run the same command again.",
            )

    def refuse_same_kek(self, kek_uris: Collection[str]) -> None:
        """
        Refuse to end a KEK that must stay under another name.

        Args:
            kek_uris: The KEK URIs of stored wrappings. The staying KEKs are looked up among them.

        Raises:
            ConfigurationError: Two names refer to the same KEK.
            KmsError: An alias could not be resolved.
        """
        # An alias may have been pointed at the new key (docs/decisions/0014).
        for staying in self.staying:
            names = {staying.uri, *[uri for uri in kek_uris if is_under(staying, uri)]}
            for leaving in self.leaving:
                if any(is_under(leaving, name) for name in names):
                    raise ConfigurationError(
                        f"{leaving.uri} and {staying.uri} are the same KMS key, so ending one would end both",
                        remedy="List each KMS key by its own ARN, and no replica of it. An alias may have "
                        "been changed to point at the new key.",
                    )

    def make_versions(self, made: Mapping[str, str], note: Callable[[str, str], object]) -> dict[str, str]:
        """
        Create a new version of each staying KEK that has versions.

        Args:
            made: The versions that an interrupted run created, by KEK. They are kept if they are current.
            note: Called with each KEK and its new version.

        Returns:
            The version that wraps keys from now on, by KEK.

        Raises:
            KmsError: A KEK rejects the request or fails.
        """
        versions: dict[str, str] = {}
        for adapter in self.staying:
            if not isinstance(adapter, SupportsVersions):
                continue
            version = made.get(adapter.uri)
            if version is None or adapter.current_version() != version:
                version = adapter.rotate()
                note(adapter.uri, version)
            versions[adapter.uri] = version
        return versions

    def in_use_since(self, versions: Mapping[str, str], begun_at: datetime) -> datetime | None:
        """
        Return the earliest time at which staying KEKs can have wrapped keys.

        Args:
            versions: The versions that this roll created, by KEK.
            begun_at: When the roll began.

        Returns:
            The time, or ``None`` if a KEK does not report when it was created.

        Raises:
            KmsError: A KEK rejects the request or fails.
        """
        earliest = begun_at
        for adapter in self.staying:
            if adapter.uri in versions:
                continue
            if not isinstance(adapter, SupportsDeletion):
                return None
            earliest = min(earliest, adapter.created_at())
        return earliest

    def places(
        self, kek_uris: Collection[str], versions: Mapping[str, str]
    ) -> dict[str, Collection[str] | None]:
        """
        Return the ending KEKs and versions under the names in wrappings.

        Args:
            kek_uris: The KEK URIs that stored wrappings have or had.
            versions: The versions that stay, by KEK.

        Returns:
            The ending versions by KEK, with ``None`` for a whole KEK.
        """
        found: dict[str, Collection[str] | None] = {}
        for adapter in self.staying:
            if isinstance(adapter, SupportsVersions) and adapter.uri in versions:
                found[adapter.uri] = adapter.versions_before(versions[adapter.uri])
        for adapter in self.leaving:
            found.update(dict.fromkeys((uri for uri in kek_uris if is_under(adapter, uri)), None))
            found[adapter.uri] = None
        return found

    def end_old(
        self, versions: Mapping[str, str], *, made_before: Collection[str], days: int
    ) -> list[EndedKek]:
        """
        End the leaving KEKs and the older versions of the staying ones.

        Call it only if no key needs them any longer.

        Args:
            versions: The versions that stay, by KEK.
            made_before: The KEKs whose version an interrupted run of the same roll created. That run may
                have ended the older versions, too.
            days: Days until the KMS deletes a whole KEK.

        Returns:
            The ended KEKs. A KEK without older versions is left out.

        Raises:
            KmsError: A KEK rejects the request or fails. The KEKs that ended before it stay ended.
        """
        ended = [
            _end_versions(adapter, adapter.uri, versions[adapter.uri])
            for adapter in self.staying
            if isinstance(adapter, SupportsVersions)
            and adapter.uri in versions
            and (adapter.uri in made_before or adapter.versions_before(versions[adapter.uri]))
        ]
        return ended + [_end_whole(adapter, days) for adapter in self.leaving]

    def nothing_ended(self) -> JobError:
        """Return the error for a roll in which :meth:`end_old` ended nothing."""
        names = ", ".join(adapter.uri for adapter in self.staying)
        return JobError(
            f"no KMS key was ended, and there is no receipt: {names} has no version from before this roll",
            remedy="Check in the KMS which versions the key has. Then run `eventseal roll-epoch` again: it "
            "begins a new roll.",
        )


def _end_versions(adapter: SupportsVersions, uri: str, version: str) -> EndedKek:
    adapter.forbid_versions_before(version)
    closed_at = datetime.now(UTC)
    adapter.delete_versions_before(version)
    ends_at = datetime.now(UTC)
    return EndedKek(kek_uri=uri, before=version, ending=Ending.DELETED, closed_at=closed_at, ends_at=ends_at)


def _end_whole(adapter: KmsAdapter, days: int) -> EndedKek:
    if isinstance(adapter, SupportsDeletion):
        ends_at = adapter.schedule_deletion(days)
        return EndedKek(
            kek_uri=adapter.uri,
            before=None,
            ending=Ending.SCHEDULED,
            closed_at=datetime.now(UTC),
            ends_at=ends_at,
        )
    if isinstance(adapter, SupportsVersions):  # all versions that wrapped a key end: the new one is empty
        return _end_versions(adapter, adapter.uri, adapter.rotate())
    return EndedKek(kek_uri=adapter.uri, before=None, ending=Ending.BY_HAND, closed_at=None, ends_at=None)


def rewrap_ledger_key(store: SealedStore, to: KmsAdapter | None = None) -> bool:
    """
    Wrap the ledger's key like the store's other keys.

    The key is unwrapped once as a proof. Call this before you end a KEK or its older versions, else the
    ledger could never be verified again.

    Args:
        store: An ``EventSeal``, or another ``SealedStore``.
        to: The only KEK that remains. ``None``: the newest version of each of the store's KEKs.

    Returns:
        Whether there is a ledger.

    Raises:
        EventSealError: As :meth:`eventseal.erasure.Ledger.rewrap` raises.
    """
    ledger = own_ledger(store)
    if ledger is None or not ledger.exists(store.keyring.application):
        return False
    ledger.rewrap(store, to=None if to is None else [to])
    return True


def refuse_needed_by_ledger(store: SealedStore, uri: str, version: str | None = None) -> None:
    """
    Refuse to remove a KEK or version that the ledger needs.

    Only the store's own ledger is checked.

    Args:
        store: An ``EventSeal``, or another ``SealedStore``.
        uri: The KEK, as it is configured or as wrappings name it.
        version: The version, as wrappings name it. ``None``: the whole KEK.

    Raises:
        JobError: The ledger's key did not open without the KEK or the version.
        EventSealError: As :meth:`eventseal.erasure.Ledger.opens_without` raises.
    """
    ledger = own_ledger(store)
    if ledger is None or not ledger.exists(store.keyring.application):
        return
    wrappings = ledger.wrappings(store)
    named = kek_names(store, uri, {wrapped.kek_uri for wrapped in wrappings})
    leaving = [
        wrapped
        for wrapped in wrappings
        if wrapped.kek_uri in named and (version is None or wrapped.kek_version in {version, None})
    ]
    if leaving and not ledger.opens_without(store, leaving):
        raise JobError(
            f"the key of {ledger.name} does not open without {without_query(uri)}, so no entry could be "
            "verified",
            remedy="Run `eventseal rewrap`, which wraps the ledger's key under the current KMS keys. Then "
            "try again.",
        )
