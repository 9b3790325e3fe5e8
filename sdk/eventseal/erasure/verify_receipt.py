"""The receipt of a verification: what was proved, when, and of which tables and keys."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

from eventseal.erasure.receipt_page import moment, page

if TYPE_CHECKING:
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.rotation.verify import VerifyResult

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
        application, release = store.cipher.application, version("eventseal")
        facts = cls(result, application, release).facts
        return cls(result, application, release, store.keyring.receipt_mac(facts))

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
            ("Begun", moment(found.begun_at)),
            ("Ended", "" if found.ended_at is None else moment(found.ended_at)),
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
            text=_TEXT,
            facts=facts,
            lists=[
                ("Tables", tables),
                ("Items that opened, by key", [(str(key), f"{n:,}") for key, n in found.by_key.items()]),
                ("The first failures", failures or [("None", "")]),
            ],
        )


_TEXT = """Every item that was counted as done was decrypted and authenticated at its place, with the
personal-data fields inside of it. This does not prove that no item was deleted. To be able to check a
receipt, have it written as JSON, to a file that ends in .json: eventseal receipt check reads it."""
