"""The end of a KMS key: when it was made, and when it will be deleted."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from eventseal.errors import ConfigurationError, EventSealError, KmsError
from eventseal_kms.aws.calls import KmsCalls
from eventseal_kms.aws.failures import Failure

if TYPE_CHECKING:
    from eventseal_kms.aws.arn import KeyArn
    from eventseal_kms.aws.connection import ConnectionSource
    from eventseal_kms.aws.kek import Kek

SHORTEST, LONGEST = 7, 30
"""Days that KMS waits before it deletes a key."""

_PENDING = frozenset({"PendingDeletion", "PendingReplicaDeletion"})


class KeyDeletion:
    """
    Administers the end of one KMS key.

    Args:
        kek: The key.
        connections: To call through. Grant tokens are not sent: no grant lets anybody delete a key.
    """

    def __init__(self, kek: Kek, connections: ConnectionSource) -> None:
        self._kek = kek
        self._calls = KmsCalls(connections, ())

    def created_at(self) -> datetime:
        """Tell when the key was made."""
        _, facts = self._described()
        return _moment(facts.get("CreationDate"), self._kek)

    def deletion_date(self) -> datetime | None:
        """Tell when the key will be deleted; ``None``: it is to stay."""
        _, facts = self._described()
        # A multi-Region primary key waits for its replicas first, without a date of its own.
        if facts.get("KeyState") not in _PENDING or "DeletionDate" not in facts:
            return None
        return _moment(facts["DeletionDate"], self._kek)

    def schedule(self, days: int) -> datetime:
        """Have the key deleted after *days*."""
        if type(days) is not int or not SHORTEST <= days <= LONGEST:
            raise ConfigurationError(
                f"KMS deletes a key after {SHORTEST} to {LONGEST} days, not after {days}",
                remedy=f"Give {SHORTEST} to {LONGEST} days.",
            )
        key, facts = self._described()
        if facts.get("KeyState") in _PENDING and "DeletionDate" in facts:
            return _moment(facts["DeletionDate"], self._kek)
        answer = self._calls.call("ScheduleKeyDeletion", key, KeyId=str(key), PendingWindowInDays=days)
        if isinstance(answer, Failure):
            raise answer.error
        return _moment(answer.get("DeletionDate"), self._kek)

    def _described(self) -> tuple[KeyArn, dict[str, Any]]:
        key = self._kek.current()
        if isinstance(key, EventSealError):
            raise key
        answer = self._calls.call("DescribeKey", key, KeyId=str(key))
        if isinstance(answer, Failure):
            raise answer.error
        facts: dict[str, Any] = answer.get("KeyMetadata", {})
        return key, facts


def _moment(value: object, kek: Kek) -> datetime:
    if not isinstance(value, datetime):
        raise KmsError(
            f"KMS told no date of {kek.configured}; its key is in a state without one",
            remedy="Look at the key in the AWS console; a multi-Region primary key is deleted after its "
            "replicas were.",
            kek_uri=kek.configured.uri,
        )
    return value.astimezone(UTC)
