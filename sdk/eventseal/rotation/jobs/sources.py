"""Which keys' items are encrypted again, and what the others are: told from the keys' rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from eventseal.items.sealed_places import Selection
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.storage.database.column_types import NIL_KEY_ID
from eventseal.storage.database.transactions import read
from eventseal.storage.items.key_counts import count_by_key
from eventseal.storage.items.swaps import MOST_LISTED_KEYS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.records import KeyRecord
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable


FEW_ITEMS = 20_000
"""So many a page sorts faster than it reads a large table in order."""

_MOST_REMEMBERED = 100_000
_CHUNK = 1000


class Standing(Enum):
    """What a key's row says of the items that name it."""

    FITTING = "under their scope's active key"
    OLD = "under a key that was rotated"
    COMPROMISED = "under a compromised key"
    UNREADABLE = "under a key that opens nothing here"
    FOREIGN = "another application's"
    ERASED = "shredded"
    CHANCE = "an item of an older format that begins like an envelope"


MOVING = frozenset({Standing.OLD, Standing.COMPROMISED, Standing.UNREADABLE})
"""What a pass looks at; what does not open is reported then, row by row."""


class KeyStandings:
    """
    Tells how keys stand, from their rows, whose seals it checks, and remembers it for one pass.

    Args:
        store: Its keys.
        keys: Only items under these are moved; ``None``: under any key that is not the active one.
    """

    def __init__(self, store: SealedStore, keys: Collection[UUID] | None) -> None:
        self._store = store
        self._application = store.cipher.application
        self._keys = None if keys is None else frozenset(keys)
        self._known: dict[tuple[UUID, bool, bool], Standing] = {}

    def of(self, key_ids: Collection[UUID], table: SealedTable) -> Mapping[UUID, Standing]:
        """
        Tell how each key stands.

        Args:
            key_ids: Any number.
            table: Whose rows name them.
        """
        kind = table.application is None, bool(table.old_formats)
        unknown = [key_id for key_id in key_ids if (key_id, *kind) not in self._known]
        if len(self._known) + len(unknown) > _MOST_REMEMBERED:
            self._known.clear()
            unknown = list(key_ids)
        found: dict[UUID, Standing] = {}
        for start in range(0, len(unknown), _CHUNK):
            chunk = unknown[start : start + _CHUNK]
            records = self._store.key_store.get(chunk)
            found.update({key_id: self._standing(key_id, records.get(key_id), table) for key_id in chunk})
            # What such a row says is not true: each of its items is looked at.
            for key_id in self._store.keyring.tables.edited_keys(chunk):
                found[key_id] = self._if_asked(key_id, Standing.UNREADABLE)
        if len(found) <= _MOST_REMEMBERED:
            self._known.update({(key_id, *kind): standing for key_id, standing in found.items()})
        return {key_id: found.get(key_id) or self._known[(key_id, *kind)] for key_id in key_ids}

    def _standing(self, key_id: UUID, record: KeyRecord | None, table: SealedTable) -> Standing:
        if record is None and table.old_formats:
            return Standing.CHANCE
        if record is not None and record.application != self._application:
            shared = table.application is None
            return Standing.FOREIGN if shared else self._if_asked(key_id, Standing.UNREADABLE)
        if record is None or record.purpose is not KeyPurpose.DATA:
            return self._if_asked(key_id, Standing.UNREADABLE)
        if record.state is KeyState.DESTROYED:
            erased = record.destroyed_by == "shredded"
            return Standing.ERASED if erased else self._if_asked(key_id, Standing.UNREADABLE)
        if record.state is KeyState.ACTIVE:
            return Standing.FITTING
        if record.state is KeyState.COMPROMISED:
            return self._if_asked(key_id, Standing.COMPROMISED)
        return self._if_asked(key_id, Standing.OLD)

    def _if_asked(self, key_id: UUID, standing: Standing) -> Standing:
        return standing if self._keys is None or key_id in self._keys else Standing.FITTING


@dataclass(frozen=True, slots=True)
class TableSources:
    """
    A table's items by how their keys stand, counted by the keys in their headers.

    Attributes:
        table: From the registry.
        items: By how their key stands; plain ones under ``None``.
        keys: The keys that have items here, by how they stand.
        by_key: Items of the keys that are moved.
    """

    table: SealedTable
    items: Mapping[Standing | None, int]
    keys: Mapping[Standing, Sequence[UUID]]
    by_key: Mapping[UUID, int]

    @property
    def moving(self) -> int:
        """Items that a pass looks at, but for those whose envelope alone does not fit."""
        return sum(self.items.get(standing, 0) for standing in MOVING)

    def selections(self, heads: tuple[bytes, ...]) -> Iterator[tuple[int, Selection]]:
        """
        Give the phases of a pass: compromised keys first, then the others.

        Args:
            heads: How fitting envelopes begin; empty: only the keys are looked at.
        """
        compromised = self.keys.get(Standing.COMPROMISED, ())
        if compromised:
            yield 0, Selection(keys=_listed(compromised), few=self._are_few(compromised))
        others = (*self.keys.get(Standing.OLD, ()), *self.keys.get(Standing.UNREADABLE, ()))
        fitting = self.keys.get(Standing.FITTING, ()) if heads else ()
        if not others and not fitting:
            return
        listed = _listed(others)
        if listed is None or _listed(fitting) is None:
            yield 1, Selection(keys=None, heads=heads)
        elif fitting:
            yield 1, Selection(keys=listed, fitting=tuple(fitting), heads=heads)
        else:
            yield 1, Selection(keys=listed, few=self._are_few(others))

    def unsealed(self) -> Iterator[Selection]:
        """Select the rows that no pass looks at: no envelopes, and what begins like one by chance."""
        if plain := self.items.get(None, 0):
            yield Selection(keys=(), few=plain <= FEW_ITEMS, plain=True)
        keys = self.keys.get(Standing.CHANCE, ())
        few = self.items.get(Standing.CHANCE, 0) <= FEW_ITEMS
        for start in range(0, len(keys), _CHUNK):
            yield Selection(keys=tuple(keys[start : start + _CHUNK]), few=few)

    def _are_few(self, keys: Sequence[UUID]) -> bool:
        return sum(self.by_key[key_id] for key_id in keys) <= FEW_ITEMS


def table_sources(
    store: SealedStore, tables: Sequence[SealedTable], keys: Collection[UUID] | None
) -> list[TableSources]:
    """
    Count the items of tables by their keys, and tell how those stand now.

    Args:
        store: Its items and keys.
        tables: From the registry.
        keys: Only items under these are moved; ``None``: under any key that is not the active one.

    Raises:
        StoreError: The database refused or failed.
    """
    standings = KeyStandings(store, keys)
    return [_sources(store, table, standings) for table in tables]


def _sources(store: SealedStore, table: SealedTable, standings: KeyStandings) -> TableSources:
    counts = read(store.datastore.engine, partial(count_by_key, table=table), doing=f"counting {table.table}")
    items: Counter[Standing | None] = Counter({None: counts.pop(None, 0)})
    keys: dict[Standing, list[UUID]] = {}
    named = {key_id: count for key_id, count in counts.items() if key_id is not None}
    found = standings.of(named, table)
    for key_id, standing in found.items():
        items[standing] += named[key_id]
        keys.setdefault(standing, []).append(key_id)
    by_key = {key_id: named[key_id] for key_id, standing in found.items() if standing in MOVING}
    return TableSources(table, items, keys, by_key)


def _listed(keys: Sequence[UUID]) -> tuple[UUID, ...] | None:
    # The nil id stands for what is no key id at all, and no query finds that.
    return tuple(sorted(keys)) if len(keys) <= MOST_LISTED_KEYS and NIL_KEY_ID not in keys else None
