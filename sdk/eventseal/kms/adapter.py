"""The protocols of KMS adapters, and what they exchange."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from eventseal.suites.hkdf import length_prefixed

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime
    from uuid import UUID

    from eventseal.errors import EventSealError


@dataclass(frozen=True, slots=True)
class EncryptionContext:
    """
    The non-secret pairs that a KMS binds to a wrapped key.

    AWS CloudTrail shows them, so they never contain a scope or personal data.

    Attributes:
        key_id: The wrapped key's id.
        purpose: ``data``, ``branch``, ``field``, ``index``, ``store`` or ``ledger``.
        application: The application that owns the key.
    """

    key_id: UUID
    purpose: str
    application: str

    def as_mapping(self) -> dict[str, str]:
        """Return the pairs in the form that AWS KMS takes."""
        return {
            "eventseal:key-id": str(self.key_id),
            "eventseal:purpose": self.purpose,
            "eventseal:application": self.application,
        }

    def canonical(self) -> bytes:
        """Return the same pairs as length-prefixed names and values, sorted by name."""
        pairs = sorted(self.as_mapping().items())
        return length_prefixed(*[text.encode() for pair in pairs for text in pair])


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """
    A key encrypted under a KEK.

    Attributes:
        kek_uri: The resolved URI of the KEK, never that of an alias.
        kek_version: The ``KeyMaterialId`` of AWS KMS, or the key version of Vault. ``None`` if unknown.
        ciphertext: The wrapped bytes. Only the KEK's own adapter can interpret them.
    """

    kek_uri: str
    kek_version: str | None
    ciphertext: bytes = field(repr=False)


class KmsUse(StrEnum):
    """
    A use of a KEK, with permissions of its own.

    - ``GENERATE``: create and wrap new keys.
    - ``WRAP``: wrap keys that were created elsewhere.
    - ``UNWRAP``: unwrap keys.
    - ``REWRAP``: move wrappings inside the KMS, without showing a key.
    - ``DESCRIBE``: read the versions and dates of the KEK.
    - ``END``: delete the KEK, or replace and delete its versions.
    """

    GENERATE = "generate"
    WRAP = "wrap"
    UNWRAP = "unwrap"
    REWRAP = "rewrap"
    DESCRIBE = "describe"
    END = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionCheck:
    """
    One permission, and whether the KMS grants it to the caller.

    Attributes:
        action: The permission as the KMS names it: ``kms:Decrypt``, ``transit/decrypt/app``.
        granted: Whether an attempt would succeed.
        detail: The missing permission, with the statement that grants it. Empty if granted.
        required: Whether EventSeal needs it to create and unwrap keys. Rotation and additional KEKs need the
            others.
        uses: The uses that need the permission. If it is empty, every use does.
    """

    action: str
    granted: bool
    detail: str = ""
    required: bool = True
    uses: frozenset[KmsUse] = frozenset()


@runtime_checkable
class KmsAdapter(Protocol):
    """
    Wraps and unwraps keys of 32 bytes under one KEK.

    An adapter class also has a classmethod ``from_uri(uri)``. Its keyword-only arguments, if it has any, are
    the adapter's options in the setting ``kms_options``. Its constructors validate local settings and make
    no network call. Several threads may call its methods at the same time.
    """

    @property
    def uri(self) -> str:
        """The URI of the KEK, as it is configured."""
        ...

    def generate_data_key(self, context: EncryptionContext) -> tuple[bytes, WrappedKey]:
        """
        Create a key of 32 random bytes, and wrap it.

        Raises:
            KmsError: The KMS refused or failed. The subclass says which.
        """
        ...

    def wrap(self, key: bytes, context: EncryptionContext) -> WrappedKey:
        """
        Wrap *key*, which is 32 bytes.

        Raises:
            KmsError: The KMS refused or failed.
        """
        ...

    def unwrap(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes:
        """
        Return the 32 bytes of a wrapped key.

        Raises:
            NotMyKeyError: Another KEK wrapped the key. The adapter does not call the KMS.
            KmsError: The KMS refused or failed.
            IntegrityError: The wrapping or its context was changed.
        """
        ...


@runtime_checkable
class SupportsCheck(Protocol):
    """
    An adapter that can report the caller's permissions.

    ``check`` is the only method that calls the KMS before the adapter's first use.
    """

    def check(self, application: str = "default", /) -> Sequence[PermissionCheck]:
        """
        Try every permission, and change nothing.

        Args:
            application: The application whose keys are checked. A policy may require its name in the
                encryption context.

        Raises:
            KmsError: The KMS could not check any permission.
        """
        ...


@runtime_checkable
class SupportsPolicy(Protocol):
    """An adapter class that writes policies for its KMS."""

    def policy(self, uri: str, uses: Collection[KmsUse], application: str, /) -> str:
        """
        Write the policy that grants only some uses of one KEK.

        It calls no KMS, and it creates no adapter.

        Args:
            uri: The URI of the KEK, as it is configured.
            uses: The uses to grant.
            application: The application whose keys may be used, if the KMS can tell applications apart.

        Returns:
            The policy in the language of the KMS, in one line or several.

        Raises:
            ConfigurationError: *uri* does not name a KEK.
        """
        ...


@runtime_checkable
class SupportsBatch(Protocol):
    """An adapter that takes several keys in one call. Each method returns one outcome a key, in order."""

    def wrap_many(self, keys: Sequence[tuple[bytes, EncryptionContext]]) -> list[WrappedKey | EventSealError]:
        """Wrap each key. A key that failed has its error in its place."""
        ...

    def unwrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[bytes | EventSealError]:
        """Unwrap each key. A key that failed has its error in its place."""
        ...


@runtime_checkable
class SupportsGeneration(Protocol):
    """An adapter that creates several keys faster than one by one."""

    def generate_data_keys(
        self, contexts: Sequence[EncryptionContext]
    ) -> list[tuple[bytes, WrappedKey] | EventSealError]:
        """
        Create a key of 32 bytes for each context, and wrap it.

        Returns:
            One outcome a context, in order. A key that failed has its error in its place.
        """
        ...


@runtime_checkable
class SupportsRewrap(Protocol):
    """An adapter whose KMS renews a wrapping without showing the key."""

    def rewrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[WrappedKey | EventSealError]:
        """
        Rewrap every key under this KEK's newest version. The contexts stay the same.

        Args:
            keys: Wrappings under this KEK, or under another KEK of the same service. The caller passes only
                wrappings whose KEK is configured, because the adapter cannot know that.

        Returns:
            One outcome a wrapping, in order. It is a ``NotMyKeyError`` if this service cannot move a wrapping
            from its KEK to this one.
        """
        ...


@runtime_checkable
class SupportsAliases(Protocol):
    """An adapter whose wrappings may name its KEK differently from :attr:`KmsAdapter.uri`."""

    def is_named(self, kek_uri: str) -> bool:
        """
        Return whether a wrapping that names *kek_uri* is under this KEK.

        Args:
            kek_uri: The stored URI. It is untrusted data: the adapter compares it, and never calls it.

        Raises:
            KmsError: An alias could not be resolved.
        """
        ...


@runtime_checkable
class TellsVersion(Protocol):
    """An adapter that can report the newest version of its KEK."""

    def current_version(self) -> str | None:
        """
        Return the version that wraps keys now, in the form of ``WrappedKey.kek_version``.

        It is ``None`` if the KMS does not report it.

        Raises:
            KmsError: The KMS refused or failed.
        """
        ...


@runtime_checkable
class SupportsVersions(TellsVersion, Protocol):
    """An adapter that can create, forbid and delete versions of its KEK."""

    def current_version(self) -> str:
        """Return the version that wraps keys now. There always is one."""
        ...

    def rotate(self) -> str:
        """
        Create a new version, and return it. Existing wrappings stay under older versions.

        Raises:
            KmsError: The KMS refused or failed.
        """
        ...

    def versions_before(self, version: str) -> list[str]:
        """
        Return the versions before *version* that were not deleted.

        They are in the form of ``WrappedKey.kek_version``.

        Raises:
            ConfigurationError: *version* is not a version of this KMS.
            KmsError: The KMS refused or failed.
        """
        ...

    def forbid_versions_before(self, version: str) -> None:
        """
        Forbid unwrapping under every version before *version*.

        To lift the ban from some versions, call it again with an earlier version.

        Raises:
            ConfigurationError: *version* is not a version of this KMS.
            KmsError: The KMS refused or failed.
        """
        ...

    def delete_versions_before(self, version: str) -> None:
        """
        Permanently delete the versions before *version*. They must be forbidden first.

        Raises:
            ConfigurationError: *version* is not a version of this KMS.
            KmsKeyStateError: A version to delete is not forbidden.
            KmsError: The KMS refused or failed.
        """
        ...


@runtime_checkable
class SupportsDeletion(Protocol):
    """An adapter that can delete its whole KEK, after a waiting period."""

    def created_at(self) -> datetime:
        """
        Return when the KEK was created, in UTC. Earlier wrappings are not under it.

        Raises:
            KmsError: The KMS refused or failed.
        """
        ...

    def deletion_date(self) -> datetime | None:
        """
        Return when the KEK will be deleted, in UTC.

        It is ``None`` if no deletion is scheduled.

        Raises:
            KmsError: The KMS refused or failed.
        """
        ...

    def schedule_deletion(self, days: int) -> datetime:
        """
        Schedule the deletion of the KEK.

        From now on it unwraps nothing, unless someone cancels the deletion in the KMS.

        Args:
            days: The waiting period, in days.

        Returns:
            The time of the deletion, in UTC. If a deletion was scheduled before, its date is kept.

        Raises:
            ConfigurationError: The KMS does not accept this number of days.
            KmsError: The KMS refused or failed.
        """
        ...
