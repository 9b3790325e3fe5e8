"""How often, and for how long, a call to Vault is tried."""

from __future__ import annotations

import random
import time
from collections.abc import Callable  # noqa: TC003  (a dataclass's field)
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from eventseal_kms.vault.exchange import Answer, NoAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """
    The bounds of one call, its logins and waits included.

    Only what may heal by itself is tried again: 412 (a replica lags), 429 (rate limit), 5xx and broken
    connections. Between two tries it waits a random time (full jitter), up to twice as long each time.

    Attributes:
        deadline: Seconds after which no further try begins.
        try_timeout: Seconds that one try may take to connect, and then to answer.
        tries: At most, the first one included.
        first_wait: Seconds that the first wait takes at most.
        clock: Seconds, monotonic.
        sleep: Waits so many seconds.
        jitter: A random number, at least 0 and less than 1.
    """

    deadline: float = 3.0
    try_timeout: float = 1.5
    tries: int = 4
    first_wait: float = 0.1
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], object] = field(default=time.sleep, repr=False)
    jitter: Callable[[], float] = field(default=random.random, repr=False)

    def __post_init__(self) -> None:
        for name in ("deadline", "try_timeout", "tries", "first_wait"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be more than 0")

    def start(self) -> Deadline:
        """Begin a call."""
        return Deadline(self.clock, self.clock() + self.deadline)

    def run(
        self, attempt: Callable[[float], Answer | NoAnswer], deadline: Deadline, *, tries: int | None = None
    ) -> Answer | NoAnswer:
        """
        Try until there is an answer that trying again would not change.

        Args:
            attempt: Called with the seconds that it may take.
            deadline: Of the whole call.
            tries: At most; by default as many as the policy allows.
        """
        wait = self.first_wait
        left = tries or self.tries
        while True:
            outcome = attempt(min(self.try_timeout, max(deadline.remaining(), _SHORTEST_TRY)))
            left -= 1
            pause = max(self.jitter() * wait, outcome.retry_after or 0.0)
            if not left or not outcome.may_heal or pause >= deadline.remaining():
                return outcome
            self.sleep(pause)
            wait *= 2


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must end."""

    clock: Callable[[], float]
    at: float

    def remaining(self) -> float:
        """The seconds that are left; negative when it has passed."""
        return self.at - self.clock()


_SHORTEST_TRY = 0.05  # s: a try that begins just before the deadline is still a try
