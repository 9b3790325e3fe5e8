"""Which KMS key an adapter stands for: the configured ARN, or what the configured alias names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import EventSealError, KmsError, NotMyKeyError
from eventseal_kms.aws.arn import KeyArn
from eventseal_kms.aws.failures import Failure

if TYPE_CHECKING:
    from eventseal_kms.aws.calls import KmsCalls


class ConfiguredKey:
    """
    The KMS key behind the configured ARN.

    An alias is resolved once, when first needed, and stands for that key as long as the key can be used.

    Args:
        configured: A key's ARN in the client's Region, or an alias's.
        calls: To resolve the alias; threads wait for one resolution.
    """

    def __init__(self, configured: KeyArn, calls: KmsCalls) -> None:
        self.configured = configured
        self._calls = calls
        self._resolved = None if configured.is_alias else configured

    def current(self) -> KeyArn | EventSealError:
        """Return the key that wraps; the first use of an alias asks KMS."""
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
        Return the key that opens a wrapping of *kek_uri*, by our own Region's ARN.

        Args:
            kek_uri: As it is stored: data, compared and never called.

        Returns:
            The key, or ``NotMyKeyError``; an alias may have to be resolved, which can fail.
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
                f"the alias {self.configured} names {key}, but {named} made the wrapping",
                remedy="If the alias was pointed at another key, list the old key too, after it: "
                f'EVENTSEAL_KMS_KEY="{self.configured},{named}"; then run `eventseal rewrap`.',
                kek_uri=kek_uri,
            )
        return self._not_mine(kek_uri)

    def source(self, kek_uri: str) -> KeyArn | NotMyKeyError:
        """
        Return the key that made a wrapping, to rewrap it under this one inside KMS.

        Args:
            kek_uri: As it is stored: this key's, or another's that KMS can reach from our Region.
        """
        named = KeyArn.find_uri(kek_uri)
        here = self.configured
        if named is None or named.is_alias or named.partition != here.partition:
            return self._not_mine(kek_uri)
        if named.is_multi_region:
            return named.in_region(here.region)
        return named if named.region == here.region else self._not_mine(kek_uri)

    def successor_of(self, key: KeyArn) -> KeyArn | None:
        """Resolve the alias again, after *key* turned out unusable; ``None`` if it names no other one."""
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
        """Say, without a call, whether this may be the key: an alias names one of its Region and account."""
        if not self.configured.is_alias:
            return self.configured.is_same_key(named)
        here = named.in_region(self.configured.region) if named.is_multi_region else named
        ours = self.configured
        return (here.partition, here.region, here.account) == (ours.partition, ours.region, ours.account)

    def _not_mine(self, kek_uri: str) -> NotMyKeyError:
        return NotMyKeyError(f"{kek_uri} made the wrapping, not {self.configured.uri}", kek_uri=kek_uri)

    def _resolve(self) -> KeyArn | EventSealError:
        answer = self._calls.call("DescribeKey", self.configured)
        if isinstance(answer, Failure):
            return answer.error
        found = KeyArn.find(str(answer.get("KeyMetadata", {}).get("Arn", "")))
        if found is None or found.is_alias or not self._may_name(found):
            return KmsError(
                f"KMS resolved the alias {self.configured} to no key of its Region and account",
                kek_uri=self.configured.uri,
            )
        return found
