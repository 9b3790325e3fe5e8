"""The AWS KMS adapter."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from eventseal.errors import ConfigurationError, EventSealError, KmsError, NotMyKeyError
from eventseal_kms.aws.arn import KeyArn
from eventseal_kms.aws.calls import KmsCalls
from eventseal_kms.aws.client_settings import ClientSettings, check_client, check_form, read_query
from eventseal_kms.aws.configured_key import ConfiguredKey
from eventseal_kms.aws.data_keys import DataKeys
from eventseal_kms.aws.failures import error_in
from eventseal_kms.aws.permissions import check_permissions, policy_of
from eventseal_kms.outcomes import value_of, wrong_size_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mypy_boto3_kms import KMSClient

    from eventseal.kms import (
        EncryptionContext,
        KmsAdapter,
        KmsUse,
        PermissionCheck,
        SupportsAliases,
        SupportsBatch,
        SupportsCheck,
        SupportsDeletion,
        SupportsGeneration,
        SupportsPolicy,
        SupportsRewrap,
        TellsVersion,
        WrappedKey,
    )

SHORTEST, LONGEST = 7, 30
"""Days that KMS waits before it deletes a key."""

_PENDING = frozenset({"PendingDeletion", "PendingReplicaDeletion"})


class AwsKmsAdapter:
    """
    Wraps keys under a symmetric key of AWS KMS.

    The adapter makes no call before its first use. Each wrapping is bound to its encryption context. Each
    call names its KMS key, and the adapter checks that each answer comes from that key. Several threads may
    use one adapter. After a fork, it creates its own client.

    Args:
        key: The ARN of a KMS key or of an alias, bare or with the prefix ``aws-kms://``. The adapter resolves
            an alias once, on first use. Stored wrappings name the KMS key, not the alias. A multi-Region key
            may be of any Region.
        client: A boto3 KMS client. Its time-outs and retries stay as they are. Without one, the adapter
            creates a client whose calls end within 7 seconds if KMS does not answer.
        grant_tokens: At most 10 tokens, sent with every call that a grant can allow.
        region: The Region to call, by default that of the ARN. Only a multi-Region key allows another one.
        profile: A profile of the AWS configuration files, for a client that the adapter creates. By default
            it is that of the environment. A profile that needs an MFA code is refused on first use.
        role_arn: A role that this client assumes by STS. It renews the role's credentials before they expire.
        endpoint_url: The endpoint of this client, for example of an emulator.

    Raises:
        ConfigurationError: *key* is not such an ARN, or an option does not have its form. Or *client* is no
            KMS client of boto3. Or its Region is not the key's, and the key is not multi-Region.
    """

    def __init__(
        self,
        key: str,
        *,
        client: KMSClient | None = None,
        grant_tokens: Sequence[str] = (),
        region: str | None = None,
        profile: str | None = None,
        role_arn: str | None = None,
        endpoint_url: str | None = None,
    ) -> None:
        configured = KeyArn.parse(key)
        if client is not None:
            check_client(client)
        here = _region(configured, client, region)
        settings = ClientSettings(
            profile=profile,
            role_arn=role_arn,
            endpoint_url=endpoint_url,
            grant_tokens=grant_tokens,
            is_given=client is not None,
        )
        self._calls = KmsCalls(here, client, settings)
        self._kms_key = ConfiguredKey(configured.in_region(here), self._calls)
        self._data_keys = DataKeys(self._kms_key, self._calls)

    @classmethod
    def from_uri(
        cls,
        uri: str,
        *,
        profile: str | None = None,
        role_arn: str | None = None,
        region: str | None = None,
        endpoint_url: str | None = None,
        grant_tokens: Sequence[str] = (),
    ) -> Self:
        """
        Create the adapter of ``aws-kms://<ARN>``, or of a bare ARN.

        The other arguments are those of the constructor. The query of the URI wins over them:
        ``?profile=...&role_arn=...&region=...&endpoint_url=...&grant_token=...``. It may have several grant
        tokens.

        Raises:
            ConfigurationError: The URI does not name a KMS key or an alias, or an option is not valid.
        """
        key, in_query = read_query(uri)
        options: dict[str, Any] = {
            "profile": profile,
            "role_arn": role_arn,
            "region": region,
            "endpoint_url": endpoint_url,
            "grant_tokens": grant_tokens,
        }
        return cls(key, **options | in_query)

    @classmethod
    def policy(cls, uri: str, uses: Collection[KmsUse], application: str, /) -> str:
        """
        Write the IAM policy that grants one application some uses.

        Raises:
            ConfigurationError: The URI does not name a KMS key or an alias.
        """
        return policy_of(KeyArn.parse(read_query(uri)[0]), uses, application)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @property
    def uri(self) -> str:
        """
        ``aws-kms://`` and the configured ARN.

        The ARN of a key names the Region that the adapter calls. The ARN of an alias is not resolved.
        """
        return self._kms_key.configured.uri

    def check(self, application: str = "default") -> Sequence[PermissionCheck]:
        """
        Try the caller's permissions on the key, by dry runs.

        Args:
            application: The name in the encryption context of the dry runs. A policy may require it.

        Raises:
            KmsError: The key is disabled or unknown, or KMS does not answer.
            ConfigurationError: There are no credentials.
        """
        return check_permissions(self._kms_key, self._calls, application)

    def generate_data_key(self, context: EncryptionContext) -> tuple[bytes, WrappedKey]:
        """
        Have KMS generate and wrap a key of 32 bytes.

        The version of the wrapping is the ``KeyMaterialId``.

        Raises:
            KmsError: KMS refused or failed.
            IntegrityError: The answer came from another KMS key.
        """
        return value_of(self._data_keys.generated(context))

    def generate_data_keys(
        self, contexts: Sequence[EncryptionContext]
    ) -> list[tuple[bytes, WrappedKey] | EventSealError]:
        """Generate and wrap keys in KMS, at most 20 calls in flight. An outage ends the batch early."""
        return self._calls.for_each(contexts, self._data_keys.generated)

    def wrap(self, key: bytes, context: EncryptionContext) -> WrappedKey:
        """
        Wrap *key*, which is 32 bytes.

        The wrapping has no version, because ``Encrypt`` does not report the key material that it used. A
        rewrap adds the version.

        Raises:
            ValueError: *key* is not 32 bytes.
            KmsError: KMS refused or failed.
            IntegrityError: The answer came from another KMS key.
        """
        outcome = wrong_size_of([(key, context)]) or self._data_keys.wrapped(key, context)
        del key  # no traceback of the error below shows it
        return value_of(outcome)

    def unwrap(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes:
        """
        Return the 32 bytes of a wrapped key.

        Raises:
            NotMyKeyError: Another KEK wrapped the key.
            KmsError: KMS refused or failed.
            IntegrityError: The wrapping or its context was changed.
        """
        return value_of(self._data_keys.unwrapped(wrapped, context))

    def wrap_many(self, keys: Sequence[tuple[bytes, EncryptionContext]]) -> list[WrappedKey | EventSealError]:
        """
        Wrap each key, at most 20 calls in flight. An outage ends the batch early.

        Raises:
            ConfigurationError: A key is not 32 bytes. No key was wrapped.
        """
        wrong = wrong_size_of(keys)
        if wrong is not None:
            del keys  # a traceback with locals would show them
            raise wrong
        return self._calls.for_each(keys, lambda item: self._data_keys.wrapped(*item))

    def unwrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[bytes | EventSealError]:
        """Unwrap each key, at most 20 calls in flight. An outage ends the batch early."""
        return self._calls.for_each(keys, lambda item: self._data_keys.unwrapped(*item))

    def rewrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[WrappedKey | EventSealError]:
        """
        Rewrap keys inside KMS, under the newest material of this KMS key.

        The wrappings may be under any KMS key of this Region. If the endpoint has no ``ReEncrypt``, like
        some emulators, the adapter unwraps the key and wraps it again.

        Args:
            keys: Only wrappings whose KEK is configured. It may be another KMS key, even of another account.
        """
        return self._calls.for_each(keys, lambda item: self._data_keys.rewrapped(*item))

    def is_named(self, kek_uri: str) -> bool:
        """
        Return whether a wrapping that names *kek_uri* is under this key.

        The first use resolves an alias.

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
        Return the ``KeyMaterialId`` that wraps keys now. It needs ``kms:DescribeKey``.

        Returns:
            ``None`` if the endpoint reports no such id, like some emulators.

        Raises:
            KmsError: KMS refused or failed.
        """
        return self._described(value_of(self._kms_key.current())).get("CurrentKeyMaterialId") or None

    def created_at(self) -> datetime:
        """
        Return when the KMS key was created. It needs ``kms:DescribeKey``.

        Raises:
            KmsError: KMS refused or failed.
        """
        return self._moment(self._described(value_of(self._kms_key.current())).get("CreationDate"))

    def deletion_date(self) -> datetime | None:
        """
        Return when KMS will delete the key. It needs ``kms:DescribeKey``.

        It is ``None`` if no deletion is scheduled, or if KMS has no date yet.

        Raises:
            KmsError: KMS refused or failed.
        """
        return self._deletion_date_of(value_of(self._kms_key.current()))

    def _deletion_date_of(self, key: KeyArn) -> datetime | None:
        facts = self._described(key)
        # A multi-Region primary key first waits for its replicas. Until then, it has no date.
        if facts.get("KeyState") not in _PENDING or "DeletionDate" not in facts:
            return None
        return self._moment(facts["DeletionDate"])

    def schedule_deletion(self, days: int) -> datetime:
        """
        Schedule the deletion of the KMS key.

        It needs ``kms:DescribeKey`` and ``kms:ScheduleKeyDeletion``. From now on the key unwraps nothing.
        Until it is deleted, ``CancelKeyDeletion`` restores it.

        Args:
            days: The waiting period, 7 to 30 days.

        Returns:
            The time of the deletion. If a deletion was scheduled before, its date is kept.

        Raises:
            ConfigurationError: KMS does not accept this number of days.
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
                f"KMS reported no date for {self._kms_key.configured}, because of the state of its key",
                remedy="Check the key's state in the AWS console. A multi-Region primary key gets its date "
                "after the deletion of its replicas.",
                kek_uri=self.uri,
            )
        return value.astimezone(UTC)


def _region(configured: KeyArn, client: KMSClient | None, region: str | None) -> str:
    """Return the Region to call, or refuse the settings."""
    check_form("region", region)
    clients = client.meta.region_name if client is not None else None
    if clients and region and clients != region:
        raise ConfigurationError(f"region={region!r} is not the client's Region, {clients}")
    here = clients or region or configured.region
    if here != configured.region and not configured.is_multi_region:
        raise ConfigurationError(
            f"{configured} is in the Region {configured.region}, but the client calls {here}",
            remedy=f"Create the client for {configured.region}, or use a multi-Region key (mrk-...).",
        )
    return here


if TYPE_CHECKING:
    _kms: type[KmsAdapter] = AwsKmsAdapter
    _batch: type[SupportsBatch] = AwsKmsAdapter
    _generation: type[SupportsGeneration] = AwsKmsAdapter
    _check: type[SupportsCheck] = AwsKmsAdapter
    _policy: SupportsPolicy = AwsKmsAdapter
    _deletion: type[SupportsDeletion] = AwsKmsAdapter
    _rewrap: type[SupportsRewrap] = AwsKmsAdapter
    _aliases: type[SupportsAliases] = AwsKmsAdapter
    _version: type[TellsVersion] = AwsKmsAdapter
