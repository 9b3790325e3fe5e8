"""Retire: stop writes under keys, and destroy keys that nothing needs."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from eventseal.errors import EventSealError, IntegrityError, JobError, KeyNotFoundError
from eventseal.keys.authentication.row_macs import unreadable_row
from eventseal.keys.ring.state_transitions import refuse_retirement
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import branch_uri
from eventseal.rotation.fences import close_and_count, without
from eventseal.rotation.key_rotation import FENCE_TABLE, KEY_TABLE, unknown_rows
from eventseal.rotation.results import MAX_FAILURES, JobResult, Run
from eventseal.rotation.rewrapping import WRAPPING_TABLE
from eventseal.rotation.sealed_store import (
    key_pages,
    places_beside_tables,
    refuse_unreachable_tables,
    registered_tables,
)
from eventseal.rotation.set_aside_rows import SET_ASIDE, AsideRows
from eventseal.rotation.status.key_totals import expected_keys
from eventseal.rotation.table_checks import (
    GIVE_UP,
    differing_failures,
    named_rows,
    refuse_absent_tables,
    refuse_copies,
    refuse_damaged_indexes,
    refuse_damaged_rows,
    refuse_tagged_events,
    refuse_unfenced_tables,
    refuse_unregistered_tables,
)
from eventseal.storage.database.rows import chunks
from eventseal.storage.database.transactions import read
from eventseal.storage.items.places import TablePlace
from eventseal.storage.jobs.compromised_items import drop_compromised_items
from eventseal.storage.keys.wrapping_rows import overwrite_deleted
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from uuid import UUID

    from eventseal.errors import StoreUnavailableError
    from eventseal.items.sealed_places import SealedPlace
    from eventseal.keys.records import KeyRecord
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.rotation.set_aside_rows import SetAside


_STATES = KeyState.DEACTIVATED, KeyState.COMPROMISED
_BATCH_SIZE = 100  # keys whose fences one transaction holds (docs/decisions/0010)


def retire(
    store: SealedStore,
    *,
    keys: Collection[UUID] | None = None,
    give_up_set_aside: bool = False,
    dry_run: bool = False,
    progress: Callable[[JobResult], None] | None = None,
) -> JobResult:
    """
    Destroy keys that nothing needs. If it is interrupted, run it again.

    One transaction in the items' database closes the keys' fences, which waits for every transaction that
    wrote under the keys. A later statement of the same transaction counts the items that are left. Only then
    the wrappings are deleted. A branch key is destroyed when it wraps no other key.

    Args:
        store: An ``EventSeal``, or any other :class:`SealedStore`.
        keys: Only these keys. ``None``: every data key and branch key that is deactivated or compromised.
        give_up_set_aside: Whether to destroy keys that only unchanged rows which are set aside need.
        dry_run: Whether to count only.
        progress: Called after each batch with the progress so far.

    Returns:
        The result's ``done`` counts the keys that were destroyed, or would be. Its ``left`` counts the keys
        that are still needed. Its ``failed`` counts the keys whose fence a transaction held, or whose row is
        not in order. It also counts the items whose column and envelope name different keys: both keys stay.
        Its ``by_key`` has the number of items under each key, or of keys under each branch key: 0 for a
        destroyed key. Its ``by_table`` has the items that are left.

    Raises:
        ConfigurationError: Some items may not be counted. A table that looks sealed, or on SQLite holds
            envelopes, is not registered. A registered table is missing, whoever registered it, or lacks its
            fencing trigger although another program writes it. A table holds events by tags, which nothing
            counts. None of the eventsourcing library's listed tables exists. Or items are sealed in a place
            that the store does not have.
        IntegrityError: A row is neither an envelope nor in a format that its table accepts. Or, on SQLite, an
            index does not have every row of its table. Nothing was done.
        JobError: A named key is still needed. The error has the ``result`` of the others. If only rows that
            are set aside need the key, it has those rows as ``set_aside``. Or a named key is active or has a
            purpose that is never retired, or rows that are set aside may need any key. Then nothing was done.
        KeyNotFoundError: There is no such key. Nothing was done.
        StoreUnavailableError: A transaction held the fence of a named key. The error has the ``result`` of
            the others.
        StoreError: The database refused or failed.
    """
    # First refuse every place whose items would not be counted. Otherwise retire destroys a key that such
    # items need (docs/decisions/0020).
    refuse_unregistered_tables(store)
    refuse_copies(store)
    refuse_tagged_events(store)
    refuse_absent_tables(store)
    refuse_unreachable_tables(store.datastore, store.cipher.application)
    run = _Retirement(store, give_up=give_up_set_aside, dry_run=dry_run, progress=progress)
    if keys is None:
        if progress is not None:
            run.expected = expected_keys(store, [KeyPurpose.DATA, KeyPurpose.BRANCH], _STATES)
        run.retire_pages()
    else:
        records = _named(store, keys)
        run.expected = len(records)
        run.retire_named(records)
    leftover = overwrite_deleted(store.datastore.key_engine) if run.done and not dry_run else ""
    return run.result(complete=not run.failed, leftover=leftover)


class _Retirement(Run):
    """One run of retire: its counts and its next steps."""

    def __init__(
        self,
        store: SealedStore,
        *,
        give_up: bool,
        dry_run: bool,
        progress: Callable[[JobResult], None] | None,
    ) -> None:
        super().__init__(verb="retire", progress=progress)
        self._store = store
        self._tables = registered_tables(store.datastore, store.cipher.application)
        refuse_unfenced_tables(store, self._tables)
        refuse_damaged_indexes(store, self._tables)  # before any query that uses an index
        self._aside = AsideRows.of_store(store, self._tables)
        self._give_up = give_up
        refuse_damaged_rows(store, self._tables, self._aside, give_up=give_up)
        self._table_places = [TablePlace(store.datastore.engine, table) for table in self._tables]
        self._places = places_beside_tables(store)
        self._dry_run = dry_run
        self._held: dict[UUID, StoreUnavailableError] = {}
        self._needed: dict[UUID, str] = {}
        self._destroyed: set[UUID] = set()
        self._set_aside: set[UUID] = set()
        """Keys that only rows which are set aside need."""
        for table in self._tables:
            count, listed = differing_failures(store, table, self._aside, give_up=give_up)
            self.failed += count
            self.failures += listed[: MAX_FAILURES - len(self.failures)]

    def retire_pages(self) -> None:
        """Retire data keys first. A branch key may be needed only by them."""
        for error in unknown_rows(self._store):
            self.fail(KEY_TABLE, getattr(error, "key_id", None), error)
        branches: list[UUID] = []
        store = self._store
        for page in chain.from_iterable(
            key_pages(store.key_store, store.cipher.application, state=state) for state in _STATES
        ):
            by_purpose: dict[KeyPurpose, list[UUID]] = {}
            for record in page:
                if "purpose" in record.unreadable:
                    continue
                if "key_id" in record.unreadable:
                    self.fail(KEY_TABLE, None, unreadable_row(record))
                else:
                    by_purpose.setdefault(record.purpose, []).append(record.key_id)
            branches += by_purpose.get(KeyPurpose.BRANCH, ())
            self._retire_data_keys(by_purpose.get(KeyPurpose.DATA, ()))
        self._retire_branch_keys(branches)

    def retire_named(self, records: Sequence[KeyRecord]) -> None:
        """Retire the named keys. Raise an error for the keys that something needs."""
        for purpose, work in (
            (KeyPurpose.DATA, self._retire_data_keys),
            (KeyPurpose.BRANCH, self._retire_branch_keys),
        ):
            work([record.key_id for record in records if record.purpose is purpose])
        facts: dict[str, Any] = {"result": self.result(complete=False)}
        needed = {k: what for k, what in self._needed.items() if k not in self._set_aside}
        for key_id, what in needed.items():
            more = counted(len(self._needed) - 1, "more key")
            others = f". Also needed: {more}" * (len(self._needed) > 1)
            raise JobError(
                f"key {key_id} was not destroyed: {what}{others}", remedy=_REMEDY, key_id=key_id, **facts
            )
        for key_id in self._set_aside:
            rows = self._aside.of_keys([key_id])
            raise JobError(
                f"key {key_id} was not destroyed: only rows that are set aside need it: {named_rows(rows)}",
                remedy=GIVE_UP,
                key_id=key_id,
                set_aside=tuple(here.said for here in rows),
                **facts,
            )
        for error in self._held.values():
            error.__dict__.update(facts)
            raise error

    def result(self, *, complete: bool, **more: Any) -> JobResult:
        """Return the progress so far, with the rows that are set aside."""
        kept = self._aside.of_keys(self._set_aside) if self._set_aside else []
        return super().result(
            complete=complete,
            set_aside=tuple(here.said for here in kept[:MAX_FAILURES]),
            given_up=self._given_up(),
            **more,
        )

    def _given_up(self) -> tuple[SetAside, ...]:
        """Return the rows that lost their key, or may have lost it."""
        if not self._destroyed or not self._give_up:
            return ()
        rows = [
            here.said
            for table in self._tables
            for here in self._aside.of(table.table)
            if not here.stored.header_key or here.stored.keys & self._destroyed
        ]
        return tuple(rows[:MAX_FAILURES])

    # --- data keys ---

    def _retire_data_keys(self, key_ids: Sequence[UUID]) -> None:
        for some in chunks(key_ids, _BATCH_SIZE):
            self._retire_batch(some)
            self.tell()

    def _retire_batch(self, key_ids: Sequence[UUID]) -> None:
        """Drop needed keys before any fence closes. Later they are counted again."""
        free = self._checked(self._unneeded([*self._table_places, *self._places], key_ids))
        if self._dry_run:
            self._count_done(free)
            return
        engine = self._store.datastore.engine
        # Counted again in the transaction that closes the fences, because a row may have been restored
        # meanwhile, and such a row keeps its key (docs/decisions/0026).
        excused = self._aside.count_needed if self._give_up else None
        closing = close_and_count(engine, self._tables, free, even_if_needed=False, excused=excused)
        self._keep(closing.needed)
        for key_id, error in closing.held.items():
            self._held[key_id] = error
            self.fail(FENCE_TABLE, key_id, error)
        closed = list(closing.closed)
        # After the fences of the tables, because those can be undone. This fence stays closed even if the key
        # must stay (docs/decisions/0020).
        for place in self._places if closed else ():
            place.close_fence(closed)
        self._destroy(self._unneeded(self._places, closed))

    def _unneeded(self, places: Iterable[SealedPlace], key_ids: Sequence[UUID]) -> list[UUID]:
        """Drop the keys that items in these places need."""
        items: dict[UUID, Counter[str]] = {}
        for place in places if key_ids else ():
            for key_id, count in place.count_by_key(key_ids, purpose=KeyPurpose.DATA).items():
                if count:
                    items.setdefault(key_id, Counter())[place.name] += count
        if self._give_up:
            items = without(items, self._count_aside(list(items)))
        self._keep(items)
        return [key_id for key_id in key_ids if key_id not in items]

    def _count_aside(self, key_ids: Collection[UUID]) -> Mapping[UUID, Counter[str]]:
        count = partial(self._aside.count_needed, key_ids=key_ids)
        return read(self._store.datastore.engine, count, doing="reading rows that are set aside")

    def _keep(self, items: Mapping[UUID, Counter[str]]) -> None:
        aside = self._count_aside(items) if items and not self._give_up else {}
        for key_id, by_table in items.items():
            outcome = "left"
            if by_table == aside.get(key_id):
                self._set_aside.add(key_id)
                outcome = SET_ASIDE
            needing = ", ".join(f"{counted(count, 'item')} of {table}" for table, count in by_table.items())
            self._stays(key_id, by_table.total(), f"it is needed by {needing}")
            for table, count in by_table.items():
                self.by_table.setdefault(table, Counter())[outcome] += count

    # --- branch keys ---

    def _retire_branch_keys(self, key_ids: Sequence[UUID]) -> None:
        uses = self._store.keyring.destroyer.wrapped_under(key_ids)
        for branch_id, wrappings in uses.items():
            self._stays(branch_id, wrappings, f"it wraps {counted(wrappings, 'key')}")
        free = self._checked([key_id for key_id in key_ids if key_id not in uses])
        if self._dry_run:
            self._count_done(free)
        elif free and self._opens_without(free):
            self._destroy(free)
        self.tell()

    def _opens_without(self, branch_ids: Sequence[UUID]) -> bool:
        """
        Return whether every key opens without these branch keys.

        If not, all of them stay. It is no proof if no wrapping names a branch key, because somebody may have
        deleted the rows that did.
        """
        # A key is destroyed only with proof (docs/decisions/0009).
        uris = set(map(branch_uri, branch_ids))
        proof = self._store.keyring.wrappings.prove_without(
            lambda wrapped: wrapped.kek_uri in uris, ending=branch_ids, batch=_BATCH_SIZE
        )
        # A JobError means that a process with stale keys has wrapped a key meanwhile: the key is in order.
        broken = {k: error for k, error in proof.failures.items() if not isinstance(error, JobError)}
        for failure in broken.items():
            self.fail(WRAPPING_TABLE, *failure)
        for branch_id in branch_ids if proof.failed else ():
            self._stays(
                branch_id, proof.failed, f"without it, {counted(proof.failed, 'key')} cannot be opened"
            )
        return not proof.failed

    # --- both ---

    def _stays(self, key_id: UUID, items: int, why: str) -> None:
        self.left += 1
        self.note(key_id, items)
        self._needed[key_id] = why

    def _checked(self, key_ids: Sequence[UUID]) -> list[UUID]:
        """Drop keys whose row is edited, so that it closes no fence."""
        return self._each_if_not_all(
            key_ids, lambda some: self._store.keyring.destroyer.retire(some, dry_run=True)
        )

    def _destroy(self, key_ids: Sequence[UUID]) -> None:
        destroyed = self._each_if_not_all(key_ids, self._store.keyring.destroyer.retire)
        if destroyed:
            drop_compromised_items(self._store.datastore.engine, destroyed)
        self._count_done(destroyed)

    def _each_if_not_all(
        self, key_ids: Sequence[UUID], work: Callable[[Sequence[UUID]], object]
    ) -> list[UUID]:
        """Do *work* with all keys together. If one is refused, do each alone."""
        if not key_ids:
            return []
        try:
            work(key_ids)
        except (IntegrityError, JobError) as error:
            if len(key_ids) > 1:
                return [key_id for one in key_ids for key_id in self._each_if_not_all([one], work)]
            self._refuse(key_ids[0], error)
            return []
        return list(key_ids)

    def _refuse(self, key_id: UUID, error: EventSealError) -> None:
        if isinstance(error, JobError):  # meanwhile, it got a wrapping under it, or another state
            self._stays(key_id, 1, str(error))
        else:
            self.fail(KEY_TABLE, key_id, error)

    def _count_done(self, key_ids: Sequence[UUID]) -> None:
        self.done += len(key_ids)
        self._destroyed.update(key_ids)
        for key_id in key_ids:
            self.note(key_id, 0)


_REMEDY = (
    "For a data key, run `eventseal reencrypt`. For a branch key, run `eventseal rewrap`. Then retire the "
    "key again. An item that `reencrypt` reports as a suspected forgery keeps its key. If keys cannot be "
    "opened without a branch key, restore their rows of eventseal_key_wrappings from a backup."
)


def _named(store: SealedStore, keys: Collection[UUID]) -> list[KeyRecord]:
    """Read the named keys, without those that are already destroyed."""
    found = store.key_store.get(keys)
    for key_id in keys:
        if key_id not in found:
            raise KeyNotFoundError(f"key {key_id} is not in the key store", key_id=key_id)
    for record in found.values():
        refuse_retirement(record)
    return [record for record in found.values() if record.state is not KeyState.DESTROYED]
