"""KEKs that have come to an end: how, since when they open nothing, and when they are gone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping


class Ending(StrEnum):
    """
    How a KEK, or its older versions, came to an end.

    ``DELETED``: they are gone. ``SCHEDULED``: the KMS opens nothing with it, and deletes it on a date.
    ``BY_HAND``: no key needs it, and whoever keeps it deletes it: until then it opens what it had wrapped.
    """

    DELETED = "deleted"
    SCHEDULED = "scheduled"
    BY_HAND = "by hand"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedKek:
    """
    A KEK that opens old backups no more.

    Attributes:
        kek_uri: As it is configured.
        before: Its versions before this one ended; ``None``: it ended as a whole.
        ending: How.
        closed_at: Since when the KMS opens nothing with it: the end was ordered then, or, by a run that was
            interrupted, before. ``None`` where a person deletes it.
        ends_at: When it is gone for good, by the KMS; ``None`` where a person deletes it.
    """

    kek_uri: str
    before: str | None
    ending: Ending
    closed_at: datetime | None
    ends_at: datetime | None

    @property
    def name(self) -> str:
        """What ended, for people."""
        return self.kek_uri if self.before is None else f"{self.kek_uri} before version {self.before}"

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "kek": self.kek_uri,
            "before": self.before,
            "ending": self.ending,
            "closed_at": as_text(self.closed_at),
            "ends_at": as_text(self.ends_at),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` gave."""
        return cls(
            kek_uri=told["kek"],
            before=told["before"],
            ending=Ending(told["ending"]),
            closed_at=as_moment(told["closed_at"]),
            ends_at=as_moment(told["ends_at"]),
        )


def as_text(moment: datetime | None) -> str | None:
    """Give a time as JSON has it, if there is one."""
    return None if moment is None else moment.isoformat()


def as_moment(text: str | None) -> datetime | None:
    """Read what :func:`as_text` gave."""
    return None if text is None else datetime.fromisoformat(text)
