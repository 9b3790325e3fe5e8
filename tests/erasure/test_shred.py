"""A scope that was shredded opens nowhere and seals no more, whatever was in flight."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, event, text
from tests.fixtures.key_marks import mark_of
from tests.fixtures.postgres_databases import wait_until_blocked

from eventseal.cipher import ItemContext, Opened
from eventseal.configuration import EventSeal, Settings
from eventseal.erasure import reopen, shred
from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    KeyClosedError,
    KeyDestroyedError,
    StoreUnavailableError,
)
from eventseal.items import SequencedItem
from eventseal.keys import KeyPurpose, KeyState
from eventseal.rotation import reencrypt, retire, rotate_keys, verify
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy
from eventseal.storage.items.fences import CLOSED, OPEN, fence_states
from eventseal.storage.keys.tables import key_claims
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Iterator

SCOPE = "subject:customer-42"
CONTEXT = "shop:Placed"


class Process:
    """One process of an application on a store that others share."""

    def __init__(self, url: str, kms: FakeKms) -> None:
        self.seal = EventSeal(Settings(store_url=url, application="shop"), kms=kms)
        self.strategy = SQLAlchemyActiveRecordStrategy(
            IntegerSequencedItemRecord, self.seal.datastore.session
        )

    def sealed_item(self, scope: str = SCOPE) -> SequencedItem:
        place = ItemContext(uuid4(), 0, CONTEXT)
        data = self.seal.cipher.encrypt(b"personal", place, scope=scope)
        return SequencedItem(place.sequence_id, 0, place.topic, data, self.key(scope))

    def append(self, scope: str = SCOPE) -> SequencedItem:
        item = self.sealed_item(scope)
        self.strategy.append([item])
        return item

    def key(self, scope: str = SCOPE) -> UUID:
        return self.seal.keyring.sealing_keys({scope: 0})[scope].key_id

    def opened(self, item: SequencedItem):
        place = ItemContext(item.sequence_id, item.position, item.topic)
        (outcome,) = self.seal.cipher.open_many([(item.data, place)])
        return outcome

    def rows(self, scope: str = SCOPE):
        return self.seal.key_store.of_scope("shop", scope)

    def fence(self, key_id: UUID) -> str | None:
        with self.seal.datastore.engine.connect() as connection:
            return fence_states(connection, [key_id]).get(key_id)

    def execute(self, sql: str, **parameters: object):
        with self.seal.datastore.engine.begin() as connection:
            found = connection.execute(text(sql), parameters)
            return found.fetchall() if found.returns_rows else found.rowcount


@pytest.fixture
def processes(store_url) -> Iterator[list[Process]]:
    kms = FakeKms()
    found = [Process(store_url, kms) for _ in range(3)]
    found[0].seal.datastore.setup_tables(application="shop")
    yield found
    for process in found:
        process.seal.close()


@pytest.fixture
def postgres_processes(request, postgres_url) -> Iterator[list[Process]]:
    kms = FakeKms()
    found = [Process(postgres_url, kms) for _ in range(3)]
    found[0].seal.datastore.setup_tables(application="shop")
    yield found
    for process in found:
        process.seal.close()


def is_closed(process: Process, scope: str = SCOPE) -> bool:
    """Whether every key is destroyed and every slot taken."""
    rows = process.rows(scope)
    held = {record.purpose for record in rows if record.active_scope == scope}
    return held == {KeyPurpose.DATA, KeyPurpose.FIELD, KeyPurpose.INDEX} and all(
        record.state is KeyState.DESTROYED and record.wrappings == () for record in rows
    )


# --- what a shred does ---


def test_items_of_the_scope_open_no_more_and_those_of_others_do(processes) -> None:
    one, other, third = processes
    old, kept = one.append(), one.append("subject:other")
    rotate_keys(one.seal, scopes=[SCOPE])
    new = one.append()
    assert isinstance(other.opened(old), Opened)
    result = shred(one.seal, SCOPE)
    assert (result.verb, result.done, result.failed, result.complete) == ("shred", 2, 0, True)
    by_key = {key_id: count for key_id, count in result.by_key.items() if count}
    assert by_key == {old.key_id: 1, new.key_id: 1}
    assert result.by_table == {"integer_sequenced_items": {"erased": 2}}
    other.seal.keyring.refresh()
    for process in (one, other, third):
        for item in (old, new):
            error = process.opened(item)
            assert isinstance(error, KeyDestroyedError)
            assert (error.destroyed_by, error.scope) == ("shredded", SCOPE)
        assert isinstance(process.opened(kept), Opened)
        with pytest.raises(KeyDestroyedError):
            process.append()
    assert is_closed(one)
    assert {one.fence(item.key_id) for item in (old, new)} == {CLOSED}
    assert one.fence(kept.key_id) == OPEN


def test_a_stale_writers_item_is_refused_instead_of_written_unreadable(processes) -> None:
    one, stale, _ = processes
    one.append()
    item = stale.sealed_item()
    shred(one.seal, SCOPE)
    with pytest.raises(KeyClosedError):
        stale.strategy.append([item])
    with pytest.raises(KeyDestroyedError):  # what the event store does then
        stale.seal.keyring.refresh()
        stale.append()


@pytest.mark.slow
def test_no_maintenance_brings_the_scope_back(processes) -> None:
    one, other, _ = processes
    item = one.append()
    one.append("subject:other")
    shred(one.seal, SCOPE)
    rotate_keys(other.seal)
    reencrypt(other.seal)
    retire(other.seal)
    other.seal.keyring.rewrap()
    assert is_closed(one)
    assert isinstance(other.opened(item), KeyDestroyedError)
    assert one.rows()[0].destroyed_by == "shredded"
    assert verify(one.seal).by_table["integer_sequenced_items"]["done"] == 1


def test_shredding_again_tries_the_fences_again(processes) -> None:
    one, other, _ = processes
    item = one.append()
    shred(one.seal, SCOPE)
    one.execute("UPDATE eventseal_key_fences SET state = 'open'")  # as a restore of the items alone would
    result = shred(other.seal, SCOPE)
    assert (result.done, result.complete) == (0, True)
    assert result.by_key[item.key_id] == 1
    assert one.fence(item.key_id) == CLOSED


@pytest.mark.parametrize("scope", ["application", "subject:customer-43", "store", "branch:0", ""])
def test_a_scope_that_cannot_be_meant_is_refused(processes, scope) -> None:
    one = processes[0]
    item, everybodys = one.append(), one.append("application")
    with pytest.raises(ConfigurationError):
        shred(one.seal, scope)
    assert all(isinstance(one.opened(each), Opened) for each in (item, everybodys))
    if scope:
        assert all(record.purpose in {"store", "data"} for record in one.rows(scope))


def test_an_edited_row_stops_the_shred_and_is_named(processes) -> None:
    one = processes[0]
    item = one.append()
    one.execute("UPDATE eventseal_encryption_keys SET purpose = 'branch' WHERE scope = :scope", scope=SCOPE)
    with pytest.raises(IntegrityError) as caught:
        shred(one.seal, SCOPE)
    assert caught.value.key_id == item.key_id
    assert one.fence(item.key_id) == OPEN


def test_a_table_that_nobody_registered_stops_the_shred(processes) -> None:
    one = processes[0]
    one.append()
    on_sqlite = one.seal.datastore.engine.dialect.name == "sqlite"
    kinds = ("BLOB", "BLOB") if on_sqlite else ("bytea", "uuid")
    one.execute(f"CREATE TABLE archive (id integer PRIMARY KEY, data {kinds[0]}, key_id {kinds[1]})")
    with pytest.raises(ConfigurationError, match="archive"):
        shred(one.seal, SCOPE)
    assert one.rows()[0].state is KeyState.ACTIVE


# --- a crash between the steps ---


def test_after_a_crash_before_the_fences_the_keys_are_gone_and_another_run_closes_them(
    processes, monkeypatch
) -> None:
    one, other, _ = processes
    item = one.append()

    def crash(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("eventseal.erasure.shredding.close_and_count", crash)
        with pytest.raises(KeyboardInterrupt):
            shred(one.seal, SCOPE)
    assert is_closed(other)
    assert other.fence(item.key_id) == OPEN
    result = shred(other.seal, SCOPE)
    assert (result.done, result.complete) == (0, True)
    assert other.fence(item.key_id) == CLOSED


def test_a_database_that_is_away_for_the_fences_leaves_the_shred_to_be_run_again(
    processes, monkeypatch
) -> None:
    one = processes[0]
    one.append()

    def away(*args, **options):
        raise StoreUnavailableError("the items' database is away")

    with monkeypatch.context() as patch:
        patch.setattr("eventseal.erasure.shredding.close_and_count", away)
        result = shred(one.seal, SCOPE)
    assert is_closed(one)
    assert (result.complete, result.failed, result.done) == (False, 1, 1)
    assert [failure.table for failure in result.failures] == ["eventseal_key_fences"]
    assert shred(one.seal, SCOPE).complete


@pytest.mark.postgres
def test_a_transaction_that_holds_a_fence_holds_no_shred(postgres_processes, monkeypatch) -> None:
    monkeypatch.setattr("eventseal.storage.items.fences.PATIENCE", 0.1)
    one, writer, other = postgres_processes
    item = one.append()
    late = writer.sealed_item()
    with writer.seal.datastore.engine.connect() as connection:
        connection.execute(
            text("SELECT 1 FROM eventseal_key_fences WHERE key_id = :key FOR SHARE"), {"key": late.key_id}
        )
        result = shred(one.seal, SCOPE)
        assert is_closed(other)
        connection.rollback()
    assert (result.done, result.complete, result.failed) == (1, False, 1)
    assert result.failures[0].key_id == item.key_id
    assert "still open" in result.failures[0].message
    assert shred(one.seal, SCOPE).complete
    assert one.fence(item.key_id) == CLOSED


# --- what is in flight, in the database ---


class Pause:
    """Stops a process behind its first statement that begins with some words."""

    def __init__(self, process: Process, statement: str) -> None:
        self._statement = statement
        self._armed = True
        self._reached, self._go = threading.Event(), threading.Event()
        event.listen(process.seal.datastore.key_engine, "after_cursor_execute", self._stop)

    def wait_reached(self) -> None:
        assert self._reached.wait(60)

    def go(self) -> None:
        self._go.set()

    def _stop(self, connection, cursor, statement, parameters, context, executemany) -> None:
        if self._armed and " ".join(statement.split()).startswith(self._statement):
            self._armed = False
            self._reached.set()
            assert self._go.wait(60)


@pytest.mark.postgres
def test_a_rotation_that_has_not_committed_is_waited_for_and_shredded_too(postgres_processes) -> None:
    one, rotator, _ = postgres_processes
    one.append()
    rotator.seal.keyring.refresh()
    pause = Pause(rotator, "INSERT INTO eventseal_key_wrappings")
    with ThreadPoolExecutor(2) as pool:
        rotating = pool.submit(rotator.seal.keyring.rotate, SCOPE)
        pause.wait_reached()
        shredding = pool.submit(shred, one.seal, SCOPE)
        wait_until_blocked(one.seal.datastore.engine)
        pause.go()
        late = rotating.result(60)
        assert shredding.result(60).done == 2
    assert late.key_id in {record.key_id for record in one.rows()}
    assert is_closed(one)


@pytest.mark.postgres
def test_a_rotation_behind_a_shred_that_has_not_committed_is_refused(postgres_processes) -> None:
    one, rotator, _ = postgres_processes
    one.append()
    rotator.seal.keyring.refresh()
    pause = Pause(one, "UPDATE eventseal_encryption_keys")
    with ThreadPoolExecutor(2) as pool:
        shredding = pool.submit(shred, one.seal, SCOPE)
        pause.wait_reached()
        rotating = pool.submit(rotator.seal.keyring.rotate, SCOPE)
        wait_until_blocked(rotator.seal.datastore.engine)
        pause.go()
        assert shredding.result(60).done == 1
        with pytest.raises(KeyDestroyedError):
            rotating.result(60)
    assert is_closed(one)


@pytest.mark.postgres
@pytest.mark.parametrize("first", ["first use", "shred"])
def test_a_first_use_and_a_shred_that_meet_leave_the_scope_closed(postgres_processes, first) -> None:
    one, maker, _ = postgres_processes
    key_id = one.key()
    record = one.seal.key_store.get([key_id])[key_id]
    rotate_keys(one.seal)
    free_the_slot(one)
    paused, pause_at = (
        (maker, "INSERT INTO eventseal_key_wrappings")
        if first == "first use"
        else (one, "INSERT INTO eventseal_encryption_keys")  # behind every UPDATE: the slot is taken
    )
    maker.seal.keyring.refresh()
    pause = Pause(paused, pause_at)
    with ThreadPoolExecutor(2) as pool:
        work = {"first use": maker.key, "shred": lambda: shred(one.seal, SCOPE)}
        leading = pool.submit(work[first])
        pause.wait_reached()
        (second,) = work.keys() - {first}
        following = pool.submit(work[second])
        wait_until_blocked(paused.seal.datastore.engine)
        pause.go()
        leading.result(60)
        if first == "shred":
            with pytest.raises(KeyDestroyedError):
                following.result(60)
        else:
            assert following.result(60).done >= 1
    assert record.key_id in {row.key_id for row in one.rows()}
    assert is_closed(one)


def free_the_slot(process: Process) -> None:
    """Deactivate the scope's key without another in its place: what no verb does."""
    from dataclasses import replace

    with process.seal.datastore.key_engine.begin() as connection:
        connection.execute(delete(key_claims))  # of the key that held the slot
    seals = process.seal.keyring._ring.store_key.made_seals()
    (active,) = [record for record in process.rows() if record.state is KeyState.ACTIVE]
    closed = replace(
        active, state=KeyState.DEACTIVATED, active_scope=None, row_version=active.row_version + 1
    )
    assert process.seal.key_store.set_states([seals.sealed(closed)], next_mark=mark_of(seals))


def test_an_item_that_is_being_encrypted_again_is_not_saved_from_the_shred(processes) -> None:
    one, other, _ = processes
    items = [one.append() for _ in range(3)]
    rotate_keys(one.seal)
    barrier = threading.Barrier(2)

    def work(verb) -> object:
        barrier.wait(60)
        return verb()

    with ThreadPoolExecutor(2) as pool:
        moving = pool.submit(work, lambda: reencrypt(other.seal, batch=1))
        shredding = pool.submit(work, lambda: shred(one.seal, SCOPE))
        moving.exception(60)  # done, or refused by what came between
        assert shredding.result(60).done == 2
    assert is_closed(one)
    other.seal.keyring.refresh()
    rows = other.execute("SELECT data FROM integer_sequenced_items")
    assert len(rows) == len(items)
    for item, row in zip(items, rows, strict=True):
        assert not isinstance(other.opened(item), Opened)
        assert len(bytes(row.data)) > 0
    checked = verify(one.seal)
    assert (checked.done, checked.failed) == (0, 0)
    assert checked.by_table["integer_sequenced_items"]["erased"] == len(items)


# --- reopen ---


def test_a_reopened_scope_is_written_again_and_what_was_erased_stays_so(processes) -> None:
    one, other, _ = processes
    old = one.append()
    shred(one.seal, SCOPE)
    result = reopen(one.seal, SCOPE)
    assert (result.verb, result.done, result.complete) == ("reopen", 1, True)
    new = other.append()
    assert isinstance(one.opened(new), Opened)
    assert isinstance(one.opened(old), KeyDestroyedError)
    assert reopen(one.seal, SCOPE).done == 0
    assert shred(one.seal, SCOPE).by_key[new.key_id] == 1
    assert is_closed(other)


@pytest.mark.slow
@pytest.mark.postgres
def test_a_scope_stays_closed_while_somebody_can_still_commit_under_its_shredded_key(
    postgres_processes, monkeypatch
) -> None:
    monkeypatch.setattr("eventseal.storage.items.fences.PATIENCE", 0.1)
    one, writer, _ = postgres_processes
    one.append()
    late = writer.sealed_item()
    with writer.seal.datastore.engine.connect() as connection:
        connection.execute(
            text("SELECT 1 FROM eventseal_key_fences WHERE key_id = :key FOR SHARE"), {"key": late.key_id}
        )
        assert not shred(one.seal, SCOPE).complete
        with pytest.raises(StoreUnavailableError, match="still open"):
            reopen(one.seal, SCOPE)
        assert is_closed(one)
        connection.rollback()
    assert reopen(one.seal, SCOPE).done == 1
    assert one.fence(late.key_id) == CLOSED
    with pytest.raises(KeyClosedError):
        writer.strategy.append([late])


def test_a_fence_that_the_shred_left_open_is_closed_before_the_scope_is_open(processes) -> None:
    one, writer, _ = processes
    late = writer.sealed_item()
    one.seal.keyring.shred(SCOPE)  # killed before it came to the fences
    assert reopen(one.seal, SCOPE).done == 1
    assert one.fence(late.key_id) == CLOSED
    with pytest.raises(KeyClosedError):
        writer.strategy.append([late])


def test_a_scope_that_is_open_keeps_its_fences(processes) -> None:
    one = processes[0]
    key_id = one.append().key_id
    assert reopen(one.seal, SCOPE).done == 0
    assert one.fence(key_id) == OPEN


def test_an_unknown_scope_is_not_reopened(processes) -> None:
    with pytest.raises(ConfigurationError, match="customer-42"):
        reopen(processes[0].seal, SCOPE)
