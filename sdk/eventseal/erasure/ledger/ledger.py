"""The erasure ledger: what was to be erased, and what was; no restore of the key tables sets it back."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eventseal.erasure.ledger.entries import (
    CREATED,
    INTENT,
    REMEDY,
    STAY_OPEN,
    WRAPPED,
    LedgerEntry,
    check,
    check_follows,
    key_details,
    key_record,
    parsed,
    sealed_line,
)
from eventseal.erasure.ledger.lines import LedgerFile, LedgerTable
from eventseal.errors import ConfigurationError, IntegrityError, KekNotConfiguredError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys import KeyPurpose, KeyRecord
    from eventseal.keys.ring.store_key import LedgerKey
    from eventseal.kms import KmsAdapter, WrappedKey
    from eventseal.rotation.sealed_store import SealedStore


_LAST = "the last entry"


@dataclass(frozen=True, slots=True)
class _Known:
    """What a process has seen of an application's ledger: it never accepts one that lacks it."""

    key: LedgerKey
    last: LedgerEntry


class Ledger:
    """
    An append-only list of erasures. Entries are chained, and authenticated under a key of the ledger's own.

    That key is wrapped by the keyring's KEKs and kept in the ledger itself. So whoever can write the ledger,
    but has no KMS, can withhold its latest entries, and nothing else: what is changed, forged, left out,
    exchanged or another application's is refused. That entries are missing at the end is noticed by a process
    that has seen them, and wherever the key tables have tombstones of keys that the ledger does not name.

    Args:
        lines: Where its lines are: see :class:`FileLedger` and :class:`DatabaseLedger`.
    """

    def __init__(self, lines: LedgerFile | LedgerTable) -> None:
        self._lines = lines
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Where it is, without any secret."""
        return self._lines.name

    def exists(self, application: str) -> bool:
        """
        Tell whether there is an entry of an application, without checking any.

        Raises:
            StoreError: The ledger cannot be read.
        """
        return self._lines.last(application) is not None

    def create(self, store: SealedStore) -> bool:
        """
        Make an application's ledger, with a new key, unless there is one.

        Args:
            store: Whose application and KEKs.

        Returns:
            Whether it was made now.

        Raises:
            ConfigurationError: The place cannot be used.
            KmsError: Too few KEKs wrapped the ledger's key.
            StoreError: The ledger cannot be written.
        """
        application = store.keyring.application
        if self.exists(application):
            return False
        key, record = store.keyring.ledger_keys.new()
        entry = LedgerEntry(
            number=1,
            kind=CREATED,
            application=application,
            ledger_id=key.key_id,
            at=store.key_store.now(),
            details=key_details(record),
        )
        line = sealed_line(entry, key)
        made = self._lines.append(application, lambda last: line if last is None else None, create=True)
        return made is not None

    def append(
        self,
        store: SealedStore,
        kind: str,
        *,
        scope: str | None = None,
        keys: Mapping[UUID, KeyPurpose] | None = None,
        details: Mapping[str, Any] | None = None,
        closes: Collection[int] = (),
        judge: Callable[[LedgerEntry], object] | None = None,
    ) -> LedgerEntry:
        """
        Add an entry, durably: when this returns, it is there.

        Args:
            store: Whose application, KEKs and clock.
            kind: ``intent``, ``done``, ``reopen``, ``set_aside``, or another word.
            scope: Of what it tells.
            keys: The keys of which it tells, with their purposes.
            details: What else there is to say, as JSON has it.
            closes: The numbers of the entries that are no longer open by it.
            judge: Called with the last entry, while nobody adds another; if it raises, nothing is added.

        Raises:
            ConfigurationError: There is no ledger.
            IntegrityError: The ledger is not what was written; nothing was added.
            StoreError: It cannot be written; nothing was added.
        """
        application, at = store.keyring.application, store.key_store.now()
        known = self._open(store)

        def make(line: bytes | None) -> bytes:
            last = self._checked_last(known, line)
            if judge is not None:
                # Nobody adds an intent between this look and the entry (docs/decisions/0016).
                judge(last)
            number = last.number + 1
            still_open = tuple(other for other in last.open_intents if other not in closes)
            entry = LedgerEntry(
                number=number,
                kind=kind,
                application=application,
                ledger_id=last.ledger_id,
                at=at,
                scope=scope,
                keys=dict(keys or {}),
                details=dict(details or {}),
                # In each entry, so that nobody reads millions to know what is open (docs/decisions/0013).
                open_intents=(*still_open, number) if kind in STAY_OPEN else still_open,
                wrapped_in=number if kind == WRAPPED else last.wrapped_in,
                previous=last.digest,
            )
            return sealed_line(entry, known.key)

        line = self._lines.append(application, make, create=False)
        return self._note(known.key, self._parsed(line, "the entry just written", application))

    def entries(self, store: SealedStore, *, after: int = 0) -> Iterator[LedgerEntry]:
        """
        Give verified entries, in order. One that does not verify ends it with an error.

        Args:
            store: Whose application and KEKs.
            after: The number of the entry behind which to begin; 0: all are read and verified.

        Raises:
            ConfigurationError: There is no ledger.
            IntegrityError: An entry is not what was written, or entries are missing.
            KekNotConfiguredError: No KEK of the keyring's has wrapped the ledger's key.
            KmsError: The KMS refused or failed.
            StoreError: The ledger cannot be read.
        """
        application = store.keyring.application
        known = self._open(store)
        before = self._entry(known, after) if after else None
        for line in self._lines.read(application, after=after):
            where = self._where(1 if before is None else before.number + 1)
            entry = parsed(line, where=where, application=application)
            check(entry, known.key, where=where)
            check_follows(entry, before, where=where)
            if entry.number == known.last.number and entry.digest != known.last.digest:
                raise self._exchanged(entry)
            yield entry
            before = entry
        if before is None or before.number < known.last.number:
            raise self._cut(known.last, before)
        self._note(known.key, before)

    def last(self, store: SealedStore) -> LedgerEntry:
        """Give the last entry, verified by itself; raises as :meth:`entries` does."""
        return self._open(store).last

    def entry(self, store: SealedStore, number: int) -> LedgerEntry | None:
        """Give an entry, verified by itself; ``None`` if there is none of that number; raises as above."""
        known = self._open(store)
        if not 1 <= number <= known.last.number:
            return None
        return self._entry(known, number)

    def open_intents(self, store: SealedStore) -> list[LedgerEntry]:
        """Give the intents that are not done, each verified by itself; raises as :meth:`entries` does."""
        return self.open_entries(store, INTENT)

    def open_entries(self, store: SealedStore, kind: str) -> list[LedgerEntry]:
        """Give the open entries of a kind, each verified by itself; raises as :meth:`entries` does."""
        known = self._open(store)
        found = [self._entry(known, number) for number in known.last.open_intents]
        return [entry for entry in found if entry.kind == kind]

    def unverified_open_entries(self, application: str, kind: str) -> list[LedgerEntry]:
        """Give the open entries of a kind as the ledger says, without any KEK: to show, not to act by."""
        last = self._lines.last(application)
        if last is None:
            return []
        numbers = self._parsed(last, _LAST, application).open_intents
        found = [self._unchecked(number, application) for number in numbers]
        return [entry for entry in found if entry.kind == kind]

    def rewrap(self, store: SealedStore, *, to: Sequence[KmsAdapter] | None = None) -> LedgerEntry:
        """
        Wrap the ledger's key anew, and note the wrappings in a new entry; those before stay as they are.

        Nothing is noted if the key is under these very KEKs and versions already.

        Args:
            store: Whose keyring can unwrap the key now.
            to: The KEKs that are to wrap it; ``None``: all of the keyring's.

        Raises:
            EventSealError: As for :meth:`entries`; or a KEK did not wrap the key.
        """
        known = self._open(store)
        held = self._held_key(known)
        record = store.keyring.ledger_keys.rewrapped(held, to)
        if _keks(record) == _keks(held):
            return known.last
        return self.append(store, WRAPPED, details=key_details(record))

    def wrappings(self, store: SealedStore) -> tuple[WrappedKey, ...]:
        """Give the wrappings of the ledger's key; raises as :meth:`entries` does."""
        return self._held_key(self._open(store)).wrappings

    def opens_without(self, store: SealedStore, leaving: Collection[WrappedKey]) -> bool:
        """
        Unwrap the ledger's key without some of its wrappings, and say whether it was seen to open.

        Args:
            store: Whose application and KEKs.
            leaving: The wrappings that are about to lose their KEK.

        Raises:
            KmsError: A KEK refused or failed: nothing is proved.
            EventSealError: As for :meth:`entries`.
        """
        known = self._open(store)
        held = self._held_key(known)
        staying = tuple(wrapped for wrapped in held.wrappings if wrapped not in leaving)
        if not staying:
            return False
        try:
            key = store.keyring.ledger_keys.open(replace(held, wrappings=staying))
            check(known.last, key, where=self._where(known.last.number))
        except (IntegrityError, KekNotConfiguredError):
            return False
        return True

    def _open(self, store: SealedStore) -> _Known:
        """Check the last entry, and what this process has seen of the ledger before."""
        application = store.keyring.application
        line = self._lines.last(application)
        known = self._known.get(application)
        if known is not None:
            return _Known(known.key, self._checked_last(known, line))
        last = self._parsed(line, _LAST, application)
        # Two lines are read, however long the ledger is (docs/decisions/0013).
        wrapped = self._unchecked(last.wrapped_in, application)
        record = key_record(wrapped, where=self._where(wrapped.number))
        try:
            key = store.keyring.ledger_keys.open(record)
        except IntegrityError:
            raise IntegrityError(
                f"the key of {self.name} was changed, or is another ledger's", remedy=REMEDY
            ) from None
        check(last, key, where=self._where(last.number))
        return _Known(key, self._note(key, last))

    def _checked_last(self, known: _Known, line: bytes | None) -> LedgerEntry:
        """Check a last line against what was seen before; the entry that was seen must be there still."""
        application = known.last.application
        last = self._parsed(line, _LAST, application)
        check(last, known.key, where=self._where(last.number))
        if last.number < known.last.number:
            raise self._cut(known.last, last)
        # The last line and the one seen last, never all of them: there may be millions (docs/decisions/0013).
        seen = last
        if last.number > known.last.number:
            seen = self._unchecked(known.last.number, application)
        if seen.digest != known.last.digest:
            raise self._exchanged(known.last)
        return self._note(known.key, last)

    def _note(self, key: LedgerKey, last: LedgerEntry) -> LedgerEntry:
        with self._lock:
            known = self._known.get(last.application)
            if known is None or known.last.number < last.number:
                self._known[last.application] = _Known(key, last)
        return last

    def _entry(self, known: _Known, number: int) -> LedgerEntry:
        entry = self._unchecked(number, known.last.application)
        check(entry, known.key, where=self._where(number))
        if entry.number != number:
            raise self._exchanged(entry)
        return entry

    def _held_key(self, known: _Known) -> KeyRecord:
        entry = self._entry(known, known.last.wrapped_in)
        return key_record(entry, where=self._where(entry.number))

    def _unchecked(self, number: int, application: str) -> LedgerEntry:
        """Read an entry that is not authenticated yet."""
        return self._parsed(self._lines.line(application, number), f"entry {number}", application)

    def _parsed(self, line: bytes | None, what: str, application: str) -> LedgerEntry:
        if line is None:
            known = self._known.get(application)
            if known is not None:
                raise self._cut(known.last, None)
            if what != _LAST:
                raise IntegrityError(f"{self.name} has no {what}: it was taken away", remedy=REMEDY)
            raise ConfigurationError(
                f"{self.name} has no entry of application {application!r}",
                remedy="Put the ledger back from its copy. If there never was one, run `eventseal init`.",
            )
        return parsed(line, where=f"{what} of {self.name}", application=application)

    def _where(self, number: int) -> str:
        return f"entry {number} of {self.name}"

    def _exchanged(self, entry: LedgerEntry) -> IntegrityError:
        return IntegrityError(
            f"{self._where(entry.number)} is another one than it was: the ledger was exchanged", remedy=REMEDY
        )

    def _cut(self, seen: LedgerEntry, last: LedgerEntry | None) -> IntegrityError:
        ends = "is gone" if last is None else f"ends with entry {last.number}"
        return IntegrityError(
            f"{self.name} {ends}, and entry {seen.number} was there: entries were taken away", remedy=REMEDY
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def _keks(record: KeyRecord) -> set[tuple[str, str | None]]:
    return {(wrapped.kek_uri, wrapped.kek_version) for wrapped in record.wrappings}


class FileLedger(Ledger):
    """
    A ledger in a file of JSON lines, of one application.

    Args:
        path: Of the file; its folder must exist. Keep copies of it, elsewhere than those of the key tables.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(LedgerFile(path))


class DatabaseLedger(Ledger):
    """
    A ledger in the table ``erasure_ledger`` of a database of its own; each application has its own lines.

    Args:
        uri: As SQLAlchemy has it; not the database of the keys, whose restores would set it back. A secret.

    Raises:
        ConfigurationError: The URL is none, or of no SQLite or PostgreSQL database that lasts.
    """

    def __init__(self, uri: str) -> None:
        table = LedgerTable(uri)
        super().__init__(table)
        self.settings = table.settings
