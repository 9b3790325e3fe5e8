"""The receipt of an erasure: for the data subject's file, as JSON and as a page for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventseal.erasure.receipt_page import moment, page
from eventseal.keys.states import KeyPurpose

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from eventseal.erasure.ledger_entries import LedgerEntry


ERASURE_RECEIPT = "eventseal erasure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """
    What was erased, when, and where the ledger says so. It holds no key and nothing that was sealed.

    Attributes:
        application: Whose keys these were.
        scope: What was erased, as the key tables have it.
        keys: Every key that the scope ever had, with its purpose.
        destroyed: How many of them this run has destroyed; the others were gone before.
        items: By table the items that are unreadable now, as far as items name their keys.
        intended_at: When the ledger was told what was meant; the key store's clock, UTC.
        done_at: When it was told that it is done.
        ledger: Where the ledger is, without any secret.
        ledger_id: The id of its key.
        intent_entry: The number of the first entry.
        intent_mac: Its MAC, in hex.
        done_entry: The number of the second entry.
        done_mac: Its MAC, in hex.
    """

    application: str
    scope: str
    keys: Mapping[UUID, str]
    destroyed: int
    items: Mapping[str, int]
    intended_at: datetime
    done_at: datetime
    ledger: str
    ledger_id: UUID
    intent_entry: int
    intent_mac: str
    done_entry: int
    done_mac: str

    @classmethod
    def of(cls, ledger: str, intent: LedgerEntry, done: LedgerEntry) -> Receipt:
        """
        Draw it up from the two entries of an erasure.

        Args:
            ledger: Where they are.
            intent: What was meant.
            done: What was done.
        """
        return cls(
            application=done.application,
            scope=done.scope or "",
            keys={key_id: str(purpose) for key_id, purpose in done.keys.items()},
            destroyed=done.details["destroyed"],
            items={table: counts["erased"] for table, counts in done.details["items"].items()},
            intended_at=intent.at,
            done_at=done.at,
            ledger=ledger,
            ledger_id=done.ledger_id,
            intent_entry=intent.number,
            intent_mac=intent.mac.hex(),
            done_entry=done.number,
            done_mac=done.mac.hex(),
        )

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "receipt": ERASURE_RECEIPT,
            "application": self.application,
            "scope": self.scope,
            "keys": {str(key_id): purpose for key_id, purpose in self.keys.items()},
            "destroyed_now": self.destroyed,
            "items": dict(self.items),
            "intended_at": self.intended_at.isoformat(),
            "done_at": self.done_at.isoformat(),
            "ledger": {
                "place": self.ledger,
                "id": str(self.ledger_id),
                "intent": {"entry": self.intent_entry, "mac": self.intent_mac},
                "done": {"entry": self.done_entry, "mac": self.done_mac},
            },
        }

    def to_html(self) -> str:
        """Give it as a page that needs nothing else, for people."""
        before = len(self.keys) - self.destroyed
        facts = [
            ("Application", self.application),
            ("Erased", self.scope),
            ("Begun", moment(self.intended_at)),
            ("Done", moment(self.done_at)),
            (
                "Keys that this run has destroyed",
                f"{self.destroyed} of {len(self.keys)}{_BEFORE if before else ''}",
            ),
            ("Recorded in", f"{self.ledger}, key {self.ledger_id}"),
            ("Entry of the intent", f"{self.intent_entry}, MAC {self.intent_mac}"),
            ("Entry of its end", f"{self.done_entry}, MAC {self.done_mac}"),
        ]
        keys = [(str(key_id), _SEALED.get(purpose, purpose)) for key_id, purpose in self.keys.items()]
        items = [(table, f"{count:,}") for table, count in self.items.items()]
        return page(
            "Receipt of an erasure",
            self.scope,
            text=_TEXT,
            facts=facts,
            lists=[
                ("Keys", keys),
                ("Stored items that are unreadable", items or [(_NO_ITEM, "")]),
            ],
        )


_BEFORE = "; the others were destroyed before, or were never made and only keep new ones from being made"
_SEALED: dict[str, str] = {
    KeyPurpose.DATA: "data: of whole items",
    KeyPurpose.FIELD: "field: of single fields inside of items",
    KeyPurpose.INDEX: "index: of search values",
}
_NO_ITEM = "No item was stored under these keys by itself."
_TEXT = """The keys below were destroyed. What was encrypted under them cannot be read any more, in any copy
of the event store. This receipt holds none of it. Backups from before may hold copies of the keys until they
expire or are made useless; the ledger lists the keys, so that they are destroyed again when a backup is
restored. What the application has copied elsewhere in plain is not covered. Fields inside of other items
that were sealed under these keys are unreadable as well; they are not counted, since the items around them
stay."""
