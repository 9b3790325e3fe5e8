"""Receipts of erasures and of verifications: as JSON, and as a page for people."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC
from html import escape
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

from eventseal.keys.states import KeyPurpose

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from eventseal.erasure.ledger.entries import LedgerEntry
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.rotation.verification import VerifyResult

    Rows = Sequence[tuple[str, str]]


def page(title: str, about: str, *, text: str, facts: Rows, lists: Sequence[tuple[str, Rows]]) -> str:
    """
    Write the page; whatever is given is text, and none of it markup.

    Args:
        title: What the receipt is of.
        about: Of whom, or of what; it stands in the window's title alone.
        text: What it means.
        facts: Names and values.
        lists: Headings, each with its rows.
    """
    sections = "".join(
        [f"<h2>{escape(heading)}</h2>\n<table>\n{_rows(rows)}\n</table>\n" for heading, rows in lists]
    )
    return _PAGE.format(
        title=escape(title),
        about=escape(about),
        text=escape(text),
        facts=_rows(facts),
        sections=sections,
    )


def as_utc(at: datetime) -> str:
    """Give a time as the page has it."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}: {about}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
td {{ border-top: 1px solid #ccc; padding: .3rem .6rem .3rem 0; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{text}</p>
<table>
{facts}
</table>
{sections}</body>
</html>
"""


def _rows(rows: Rows) -> str:
    return "\n".join(
        ["<tr>" + "".join([f"<td>{escape(cell)}</td>" for cell in row]) + "</tr>" for row in rows]
    )


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
            ("Begun", as_utc(self.intended_at)),
            ("Done", as_utc(self.done_at)),
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


VERIFICATION = "eventseal verification"


@dataclass(frozen=True, slots=True)
class VerifyReceipt:
    """
    What a verification found. It holds no key and nothing that was encrypted.

    Attributes:
        result: Of a run that looked at all that it was asked to look at.
        application: Whose items.
        release: Of EventSeal, which verified.
        mac: Over all of the facts, under a key that is derived from the application's store key, in hex.
    """

    result: VerifyResult
    application: str
    release: str
    mac: str = ""

    @classmethod
    def of(cls, store: SealedStore, result: VerifyResult) -> Self:
        """
        Draw it up.

        Args:
            store: That was verified.
            result: Of the verification, which is complete.

        Raises:
            EventSealError: The application has no store key, or it does not open.
        """
        receipt = cls(result, store.cipher.application, version("eventseal"))
        return replace(receipt, mac=store.keyring.tables.receipt_mac(receipt.facts))

    @property
    def facts(self) -> dict[str, Any]:
        """All that it says, as JSON has it, without the MAC."""
        found = self.result
        return {
            "receipt": VERIFICATION,
            "application": self.application,
            "release": self.release,
            "begun_at": found.begun_at.isoformat(),
            "ended_at": None if found.ended_at is None else found.ended_at.isoformat(),
            "passed": found.complete and not found.failed,
            "only_tables": None if found.asked_tables is None else list(found.asked_tables),
            "sample": found.sample,
            "done": found.done,
            "failed": found.failed,
            "left": found.left,
            "tables": {table: dict(counts) for table, counts in found.by_table.items()},
            "keys": {str(key_id): items for key_id, items in found.by_key.items()},
            "failures": [failure.to_json() for failure in found.failures],
        }

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {**self.facts, "mac": self.mac}

    def to_html(self) -> str:
        """Give it as a page that needs nothing else, for people."""
        found = self.result
        covers = "all registered tables"
        if found.asked_tables is not None:
            covers = f"only {', '.join(found.asked_tables)}: this verification is partial"
        share = "all" if found.sample == 1 else f"a share of {found.sample:g}: this verification is partial"
        facts = [
            ("Application", self.application),
            ("Release of EventSeal", self.release),
            ("Begun", as_utc(found.begun_at)),
            ("Ended", "" if found.ended_at is None else as_utc(found.ended_at)),
            ("Tables", covers),
            ("Items that were opened", f"{found.done:,} ({share})"),
            ("Failed", f"{found.failed:,}: this verification failed" if found.failed else "0"),
            ("MAC", self.mac),
        ]
        tables = [
            (table, ", ".join(f"{outcome} {count:,}" for outcome, count in counts.items() if count))
            for table, counts in found.by_table.items()
        ]
        failures = [
            (failure.error, f"{failure.table} {' '.join(f'{k}={v}' for k, v in failure.row.items())}")
            for failure in found.failures
        ]
        return page(
            "Receipt of a verification",
            self.application,
            text=_VERIFIED_TEXT,
            facts=facts,
            lists=[
                ("Tables", tables),
                ("Items that opened, by key", [(str(key), f"{n:,}") for key, n in found.by_key.items()]),
                ("The first failures", failures or [("None", "")]),
            ],
        )


_VERIFIED_TEXT = """Every item that was counted as done was decrypted and authenticated at its place, with the
personal-data fields inside of it. This does not prove that no item was deleted. To be able to check a
receipt, have it written as JSON, to a file that ends in .json: eventseal receipt check reads it."""
