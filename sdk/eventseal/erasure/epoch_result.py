"""What rolling the epoch gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventseal.erasure.ended_keks import as_text
from eventseal.rotation.results import JobResult

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from eventseal.erasure.ended_keks import EndedKek
    from eventseal.erasure.epoch_receipt import EpochReceipt


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
        receipt: Which backups are useless, and from when on; ``None``: the epoch was not rolled.
    """

    covers_before: datetime | None = None
    finished_at: datetime | None = None
    keks: Sequence[EndedKek] = ()
    others: dict[str, int]
    receipt: EpochReceipt | None = None

    def to_json(self) -> dict[str, Any]:
        """Give it as ``--json`` prints it."""
        return {
            **JobResult.to_json(self),  # a dataclass with slots has no super() of this form
            "covers_before": as_text(self.covers_before),
            "finished_at": as_text(self.finished_at),
            "keks": [kek.to_json() for kek in self.keks],
            "others": dict(self.others),
            "receipt": None if self.receipt is None else self.receipt.to_json(),
        }
