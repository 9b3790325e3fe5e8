"""
The erasure ledger: the record of intended and completed erasures.

A restore of the key tables does not set it back.
"""

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
    """
    The last entry that this process has seen of an application's ledger.

    The process never accepts a ledger without this entry.
    """

    key: LedgerKey
    last: LedgerEntry


class Ledger:
    """
    An append-only, authenticated list of erasures.

    Its entries are chained, and authenticated under the ledger's own key. The keyring's KEKs wrap that key,
    and the ledger itself stores it. An attacker who can write to the ledger but cannot call the KMS can only
    withhold its latest entries. EventSeal rejects a ledger in which an entry was altered, forged, removed or
    swapped, or that belongs to another application. Two checks detect missing entries at the end. A process
    that has seen them rejects the ledger, and the key tables have tombstones of keys that the ledger does not
    name.

    Args:
        lines: The storage of the lines. See :class:`FileLedger` and :class:`DatabaseLedger`.
    """

    def __init__(self, lines: LedgerFile | LedgerTable) -> None:
        self._lines = lines
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Where the ledger is, without any secret."""
        return self._lines.name

    def exists(self, application: str) -> bool:
        """
        Return whether an application has an entry, without checking any.

        Raises:
            StoreError: The ledger cannot be read.
        """
        return self._lines.last(application) is not None

    def check_place(self) -> None:
        """
        Check that the ledger can be created where it is configured. Nothing is written.

        Raises:
            ConfigurationError: The folder of the file does not exist, or a table of the ledger's name belongs
                to another program.
            StoreError: The database rejects the request or fails.
        """
        self._lines.check_place()

    def create(self, store: SealedStore) -> bool:
        """
        Create an application's ledger with a new key, unless it exists.

        Args:
            store: The store with the application and its KEKs.

        Returns:
            Whether this call created the ledger.

        Raises:
            ConfigurationError: The path or the database cannot be used for a ledger.
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
        Add an entry and return it when it is durable.

        Args:
            store: The store with the application, its KEKs and its clock.
            kind: ``intent``, ``done``, ``reopen``, ``set_aside``, or another kind.
            scope: The scope that the entry is about.
            keys: The keys that the entry is about, with their purposes.
            details: The other facts of the entry, in their JSON form.
            closes: The numbers of the entries that this entry closes.
            judge: Called with the last entry, while no other process can add one. If it raises, nothing is
                added.

        Raises:
            ConfigurationError: The ledger does not exist.
            IntegrityError: The ledger was changed. Nothing was added.
            StoreError: The ledger cannot be written. Nothing was added.
        """
        application, at = store.keyring.application, store.key_store.now()
        known = self._open(store)

        def make(line: bytes | None) -> bytes:
            last = self._checked_last(known, line)
            if judge is not None:
                # No intent can be added between this check and the new entry (docs/decisions/0016).
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
                # In each entry, so that a reader finds the open ones without reading millions of entries
                # (docs/decisions/0013).
                open_intents=(*still_open, number) if kind in STAY_OPEN else still_open,
                wrapped_in=number if kind == WRAPPED else last.wrapped_in,
                previous=last.digest,
            )
            return sealed_line(entry, known.key)

        line = self._lines.append(application, make, create=False)
        return self._note(known.key, self._parsed(line, "the entry just written", application))

    def entries(self, store: SealedStore, *, after: int = 0) -> Iterator[LedgerEntry]:
        """
        Yield verified entries in order.

        An entry that does not verify raises an error, after which nothing is yielded.

        Args:
            store: The store with the application and its KEKs.
            after: The number of the entry after which to begin. 0: all entries are read and verified.

        Raises:
            ConfigurationError: The ledger does not exist.
            IntegrityError: An entry was changed, or entries are missing.
            KekNotConfiguredError: None of the keyring's KEKs wrapped the ledger's key.
            KmsError: The KMS rejects the request or fails.
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
        """Return the last entry after verifying it alone. The errors are those of :meth:`entries`."""
        return self._open(store).last

    def entry(self, store: SealedStore, number: int) -> LedgerEntry | None:
        """
        Return an entry after verifying it alone.

        It is ``None`` if no entry has that number. The errors are those of :meth:`entries`.
        """
        known = self._open(store)
        if not 1 <= number <= known.last.number:
            return None
        return self._entry(known, number)

    def open_intents(self, store: SealedStore) -> list[LedgerEntry]:
        """
        Return the intents that are not done, each verified alone.

        The errors are those of :meth:`entries`.
        """
        return self.open_entries(store, INTENT)

    def open_entries(self, store: SealedStore, kind: str) -> list[LedgerEntry]:
        """Return the open entries of a kind, each verified alone. The errors are those of :meth:`entries`."""
        known = self._open(store)
        found = [self._entry(known, number) for number in known.last.open_intents]
        return [entry for entry in found if entry.kind == kind]

    def unverified_open_entries(self, application: str, kind: str) -> list[LedgerEntry]:
        """
        Return the open entries of a kind, without verification.

        No KEK is needed. Show these entries only. Do not act on them.
        """
        last = self._lines.last(application)
        if last is None:
            return []
        numbers = self._parsed(last, _LAST, application).open_intents
        found = [self._unchecked(number, application) for number in numbers]
        return [entry for entry in found if entry.kind == kind]

    def rewrap(self, store: SealedStore, *, to: Sequence[KmsAdapter] | None = None) -> LedgerEntry:
        """
        Rewrap the ledger's key, and record the wrappings in a new entry.

        The wrappings in earlier entries stay as they are. If the key is already under these KEKs and
        versions, nothing is recorded.

        Args:
            store: The store whose keyring can unwrap the key now.
            to: The KEKs that must wrap the key. ``None``: all KEKs of the keyring.

        Raises:
            EventSealError: An error of :meth:`entries`, or a KEK did not wrap the key.
        """
        known = self._open(store)
        held = self._held_key(known)
        record = store.keyring.ledger_keys.rewrapped(held, to)
        if _keks(record) == _keks(held):
            return known.last
        return self.append(store, WRAPPED, details=key_details(record))

    def wrappings(self, store: SealedStore) -> tuple[WrappedKey, ...]:
        """Return the wrappings of the ledger's key. The errors are those of :meth:`entries`."""
        return self._held_key(self._open(store)).wrappings

    def opens_without(self, store: SealedStore, leaving: Collection[WrappedKey]) -> bool:
        """
        Check that the ledger's key opens without some of its wrappings.

        Args:
            store: The store with the application and its KEKs.
            leaving: The wrappings that are about to lose their KEK.

        Returns:
            Whether the key was unwrapped with one of the other wrappings.

        Raises:
            KmsError: A KEK rejects the request or fails, so nothing is proved.
            EventSealError: An error of :meth:`entries`.
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
        """Check the last entry, and the entry that this process saw last."""
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
                f"the key of {self.name} was changed, or belongs to another ledger", remedy=REMEDY
            ) from None
        check(last, key, where=self._where(last.number))
        return _Known(key, self._note(key, last))

    def _checked_last(self, known: _Known, line: bytes | None) -> LedgerEntry:
        """Check a last line, and that the entry seen before still exists."""
        application = known.last.application
        last = self._parsed(line, _LAST, application)
        check(last, known.key, where=self._where(last.number))
        if last.number < known.last.number:
            raise self._cut(known.last, last)
        # Only the last line and the one seen last: there may be millions of lines (docs/decisions/0013).
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
        """Read an entry without authenticating it."""
        return self._parsed(self._lines.line(application, number), f"entry {number}", application)

    def _parsed(self, line: bytes | None, what: str, application: str) -> LedgerEntry:
        if line is None:
            known = self._known.get(application)
            if known is not None:
                raise self._cut(known.last, None)
            if what != _LAST:
                raise IntegrityError(f"{self.name} has no {what}: it was removed", remedy=REMEDY)
            raise ConfigurationError(
                f"{self.name} has no entry of application {application!r}",
                remedy="Restore the ledger from its newest copy. If it never existed, run `eventseal init`.",
            )
        return parsed(line, where=f"{what} of {self.name}", application=application)

    def _where(self, number: int) -> str:
        return f"entry {number} of {self.name}"

    def _exchanged(self, entry: LedgerEntry) -> IntegrityError:
        return IntegrityError(
            f"{self._where(entry.number)} differs from the entry seen before: the ledger was exchanged",
            remedy=REMEDY,
        )

    def _cut(self, seen: LedgerEntry, last: LedgerEntry | None) -> IntegrityError:
        ends = "is missing" if last is None else f"ends with entry {last.number}"
        return IntegrityError(
            f"{self.name} {ends}, but it had entry {seen.number} before: entries were removed", remedy=REMEDY
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def _keks(record: KeyRecord) -> set[tuple[str, str | None]]:
    return {(wrapped.kek_uri, wrapped.kek_version) for wrapped in record.wrappings}


class FileLedger(Ledger):
    """
    The ledger of one application in a file of JSON lines.

    Args:
        path: The path of the file, whose folder must exist. Keep copies of the file, apart from the backups
            of the key tables.

    Raises:
        ConfigurationError: This system has no locks of POSIX.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        lines = LedgerFile(path)
        super().__init__(lines)
        self.path = lines.path


class DatabaseLedger(Ledger):
    """
    A ledger in the table ``eventseal_erasure_ledger`` of a separate database.

    Each application has its own lines.

    Args:
        uri: The SQLAlchemy URL of the database. A secret. Do not use the database of the keys: its restores
            would set the ledger back.
        schema: The PostgreSQL schema of the table. It must exist.

    Raises:
        ConfigurationError: The URL is invalid, or is not of a persistent SQLite or PostgreSQL database.
    """

    def __init__(self, uri: str, *, schema: str | None = None) -> None:
        table = LedgerTable(uri, schema=schema)
        super().__init__(table)
        self.settings, self.engine = table.settings, table.engine
