"""The erasure ledger of a world: each client's way to it, and what it says to somebody who starts now."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from tests.lifecycle.site import APPLICATION

from eventseal.erasure import DatabaseLedger, FileLedger, Ledger
from eventseal.erasure.ledger.entries import DONE, INTENT, REOPEN
from eventseal.errors import StoreReadOnlyError, StoreUnavailableError
from eventseal.keys import Keyring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from uuid import UUID

    from tests.lifecycle.traffic import DatabaseFault, Traffic

    from eventseal.erasure import LedgerEntry
    from eventseal.erasure.ledger.lines import LedgerFile, LedgerTable
    from eventseal.keys import KeyStore
    from eventseal.testing import FakeKms

LedgerKind = Literal["file", "database"]


def lines_of(folder: Path, kind: LedgerKind) -> LedgerFile | LedgerTable:
    """Give the lines of the ledger in a folder, as a process sees them that starts now."""
    ledger = (
        FileLedger(folder / "ledger.jsonl")
        if kind == "file"
        else DatabaseLedger(f"sqlite:///{folder / 'ledger.sqlite'}")
    )
    return ledger._lines


class WatchedLines:
    """A client's way to the lines of the ledger; what fails behind an append has left its line there."""

    def __init__(self, lines: LedgerFile | LedgerTable, traffic: Traffic) -> None:
        self._lines = lines
        self._traffic = traffic

    @property
    def name(self) -> str:
        return self._lines.name

    def last(self, application: str) -> bytes | None:
        return self._call("last", lambda: self._lines.last(application))

    def line(self, application: str, number: int) -> bytes | None:
        return self._call("line", lambda: self._lines.line(application, number))

    def read(self, application: str, *, after: int) -> Iterator[bytes]:
        return iter(self._call("read", lambda: list(self._lines.read(application, after=after))))

    def append(
        self, application: str, make: Callable[[bytes | None], bytes | None], *, create: bool
    ) -> bytes | None:
        return self._call("append", lambda: self._lines.append(application, make, create=create))

    def _call(self, name: str, call: Callable[[], Any]) -> Any:
        return self._traffic.database(f"ledger.{name}", call, _fail)


def _fail(fault: DatabaseFault, done: bool) -> None:
    if fault == "readonly" and not done:
        raise StoreReadOnlyError("the ledger cannot be written")
    raise StoreUnavailableError("the ledger is away")


class Told:
    """
    What the ledger says, to a process that starts now and verifies all of it.

    Args:
        lines: The ledger's, past all faults.
        kms: The KEKs, past all faults.
        store: The key store, past all faults.
    """

    def __init__(self, lines: LedgerFile | LedgerTable, kms: list[FakeKms], store: KeyStore) -> None:
        self._lines = lines
        self._kms = kms
        self._store = store
        self._seen: Any = None
        self.entries: list[LedgerEntry] = []

    def look(self) -> None:
        """
        Read and verify it, if anything has changed.

        Raises:
            EventSealError: It does not verify.
            AssertionError: An entry that was there is another one, or gone.
        """
        last = self._lines.last(APPLICATION)
        seen = (last, ended_versions(self._kms))
        if last is None:
            assert not self.entries, "the ledger is gone"
            return
        if seen == self._seen:
            return
        now: Any = SimpleNamespace(
            keyring=Keyring(self._kms, self._store, application=APPLICATION), key_store=self._store
        )
        entries = list(Ledger(self._lines).entries(now))
        kept = [entry.digest for entry in entries[: len(self.entries)]]
        assert kept == [entry.digest for entry in self.entries], "the ledger was rewritten"
        self._seen, self.entries = seen, entries

    def named(self) -> set[UUID]:
        """Every key that the ledger knows to be shredded, or meant to be."""
        return {key_id for entry in self.entries if entry.kind in {INTENT, DONE} for key_id in entry.keys}

    def meant(self) -> set[UUID]:
        """Every key of which the ledger was told before it was shredded."""
        return {key_id for entry in self.entries if entry.kind == INTENT for key_id in entry.keys}

    def open_scopes(self) -> set[str]:
        """Scopes whose shred was begun and is not done."""
        still = self.entries[-1].open_intents if self.entries else ()
        return {str(self.entries[number - 1].scope) for number in still}

    def closed_scopes(self) -> set[str]:
        """Scopes that were shredded, or meant to be, since they were reopened."""
        closed: set[str] = set()
        for entry in self.entries:
            if entry.kind == INTENT:
                closed.add(str(entry.scope))
            elif entry.kind == REOPEN:
                closed.discard(str(entry.scope))
        return closed

    def reopened_scopes(self) -> set[str]:
        """Scopes that were reopened since they were shredded."""
        return {str(entry.scope) for entry in self.entries if entry.kind == REOPEN} - self.closed_scopes()


def ended_versions(kms: list[FakeKms]) -> tuple[frozenset[str], ...]:
    """What the KEKs open no more."""
    return tuple(frozenset(getattr(one, "forbidden", ())) for one in kms)
