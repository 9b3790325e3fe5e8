"""The protocols of KMS adapters, and how a key URI finds the adapter of its KMS."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from eventseal.errors import ConfigurationError
from eventseal.suites.hkdf import length_prefixed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from uuid import UUID

    from eventseal.errors import EventSealError


@dataclass(frozen=True, slots=True)
class EncryptionContext:
    """
    What a KMS binds to a wrapped key. AWS CloudTrail shows it, so it never holds the scope or personal data.

    Attributes:
        key_id: The wrapped key's id.
        purpose: ``data``, ``branch``, ``field``, ``index``, ``store`` or ``ledger``.
        application: The application that owns the key.
    """

    key_id: UUID
    purpose: str
    application: str

    def as_mapping(self) -> dict[str, str]:
        """Give the pairs as AWS KMS takes them."""
        return {
            "eventseal:key-id": str(self.key_id),
            "eventseal:purpose": self.purpose,
            "eventseal:application": self.application,
        }

    def canonical(self) -> bytes:
        """Give the same pairs, each name and value length-prefixed, in the order of the names."""
        pairs = sorted(self.as_mapping().items())
        return length_prefixed(*[text.encode() for pair in pairs for text in pair])


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """
    A key encrypted under a KEK.

    Attributes:
        kek_uri: The KEK, resolved, never an alias.
        kek_version: AWS ``KeyMaterialId``, Vault key version; ``None`` where unknown.
        ciphertext: Opaque to all but the KEK's own adapter.
    """

    kek_uri: str
    kek_version: str | None
    ciphertext: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionCheck:
    """
    One thing that a KMS lets the caller do, or does not.

    Attributes:
        action: In the KMS's own words: ``kms:Decrypt``, ``transit/decrypt/app``.
        granted: Whether a trial of it would have succeeded.
        detail: What was missing, with the statement to add; empty if granted.
        required: Whether making and opening keys needs it; the others are for rotation and for further KEKs.
    """

    action: str
    granted: bool
    detail: str = ""
    required: bool = True


@runtime_checkable
class KmsAdapter(Protocol):
    """
    Wraps and unwraps keys of 32 bytes under one KEK.

    A class that satisfies it also has a classmethod ``from_uri(uri)``. Constructors validate what is local
    and make no network call. Methods may be called from several threads at once.
    """

    @property
    def uri(self) -> str:
        """The KEK, as it stands in the configuration."""
        ...

    def generate_data_key(self, context: EncryptionContext) -> tuple[bytes, WrappedKey]:
        """
        Make 32 random bytes and wrap them.

        Raises:
            KmsError: The KMS refused or failed; its subclasses say which.
        """
        ...

    def wrap(self, key: bytes, context: EncryptionContext) -> WrappedKey:
        """
        Wrap *key*, 32 bytes.

        Raises:
            KmsError: The KMS refused or failed.
        """
        ...

    def unwrap(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes:
        """
        Unwrap to the 32 bytes.

        Raises:
            NotMyKeyError: Another KEK wrapped it; raised before any call.
            KmsError: The KMS refused or failed.
            IntegrityError: The wrapping or its context was changed.
        """
        ...


@runtime_checkable
class SupportsCheck(Protocol):
    """An adapter that says what the caller may do: the only method that calls out before first use."""

    def check(self, application: str = "default", /) -> Sequence[PermissionCheck]:
        """
        Try every permission without changing anything.

        Args:
            application: Whose keys it is for: policies may ask for the name in the encryption context.

        Raises:
            KmsError: The KMS could not be asked at all.
        """
        ...


@runtime_checkable
class SupportsBatch(Protocol):
    """An adapter that takes several keys in one call; one outcome an item, in order."""

    def wrap_many(self, keys: Sequence[tuple[bytes, EncryptionContext]]) -> list[WrappedKey | EventSealError]:
        """Wrap every key; a key that could not be wrapped has its error in its place."""
        ...

    def unwrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[bytes | EventSealError]:
        """Unwrap every key; a key that could not be unwrapped has its error in its place."""
        ...


@runtime_checkable
class SupportsGeneration(Protocol):
    """An adapter that makes several keys faster than one after the other; one outcome a key, in order."""

    def generate_data_keys(
        self, contexts: Sequence[EncryptionContext]
    ) -> list[tuple[bytes, WrappedKey] | EventSealError]:
        """Make a key of 32 bytes for each context and wrap it; one that could not be has its error."""
        ...


@runtime_checkable
class SupportsRewrap(Protocol):
    """An adapter whose KMS moves a wrapping to the KEK's newest version without showing the key."""

    def rewrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[WrappedKey | EventSealError]:
        """
        Move every wrapping under this KEK's newest version; the contexts stay.

        Args:
            keys: Wrappings under this KEK, or under another one of the same service. Only such whose KEK is
                configured: the adapter cannot know that.

        Returns:
            One outcome a wrapping, in order; ``NotMyKeyError`` where this service cannot move it from there.
        """
        ...


@runtime_checkable
class SupportsAliases(Protocol):
    """An adapter whose wrappings may name its KEK otherwise than :attr:`KmsAdapter.uri` does."""

    def is_named(self, kek_uri: str) -> bool:
        """
        Say whether a wrapping that names *kek_uri* is under this KEK.

        Args:
            kek_uri: As it is stored: data, compared and never called.

        Raises:
            KmsError: An alias could not be resolved.
        """
        ...


@runtime_checkable
class TellsVersion(Protocol):
    """An adapter whose KEK has versions, and that can tell the newest one."""

    def current_version(self) -> str | None:
        """
        Tell the version that wraps, as ``WrappedKey.kek_version`` has it; ``None`` if the KMS tells none.

        Raises:
            KmsError: The KMS refused or failed.
        """
        ...


@runtime_checkable
class SupportsVersions(TellsVersion, Protocol):
    """An adapter whose KEK has versions that can be told apart, made, forbidden and deleted."""

    def current_version(self) -> str:
        """Tell the version that wraps; there always is one."""
        ...

    def rotate(self) -> str:
        """
        Make a new version and tell it; what is wrapped stays under the older ones.

        Raises:
            KmsError: The KMS refused or failed.
        """
        ...

    def versions_before(self, version: str) -> list[str]:
        """
        Name the versions before *version* that were not deleted, as ``WrappedKey.kek_version`` has them.

        Raises:
            ConfigurationError: *version* is none of this KMS's.
            KmsError: The KMS refused or failed.
        """
        ...

    def forbid_versions_before(self, version: str) -> None:
        """
        Open nothing more that is wrapped under a version before *version*; an earlier one takes it back.

        Raises:
            ConfigurationError: *version* is none of this KMS's.
            KmsError: The KMS refused or failed.
        """
        ...

    def delete_versions_before(self, version: str) -> None:
        """
        Delete the versions before *version* for good; they must have been forbidden.

        Raises:
            ConfigurationError: *version* is none of this KMS's.
            KmsKeyStateError: Some are not forbidden.
            KmsError: The KMS refused or failed.
        """
        ...


@runtime_checkable
class SupportsDeletion(Protocol):
    """An adapter whose KEK is deleted whole, after a time in which that can be taken back."""

    def created_at(self) -> datetime:
        """
        Tell when the KEK was made, UTC: nothing older is wrapped under it.

        Raises:
            KmsError: The KMS refused or failed.
        """
        ...

    def deletion_date(self) -> datetime | None:
        """
        Tell when the KEK will be deleted, UTC; ``None``: it is to stay.

        Raises:
            KmsError: The KMS refused or failed.
        """
        ...

    def schedule_deletion(self, days: int) -> datetime:
        """
        Have the KEK deleted; from now on it opens nothing, unless that is taken back.

        Args:
            days: Until then.

        Returns:
            When it will be, UTC; what it is already, if it was scheduled before.

        Raises:
            ConfigurationError: The KMS does not take so many days.
            KmsError: The KMS refused or failed.
        """
        ...


ENTRY_POINT_GROUP = "eventseal.kms"
_BARE_ARN = "arn:"


def adapter_from_uri(uri: str) -> KmsAdapter:
    """
    Make the adapter that *uri* names: ``<scheme>://...``, or a bare ``arn:aws:kms:...``.

    Only configured URIs come here: none is ever built from a stored one. Makes no network call.

    Args:
        uri: One KEK, as it stands in ``kms=`` or ``EVENTSEAL_KMS_KEY``.

    Raises:
        ConfigurationError: No adapter is installed for the scheme, or the adapter refuses the URI.
    """
    return cast("KmsAdapter", adapter_class(uri).from_uri(uri))


def adapter_class(uri: str) -> Any:
    """
    Find the class of the adapter that *uri* names, without making one.

    Adapters are found by the entry points of the group ``eventseal.kms``, whose names are the schemes.

    Args:
        uri: As for :func:`adapter_from_uri`.

    Raises:
        ConfigurationError: No adapter is installed for the scheme.
    """
    scheme = "aws-kms" if uri.startswith(_BARE_ARN) else uri.partition("://")[0]
    known = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if "://" not in uri and not uri.startswith(_BARE_ARN):
        # Not repeated: it may be a key that someone took for a KEK's name.
        raise ConfigurationError(
            "what is configured is not a key URI",
            remedy=f"Write <scheme>://<key>, the scheme one of: {_listed(known)}.",
        )
    if scheme not in known:
        raise ConfigurationError(
            f"no KMS adapter is installed for {scheme!r}",
            remedy=f"The installed schemes are: {_listed(known)}.",
        )
    return known[scheme].load()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
