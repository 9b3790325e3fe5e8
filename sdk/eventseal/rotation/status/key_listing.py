"""The keys of an application with the items that each has sealed: read from the tables, without any KEK."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from eventseal.rotation.sealed_store import registered_tables
from eventseal.storage.database.transactions import read
from eventseal.storage.items.key_counts import count_by_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from uuid import UUID

    from eventseal.errors import IntegrityError
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.states import KeyState
    from eventseal.keys.store import KeyStore
    from eventseal.storage import SQLAlchemyDatastore


_PAGE_SIZE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedKey:
    """
    A key as its row says, and how much hangs on it.

    Attributes:
        record: The row; its seal was not checked.
        items: Rows of the registered tables that name the key.
    """

    record: KeyRecord
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPage:
    """
    Some keys of an application, in order of their ids, hence of their age.

    Attributes:
        application: Whose.
        keys: Those asked for.
        next: Behind which key the next page begins; ``None``: there is none.
        plain_items: Rows of the registered tables that name no key.
        unknown_keys: Rows by the key that they name, for keys that the application does not have.
        unreadable: Rows of the registry that were edited: nobody counts the items of their tables.
    """

    application: str
    keys: tuple[ListedKey, ...]
    next: UUID | None
    plain_items: int
    unknown_keys: Mapping[UUID, int] = field(default_factory=dict)
    unreadable: tuple[IntegrityError, ...] = ()


def list_keys(
    key_store: KeyStore,
    datastore: SQLAlchemyDatastore,
    application: str,
    *,
    scopes: Collection[str] | None = None,
    state: KeyState | None = None,
    after: UUID | None = None,
    limit: int = 100,
) -> KeyPage:
    """
    List keys and count their items.

    Args:
        key_store: Has the keys.
        datastore: Has the items, and the registry of their tables.
        application: Whose keys.
        scopes: Only keys of these, as the key tables have them.
        state: Only keys in this state.
        after: Begin behind this key.
        limit: Keys at most.

    Raises:
        ConfigurationError: A registered table is not there, or no table is.
        StoreError: The database refused or failed.
    """
    counts: Counter[UUID | None] = Counter()
    unreadable: list[IntegrityError] = []
    theirs: Counter[UUID | None] = Counter()
    for table in registered_tables(datastore, application, unreadable=unreadable):
        found_there = read(
            datastore.engine, partial(count_by_key, table=table), doing=f"counting {table.table}"
        )
        (theirs if table.is_others else counts).update(found_there)
    found: list[KeyRecord] = []
    following = None
    for record in _records(key_store, application, state=state, after=after):
        if scopes is not None and record.scope not in scopes:
            continue
        if len(found) == limit:
            following = found[-1].key_id
            break
        found.append(record)
    named = [key_id for key_id in counts if key_id is not None]
    known = {key_id for key_id, record in key_store.get(named).items() if record.application == application}
    return KeyPage(
        application=application,
        keys=tuple(
            [
                ListedKey(record=record, items=counts[record.key_id] + theirs[record.key_id])
                for record in found
            ]
        ),
        next=following,
        plain_items=counts[None],
        unreadable=tuple(unreadable),
        unknown_keys={key_id: counts[key_id] for key_id in named if key_id not in known},
    )


def _records(
    key_store: KeyStore, application: str, *, state: KeyState | None, after: UUID | None
) -> Iterator[KeyRecord]:
    while page := key_store.page(application, after=after, limit=_PAGE_SIZE, state=state):
        yield from page
        after = page[-1].key_id
