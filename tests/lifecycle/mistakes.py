"""Mistakes that the machine must catch: each makes the real code wrong in one place."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from eventseal.keys import endings
from eventseal.keys.known_states import KnownStates
from eventseal.keys.refreshing import Refresher
from eventseal.keys.seating import Seats
from eventseal.rotation import batches, closing
from eventseal.storage import item_appends

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.lifecycle.site import Site


@dataclass(frozen=True)
class Mistake:
    """
    A mistake, and a way to it.

    Attributes:
        make: Makes it, on a site, until the block ends.
        schedule: The name of a schedule that shows it.
        where: What is part of the names of the places at which it shows.
        databases: Where it is one: on SQLite there is one writer at a time.
    """

    make: Callable[[Site], AbstractContextManager[None]]
    schedule: str
    where: str = ""
    databases: tuple[str, ...] = ("sqlite", "postgresql")


@contextmanager
def _rewritten(site: Site, rewrite: Callable[[str], str]) -> Iterator[None]:
    """Have every statement of the clients rewritten; at least one must come out changed."""
    changed = []

    def rewriting(statement: str) -> str:
        wrong = rewrite(statement)
        if wrong != statement:
            changed.append(statement)
        return wrong

    site.rewrite = rewriting
    try:
        yield
    finally:
        site.rewrite = None
    assert changed, "the mistake was never made: the statement looks different by now"


def _no_fence_lock(site: Site) -> AbstractContextManager[None]:
    return _rewritten(site, lambda sql: sql.replace("FOR SHARE", "") if "key_fences" in sql else sql)


def _weak_fence_lock(site: Site) -> AbstractContextManager[None]:
    return _rewritten(
        site, lambda sql: sql.replace("FOR SHARE", "FOR KEY SHARE") if "key_fences" in sql else sql
    )


_COMPARED_DATA = re.compile(r"((?:\w+\.)?data) = \?$")


def _swap_on_key_id_alone(site: Site) -> AbstractContextManager[None]:
    # An envelope names its key in the 16 bytes behind the first three.
    same_key = r"substr(\1, 4, 16) = substr(?, 4, 16)"
    return _rewritten(
        site, lambda sql: _COMPARED_DATA.sub(same_key, sql) if sql.startswith("UPDATE") else sql
    )


@contextmanager
def _count_before_closing(_: Site) -> Iterator[None]:
    close_fences, count_under = closing.close_fences, closing.count_under
    counted: list[Any] = []

    def first_count(connection: Any, key_ids: Any, tables: Any, *, even_if_needed: bool) -> Any:
        counted[:] = [count_under(connection, tables, key_ids)]
        with patch.object(closing, "count_under", lambda *_: counted[0]):
            return close(connection, key_ids, tables, even_if_needed=even_if_needed)

    close = closing._close
    with patch.object(closing, "_close", first_count), patch.object(closing, "close_fences", close_fences):
        yield


@contextmanager
def _fence_is_not_looked_at(_: Site) -> Iterator[None]:
    with (
        patch.object(batches, "share_fences", lambda *_: set()),
        patch.object(batches, "share_live_keys", lambda *_: set()),
    ):
        yield


@contextmanager
def _tombstone_without_slot(_: Site) -> Iterator[None]:
    ended, moved = endings.ended, endings.moved

    def ends(record: Any, by: Any, *, active_scope: str | None = None) -> Any:
        return ended(record, by)

    def moves(record: Any, **changes: Any) -> Any:
        return moved(record, **{**changes, "active_scope": None})

    with patch.object(endings, "ended", ends), patch.object(endings, "moved", moves):
        yield


@contextmanager
def _key_cached_before_its_row(_: Site) -> Iterator[None]:
    make = Seats._make

    def wrong(self: Any, batch: Any, scopes: Any) -> None:
        store = self._resources.store
        since, now = self._memory.moment(), self._resources.clock.now()

        def add_active(records: Any) -> Any:
            for record in records:
                key = handles[record.key_id]
                cached = self._memory.keep(key, record, since=since, now=now, leased=record.items_reserved)
                if cached is not None:
                    self._seat(batch, cached, record, since)
            return store.__class__.add_active(store, records)

        def new_keys(*arguments: Any) -> Any:
            made = making(*arguments)
            handles.update({record.key_id: key for key, record in made.values()})
            return made

        handles: dict[Any, Any] = {}
        with (
            patch("eventseal.keys.seating.new_keys", new_keys),
            patch.object(store, "add_active", add_active),
        ):
            make(self, batch, scopes)

    from eventseal.keys.seating import new_keys as making

    with patch.object(Seats, "_make", wrong):
        yield


@contextmanager
def _load_kept_over_a_refresh(_: Site) -> Iterator[None]:
    admit = KnownStates.admit

    def wrong(self: Any, record: Any, since: Any) -> bool:
        return admit(self, record, since._replace(moves=self._refreshes))

    with patch.object(KnownStates, "admit", wrong):
        yield


@contextmanager
def _confirmed_when_answered(_: Site) -> Iterator[None]:
    refresh = Refresher._refresh

    def wrong(self: Any) -> None:
        began = self._resources.clock.now()
        refresh(self)
        late = self._resources.clock.now() - began
        self._confirmation.opens_until += late
        self._confirmation.seals_until += late

    with patch.object(Refresher, "_refresh", wrong):
        yield


@contextmanager
def _lost_answer_is_taken_for_no(_: Site) -> Iterator[None]:
    with patch.object(item_appends, "was_committed", lambda *_: False):
        yield


ON_POSTGRESQL, ON_SQLITE = ("postgresql",), ("sqlite",)

MISTAKES: dict[str, Mistake] = {
    "no fence lock": Mistake(
        _no_fence_lock, "a stale append against a retirement", "before COMMIT", ON_POSTGRESQL
    ),
    "FOR KEY SHARE for FOR SHARE": Mistake(
        _weak_fence_lock, "a stale append against a retirement", "before COMMIT", ON_POSTGRESQL
    ),
    "count before the fence closes": Mistake(
        _count_before_closing,
        "a retirement against a stale append",
        "before INSERT INTO key_fences",
        ON_POSTGRESQL,
    ),
    "a re-encryption that looks at no fence": Mistake(
        _fence_is_not_looked_at,
        "a re-encryption against the retirement of its target",
        "before BEGIN IMMEDIATE",
        ON_SQLITE,
    ),
    "a tombstone without active_scope": Mistake(
        _tombstone_without_slot, "a shredding against a stale append", "before SELECT"
    ),
    "a swap on key_id alone": Mistake(
        _swap_on_key_id_alone,
        "a re-encryption against a snapshot that a stale client replaces",
        "before BEGIN IMMEDIATE",
        ON_SQLITE,
    ),
    "a key cached before its row committed": Mistake(
        _key_cached_before_its_row, "a first use that fails once", "INSERT INTO encryption_keys"
    ),
    "a load in flight kept over a refresh": Mistake(
        _load_kept_over_a_refresh, "a load against a shredding that its process has seen", "key_wrappings"
    ),
    "confirmed when it was answered": Mistake(
        _confirmed_when_answered, "a slow refresh against a rotation", "SELECT from key_changes"
    ),
    "a lost answer is taken for a no": Mistake(
        _lost_answer_is_taken_for_no, "an append whose answers are lost", "after COMMIT"
    ),
}
