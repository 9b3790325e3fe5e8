"""Retire: destroy keys that no item needs any more, after nothing can be written under them."""

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
    Destroy keys under which nothing is sealed any more. Interrupted anywhere, it is run again.

    In the items' database one transaction closes the keys' fences, which waits for every transaction that
    wrote under them, and counts what is left in a later statement; only then their wrappings are deleted.
    A branch key goes when it wraps no other key.

    Args:
        store: An ``EventSeal``, or any object with its four.
        keys: Only these; ``None``: every data key and branch key that is deactivated or compromised.
        give_up_set_aside: Whether rows that are set aside, and are still what they were, keep no key.
        dry_run: Whether to count only.
        progress: Called after each batch with what was done so far.

    Returns:
        ``done`` counts the keys that were destroyed, or would be, ``left`` those that are needed still and
        ``failed`` those whose fence somebody held or whose row is not in order, and the items whose column of
        key ids and envelope name different keys: those keep both. ``by_key`` gives the items under each, or
        for a branch key the keys: 0 for one that was destroyed. ``by_table`` gives the items that are left.

    Raises:
        ConfigurationError: A table that looks sealed, or on SQLite holds envelopes, is not registered; or a
            registered one is not there, whoever registered it, or lacks the trigger that fences it where
            another program writes it; or a table holds events by tags, which nobody counts; or none of the
            eventsourcing library's listed tables is there; or items are sealed in a place that the store
            does not have.
        IntegrityError: A row is neither an envelope nor what its table accepts; or, on SQLite, an index does
            not have every row of its table; nothing was done.
        JobError: A named key is needed still, with the ``result`` of the others; if only rows that are set
            aside need it, with those as ``set_aside``. Or, before anything is done, a named one is active, or
            of a purpose that is never retired; or rows that are set aside may need any key.
        KeyNotFoundError: There is no such key; nothing was done.
        StoreUnavailableError: Somebody held the fence of a named key, with the ``result`` of the others.
        StoreError: The database refused or failed.
    """
    # First everything that could hold items uncounted: their key would be destroyed (docs/decisions/0020).
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
    """One run: what it has done so far, and how it goes on."""

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
        refuse_damaged_indexes(store, self._tables)  # before whatever goes by an index
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
        """Keys that stay for the sake of rows that are set aside, and of nothing else."""
        for table in self._tables:
            count, listed = differing_failures(store, table, self._aside, give_up=give_up)
            self.failed += count
            self.failures += listed[: MAX_FAILURES - len(self.failures)]

    def retire_pages(self) -> None:
        """Retire whatever may go: data keys first, since they may be all that a branch key is needed for."""
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
        """Retire some keys, and say what needs those that must stay."""
        for purpose, work in (
            (KeyPurpose.DATA, self._retire_data_keys),
            (KeyPurpose.BRANCH, self._retire_branch_keys),
        ):
            work([record.key_id for record in records if record.purpose is purpose])
        facts: dict[str, Any] = {"result": self.result(complete=False)}
        needed = {k: what for k, what in self._needed.items() if k not in self._set_aside}
        for key_id, what in needed.items():
            others = f", and {len(self._needed) - 1} more keys are needed" * (len(self._needed) > 1)
            raise JobError(f"key {key_id} stays: {what}{others}", remedy=_REMEDY, key_id=key_id, **facts)
        for key_id in self._set_aside:
            rows = self._aside.of_keys([key_id])
            raise JobError(
                f"key {key_id} stays: only rows that are set aside need it: {named_rows(rows)}",
                remedy=GIVE_UP,
                key_id=key_id,
                set_aside=tuple(here.said for here in rows),
                **facts,
            )
        for error in self._held.values():
            error.__dict__.update(facts)
            raise error

    def result(self, *, complete: bool, **more: Any) -> JobResult:
        """Give what was done so far, by table too, and what was set aside."""
        kept = self._aside.of_keys(self._set_aside) if self._set_aside else []
        return super().result(
            complete=complete,
            set_aside=tuple(here.said for here in kept[:MAX_FAILURES]),
            given_up=self._given_up(),
            **more,
        )

    def _given_up(self) -> tuple[SetAside, ...]:
        """Give the rows that lost their key, and those of which nobody knows whether they did."""
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
        """Leave out what is needed, before any fence is closed; it is counted again afterwards."""
        free = self._checked(self._unneeded([*self._table_places, *self._places], key_ids))
        if self._dry_run:
            self._count_done(free)
            return
        engine = self._store.datastore.engine
        # Counted again in the transaction that closes the fences: a row restored meanwhile keeps its key
        # (docs/decisions/0026).
        excused = self._aside.count_needed if self._give_up else None
        closing = close_and_count(engine, self._tables, free, even_if_needed=False, excused=excused)
        self._keep(closing.needed)
        for key_id, error in closing.held.items():
            self._held[key_id] = error
            self.fail(FENCE_TABLE, key_id, error)
        closed = list(closing.closed)
        # After those of the tables, which can be undone: this fence stays closed, even if the key must stay
        # (docs/decisions/0020).
        for place in self._places if closed else ():
            place.close_fence(closed)
        self._destroy(self._unneeded(self._places, closed))

    def _unneeded(self, places: Iterable[SealedPlace], key_ids: Sequence[UUID]) -> list[UUID]:
        """Leave out keys that items of places need."""
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
            said = ", ".join(f"{count} items of {table}" for table, count in by_table.items())
            self._stays(key_id, by_table.total(), f"{said} need it")
            for table, count in by_table.items():
                self.by_table.setdefault(table, Counter())[outcome] += count

    # --- branch keys ---

    def _retire_branch_keys(self, key_ids: Sequence[UUID]) -> None:
        uses = self._store.keyring.destroyer.wrapped_under(key_ids)
        for branch_id, wrappings in uses.items():
            self._stays(branch_id, wrappings, f"{wrappings} keys are wrapped under it")
        free = self._checked([key_id for key_id in key_ids if key_id not in uses])
        if self._dry_run:
            self._count_done(free)
        elif free and self._opens_without(free):
            self._destroy(free)
        self.tell()

    def _opens_without(self, branch_ids: Sequence[UUID]) -> bool:
        """
        Say whether every key was seen to open without these branch keys; if not, all of them stay.

        That no wrapping names a branch key is no proof: somebody may have deleted the rows that did.
        """
        # A key goes only by proof (docs/decisions/0009).
        uris = set(map(branch_uri, branch_ids))
        proof = self._store.keyring.wrappings.prove_without(
            lambda wrapped: wrapped.kek_uri in uris, ending=branch_ids, batch=_BATCH_SIZE
        )
        # A JobError stands for a key that a stale writer has wrapped meanwhile: nothing is amiss with it.
        broken = {k: error for k, error in proof.failures.items() if not isinstance(error, JobError)}
        for failure in broken.items():
            self.fail(WRAPPING_TABLE, *failure)
        for branch_id in branch_ids if proof.failed else ():
            self._stays(branch_id, proof.failed, f"{proof.failed} keys do not open without it")
        return not proof.failed

    # --- both ---

    def _stays(self, key_id: UUID, items: int, why: str) -> None:
        self.left += 1
        self.note(key_id, items)
        self._needed[key_id] = why

    def _checked(self, key_ids: Sequence[UUID]) -> list[UUID]:
        """Leave out keys whose row is not in order: no fence is closed because of an edited row."""
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
        """Do *work* with all keys together; if one of them is refused, with each alone."""
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
        if isinstance(error, JobError):  # a wrapping under it, or a state, that came meanwhile
            self._stays(key_id, 1, str(error))
        else:
            self.fail(KEY_TABLE, key_id, error)

    def _count_done(self, key_ids: Sequence[UUID]) -> None:
        self.done += len(key_ids)
        self._destroyed.update(key_ids)
        for key_id in key_ids:
            self.note(key_id, 0)


_REMEDY = (
    "Encrypt again what is under a data key (`eventseal reencrypt`), wrap again what is under a branch key "
    "(`eventseal rewrap`); then retire it. What `reencrypt` reports as a suspected forgery keeps its key. If "
    "keys do not open without a branch key, restore their rows of key_wrappings from a backup."
)


def _named(store: SealedStore, keys: Collection[UUID]) -> list[KeyRecord]:
    """Read named keys; what is destroyed already needs nothing more."""
    found = store.key_store.get(keys)
    for key_id in keys:
        if key_id not in found:
            raise KeyNotFoundError(f"the key store has no key {key_id}", key_id=key_id)
    for record in found.values():
        refuse_retirement(record)
    return [record for record in found.values() if record.state is not KeyState.DESTROYED]
