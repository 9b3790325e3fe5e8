"""Mistakes that the machine must catch: each makes the real code wrong in one place."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tests.lifecycle import attack_mistakes as attacked

from eventseal.erasure import epoch
from eventseal.erasure.restore import Reading
from eventseal.keys.rewrap.key_wrappings import KeyWrappings
from eventseal.keys.ring import state_transitions
from eventseal.keys.ring.destroying import Destroyer
from eventseal.keys.ring.held_keys import KnownStates
from eventseal.keys.ring.opening import Refresher
from eventseal.keys.ring.parts import RingParts
from eventseal.keys.ring.sealing import Seats
from eventseal.rotation import fences
from eventseal.rotation.jobs import resealers
from eventseal.storage.items import appends

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
        shows_at_random: Whether the machine comes upon it by itself, in the time that it is given.
    """

    make: Callable[[Site], AbstractContextManager[None]]
    schedule: str
    where: str = ""
    databases: tuple[str, ...] = ("sqlite", "postgresql")
    shows_at_random: bool = True


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
    return _rewritten(
        site, lambda sql: sql.replace("FOR SHARE", "") if "eventseal_key_fences" in sql else sql
    )


def _weak_fence_lock(site: Site) -> AbstractContextManager[None]:
    return _rewritten(
        site, lambda sql: sql.replace("FOR SHARE", "FOR KEY SHARE") if "eventseal_key_fences" in sql else sql
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
    close_fences, count_needed = fences.close_fences, fences.count_needed
    counted: list[Any] = []

    def first_count(connection: Any, key_ids: Any, tables: Any, *, even_if_needed: bool) -> Any:
        counted[:] = [count_needed(connection, tables, key_ids)]
        with patch.object(fences, "count_needed", lambda *_: counted[0]):
            return close(connection, key_ids, tables, even_if_needed=even_if_needed)

    close = fences._close
    with (
        patch.object(fences, "_close", first_count),
        patch.object(fences, "close_fences", close_fences),
    ):
        yield


@contextmanager
def _fence_is_not_looked_at(_: Site) -> Iterator[None]:
    with (
        patch.object(resealers, "share_fences", lambda *_: set()),
        patch.object(resealers, "share_live_keys", lambda *_: set()),
    ):
        yield


@contextmanager
def _tombstone_without_slot(_: Site) -> Iterator[None]:
    tombstone_of, next_version = state_transitions.tombstone_of, state_transitions.next_version

    def ends(record: Any, by: Any, *, active_scope: str | None = None) -> Any:
        return tombstone_of(record, by)

    def moves(record: Any, **changes: Any) -> Any:
        return next_version(record, **{**changes, "active_scope": None})

    with (
        patch.object(state_transitions, "tombstone_of", ends),
        patch.object(state_transitions, "next_version", moves),
    ):
        yield


@contextmanager
def _key_cached_before_its_row(_: Site) -> Iterator[None]:
    make = Seats._make

    def wrong(self: Any, batch: Any, scopes: Any, admission: Any) -> None:
        store = self._parts.store.unchecked
        since, now = self._held_keys.moment(), self._parts.clock.now()

        def add_active(records: Any, **options: Any) -> Any:
            for record in records:
                key = handles[record.key_id]
                cached = self._held_keys.keep(key, record, since=since, now=now, leased=record.items_reserved)
                if cached is not None:
                    self._seat(batch, cached, record, since)
            return add(records, **options)

        def new_keys(*arguments: Any) -> Any:
            made = making(*arguments)
            handles.update({record.key_id: key for key, record in made.values()})
            return made

        handles: dict[Any, Any] = {}
        add, making = store.add_active, RingParts.new_keys
        with (
            patch.object(RingParts, "new_keys", new_keys),
            patch.object(store, "add_active", add_active),
        ):
            make(self, batch, scopes, admission)

    with patch.object(Seats, "_make", wrong):
        yield


@contextmanager
def _load_kept_over_a_refresh(_: Site) -> Iterator[None]:
    admit = KnownStates.admit

    def wrong(self: Any, record: Any, since: Any) -> bool:
        return admit(self, record, since._replace(changes=self.changes))

    with patch.object(KnownStates, "admit", wrong):
        yield


@contextmanager
def _confirmed_when_answered(_: Site) -> Iterator[None]:
    refresh = Refresher._refresh

    def wrong(self: Any) -> None:
        began = self._ring.given.clock.now()
        refresh(self)
        late = self._ring.given.clock.now() - began
        self._ring.confirmation.opens_until += late
        self._ring.confirmation.seals_until += late

    with patch.object(Refresher, "_refresh", wrong):
        yield


@contextmanager
def _lost_answer_is_taken_for_no(_: Site) -> Iterator[None]:
    with patch.object(appends, "was_committed", lambda *_: False):
        yield


@contextmanager
def _ledger_told_after_the_shred(_: Site) -> Iterator[None]:
    shred = Destroyer.shred

    def wrong(self: Any, scope: str, *, before_commit: Any = None, **options: Any) -> Any:
        read: list[Any] = []
        ended = shred(self, scope, before_commit=read.append, **options)
        if before_commit is not None:
            before_commit(read[-1])
        return ended

    with patch.object(Destroyer, "shred", wrong):
        yield


@contextmanager
def _ledger_told_once(_: Site) -> Iterator[None]:
    shred = Destroyer.shred

    def wrong(self: Any, scope: str, *, before_commit: Any = None, **options: Any) -> Any:
        told: list[Any] = []

        def once(rows: Any) -> None:
            if before_commit is not None and not told:
                told.append(before_commit(rows))

        return shred(self, scope, before_commit=once, **options)

    with patch.object(Destroyer, "shred", wrong):
        yield


@contextmanager
def _ledger_told_after_the_reopening(_: Site) -> Iterator[None]:
    reopen = Destroyer.reopen

    def wrong(self: Any, scope: str, *, before_commit: Any = None) -> Any:
        read: list[Any] = []
        freed = reopen(self, scope, before_commit=read.append)
        if read:
            before_commit(read[-1])
        return freed

    with patch.object(Destroyer, "reopen", wrong):
        yield


@contextmanager
def _restored_scope_stays_open(_: Site) -> Iterator[None]:
    shred_again = Destroyer.shred_again

    def wrong(self: Any, scope: str, erased: Any, *, closed: bool, dry_run: bool = False) -> Any:
        return shred_again(self, scope, erased, closed=False, dry_run=dry_run)

    with patch.object(Destroyer, "shred_again", wrong):
        yield


@contextmanager
def _begun_is_taken_for_done(_: Site) -> Iterator[None]:
    of = Reading.of

    def wrong(store: Any, ledger: Any) -> Reading:
        return replace(of(store, ledger), open_scopes=frozenset())

    with patch.object(Reading, "of", wrong):
        yield


@contextmanager
def _branch_keys_stay(_: Site) -> Iterator[None]:
    with patch.object(KeyWrappings, "renew_branches", lambda *_: ([], [])):
        yield


@contextmanager
def _versions_end_before_all_has_moved(_: Site) -> Iterator[None]:
    with patch.object(epoch._Roll, "_move_to_staying_keks", lambda *_: True):
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
        "before INSERT INTO eventseal_key_fences",
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
        _key_cached_before_its_row, "a first use that fails once", "INSERT INTO eventseal_encryption_keys"
    ),
    "a load in flight kept over a refresh": Mistake(
        _load_kept_over_a_refresh, "a load against a shredding that its process has seen", "kms unwrap"
    ),
    "confirmed when it was answered": Mistake(
        _confirmed_when_answered, "a slow refresh against a rotation", "SELECT from eventseal_key_changes"
    ),
    "a lost answer is taken for a no": Mistake(
        _lost_answer_is_taken_for_no, "an append whose answers are lost", "after COMMIT"
    ),
    "a shred that tells the ledger afterwards": Mistake(
        _ledger_told_after_the_shred,
        "a backup that is restored after a shredding whose process ended",
        "before ledger.append",
    ),
    "a shred that tells the ledger of what it has read first": Mistake(
        _ledger_told_once,
        "a shredding against a rotation",
        "after ledger.append",
        shows_at_random=False,
    ),
    "a reopening that tells the ledger afterwards": Mistake(
        _ledger_told_after_the_reopening,
        "a reopening whose process ends",
        "COMMIT",
        shows_at_random=False,
    ),
    "a check after a restore that leaves scopes open": Mistake(
        _restored_scope_stays_open,
        "the look at a restored backup, whose process ends",
        "before ledger.append",
    ),
    "a check after a restore that takes what was begun for done": Mistake(
        _begun_is_taken_for_done,
        "a backup that is restored after a shredding whose process ended",
        "before INSERT INTO eventseal_key_fences",
        shows_at_random=False,
    ),
    "an epoch that keeps its branch keys": Mistake(
        _branch_keys_stay,
        "a roll of the epoch whose process ends",
        "before kms delete_versions_before",
        shows_at_random=False,
    ),
    "an epoch that ends versions before all has moved": Mistake(
        _versions_end_before_all_has_moved,
        "a roll of the epoch whose process ends",
        "before kms delete_versions_before",
    ),
    "a destroyed key's old row passes the revocation tree": Mistake(
        attacked.old_rows_pass, "old rows of a retired key", "before UPDATE eventseal_key_changes"
    ),
    "a key is revoked, and its scope gets no entry": Mistake(
        attacked.scopes_get_no_entry, "old rows of a retired key", "before UPDATE eventseal_key_changes"
    ),
    "a node of the revocation tree is believed unchecked": Mistake(
        attacked.old_nodes_pass, "old nodes after a shredding", "before UPDATE eventseal_key_changes"
    ),
    "a first use that goes by the slots": Mistake(
        attacked.first_use_goes_by_the_slots,
        "the slots of a closed scope",
        "before UPDATE eventseal_key_changes",
    ),
    "tables that others registered do not count": Mistake(
        attacked.tables_of_others_do_not_count, "the registry after a re-encryption", "before UPDATE integer"
    ),
    "tables that nobody registered do not count": Mistake(
        attacked.unregistered_tables_do_not_count,
        "the registry after a re-encryption",
        "before UPDATE integer",
    ),
    "items count by their column": Mistake(
        attacked.items_count_by_their_column,
        "the column of key ids after a re-encryption",
        "before UPDATE integer",
    ),
    "whatever names a destroyed key of a reopened scope is erased": Mistake(
        attacked.whatever_names_a_destroyed_key_is_erased,
        "an item of a reopened scope",
        "before INSERT INTO eventseal_erased_items",
    ),
    "any time of a key is read": Mistake(
        attacked.any_time_is_read, "the time of a rotated key", "before INSERT INTO eventseal_encryption_keys"
    ),
    "a roll of the epoch whose row needs no seal": Mistake(
        attacked.rolls_need_no_seal, "the row of a roll", "before kms delete_versions_before"
    ),
    "a rotation that believes the times of keys": Mistake(
        attacked.rotations_believe_times,
        "the time of a rotated key",
        "before INSERT INTO eventseal_encryption_keys",
    ),
    "a roll of the epoch that believes the times of branch keys": Mistake(
        attacked.rolls_believe_times, "the times of branch keys", "before INSERT INTO eventseal_epochs"
    ),
}
