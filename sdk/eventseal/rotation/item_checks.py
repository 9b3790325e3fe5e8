"""Checks of items. Each row is opened with its fields, and counted."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.cipher import ItemContext, Opened
from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    REPAIR_ROW,
    EncryptionRequiredError,
    EventSealError,
    IntegrityError,
    KeyNotFoundError,
    KmsError,
    SerializationError,
    StoreError,
    UnknownFormatError,
    WrongApplicationError,
)
from eventseal.items.acceptance import AcceptedFormats, OldItem
from eventseal.items.fields import PersonalFields
from eventseal.items.item import StoredItem, UnknownPlaceNames, names_another_key
from eventseal.items.json import JSONTranscoder
from eventseal.items.sealed_fields import SEALED_BYTES
from eventseal.items.sealed_places import Selection
from eventseal.rotation.fences import late_item
from eventseal.rotation.jobs.collections import is_erased, open_former
from eventseal.rotation.results import MAX_FAILURES, MAX_KEYS_LISTED, Failure
from eventseal.rotation.sealed_store import StoreOptions, accepted_in, formats_of
from eventseal.rotation.set_aside_rows import SET_ASIDE
from eventseal.storage.database.transactions import read
from eventseal.storage.items.places import item_swaps
from eventseal.storage.items.rows import ItemRow, row_at
from eventseal.storage.jobs.compromised_items import load_compromised_items, were_there

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.items.sealed_places import Page, Place
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.rotation.set_aside_rows import AsideRows
    from eventseal.storage.items.tables import SealedTable

OUTCOMES = ("done", "failed", "plain", "unmigrated", "foreign", "erased", "left")
"""
The outcomes that are counted in a table.

- ``done``: opened.
- ``failed``: not opened.
- ``plain``: not encrypted, where that is allowed.
- ``unmigrated``: in an older format, in a migration that has begun.
- ``foreign``: of another application.
- ``erased``: under a key that was shredded.
- ``left``: outside the sample.
"""

FORMER = "former"
"""Items that opened under their table's former collection. Counted only if any."""

PAGE_SIZE = 1000

_EVERY_ROW = Selection(keys=None, plain=True)


@dataclass(slots=True)
class Tally:
    """
    The results so far. Their size is limited, whatever the number of items.

    Attributes:
        by_table: Counts by table and outcome.
        by_key: Items that opened, by key, for the first 100,000 keys.
        failures: The first 1,000 failures.
    """

    by_table: dict[str, Counter[str]] = field(default_factory=dict)
    by_key: Counter[UUID] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def count(self, table: str, outcome: str, items: int = 1) -> None:
        """Count items of a table."""
        self.by_table.setdefault(table, Counter())[outcome] += items

    def count_key(self, key_id: UUID, items: int = 1) -> None:
        """Count items that opened under a key."""
        if key_id in self.by_key or len(self.by_key) < MAX_KEYS_LISTED:
            self.by_key[key_id] += items

    def fail(self, table: str, row: dict[str, str], key_id: UUID | None, error: EventSealError) -> None:
        """Count a failure, and list it if there is room."""
        self.count(table, "failed")
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(Failure.of(table, row, key_id, error))

    def total(self, outcome: str) -> int:
        """Return a count summed over the tables."""
        return sum(counts[outcome] for counts in self.by_table.values())

    def add(self, other: Tally) -> None:
        """Add other results."""
        for table, counts in other.by_table.items():
            self.by_table.setdefault(table, Counter()).update(counts)
        for key_id, items in other.by_key.items():
            self.count_key(key_id, items)
        self.failures += other.failures[: MAX_FAILURES - len(self.failures)]


@dataclass(eq=False)
class ItemChecks:
    """
    Checks the items of one table, a page at a time. Nothing is written.

    Attributes:
        store: The store whose cipher opens the items.
        table: The registered table.
        sample: The share of rows to check, over 0 and up to 1.
        only: Only these rows, by the keys in their headers, without the fields inside. ``None``: all rows.
        aside: The rows that are set aside. They are counted separately, not as failures.
        on_failure: Called with each row that fails, and its error.
    """

    store: SealedStore
    table: SealedTable
    _: KW_ONLY
    sample: float = 1.0
    only: Selection | None = None
    aside: AsideRows | None = None
    on_failure: Callable[[ItemRow, EventSealError], object] = lambda _row, _error: None

    def __post_init__(self) -> None:
        store, table = self.store, self.table
        self._engine = store.datastore.engine
        self._random = random.Random()  # noqa: S311 - the choice of the sample is no secret
        self._rows = item_swaps(self._engine, table)
        self._marks = load_compromised_items(self._engine, table.table)
        self._json = JSONTranscoder()
        self._fields = PersonalFields(store.cipher, self._json, UnknownPlaceNames(), table.collection)
        # As the registry was when the table was read: it is read once, not for each item.
        self._accepted = accepted_in(formats_of(store), table) if table.old_formats else AcceptedFormats()
        self._takes_plain = table.takes_plain(always_encrypt=StoreOptions.of(store).always_encrypt)
        self._has_keys: bool | None = None

    def run(self, after: Place | None, upto: Place | None) -> Iterator[Tally]:
        """
        Check a range of the table.

        Args:
            after: The range begins after this place. ``None``: with the first row.
            upto: The range ends with this place. ``None``: with the last row.

        Returns:
            The results of each page.

        Raises:
            KmsError: The KMS refused or failed, which says nothing about the items.
            StoreError: The database refused or failed.
            WrongApplicationError: There are items of another application and no keys of this one.
        """
        while True:
            page, suspects = read(
                self._engine,
                partial(self._page, after=after, upto=upto),
                doing=f"reading {self.table.table}",
            )
            if not page:
                return
            tally = Tally()
            self._check(tally, self._sampled(tally, _rows(self._asked(page))), suspects)
            yield tally
            after = page.last_place

    def run_all(self, after: Place | None = None, upto: Place | None = None) -> Tally:
        """Check the range or table in one call. Arguments and errors: see :meth:`run`."""
        tally = Tally()
        for page in self.run(after, upto):
            tally.add(page)
        return tally

    def check(self, rows: Sequence[ItemRow]) -> Tally:
        """Check rows that were read. It raises the errors of :meth:`run`."""
        tally = Tally({self.table.table: Counter()})
        self._check(tally, rows, frozenset())
        return tally

    def _page(
        self, connection: Connection, *, after: Place | None, upto: Place | None
    ) -> tuple[Page, frozenset[Place]]:
        """Read a page, and the places written after their key's mark."""
        page = self._rows.page(
            connection,
            self.only or _EVERY_ROW,
            after=after,
            upto=upto,
            limit=PAGE_SIZE,
            written=bool(self._marks),
        )
        if not self._marks or not page:
            return page, frozenset()
        there = were_there(connection, self.table.table, self._marks, page)
        later = set(range(len(page))).difference(there)
        return page, frozenset((page.sequence_ids[number], page.positions[number]) for number in later)

    def _asked(self, page: Page) -> Page:
        """Drop rows that a plaintext query finds only by their column."""
        if self.only is None or self.only.keys is None:
            return page
        wanted = {None, *(key_id.bytes for key_id in self.only.keys)}
        return page.only([number for number, named in enumerate(page.key_ids) if named in wanted])

    def _sampled(self, tally: Tally, rows: Sequence[ItemRow]) -> Sequence[ItemRow]:
        if self.sample == 1:
            return rows
        chosen = [row for row in rows if self._random.random() < self.sample]
        tally.count(self.table.table, "left", len(rows) - len(chosen))
        return chosen

    def _check(self, tally: Tally, rows: Sequence[ItemRow], suspects: frozenset[Place]) -> None:
        items = [(row.data, self._context(row)) for row in rows]
        opened = self.store.cipher.open_many(items)
        former = open_former(self.store, self.table, items, opened)
        moved: list[ItemRow] = []
        verdicts: list[_Verdict] = []
        done: Counter[UUID] = Counter()
        for number, (row, outcome) in enumerate(zip(rows, opened, strict=True)):
            if (
                isinstance(outcome, Opened)
                and number not in former
                and outcome.key_id == row.key_id
                and not suspects
                and SEALED_BYTES not in outcome.plaintext
            ):
                done[outcome.key_id] += 1  # nearly all items: they need no further check
                continue
            verdict = _Verdict(row, *self._judged(row, outcome))
            if number in former:
                verdict.outcome = FORMER
            is_late = row[:2] in suspects and row.key_id is not None
            # Since the page was read, a re-encryption may have moved the item, and its old key been
            # destroyed.
            if is_late or getattr(verdict.error, "destroyed_by", None) == "retired":
                now = self._read_again(row)
                if now is None or now.data != row.data:
                    moved += [now] if now is not None else []
                    continue
                if is_late and row.key_id is not None:
                    verdict.error = late_item(self._marks[row.key_id])
            verdicts.append(verdict)
        tally.count(self.table.table, "done", done.total())
        for key_id, opened_items in done.items():
            tally.count_key(key_id, opened_items)
        self._open_fields(verdicts)
        for verdict in verdicts:
            self._count(tally, verdict)
        if moved:
            self._check(tally, moved, frozenset())

    def _count(self, tally: Tally, verdict: _Verdict) -> None:
        row, error = verdict.row, verdict.error
        if error is not None:
            raise_if_outage(error)
            if self.aside is not None and self.aside.at(self.table.table, row[:2]):
                tally.count(self.table.table, SET_ASIDE)
                return
            self.on_failure(row, error)
            place = {"sequence_id": str(row.sequence_id), "position": str(row.position)}
            tally.fail(self.table.table, place, row.key_id, error)
            return
        tally.count(self.table.table, verdict.outcome)
        if verdict.outcome in {"done", FORMER} and row.key_id is not None:
            tally.count_key(row.key_id)

    def _judged(
        self, row: ItemRow, outcome: Opened | EventSealError
    ) -> tuple[str, bytes, EventSealError | None]:
        """Return a row's outcome and plaintext, or its error."""
        if isinstance(outcome, Opened):
            wrong = None if outcome.key_id == row.key_id else IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
            return "done", outcome.plaintext, wrong
        data: Any = row.data
        if not isinstance(data, bytes):  # only an edit can write another type there
            return "", b"", outcome
        if row.key_id is None and isinstance(outcome, UnknownFormatError | KeyNotFoundError):
            return self._without_envelope(row, outcome)
        if names_another_key(data, row.key_id, outcome):
            return "", b"", IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
        if self.table.application is None and isinstance(outcome, WrongApplicationError):
            if not self._application_has_keys():  # the configured name is wrong, not the item
                raise outcome
            return "foreign", b"", None
        if is_erased(outcome):
            return "erased", b"", None  # the tombstone's MAC was checked
        return self._in_older_format(row, outcome)

    def _without_envelope(
        self, row: ItemRow, outcome: EventSealError
    ) -> tuple[str, bytes, EventSealError | None]:
        """
        Judge a row that names no key.

        Its bytes are an envelope only if the key store has the key of their header.
        """
        if self.table.is_others:
            return "foreign", b"", None  # only the applications that registered the table can judge it
        name, plaintext, error = self._in_older_format(row, outcome)
        if error is None or not self.table.has_key_ids:
            return name, plaintext, error
        if self._takes_plain:
            return "plain", row.data, self._why_no_event(row.data)
        return name, plaintext, error if self.table.old_formats else _not_encrypted()

    def _in_older_format(
        self, row: ItemRow, outcome: EventSealError
    ) -> tuple[str, bytes, EventSealError | None]:
        """Try the older formats that the table's readers accept during a migration."""
        key_id = row.key_id if self.table.has_key_ids else None
        older = self._accepted.open(row.data, self._context(row), outcome, key_id=key_id)
        if isinstance(older, OldItem):
            return "unmigrated", older.plaintext, None
        return "", b"", older

    def _why_no_event(self, data: Any) -> EventSealError | None:
        """Return why unencrypted bytes are no event, or ``None`` if they are."""
        try:
            is_object = type(self._json.parse(data)) is dict
        except SerializationError as error:
            return error
        return None if is_object else SerializationError("the data are not an object's attributes")

    def _open_fields(self, verdicts: Sequence[_Verdict]) -> None:
        """Open the fields of all rows together. Erased fields are in order."""
        # The mapper of another program's table does not open fields.
        if self.only is not None or not self.table.has_key_ids:
            return
        holding = {
            number: (StoredItem(*verdict.row), verdict.plaintext)
            for number, verdict in enumerate(verdicts)
            if verdict.error is None and SEALED_BYTES in verdict.plaintext
        }
        former = self.table.former_collection
        others = () if former is None else (former,)
        for number, outcome in (self._fields.open(holding, others) if holding else {}).items():
            if isinstance(outcome, EventSealError):
                verdicts[number].error = outcome

    def _application_has_keys(self) -> bool:
        if self._has_keys is None:
            keys = self.store.key_store.page(self.store.cipher.application, after=None, limit=1)
            self._has_keys = bool(keys)
        return self._has_keys

    def _read_again(self, row: ItemRow) -> ItemRow | None:
        return row_at(self._engine, self.table, row.sequence_id, row.position)

    def _context(self, row: ItemRow) -> ItemContext:
        return ItemContext(row.sequence_id, row.position, row.topic, self.table.collection)


@dataclass(slots=True)
class _Verdict:
    """A row with its outcome and plaintext, or only with its error."""

    row: ItemRow
    outcome: str
    plaintext: bytes
    error: EventSealError | None


def raise_if_outage(error: EventSealError) -> None:
    """Raise an outage or refusal, which proves nothing about items and keys."""
    if isinstance(error, KmsError | StoreError):
        raise error


def _rows(page: Page) -> list[ItemRow]:
    named = page.named or page.key_ids  # readers use the column, if there is one
    key_ids: dict[bytes | None, UUID | None] = {
        raw: None if raw is None else UUID(bytes=raw) for raw in set(named)
    }
    return [
        ItemRow(sequence_id, position, topic, data, key_ids[raw])
        for sequence_id, position, topic, data, raw in zip(
            page.sequence_ids, page.positions, page.topics, page.envelopes, named, strict=True
        )
    ]


def _not_encrypted() -> EncryptionRequiredError:
    return EncryptionRequiredError(
        "the item is not encrypted, and always_encrypt is set",
        remedy="If an older application wrote it, name its format in old_formats, and run `eventseal migrate "
        f"begin`. Otherwise: {REPAIR_ROW}",
    )
