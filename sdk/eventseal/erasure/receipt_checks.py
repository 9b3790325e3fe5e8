"""Check receipts by their MAC, or by their ledger entries."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventseal.erasure.epoch import EPOCH
from eventseal.erasure.epoch_receipt import EPOCH_RECEIPT, EpochReceipt
from eventseal.erasure.ledger.entries import DONE, INTENT, SET_LEDGER
from eventseal.erasure.receipts import ERASURE_RECEIPT, VERIFICATION, Receipt
from eventseal.errors import ConfigurationError
from eventseal.suites.hkdf import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from eventseal.erasure.ledger.entries import LedgerEntry
    from eventseal.erasure.ledger.ledger import Ledger
    from eventseal.rotation.sealed_store import SealedStore


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedReceipt:
    """
    The result of checking a receipt.

    Attributes:
        kind: The kind that the receipt states: ``eventseal verification``, ``eventseal erasure`` or
            ``eventseal epoch``.
        facts: All fields of the receipt. Trust them only if the receipt is authentic.
        by: The check that was used: ``mac`` or ``ledger``.
        differs: The fields that are not as they were written. If it is empty, the receipt is authentic.
    """

    kind: str
    facts: Mapping[str, Any]
    by: str
    differs: tuple[str, ...] = ()

    @property
    def is_authentic(self) -> bool:
        """Whether every field is as it was written."""
        return not self.differs

    @property
    def is_partial(self) -> bool:
        """Whether the verification covered only some tables or a sample."""
        facts = self.facts
        return self.kind == VERIFICATION and not (
            facts.get("only_tables") is None and facts.get("sample") == 1
        )

    @property
    def failed(self) -> int:
        """How many items, keys and tables had failed when it was written."""
        failed: int = self.facts.get("failed", 0)
        return failed


def check_receipt(store: SealedStore, text: bytes, *, ledger: Ledger | None) -> CheckedReceipt:
    """
    Check that no field of a receipt was changed.

    Args:
        store: The store of the receipt's application.
        text: The receipt as JSON.
        ledger: The erasure ledger, with the entries that receipts of erasures and epochs name.

    Raises:
        ConfigurationError: The text is not a receipt, or the receipt needs a ledger and there is none.
        IntegrityError: The ledger's entry does not authenticate.
        EventSealError: The store key does not open, or the ledger cannot be read.
    """
    facts = _parsed(text)
    kind = str(facts["receipt"])
    if kind == VERIFICATION or (kind == EPOCH_RECEIPT and facts.get("ledger") is None):
        return _by_mac(store, kind, facts)
    if kind not in {ERASURE_RECEIPT, EPOCH_RECEIPT}:
        return CheckedReceipt(kind=kind, facts=facts, by="mac", differs=("receipt",))
    if ledger is None:
        raise ConfigurationError(
            "this receipt names an entry of a ledger, and no ledger is configured",
            remedy=SET_LEDGER,
        )
    expected = (_erasure if kind == ERASURE_RECEIPT else _epoch)(store, ledger, facts)
    return CheckedReceipt(
        kind=kind,
        facts=facts,
        by="ledger",
        differs=tuple(_differences("", facts, expected)) if expected is not None else ("ledger",),
    )


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(text, object_pairs_hook=_members, parse_constant=_refused)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or "receipt" not in facts:
        raise ConfigurationError(
            "this is not a receipt in JSON",
            remedy="Check the JSON receipt, not the HTML page: a receipt is JSON if its file ends in .json.",
        )
    return facts


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # If a name occurs twice, a person reads the first value, but a program the last.
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError
    return members


def _refused(constant: str) -> float:
    raise ValueError(constant)


def _by_mac(store: SealedStore, kind: str, facts: dict[str, Any]) -> CheckedReceipt:
    said = {name: value for name, value in facts.items() if name != "mac"}
    mac = store.keyring.tables.receipt_mac(said)
    is_same = hmac.compare_digest(str(facts.get("mac")).encode(), mac.encode())
    return CheckedReceipt(kind=kind, facts=facts, by="mac", differs=() if is_same else ("mac",))


def _erasure(store: SealedStore, ledger: Ledger, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    intent = _entry(store, ledger, facts, "intent", INTENT)
    done = _entry(store, ledger, facts, "done", DONE)
    if intent is None or done is None or done.details["intents"][:1] != [intent.number]:
        return None
    return Receipt.of(ledger.name, intent, done).to_json()


def _epoch(store: SealedStore, ledger: Ledger, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    entry = _entry(store, ledger, facts, "epoch", EPOCH)
    return None if entry is None else EpochReceipt.of(ledger.name, entry).to_json()


def _entry(
    store: SealedStore, ledger: Ledger, facts: Mapping[str, Any], name: str, kind: str
) -> LedgerEntry | None:
    """
    Return the entry that a receipt names, verified by the ledger.

    It is ``None`` if there is no such entry, or if it is of another kind.
    """
    try:
        number = facts["ledger"][name]["entry"]
    except (LookupError, TypeError):
        return None
    entry = ledger.entry(store, number) if type(number) is int else None
    return entry if entry is not None and entry.kind == kind else None


def _differences(path: str, said: Any, expected: Any) -> Iterator[str]:
    """Yield the paths of the fields that differ."""
    if isinstance(said, dict) and isinstance(expected, dict):
        for name in sorted({*said, *expected}):
            there = f"{path}.{name}".removeprefix(".")
            if name in said and name in expected:
                yield from _differences(there, said[name], expected[name])
            else:
                yield there
    elif canonical_json({"": said}) != canonical_json({"": expected}):  # 1, 1.0 and true are equal to Python
        yield path
