"""The AWS KMS adapter."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from eventseal.errors import ConfigurationError, EventSealError, KmsError, NotMyKeyError
from eventseal_kms.aws.arn import KeyArn
from eventseal_kms.aws.calls import KmsCalls
from eventseal_kms.aws.configured_key import ConfiguredKey
from eventseal_kms.aws.data_keys import DataKeys
from eventseal_kms.aws.failures import error_in
from eventseal_kms.aws.permissions import check_permissions
from eventseal_kms.outcomes import value_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mypy_boto3_kms import KMSClient

    from eventseal.kms import (
        EncryptionContext,
        KmsAdapter,
        PermissionCheck,
        SupportsAliases,
        SupportsBatch,
        SupportsCheck,
        SupportsDeletion,
        SupportsGeneration,
        SupportsRewrap,
        TellsVersion,
        WrappedKey,
    )

MAX_GRANT_TOKENS = 10

SHORTEST, LONGEST = 7, 30
"""Days that KMS waits before it deletes a key."""

_PENDING = frozenset({"PendingDeletion", "PendingReplicaDeletion"})


class AwsKmsAdapter:
    """
    Wraps keys under a symmetric key of AWS KMS.

    Nothing is called before first use. Each wrapping is bound to its encryption context; every call names the
    KMS key that it means, and every answer is checked to come from that key. Several threads may use one
    adapter; after a fork it makes a client of its own.

    Args:
        key: The ARN of a KMS key or of an alias, bare or behind ``aws-kms://``. An alias is resolved once, on
            first use, and what is stored names the key behind it. A multi-Region key may be of any Region.
        client: A ready boto3 KMS client, with the time-outs and retries that it has. Without one the adapter
            makes its own, whose calls end within 7 seconds where nothing answers.
        grant_tokens: Sent with every call that grants can allow, at most 10.
        region: Where to call: the ARN's Region if left out; another one only for a multi-Region key.

    Raises:
        ConfigurationError: *key* is no such ARN, or of another Region than the client's and not multi-Region.
    """

    def __init__(
        self,
        key: str,
        *,
        client: KMSClient | None = None,
        grant_tokens: Sequence[str] = (),
        region: str | None = None,
    ) -> None:
        configured = KeyArn.parse(key)
        here = _region(configured, client, region)
        if isinstance(grant_tokens, str) or len(grant_tokens) > MAX_GRANT_TOKENS:
            raise ConfigurationError(f"grant_tokens takes a list of at most {MAX_GRANT_TOKENS} tokens")
        self._calls = KmsCalls(here, client, grant_tokens)
        self._kms_key = ConfiguredKey(configured.in_region(here), self._calls)
        self._data_keys = DataKeys(self._kms_key, self._calls)

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        """
        Create the adapter of ``aws-kms://<ARN>``, or of a bare ARN.

        Raises:
            ConfigurationError: It names no KMS key or alias.
        """
        return cls(uri)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @property
    def uri(self) -> str:
        """``aws-kms://`` and the ARN, that of a key by our own Region, that of an alias unresolved."""
        return self._kms_key.configured.uri

    def check(self, application: str = "default") -> Sequence[PermissionCheck]:
        """
        Try by dry runs what the caller may do with the key; nothing is changed.

        Args:
            application: Whose name the trials carry in their encryption context, as policies may ask for it.

        Raises:
            KmsError: The key cannot be asked: it is disabled or unknown, or KMS does not answer.
            ConfigurationError: There are no credentials.
        """
        return check_permissions(self._kms_key, self._calls, application)

    def generate_data_key(self, context: EncryptionContext) -> tuple[bytes, WrappedKey]:
        """
        Have KMS generate a key of 32 bytes and wrap it; the recorded version is its ``KeyMaterialId``.

        Raises:
            KmsError: KMS refused or failed.
            IntegrityError: Something else answered than this KMS key.
        """
        return value_of(self._data_keys.generated(context))

    def generate_data_keys(
        self, contexts: Sequence[EncryptionContext]
    ) -> list[tuple[bytes, WrappedKey] | EventSealError]:
        """Have KMS generate and wrap keys, at most 20 calls in flight; an outage ends the batch early."""
        return self._calls.for_each(contexts, self._data_keys.generated)

    def wrap(self, key: bytes, context: EncryptionContext) -> WrappedKey:
        """
        Wrap *key*, 32 bytes.

        The wrapping has no version: ``Encrypt`` does not say which key material it used. A rewrap adds it.

        Raises:
            ValueError: *key* is not of 32 bytes.
            KmsError: KMS refused or failed.
            IntegrityError: Something else answered than this KMS key.
        """
        outcome = self._data_keys.wrapped(key, context)
        del key  # no traceback of the error below shows it
        return value_of(outcome)

    def unwrap(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes:
        """
        Unwrap to the 32 bytes.

        Raises:
            NotMyKeyError: Another KEK made the wrapping.
            KmsError: KMS refused or failed.
            IntegrityError: The wrapping or its context was changed.
        """
        return value_of(self._data_keys.unwrapped(wrapped, context))

    def wrap_many(self, keys: Sequence[tuple[bytes, EncryptionContext]]) -> list[WrappedKey | EventSealError]:
        """Wrap every key, at most 20 calls in flight; an outage ends the batch early."""
        return self._calls.for_each(keys, lambda item: self._data_keys.wrapped(*item))

    def unwrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[bytes | EventSealError]:
        """Unwrap every key, at most 20 calls in flight; an outage ends the batch early."""
        return self._calls.for_each(keys, lambda item: self._data_keys.unwrapped(*item))

    def rewrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[WrappedKey | EventSealError]:
        """
        Rewrap, inside KMS, wrappings of any key of this Region under the newest material of this one.

        Where the endpoint has no ``ReEncrypt`` (some emulators), the key is unwrapped and wrapped again.

        Args:
            keys: Only wrappings whose KEK is configured; it need not be this one, nor of this account.
        """
        return self._calls.for_each(keys, lambda item: self._data_keys.rewrapped(*item))

    def is_named(self, kek_uri: str) -> bool:
        """
        Say whether a wrapping that names *kek_uri* is under this key; an alias is resolved on first use.

        Raises:
            KmsError: The alias could not be resolved.
        """
        key = self._kms_key.opener(kek_uri)
        if isinstance(key, NotMyKeyError):
            return False
        if isinstance(key, EventSealError):
            raise key
        return True

    def current_version(self) -> str | None:
        """
        Return the ``KeyMaterialId`` of what wraps now; needs ``kms:DescribeKey``.

        Returns:
            ``None`` where the endpoint has none, as some emulators.

        Raises:
            KmsError: KMS refused or failed.
        """
        return self._described(value_of(self._kms_key.current())).get("CurrentKeyMaterialId") or None

    def created_at(self) -> datetime:
        """
        Return when the KMS key was created; needs ``kms:DescribeKey``.

        Raises:
            KmsError: KMS refused or failed.
        """
        return self._moment(self._described(value_of(self._kms_key.current())).get("CreationDate"))

    def deletion_date(self) -> datetime | None:
        """
        Return when KMS will delete the key; ``None``: never. Needs ``kms:DescribeKey``.

        Raises:
            KmsError: KMS refused or failed.
        """
        return self._deletion_date_of(value_of(self._kms_key.current()))

    def _deletion_date_of(self, key: KeyArn) -> datetime | None:
        facts = self._described(key)
        # A multi-Region primary key waits for its replicas first, without a date of its own.
        if facts.get("KeyState") not in _PENDING or "DeletionDate" not in facts:
            return None
        return self._moment(facts["DeletionDate"])

    def schedule_deletion(self, days: int) -> datetime:
        """
        Have KMS delete the key; needs ``kms:DescribeKey`` and ``kms:ScheduleKeyDeletion``.

        It opens nothing from now on. Until it is deleted, ``CancelKeyDeletion`` takes it back.

        Args:
            days: Until then, 7 to 30.

        Returns:
            When it will be deleted; what it is already, if it was scheduled before.

        Raises:
            ConfigurationError: KMS does not take so many days.
            KmsError: KMS refused or failed.
        """
        if type(days) is not int or not SHORTEST <= days <= LONGEST:
            raise ConfigurationError(
                f"KMS deletes a key after {SHORTEST} to {LONGEST} days, not after {days}",
                remedy=f"Give {SHORTEST} to {LONGEST} days.",
            )
        key = value_of(self._kms_key.current())  # once: an alias may move between the two calls
        scheduled = self._deletion_date_of(key)
        if scheduled is not None:
            return scheduled
        answer = self._calls.call("ScheduleKeyDeletion", key, PendingWindowInDays=days)
        return self._moment(value_of(error_in(answer)).get("DeletionDate"))

    def _described(self, key: KeyArn) -> dict[str, Any]:
        answer = self._calls.call("DescribeKey", key)
        facts: dict[str, Any] = value_of(error_in(answer)).get("KeyMetadata", {})
        return facts

    def _moment(self, value: object) -> datetime:
        if not isinstance(value, datetime):
            raise KmsError(
                f"KMS told no date of {self._kms_key.configured}; its key is in a state without one",
                remedy="Look at the key in the AWS console; a multi-Region primary key is deleted after its "
                "replicas were.",
                kek_uri=self.uri,
            )
        return value.astimezone(UTC)


def _region(configured: KeyArn, client: KMSClient | None, region: str | None) -> str:
    """Decide where to call, and refuse what cannot work there."""
    clients = client.meta.region_name if client is not None else None
    if clients and region and clients != region:
        raise ConfigurationError(f"region={region!r} is not the client's Region, {clients}")
    here = clients or region or configured.region
    if here != configured.region and not configured.is_multi_region:
        raise ConfigurationError(
            f"{configured} is of the Region {configured.region}, but the client calls {here}",
            remedy=f"Make the client for {configured.region}, or use a multi-Region key (mrk-...).",
        )
    return here


if TYPE_CHECKING:
    _kms: type[KmsAdapter] = AwsKmsAdapter
    _batch: type[SupportsBatch] = AwsKmsAdapter
    _generation: type[SupportsGeneration] = AwsKmsAdapter
    _check: type[SupportsCheck] = AwsKmsAdapter
    _deletion: type[SupportsDeletion] = AwsKmsAdapter
    _rewrap: type[SupportsRewrap] = AwsKmsAdapter
    _aliases: type[SupportsAliases] = AwsKmsAdapter
    _version: type[TellsVersion] = AwsKmsAdapter
