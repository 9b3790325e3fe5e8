"""Items in older formats: which rows hold them, and how they become envelopes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.cipher import ItemContext, Opened
from eventseal.cipher.context import ItemBinder
from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KmsError,
    SerializationError,
    StoreError,
    WrongApplicationError,
)
from eventseal.items.event_modules import EventModules
from eventseal.items.json import ClassChecks
from eventseal.items.sealed_places import Selection
from eventseal.keys.records import DEFAULT_SCOPE, checked_scope
from eventseal.rotation.jobs.batches import Batch, TableMover
from eventseal.rotation.jobs.sources import FEW_ITEMS, KeyStandings, Standing, TableSources
from eventseal.rotation.sealed_store import event_modules_of
from eventseal.storage.database.column_types import NIL_KEY_ID
from eventseal.storage.database.transactions import read
from eventseal.storage.items.key_counts import count_by_key, count_differing
from eventseal.storage.items.swaps import MOST_LISTED_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from eventseal.items.acceptance import AcceptedFormats, OldItem
    from eventseal.items.sealed_places import Page
    from eventseal.keys.records import KeyRecord
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.shards import Shard


if TYPE_CHECKING:
    ScopeOf = Callable[[ItemContext, bytes], str]

_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class OldSources(TableSources):
    """
    A table's items that may be in an older format: rows that are no envelopes, or name no key that there is.

    Attributes:
        unknown: Keys that rows name and no key store has: by chance, a static key's, or another store's.
        others: Envelopes of other applications, by application, in a table that is this one's alone.
        has_scopes: Whether items are sealed under keys of other scopes than ``application``.
    """

    unknown: tuple[UUID, ...] = ()
    others: Mapping[str, int] | None = None
    has_scopes: bool = False

    @property
    def moving(self) -> int:
        """Items that a pass looks at."""
        return self.items.get(Standing.UNREADABLE, 0)

    def selections(self, heads: tuple[bytes, ...]) -> Iterator[tuple[int, Selection]]:  # noqa: ARG002
        """Give the one phase of a pass."""
        if self.moving:
            few = self.moving <= FEW_ITEMS
            listed = len(self.unknown) <= MOST_LISTED_KEYS and NIL_KEY_ID not in self.unknown
            yield 1, Selection(keys=self.unknown if listed else None, few=few and listed, plain=True)


def old_sources(store: SealedStore, tables: Sequence[SealedTable]) -> list[OldSources]:
    """
    Count what may be in an older format; the rows whose column and header differ are reported with it.

    Args:
        store: Its items and keys.
        tables: From the registry.

    Raises:
        StoreError: The database refused or failed.
    """
    return [_sources(store, table) for table in tables]


def _sources(store: SealedStore, table: SealedTable) -> OldSources:
    counts = read(store.datastore.engine, partial(count_by_key, table=table), doing=f"counting {table.table}")
    differing = count_differing(store.datastore.engine, table)
    plain = counts.pop(None, 0)
    named = {key_id: count for key_id, count in counts.items() if key_id is not None}
    unknown: list[UUID] = []
    others: Counter[str] = Counter()
    usual = {DEFAULT_SCOPE, store.cipher.stored_scope(DEFAULT_SCOPE)}
    has_scopes = False
    # Not all records at once: a scope for each stream makes millions.
    wanted = sorted(named)
    for start in range(0, len(wanted), _CHUNK):
        chunk = wanted[start : start + _CHUNK]
        records = store.key_store.get(chunk)
        unknown += [key_id for key_id in chunk if key_id not in records]
        for key_id, record in records.items():
            plain += differing.get(key_id, 0)
            if record.application != store.cipher.application:
                others[record.application] += named[key_id]
            elif record.scope not in usual:
                has_scopes = True
    shared = table.application is None
    items: Counter[Standing | None] = Counter(
        {
            Standing.UNREADABLE: plain + sum(named[key_id] for key_id in unknown),
            Standing.FOREIGN: others.total(),
        }
    )
    return OldSources(
        table,
        items,
        {},
        {},
        unknown=tuple(unknown),
        others={} if shared else dict(others),
        has_scopes=has_scopes,
    )


def known_keys(store: SealedStore, key_ids: Collection[UUID]) -> dict[UUID, KeyRecord]:
    """Give those of the keys that the key store has."""
    wanted, found = sorted(key_ids), {}
    for start in range(0, len(wanted), _CHUNK):
        found.update(store.key_store.get(wanted[start : start + _CHUNK]))
    return found


def foreign(source: OldSources, application: str) -> list[WrongApplicationError]:
    """Name the applications whose envelopes are in a table that is not theirs."""
    return [
        WrongApplicationError(
            f"{count} items of {source.table.table} are envelopes of the application {other!r}, "
            f"not of {application!r}",
            expected=application,
            found=other,
            remedy="Register the table for every application that writes there, or find out who wrote them.",
        )
        for other, count in sorted((source.others or {}).items())
    ]


def old_items(
    accepted: AcceptedFormats, table: SealedTable, page: Page, outcomes: Sequence[Any]
) -> Iterator[OldItem | EventSealError]:
    """
    Open the rows of a page that the cipher did not, each with an outcome of its own.

    Args:
        accepted: The formats.
        table: That the page is from.
        page: Rows without a known key.
        outcomes: What the cipher gave for them.
    """
    for number, (context, outcome) in enumerate(zip(contexts_of(page, table), outcomes, strict=True)):
        data = page.envelopes[number]
        if isinstance(outcome, Opened):  # it is an envelope, yet its row says that it is none
            yield IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
        elif not isinstance(data, bytes):
            yield SerializationError(
                f"an item's data are bytes, not {type(data).__name__}",
                remedy="Items in a column of text are copied: see the page on migration.",
            )
        elif isinstance(outcome, KmsError | StoreError):
            raise outcome
        else:
            beside = page.named[number] if page.named else None
            named = None if beside is None else UUID(bytes=beside)
            yield accepted.open(data, context, outcome, key_id=named)


def contexts_of(page: Page, table: SealedTable) -> list[ItemContext]:
    """Give the places of a page's rows."""
    places = zip(page.sequence_ids, page.positions, page.topics, strict=True)
    return [ItemContext(*place, table.collection) for place in places]


def class_checks(store: SealedStore, *, is_library: bool) -> ClassChecks:
    """
    Give the check of the classes that items name, by a store's event modules.

    Args:
        store: May name event modules, which are imported.
        is_library: Whether the items stay in a table of the eventsourcing library.

    Raises:
        ConfigurationError: A module is not there.
    """
    modules = EventModules(event_modules_of(store))
    modules.load()
    return ClassChecks(modules, is_library=is_library)


def scope_given(scope_of: ScopeOf, context: ItemContext, plaintext: bytes) -> str:
    """
    Ask the application's rule for the scope of one item: what it does not know stops no others.

    Args:
        scope_of: The rule.
        context: The item's place.
        plaintext: Its JSON, which whoever writes to the old table chooses.

    Raises:
        SerializationError: The rule failed; the message does not repeat why, which may be the plaintext.
        ConfigurationError: What it gave is no scope.
    """
    try:
        scope = scope_of(context, plaintext)
    except EventSealError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - of a function that is not ours
        failed = type(error)
    else:
        return checked_scope(scope)
    remedy = "Let it give such items a scope, too; if this is no item of yours, find out who wrote it."
    if issubclass(failed, ModuleNotFoundError):
        remedy = "If it imports a module of the working directory, put that folder on PYTHONPATH. " + remedy
    raise SerializationError(
        f"the key scope's function failed with {failed.__name__} for the item", remedy=remedy
    )


class OldItemMover(TableMover):
    """
    Turns the older items of one table into envelopes, a page at a time, as a re-encryption moves them.

    Args:
        store: Its cipher seals.
        table: From the registry.
        accepted: The formats that items may be in.
        scope_of: Gives the key scope of an item from its place and its JSON.
    """

    by_tag = False

    def __init__(
        self, store: SealedStore, table: SealedTable, *, accepted: AcceptedFormats, scope_of: ScopeOf
    ) -> None:
        super().__init__(store, table, KeyStandings(store, None))
        self._binder = ItemBinder(store.cipher.application)
        self._accepted = accepted
        self._scope_of = scope_of
        self._classes = class_checks(store, is_library=not table.has_key_ids)

    def _wanted(self, shard: Shard, page: Page, selection: Selection) -> Sequence[int]:  # noqa: ARG002
        if selection.keys is not None:
            return range(len(page))
        named = {UUID(bytes=raw) for raw in page.key_ids if raw is not None}
        known = {key_id.bytes for key_id in known_keys(self._store, named)}
        return [number for number, raw in enumerate(page.key_ids) if raw not in known or page.differs(number)]

    def _sealed(self, shard: Shard, page: Page, selection: Selection) -> Batch:  # noqa: ARG002
        batch = Batch(page)
        if not page:
            return batch
        contexts = contexts_of(page, self._table)
        outcomes = self._store.cipher.open_many(list(zip(page.envelopes, contexts, strict=True)))
        opened: dict[int, tuple[bytes, ItemContext, str]] = {}
        for number, outcome in enumerate(old_items(self._accepted, self._table, page, outcomes)):
            if isinstance(outcome, EventSealError):
                self._fail(batch, page, number, outcome, stuck=True)
                continue
            try:
                self._binder.bind(contexts[number])  # one that has no place does not stop the others
                self._classes.check(contexts[number].topic, outcome.plaintext)
                scope = scope_given(self._scope_of, contexts[number], outcome.plaintext)
            except EventSealError as error:
                self._fail(batch, page, number, error, stuck=True)
                continue
            opened[number] = outcome.plaintext, contexts[number], scope
        envelopes = self._sealed_by_scope(batch, page, opened)
        kept = page.only(list(envelopes))
        # The old key is none that is destroyed one day: only the new one is held.
        batch.page = replace(kept, key_ids=[None] * len(kept))
        batch.envelopes = list(envelopes.values())
        return batch

    def _sealed_by_scope(
        self, batch: Batch, page: Page, opened: Mapping[int, tuple[bytes, ItemContext, str]]
    ) -> dict[int, bytes]:
        """Seal what was opened; what belongs to a scope that was shredded is listed, and stays."""
        try:
            return self._sealed_all(opened)
        except KeyDestroyedError as error:
            if error.destroyed_by != "shredded":
                raise
        envelopes: dict[int, bytes] = {}
        for scope in {scope for _, _, scope in opened.values()}:
            mine = {number: item for number, item in opened.items() if item[2] == scope}
            try:
                envelopes.update(self._sealed_all(mine))
            except KeyDestroyedError as error:
                if error.destroyed_by != "shredded":
                    raise
                for number in mine:
                    self._fail(batch, page, number, error, stuck=True)
        return dict(sorted(envelopes.items()))

    def _sealed_all(self, opened: Mapping[int, tuple[bytes, ItemContext, str]]) -> dict[int, bytes]:
        cipher = self._store.cipher
        items = [(plaintext, context) for plaintext, context, _ in opened.values()]
        envelopes = cipher.encrypt_many(items, scopes=[scope for _, _, scope in opened.values()])
        again = cipher.open_many(
            [(sealed, context) for sealed, (_, context) in zip(envelopes, items, strict=True)]
        )
        for outcome, (plaintext, _) in zip(again, items, strict=True):
            if isinstance(outcome, EventSealError):
                raise outcome
            if outcome.plaintext != plaintext:
                raise IntegrityError(
                    f"what was just sealed under key {outcome.key_id} does not open to the same bytes",
                    remedy="Nothing of the batch was written. Check this machine's memory and its OpenSSL.",
                    key_id=outcome.key_id,
                )
        return dict(zip(opened, envelopes, strict=True))
