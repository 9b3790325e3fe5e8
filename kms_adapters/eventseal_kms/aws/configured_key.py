"""The KMS key that the configured ARN or alias names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import EventSealError, KmsError, NotMyKeyError
from eventseal_kms.aws.arn import KeyArn
from eventseal_kms.aws.failures import Failure

if TYPE_CHECKING:
    from eventseal_kms.aws.calls import KmsCalls


class ConfiguredKey:
    """
    The KMS key that the configured ARN names.

    An alias is resolved once, when it is first needed. It keeps that key while the key is usable.

    Args:
        configured: The ARN of an alias, or of a key in the client's Region.
        calls: The calls that resolve the alias. Threads wait for one resolution.
    """

    def __init__(self, configured: KeyArn, calls: KmsCalls) -> None:
        self.configured = configured
        self._calls = calls
        self._resolved = None if configured.is_alias else configured

    def current(self) -> KeyArn | EventSealError:
        """Return the key that wraps. The first use of an alias calls KMS."""
        if self._resolved is not None:
            return self._resolved
        with self._calls.connection().resolving:
            if self._resolved is None:
                found = self._resolve()
                if isinstance(found, EventSealError):
                    return found
                self._resolved = found
            return self._resolved

    def opener(self, kek_uri: str) -> KeyArn | EventSealError:
        """
        Return the key that unwraps a wrapping of *kek_uri*.

        Args:
            kek_uri: The stored URI. It is untrusted data: it is compared, and never called.

        Returns:
            The key by our Region's ARN, or ``NotMyKeyError``. The resolution of an alias can fail with
            another error.
        """
        named = KeyArn.find_uri(kek_uri)
        if named is None or named.is_alias or not self._may_name(named):
            return self._not_mine(kek_uri)
        key = self.current()
        if isinstance(key, EventSealError):
            return key
        if key.is_same_key(named):
            return key
        if self.configured.is_alias:
            return NotMyKeyError(
                f"the alias {self.configured} names {key}, but the wrapping is under {named}",
                remedy="If the alias has moved to another key, also list the old key, after the alias: "
                f'EVENTSEAL_KMS_KEY="{self.configured},{named}". Then run `eventseal rewrap`.',
                kek_uri=kek_uri,
            )
        return self._not_mine(kek_uri)

    def source(self, kek_uri: str) -> KeyArn | NotMyKeyError:
        """
        Return the key of a wrapping, for a rewrap inside KMS.

        Args:
            kek_uri: The stored URI of this key, or of another key that KMS can reach from our Region.
        """
        named = KeyArn.find_uri(kek_uri)
        here = self.configured
        if named is None or named.is_alias or named.partition != here.partition:
            return self._not_mine(kek_uri)
        if named.is_multi_region:
            return named.in_region(here.region)
        return named if named.region == here.region else self._not_mine(kek_uri)

    def successor_of(self, key: KeyArn) -> KeyArn | None:
        """
        Resolve the alias again, because *key* is unusable.

        It is ``None`` if the alias names no other key.
        """
        if not self.configured.is_alias:
            return None
        with self._calls.connection().resolving:
            if self._resolved == key:
                found = self._resolve()
                if isinstance(found, EventSealError):
                    return None
                self._resolved = found
            return self._resolved if self._resolved != key else None

    def _may_name(self, named: KeyArn) -> bool:
        """
        Return, without a call, whether *named* may be the configured key.

        An alias names a key of its own Region and account.
        """
        if not self.configured.is_alias:
            return self.configured.is_same_key(named)
        here = named.in_region(self.configured.region) if named.is_multi_region else named
        ours = self.configured
        return (here.partition, here.region, here.account) == (ours.partition, ours.region, ours.account)

    def _not_mine(self, kek_uri: str) -> NotMyKeyError:
        return NotMyKeyError(f"the wrapping is under {kek_uri}, not {self.configured.uri}", kek_uri=kek_uri)

    def _resolve(self) -> KeyArn | EventSealError:
        answer = self._calls.call("DescribeKey", self.configured)
        if isinstance(answer, Failure):
            return answer.error
        found = KeyArn.find(str(answer.get("KeyMetadata", {}).get("Arn", "")))
        if found is None or found.is_alias or not self._may_name(found):
            return KmsError(
                f"KMS did not resolve the alias {self.configured} to a key of its Region and account",
                kek_uri=self.configured.uri,
            )
        return found
