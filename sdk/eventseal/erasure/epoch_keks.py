"""The KEKs of an epoch: those that stay, and those that end; and the ledger's key, which outlives them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from eventseal.erasure.epoch_receipt import EndedKek, Ending
from eventseal.erasure.shredding import own_ledger
from eventseal.errors import ConfigurationError, JobError
from eventseal.keys.wrapping.unwrapping import is_under
from eventseal.kms import SupportsDeletion, SupportsVersions
from eventseal.rotation.rewrapping import kek_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from eventseal.kms import KmsAdapter
    from eventseal.rotation.sealed_store import SealedStore


_NO_VERSIONS = (
    "Name the KEK that takes its place: make a new one, list it behind the old one in kms_key everywhere, "
    "and give it with --to."
)


class EpochKeks:
    """
    Which KEKs end as a whole, and of which only the older versions.

    Args:
        keks: Those that are configured.
        to: The one that replaces them all; ``None``: they stay, under a new version each.

    Attributes:
        staying: The KEKs that wrap in the end.
        leaving: Those that end as a whole.

    Raises:
        ConfigurationError: A KEK that is to stay has no versions that end, or *to* cannot take the place.
    """

    def __init__(self, keks: Sequence[KmsAdapter], to: KmsAdapter | None) -> None:
        if to is not None and all(adapter.uri != to.uri for adapter in keks):
            raise ConfigurationError(
                f"{to.uri} is not among the KEKs of this store",
                remedy="List it in kms_key, behind the one it replaces, here and in every application: else "
                "they could not open their keys afterwards.",
            )
        self.staying = tuple(keks) if to is None else (to,)
        self.leaving = [adapter for adapter in keks if to is not None and adapter.uri != to.uri]
        for adapter in () if self.leaving else keks:
            if not isinstance(adapter, SupportsVersions):
                raise ConfigurationError(
                    f"{adapter.uri} has no older versions that can be ended alone", remedy=_NO_VERSIONS
                )

    def deletion_dates(self) -> dict[str, datetime]:
        """
        Give the KEKs among those that are to end that have an end already, with its date.

        Raises:
            KmsError: A KEK could not be asked.
        """
        dates: dict[str, datetime] = {}
        for adapter in self.leaving:
            ends_at = adapter.deletion_date() if isinstance(adapter, SupportsDeletion) else None
            if ends_at is not None:
                dates[adapter.uri] = ends_at
        return dates

    def refuse_ended(self, dates: Mapping[str, datetime]) -> None:
        """
        Refuse to begin where a KEK that is to end has an end already: keys could neither open nor be made.

        Args:
            dates: See :meth:`deletion_dates`.

        Raises:
            ConfigurationError: One is to be deleted.
        """
        if dates:
            uri, ends_at = min(dates.items())
            raise ConfigurationError(
                f"{uri} is to be deleted on {ends_at.isoformat(timespec='seconds')} already",
                remedy="If the epoch was rolled, all is done: list only the KEK that stays. If not, have "
                "its deletion taken back and the KEK enabled, and run this again.",
            )

    def refuse_same_kek(self, kek_uris: Collection[str]) -> None:
        """
        Refuse to end a KEK that is, under another name, one that is to stay.

        Args:
            kek_uris: As stored: those of wrappings; what stays is looked for among them.

        Raises:
            ConfigurationError: Two names are of one KEK.
            KmsError: An alias could not be resolved.
        """
        # An alias may have been pointed at the new key (docs/decisions/0014).
        for staying in self.staying:
            names = {staying.uri, *[uri for uri in kek_uris if is_under(staying, uri)]}
            for leaving in self.leaving:
                if any(is_under(leaving, name) for name in names):
                    raise ConfigurationError(
                        f"{leaving.uri} and {staying.uri} are one KEK: to end the one would end the other",
                        remedy="Name each KEK by its own ARN, and no replica of it; an alias may have been "
                        "pointed at the new one.",
                    )

    def make_versions(self, made: Mapping[str, str], note: Callable[[str, str], object]) -> dict[str, str]:
        """
        Give each KEK that stays and has versions a new one.

        Args:
            made: Versions that an interrupted run has made, by KEK: those are kept.
            note: Called with each KEK and its new version.

        Returns:
            The version that wraps from now on, by KEK.

        Raises:
            KmsError: A KEK refused or failed.
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
        Say since when the KEKs that stay can have wrapped anything, at the earliest.

        Args:
            versions: Those of them that were made by this roll, by KEK.
            begun_at: When that was begun.

        Returns:
            The moment; ``None`` if a KEK tells none.

        Raises:
            KmsError: A KEK refused or failed.
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
        Name what ends as wrappings name it.

        Args:
            kek_uris: As stored: those that wrappings have, or had.
            versions: The versions that stay, by KEK.

        Returns:
            The versions by KEK; ``None``: the whole KEK.
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
        End them. No key may need what ends.

        Args:
            versions: The versions that stay, by KEK.
            made_before: The KEKs whose version an interrupted run of the same roll made: it may have ended
                the older ones, too.
            days: Until a KEK that is deleted whole is gone.

        Returns:
            What ended; a KEK of which there was nothing to end is left out.

        Raises:
            KmsError: A KEK refused or failed; what ended before has ended.
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
        """Say that :meth:`end_old` has ended nothing."""
        names = ", ".join(adapter.uri for adapter in self.staying)
        return JobError(
            f"no KEK was ended, and there is no receipt: {names} has no version from before this roll",
            remedy="Look in the KMS which versions the key has, then run `eventseal roll-epoch` again: it "
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
    if isinstance(adapter, SupportsVersions):  # all that has wrapped goes; the empty key stays
        return _end_versions(adapter, adapter.uri, adapter.rotate())
    return EndedKek(kek_uri=adapter.uri, before=None, ending=Ending.BY_HAND, closed_at=None, ends_at=None)


def rewrap_ledger_key(store: SealedStore, to: KmsAdapter | None = None) -> bool:
    """
    Wrap the key of the store's own ledger as its other keys are wrapped, and unwrap it once to be sure.

    Whoever ends a KEK, or older versions of it, does this before: the ledger could not be verified again.

    Args:
        store: An ``EventSeal``, or any object with its four.
        to: The only KEK that is to remain; ``None``: the newest version of each of the store's.

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
    Refuse that a KEK, or one version of it, is taken away while the store's own ledger needs it.

    Args:
        store: An ``EventSeal``, or any object with its four.
        uri: The KEK: as it is configured, or as wrappings name it.
        version: As wrappings tell it; ``None``: the whole KEK.

    Raises:
        JobError: The ledger's key was not seen to open without it.
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
            f"the key of {ledger.name} does not open without {uri}: no entry could be verified",
            remedy="Wrap it elsewhere first: eventseal rewrap",
        )
