"""How long a token lasts, and when to do something about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

_SHORTEST_PAUSE = 1.0  # s between two attempts to prolong a lease


@dataclass(frozen=True, slots=True)
class Lease:
    """
    A token and its time.

    Attributes:
        token: What Vault takes.
        renewable: Whether renewing it gives it more time; otherwise only a new login does.
        due: When to renew it or to log in anew, by the clock of the retry policy; ``None``: never.
        expires: When Vault forgets it; ``None``: never, or unknown.
    """

    token: str = field(repr=False)
    renewable: bool = False
    due: float | None = None
    expires: float | None = None

    @classmethod
    def granted(cls, token: str, terms: Mapping[str, Any], *, now: float) -> Self:
        """
        Read the terms of a token, of which two thirds pass before it is renewed.

        Args:
            token: The token.
            terms: ``auth`` of a login or a renewal, or ``data`` of a look-up.
            now: Just before Vault was asked.
        """
        seconds = float(terms.get("lease_duration") or terms.get("ttl") or 0)
        if seconds <= 0:  # a root token, or a look-up that tells no time
            return cls(token)
        return cls(
            token,
            renewable=bool(terms.get("renewable")),
            due=now + seconds * 2 / 3,
            expires=now + seconds,
        )

    def renewed(self, terms: Mapping[str, Any], *, now: float) -> Lease:
        """Read the terms of a renewal; one that gave no more time, at the token's maximum, is the last."""
        lease = Lease.granted(self.token, terms, now=now)
        capped = lease.expires is None or (self.expires or 0) + _SHORTEST_PAUSE >= lease.expires
        return replace(lease, renewable=False) if capped else lease

    def is_due(self, now: float) -> bool:
        """Whether it is time to prolong it."""
        return self.due is not None and now >= self.due

    def has_ended(self, now: float) -> bool:
        """Whether Vault has forgotten the token by now."""
        return self.expires is not None and now >= self.expires

    def later(self, now: float) -> Lease:
        """Give it another try when a third of what is left has passed."""
        left = 0.0 if self.expires is None else self.expires - now
        return replace(self, due=now + max(left / 3, _SHORTEST_PAUSE))
