"""What rolling the epoch gives back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from eventseal.rotation.results import JobResult

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


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
        ends_at: When it is gone for good, by the KMS; ``None`` where a person deletes it.
    """

    kek_uri: str
    before: str | None
    ending: Ending
    ends_at: datetime | None

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        ends_at = None if self.ends_at is None else self.ends_at.isoformat()
        return {"kek": self.kek_uri, "before": self.before, "ending": self.ending, "ends_at": ends_at}


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochResult(JobResult):
    """
    What rolling the epoch did.

    Attributes:
        covers_before: A backup of the key tables opens nothing any more if it was taken before this moment;
            ``None``: the epoch was not rolled, or nobody tells since when the KEK is in use.
        finished_at: When the last step was done, by the key store's clock; ``None``: it is not.
        keks: What ended, and when it is gone for good.
        others: Other applications in the same key tables, with their wrappings under the KEKs that end.
    """

    covers_before: datetime | None = None
    finished_at: datetime | None = None
    keks: Sequence[EndedKek] = ()
    others: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Give it as ``--json`` prints it."""
        return {
            **JobResult.to_json(self),  # a dataclass with slots has no super() of this form
            "covers_before": None if self.covers_before is None else self.covers_before.isoformat(),
            "finished_at": None if self.finished_at is None else self.finished_at.isoformat(),
            "keks": [kek.to_json() for kek in self.keks],
            "others": dict(self.others),
        }
