"""New keys while KEK after KEK wraps them, and how many KEKs may fail to. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import EventSealError, KmsError, KmsUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.keys.data_key import DataKey
    from eventseal.kms.adapter import WrappedKey


class NewKeys:
    """
    A batch of new keys.

    Args:
        count: Keys to be made.
        quorum: Wrappings that each key needs.
        spare: Wrappings that each key may miss.

    Attributes:
        keys: Their handles, as soon as a KEK has made them.
        missing: Wrappings that are missing so far.
    """

    def __init__(self, count: int, *, quorum: int, spare: int) -> None:
        self.keys: list[DataKey] = []
        self.missing = 0
        self._quorum = quorum
        self._spare = spare
        self._wrappings: list[list[WrappedKey]] = [[] for _ in range(count)]
        self._missed = [0] * count
        self._outages: list[KmsUnavailableError | None] = [None] * count

    def take(self, outcomes: Sequence[WrappedKey | EventSealError]) -> KmsError | None:
        """
        Take what one KEK gave for each key.

        Returns:
            Why a wrapping is missing, if one is and all keys can still have enough.

        Raises:
            KmsError: Some key cannot have enough wrappings any more; if there was an outage, that: its end
                would mend it, whatever another KEK said.
            EventSealError: Something else than the KMS failed.
        """
        failure = None
        for index, outcome in enumerate(outcomes):
            if not isinstance(outcome, EventSealError):
                self._wrappings[index].append(outcome)
                continue
            self._missed[index] += 1
            self.missing += 1
            if not isinstance(outcome, KmsError):
                raise outcome
            if self._missed[index] > self._spare:
                raise self._decisive(index, outcome)
            if isinstance(outcome, KmsUnavailableError):
                self._outages[index] = outcome
            failure = outcome
        return failure

    def _decisive(self, index: int, last: KmsError) -> KmsError:
        outage = self._outages[index]
        if outage is None or isinstance(last, KmsUnavailableError):
            return last
        outage.__cause__ = last
        return outage

    def has_quorum(self) -> bool:
        """Whether every key has as many wrappings as it needs."""
        return all(len(held) >= self._quorum for held in self._wrappings)

    def complete(self) -> list[tuple[DataKey, tuple[WrappedKey, ...]]]:
        """Give the keys with their wrappings."""
        return [(key, tuple(held)) for key, held in zip(self.keys, self._wrappings, strict=True)]

    def close(self) -> None:
        """Drop the keys: they are not used."""
        for key in self.keys:
            key.close()
