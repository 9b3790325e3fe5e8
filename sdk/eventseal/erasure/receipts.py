"""Receipts of erasures and verifications, as JSON and as HTML pages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

from eventseal.keys.states import KeyPurpose
from eventseal.wording import moment

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
    Return a receipt as an HTML page, with all arguments escaped.

    Args:
        title: The heading of the page.
        about: The scope or application of the receipt, which only the window's title shows.
        text: The paragraph that explains the receipt.
        facts: The names and values of the first table.
        lists: Headings, each with the rows of its table.
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
    The record of an erasure: its scope, time and ledger entries.

    It holds no key and no sealed data.

    Attributes:
        application: The application that owned the keys.
        scope: The erased scope, in the form that the key tables use.
        keys: Every key that the scope ever had, with its purpose.
        destroyed: How many of these keys this run destroyed. The others were destroyed before.
        items: The items that are now unreadable, by table, as far as items name their keys.
        intended_at: When the ledger recorded the intent, in UTC by the key store's clock.
        done_at: When the ledger recorded that the erasure is done, by the same clock.
        ledger: Where the ledger is, without any secret.
        ledger_id: The id of the ledger's key.
        intent_entry: The number of the entry that records the intent.
        intent_mac: The MAC of that entry, in hex.
        done_entry: The number of the entry that records the end.
        done_mac: The MAC of that entry, in hex.
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
        Create the receipt from the two entries of an erasure.

        Args:
            ledger: Where the ledger is.
            intent: The entry that records the intent.
            done: The entry that records the end.
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
        """Return the JSON form."""
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
        """Return a self-contained HTML page for people."""
        others = len(self.keys) - self.destroyed
        facts = [
            ("Application", self.application),
            ("Erased", self.scope),
            ("Begun", moment(self.intended_at)),
            ("Done", moment(self.done_at)),
            ("Keys destroyed by this run", f"{self.destroyed:,}"),
            *([("Other key ids below", f"{others:,}: {_OTHERS}")] if others else []),
            ("Recorded in", f"{self.ledger}, key {self.ledger_id}"),
            ("Entry of the intent", f"{self.intent_entry}, MAC {self.intent_mac}"),
            ("Entry of the end", f"{self.done_entry}, MAC {self.done_mac}"),
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


_OTHERS = "keys that were destroyed earlier, or tombstones that only prevent new keys"
_SEALED: dict[str, str] = {
    KeyPurpose.DATA: "data: encrypted whole items",
    KeyPurpose.FIELD: "field: encrypted single fields inside items",
    KeyPurpose.INDEX: "index: protected search values",
}
_NO_ITEM = "No whole item was stored under these keys."
_TEXT = """The keys below are destroyed. Data that was encrypted under them cannot be read in any copy of the
event store. This receipt holds none of that data. Backups from before the erasure may hold copies of the keys
until these backups expire or become useless. The ledger lists the keys, so that they are destroyed again
when such a backup is restored. Plaintext that the application copied elsewhere is not covered. Fields that
were encrypted under these keys inside other items are unreadable as well. They are not counted, because the
items around them stay."""


VERIFICATION = "eventseal verification"


@dataclass(frozen=True, slots=True)
class VerifyReceipt:
    """
    The record of a verification, without keys or decrypted data.

    Attributes:
        result: The result of a complete run, which checked all items that it had to check.
        application: The application that owns the items.
        release: The release of EventSeal that verified them.
        mac: A MAC over all facts, under a key that is derived from the application's store key, in hex.
    """

    result: VerifyResult
    application: str
    release: str
    mac: str = ""

    @classmethod
    def of(cls, store: SealedStore, result: VerifyResult) -> Self:
        """
        Create the receipt of a verification.

        Args:
            store: The verified store.
            result: The result of the verification, which must be complete.

        Raises:
            EventSealError: The application has no store key, or it does not open.
        """
        receipt = cls(result, store.cipher.application, version("eventseal"))
        return replace(receipt, mac=store.keyring.tables.receipt_mac(receipt.facts))

    @property
    def facts(self) -> dict[str, Any]:
        """The JSON form without the MAC."""
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
        """Return the JSON form."""
        return {**self.facts, "mac": self.mac}

    def to_html(self) -> str:
        """Return a self-contained HTML page for people."""
        found = self.result
        covers = "all registered tables"
        if found.asked_tables is not None:
            covers = f"only {', '.join(found.asked_tables)}: this verification is partial"
        share = "all" if found.sample == 1 else f"a sample of {found.sample:g}: this verification is partial"
        facts = [
            ("Application", self.application),
            ("Release of EventSeal", self.release),
            ("Begun", moment(found.begun_at)),
            ("Ended", "" if found.ended_at is None else moment(found.ended_at)),
            ("Tables", covers),
            ("Opened items", f"{found.done:,} ({share})"),
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
                ("Opened items by key", [(str(key), f"{n:,}") for key, n in found.by_key.items()]),
                ("The first failures", failures or [("None", "")]),
            ],
        )


_VERIFIED_TEXT = """Every item that is counted as done was decrypted and authenticated at its place, with the
personal-data fields inside it. This does not prove that no item was deleted. To get a receipt that can be
checked, write it as JSON, to a file that ends in .json. Check it with eventseal receipt check FILE."""
