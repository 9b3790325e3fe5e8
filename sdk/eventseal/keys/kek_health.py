"""How KEKs answered of late: which one was away, and which one said no. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import EventSealError, KmsForbiddenError, KmsKeyStateError, KmsUnavailableError
from eventseal.keys.confirmation import RETRY_SECONDS
from eventseal.keys.single_flight import copied

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.keys.policy import Clock
    from eventseal.kms.adapter import KmsAdapter

TRIAL_RESTS = 900.0
"""Seconds for which a KEK that opened nothing is not tried before its turn."""


class KekHealth:
    """
    Remembers the last answers of KEKs.

    Args:
        clock: A KEK that was unavailable comes last for a few seconds of it, where another one can stand in.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._outages: dict[str, tuple[KmsUnavailableError, float]] = {}
        self._refusing: set[str] = set()
        self._serving: set[str] = set()
        self._untried_until: dict[str, float] = {}

    def note(self, adapter: KmsAdapter, outcomes: Sequence[object]) -> None:
        """Take what a KEK has answered."""
        for outcome in outcomes:
            if isinstance(outcome, KmsUnavailableError):
                self._outages[adapter.uri] = (copied(outcome), self._clock.now() + RETRY_SECONDS)
                return
            if isinstance(outcome, KmsForbiddenError | KmsKeyStateError):
                self._refusing.add(adapter.uri)
            elif not isinstance(outcome, EventSealError):
                self._refusing.discard(adapter.uri)
                self._serving.add(adapter.uri)

    def outage(self, adapter: KmsAdapter) -> KmsUnavailableError | None:
        """Give the error of a KEK that was unavailable a moment ago."""
        error, until = self._outages.get(adapter.uri, (None, 0.0))
        return error if error is not None and self._clock.now() < until else None

    def in_order(self, adapters: Sequence[KmsAdapter], *, resting_last: bool) -> list[KmsAdapter]:
        """Give KEKs in their order; if told so, those that did not answer a moment ago come last."""
        if not (resting_last and self._outages):
            return list(adapters)
        return sorted(adapters, key=lambda adapter: self.outage(adapter) is not None)

    def refuses(self, adapter: KmsAdapter) -> bool:
        """Whether a KEK said no, and has not opened or wrapped anything since."""
        return adapter.uri in self._refusing

    def serves(self, adapter: KmsAdapter) -> bool:
        """Whether a KEK has opened or wrapped something."""
        return adapter.uri in self._serving

    def rest_from_trials(self, adapter: KmsAdapter) -> None:
        """Ask a KEK for nothing before its turn, for a while."""
        self._untried_until[adapter.uri] = self._clock.now() + TRIAL_RESTS

    def may_be_tried(self, adapter: KmsAdapter) -> bool:
        """Whether a KEK may be asked before its turn."""
        rested = self._clock.now() >= self._untried_until.get(adapter.uri, 0.0)
        return rested and self.outage(adapter) is None
