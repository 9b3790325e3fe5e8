"""Keys that nothing needs are destroyed, and no other, whatever is in flight."""

from __future__ import annotations

import re
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing as closing_file
from functools import partial
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import NullPool
from tests.fixtures.postgres_databases import wait_until_blocked

from eventseal.cipher import ItemContext
from eventseal.erasure import shred
from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    JobError,
    KeyClosedError,
    KeyNotFoundError,
    MissingTableError,
    StoreError,
    StoreUnavailableError,
)
from eventseal.items import SequencedItem
from eventseal.keys import KeyPurpose, KeyState
from eventseal.keys.records import new_key_id
from eventseal.rotation import (
    JobResult,
    fences,
    item_checks,
    mark_compromised,
    reencrypt,
    retire,
    rotate_keys,
    status,
    table_checks,
    verify,
)
from eventseal.storage import IntegerSequencedColumns, TimestampSequencedItemRecord
from eventseal.storage.database.transactions import begin_writing
from eventseal.storage.items.fences import CLOSED, OPEN, fence_states


def active(shop, scope: str = "application") -> UUID:
    return shop.seal.keyring.sealing_keys({scope: 0})[scope].key_id


def record(shop, key_id):
    return shop.seal.key_store.get([key_id])[key_id]


def fence(shop, key_id) -> str | None:
    with shop.seal.datastore.engine.connect() as connection:
        return fence_states(connection, [key_id]).get(key_id)


def sealed_item(shop, scope: str = "application") -> SequencedItem:
    """An item that was sealed, and not written yet."""
    place = ItemContext(uuid4(), 0, "shop:Placed")
    data = shop.seal.cipher.encrypt(b"late", place, scope=scope)
    return SequencedItem(place.sequence_id, 0, place.topic, data, active(shop, scope))


def delete_items(shop) -> None:
    shop.execute("DELETE FROM integer_sequenced_items")


# --- which keys go ---


def test_a_key_without_items_is_destroyed_and_one_with_items_stays(shop) -> None:
    (item,) = shop.append(scope="a")
    empty = active(shop, "b")
    rotate_keys(shop.seal)
    result = retire(shop.seal)
    assert (result.verb, result.done, result.left, result.failed, result.complete) == (
        "retire",
        1,
        1,
        0,
        True,
    )
    assert result.by_key == {item.key_id: 1, empty: 0}
    assert result.by_table == {"integer_sequenced_items": {"left": 1}}
    assert record(shop, item.key_id).state is KeyState.DEACTIVATED
    assert record(shop, empty).destroyed_by == "retired"
    assert (fence(shop, item.key_id), fence(shop, empty)) == (OPEN, CLOSED)
    assert retire(shop.seal).done == 0


def test_items_of_every_registered_table_hold_their_key(shop) -> None:
    for scope, table in (("a", None), ("b", TimestampSequencedItemRecord)):
        (item,) = shop.append(scope=scope, **({} if table is None else {"record": table}))
        rotate_keys(shop.seal, scopes=[scope])
        result = retire(shop.seal, keys=None)
        assert result.by_key[item.key_id] == 1
        assert record(shop, item.key_id).state is KeyState.DEACTIVATED


def test_after_a_reencryption_the_old_keys_go(shop) -> None:
    items = shop.append(5) + shop.append(5, scope="a")
    rotate_keys(shop.seal)
    reencrypt(shop.seal)
    result = retire(shop.seal)
    assert (result.done, result.left) == (2, 0)
    assert {record(shop, item.key_id).destroyed_by for item in items} == {"retired"}
    shop.append(2)


def test_active_keys_are_never_retired(shop) -> None:
    unused, used = active(shop, "a"), shop.append(scope="b")[0].key_id
    assert retire(shop.seal).done == 0
    for key_id in (unused, used):
        with pytest.raises(JobError, match="active key of scope") as caught:
            retire(shop.seal, keys=[key_id])
        assert "rotate" in caught.value.remedy
        assert record(shop, key_id).state is KeyState.ACTIVE
    assert fence(shop, unused) is None


def test_a_named_key_that_is_needed_is_refused_after_the_others_went(shop) -> None:
    needed = shop.append(3)[0].key_id
    empty = active(shop, "b")
    rotate_keys(shop.seal)
    with pytest.raises(JobError) as caught:
        retire(shop.seal, keys=[needed, empty])
    assert str(needed) in str(caught.value)
    assert "3 items of integer_sequenced_items" in str(caught.value)
    assert "reencrypt" in caught.value.remedy
    assert (caught.value.result.done, caught.value.result.left) == (1, 1)
    assert record(shop, empty).destroyed_by == "retired"
    assert record(shop, needed).state is KeyState.DEACTIVATED


def test_named_keys_are_checked_before_anything_is_done(shop) -> None:
    empty = active(shop, "b")
    rotate_keys(shop.seal)
    with pytest.raises(KeyNotFoundError):
        retire(shop.seal, keys=[empty, new_key_id()])
    with pytest.raises(JobError):
        retire(shop.seal, keys=[empty, active(shop, "b")])
    assert record(shop, empty).state is KeyState.DEACTIVATED
    assert fence(shop, empty) is None
    assert retire(shop.seal, keys=[empty]).done == 1
    again = retire(shop.seal, keys=[empty])  # as after a crash: nothing is left to do
    assert (again.done, again.complete) == (0, True)


def test_a_dry_run_changes_nothing(shop) -> None:
    needed, empty = shop.append()[0].key_id, active(shop, "b")
    rotate_keys(shop.seal)
    result = retire(shop.seal, dry_run=True)
    assert (result.done, result.left) == (1, 1)
    assert result.by_key == {needed: 1, empty: 0}
    assert record(shop, empty).state is KeyState.DEACTIVATED
    assert fence(shop, empty) is None
    with pytest.raises(JobError):
        retire(shop.seal, keys=[needed], dry_run=True)


@pytest.mark.slow
def test_a_compromised_key_goes_when_its_items_are_gone_and_stays_with_a_forgery(shop) -> None:
    (item,) = shop.append()
    mark_compromised(shop.seal, [item.key_id])
    forged = item._replace(sequence_id=uuid4())
    raw = [shop.raw(forged.sequence_id), shop.raw(item.key_id)]
    shop.execute(
        "INSERT INTO integer_sequenced_items (sequence_id, position, topic, data, key_id) "
        "VALUES (:sequence_id, 0, 'shop:Placed', :data, :key_id)",
        sequence_id=raw[0],
        data=item.data,
        key_id=raw[1],
    )
    moved = reencrypt(shop.seal)
    assert moved.failed >= 1  # a suspected forgery
    result = retire(shop.seal)
    assert (result.done, result.left) == (0, 1)
    assert record(shop, item.key_id).state is KeyState.COMPROMISED
    shop.execute("DELETE FROM integer_sequenced_items WHERE sequence_id = :id", id=raw[0])
    assert retire(shop.seal).done == 1
    shop.again().seal.keyring.refresh()  # the mark still counts what is revoked


@pytest.mark.slow
def test_many_keys_are_retired_a_batch_at_a_time(shop) -> None:
    scopes = [f"tenant:{number}" for number in range(130)]
    shop.seal.keyring.prepare(scopes)
    kept = shop.append(scope="tenant:7")[0].key_id
    rotate_keys(shop.seal)
    seen: list[JobResult] = []
    result = retire(shop.seal, progress=seen.append)
    assert (result.done, result.left) == (129, 1)
    assert result.by_key[kept] == 1
    assert {so_far.done + so_far.left for so_far in seen} == {130}
    told = [so_far.done for so_far in seen]
    assert len(told) > 1
    assert told == sorted(told)
    assert told[-1] == 129


@pytest.mark.parametrize("table", ["unregistered", "missing"])
def test_nothing_is_retired_while_not_all_items_can_be_counted(shop, table) -> None:
    empty = active(shop)
    rotate_keys(shop.seal)
    if table == "unregistered":
        kind = "BLOB" if shop.url.startswith("sqlite") else "bytea"
        key = "BLOB" if shop.url.startswith("sqlite") else "uuid"
        shop.execute(f"CREATE TABLE archive (id integer PRIMARY KEY, data {kind}, key_id {key})")
        expected: type[Exception] = ConfigurationError
    else:
        shop.execute("DROP TABLE timestamp_sequenced_items")
        expected = MissingTableError
    with pytest.raises(expected):
        retire(shop.seal)
    assert record(shop, empty).state is KeyState.DEACTIVATED


def test_an_edited_row_keeps_its_key_and_its_fence_and_the_others_go(shop) -> None:
    edited, empty = active(shop, "a"), active(shop, "b")
    rotate_keys(shop.seal)
    shop.execute(
        "UPDATE eventseal_encryption_keys SET seal = binding WHERE key_id = :key", key=shop.raw(edited)
    )
    result = retire(shop.seal)
    assert (result.done, result.failed, result.complete) == (1, 1, False)
    (failure,) = result.failures
    assert (failure.key_id, failure.error, failure.table) == (
        edited,
        "IntegrityError",
        "eventseal_encryption_keys",
    )
    assert fence(shop, edited) is None
    assert record(shop, empty).destroyed_by == "retired"


# --- branch keys ---


@pytest.mark.slow
def test_branch_keys_go_after_the_data_keys_that_they_wrapped(open_shop, store_url) -> None:
    shop = open_shop(store_url, branches=1)
    (item,) = shop.append()
    empty = active(shop, "b")
    branch = branch_of(shop)
    shop.seal.keyring.rotate_branches()
    result = retire(shop.seal)
    assert result.by_key == {branch: 2}
    with pytest.raises(JobError, match="it wraps 2 keys") as caught:
        retire(shop.seal, keys=[branch])
    assert "rewrap" in caught.value.remedy
    rotate_keys(shop.seal)
    result = retire(shop.seal)  # of the two, one stays
    assert result.by_key == {item.key_id: 1, empty: 0, branch: 1}
    reencrypt(shop.seal)
    result = retire(shop.seal)
    assert result.by_key == {item.key_id: 0, branch: 0}
    assert record(shop, branch).destroyed_by == "retired"
    assert shop.again(branches=1).seal.keyring.opening_keys([active(shop)])


def branch_of(shop) -> UUID:
    (branch,) = [
        found.key_id for found in shop.seal.key_store.page("shop") if found.purpose is KeyPurpose.BRANCH
    ]
    return branch


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("first", ["wrapping", "retirement"])
def test_a_key_that_is_being_stored_under_the_branch_key_is_waited_for(
    open_shop, postgres_url, first
) -> None:
    shop = open_shop(postgres_url, branches=1)
    shop.seal.keyring.prepare(["a"])
    branch = branch_of(shop)
    stale = shop.again(branches=1)
    stale.seal.keyring.prepare(["b"])  # has the branch key at hand from now on
    shop.seal.keyring.rotate_branches()
    shop.seal.keyring.rewrap()
    engine = stale.seal.datastore.key_engine
    paused, go = threading.Event(), threading.Event()

    @event.listens_for(engine, "after_cursor_execute")
    def stop(connection, cursor, statement, parameters, context, executemany) -> None:
        after = (
            "INSERT INTO eventseal_key_wrappings"
            if first == "wrapping"
            else "INSERT INTO eventseal_encryption_keys"
        )
        if statement.startswith(after):
            paused.set()
            assert go.wait(60)

    with ThreadPoolExecutor(2) as pool:
        making = pool.submit(active, stale, "new")
        assert paused.wait(60)
        retiring = pool.submit(retire, shop.seal, keys=[branch])
        if first == "wrapping":
            # The wrapping is not committed yet: the retirement waits for it.
            wait_until_blocked(shop.seal.datastore.engine)
            go.set()
            with pytest.raises(JobError, match="wrapped"):
                retiring.result(60)
        else:
            assert retiring.result(60).done == 1
            go.set()
        key_id = making.result(60)
    outcome = shop.again(branches=1).seal.keyring.opening_keys([key_id])[key_id]
    assert outcome.key_id == key_id
    assert (record(shop, branch).state is KeyState.DESTROYED) == (first == "retirement")


# --- what is in flight ---


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("default", ["read committed", "serializable"])
def test_an_open_transaction_that_wrote_under_the_key_is_waited_for(
    open_shop, postgres_url, isolation, default
) -> None:
    """Whatever the isolation of the writer, and the default of the database."""
    shop = open_shop(postgres_url)
    shop.append()
    delete_items(shop)
    item = sealed_item(shop)
    shop.execute(
        f"ALTER DATABASE {postgres_url.rpartition('/')[2].partition('?')[0]} "
        f"SET default_transaction_isolation = '{default}'"
    )
    shop.seal.datastore.close()
    rotate_keys(shop.seal)
    engine = shop.seal.datastore.engine.execution_options(isolation_level=isolation)
    with engine.connect() as writer, ThreadPoolExecutor(1) as pool:
        insert(writer, item)
        retiring = pool.submit(retire, shop.seal)
        wait_until_blocked(shop.seal.datastore.engine)
        writer.commit()
        result = retiring.result(60)
    assert (result.done, result.left) == (0, 1)
    assert record(shop, item.key_id).state is KeyState.DEACTIVATED
    assert fence(shop, item.key_id) == OPEN


def insert(connection, item) -> None:
    """Insert an item as the strategy does, and leave the transaction open."""
    inserted = connection.execute(
        text(
            "INSERT INTO integer_sequenced_items (sequence_id, position, topic, data, key_id) "
            "SELECT :sequence_id, :position, :topic, :data, key_id FROM eventseal_key_fences "
            "WHERE key_id = :key_id AND state = 'open' FOR SHARE"
        ),
        item._asdict(),
    )
    assert inserted.rowcount == 1


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("named", [True, False])
def test_a_transaction_that_stays_open_is_an_error_to_try_again(
    open_shop, postgres_url, monkeypatch, named
) -> None:
    monkeypatch.setattr("eventseal.storage.items.fences.PATIENCE", 0.1)
    shop = open_shop(postgres_url)
    shop.append()
    delete_items(shop)
    item, empty = sealed_item(shop), active(shop, "b")
    rotate_keys(shop.seal)
    with shop.seal.datastore.engine.connect() as writer:
        insert(writer, item)
        if named:
            with pytest.raises(StoreUnavailableError, match="still open after 2 s") as caught:
                retire(shop.seal, keys=[item.key_id, empty])
            assert caught.value.key_id == item.key_id
            result = caught.value.result
        else:
            result = retire(shop.seal)
        writer.rollback()
    assert (result.done, result.failed, result.complete) == (1, 1, False)
    assert [failure.error for failure in result.failures] == ["StoreUnavailableError"]
    assert record(shop, empty).destroyed_by == "retired"
    assert record(shop, item.key_id).state is KeyState.DEACTIVATED
    assert fence(shop, item.key_id) == OPEN
    assert retire(shop.seal).done == 1


@pytest.mark.slow
@pytest.mark.postgres
def test_a_writer_whose_snapshot_is_older_than_the_closing_is_refused(open_shop, postgres_url) -> None:
    shop = open_shop(postgres_url)
    shop.append()
    delete_items(shop)
    item = sealed_item(shop)
    rotate_keys(shop.seal)
    engine = shop.seal.datastore.engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as writer:
        writer.execute(text("SELECT count(*) FROM integer_sequenced_items"))  # takes its snapshot
        assert retire(shop.seal).done == 1
        with pytest.raises(Exception, match="could not serialize"):
            insert(writer, item)


def test_who_begins_after_the_closing_is_refused_and_seals_again(shop) -> None:
    item = sealed_item(shop)
    rotate_keys(shop.seal)
    retire(shop.seal)
    with pytest.raises(KeyClosedError) as caught:
        shop.strategy().append([item])
    assert caught.value.key_ids == (item.key_id,)
    shop.strategy().append([sealed_item(shop)])


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_no_append_is_lost_to_retirements_that_go_on(open_shop, request, database) -> None:
    """Writers of other processes seal under keys that are rotated and retired all the while."""
    shop = open_shop(request.getfixturevalue("sqlite_url" if database == "sqlite" else "postgres_url"))
    shop.append()
    writers = [shop.again() for _ in range(2)]
    stop = threading.Event()
    written: list[SequencedItem] = []

    def write(number: int) -> None:
        while not stop.wait(0.001):  # SQLite has no queue: without a pause, one writer keeps out all others
            item = sealed_item(writers[number])
            try:
                writers[number].strategy().append([item])
            except KeyClosedError:
                writers[number].seal.keyring.refresh()
            else:
                written.append(item)

    def rotate() -> int:
        try:
            retired = 0
            for _ in range(50):  # a round retires nothing where a writer has not noticed before its end
                if retired >= 2:
                    break
                rotate_keys(shop.seal)
                reencrypt(shop.seal)
                retired += retire(shop.seal).done
            return retired
        finally:
            stop.set()

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, number) for number in range(2)]
        retired = pool.submit(rotate).result(100)
        for work in writing:
            work.result(100)
    assert retired
    rows = shop.execute("SELECT key_id, count(*) FROM integer_sequenced_items GROUP BY key_id")
    key_ids = [key_id if isinstance(key_id, UUID) else UUID(bytes=bytes(key_id)) for key_id, _ in rows]
    assert sum(count for _, count in rows) == len(written) + 1
    assert all(record(shop, key_id).state is not KeyState.DESTROYED for key_id in key_ids)


# --- a crash between the steps ---


@pytest.mark.slow
def test_a_crash_before_the_wrappings_go_leaves_a_key_that_opens(shop, monkeypatch) -> None:
    (item,) = shop.append()
    other = active(shop, "b")
    rotate_keys(shop.seal)

    def crash(self, key_ids, *, dry_run=False):
        if not dry_run:
            raise KeyboardInterrupt
        return []

    with monkeypatch.context() as patch:
        patch.setattr("eventseal.keys.ring.destroying.Destroyer.retire", crash)
        with pytest.raises(KeyboardInterrupt):
            retire(shop.seal)
    assert fence(shop, other) == CLOSED
    assert record(shop, other).state is KeyState.DEACTIVATED
    assert shop.again().seal.keyring.opening_keys([other])[other].key_id == other
    assert fence(shop, item.key_id) == OPEN
    result = retire(shop.seal)
    assert (result.done, result.left) == (1, 1)


def test_what_was_written_between_the_two_counts_keeps_its_key(shop, monkeypatch) -> None:
    late, empty = sealed_item(shop, "a"), active(shop, "b")
    rotate_keys(shop.seal)
    close = fences.close_and_count
    calls: list[object] = []

    def overtaken(engine, tables, key_ids, **named):
        if not calls:
            calls.append(shop.again().strategy().append([late]))
        return close(engine, tables, key_ids, **named)

    monkeypatch.setattr("eventseal.rotation.retirement.close_and_count", overtaken)
    result = retire(shop.seal)
    assert (result.done, result.left) == (1, 1)
    assert result.by_key == {late.key_id: 1, empty: 0}
    assert (fence(shop, late.key_id), fence(shop, empty)) == (OPEN, CLOSED)


@pytest.mark.slow
def test_a_key_destroyed_by_somebody_else_meanwhile_is_none_of_its_concern(shop) -> None:
    empty = active(shop, "a")
    rotate_keys(shop.seal)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda one: retire(one.seal), (shop, shop.again())))
    assert all(result.complete for result in results)
    assert record(shop, empty).destroyed_by == "retired"


def test_a_sqlite_writer_that_holds_the_lock_is_an_error_to_try_again(open_shop, sqlite_url) -> None:
    shop = open_shop(f"{sqlite_url}?timeout=0.1")
    active(shop, "a")
    rotate_keys(shop.seal)
    with shop.seal.datastore.engine.connect() as writer:
        begin_writing(writer)
        with pytest.raises(StoreUnavailableError):
            retire(shop.seal)
        writer.rollback()
    assert retire(shop.seal).done == 1


# --- what a database writer can set hides no item ---


@pytest.mark.slow
@pytest.mark.parametrize("edited", ["absent", "unknown", "of another key", "in hexadecimal"])
def test_a_key_that_an_envelope_names_stays_whatever_the_column_says(shop, edited) -> None:
    if edited == "in hexadecimal" and not shop.url.startswith("sqlite"):
        pytest.skip("PostgreSQL's column takes nothing but ids")
    (item,) = shop.append()
    other, empty = active(shop, "b"), active(shop, "c")
    column = {"absent": None, "unknown": uuid4(), "of another key": other, "in hexadecimal": item.key_id.hex}
    shop.edit(item, key_id=column[edited])
    rotate_keys(shop.seal)
    moved = reencrypt(shop.seal)
    assert (moved.done, moved.failed) == (0, 1)
    for dry_run in (True, False):
        result = retire(shop.seal, dry_run=dry_run)
        kept = {item.key_id, other} if edited == "of another key" else {item.key_id}
        assert {key_id for key_id, items in result.by_key.items() if items} == kept
        assert (result.left, result.failed, result.complete) == (len(kept), 1, False)
        (failure,) = result.failures
        assert (failure.error, failure.key_id) == ("IntegrityError", item.key_id)
        assert failure.row == {"sequence_id": str(item.sequence_id), "position": "0"}
    assert record(shop, item.key_id).state is KeyState.DEACTIVATED
    assert (record(shop, other).state is KeyState.DEACTIVATED) == (edited == "of another key")
    assert record(shop, empty).destroyed_by == "retired"
    shop.edit(item, key_id=item.key_id)
    assert reencrypt(shop.seal).done == 1
    retire(shop.seal)
    assert record(shop, item.key_id).destroyed_by == "retired"


@pytest.mark.slow
def test_counts_are_right_without_the_indexes(shop) -> None:
    first, second = shop.append(2)
    shop.edit(first, key_id=active(shop, "b"))
    for (name,) in shop.execute(INDEX_NAMES[shop.seal.datastore.engine.dialect.name]):
        shop.execute(f"DROP INDEX {name}")
    rotate_keys(shop.seal)
    result = retire(shop.seal)
    assert result.by_key == {second.key_id: 2, active_before(shop, "b"): 1}


INDEX_NAMES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE 'eventseal_key_id%'",
    "postgresql": "SELECT indexname FROM pg_indexes WHERE indexname LIKE 'eventseal_key_id%'",
}


def active_before(shop, scope: str) -> UUID:
    (closed,) = [
        found.key_id
        for found in shop.seal.key_store.of_scope("shop", scope)
        if found.state is KeyState.DEACTIVATED
    ]
    return closed


def forge_index(shop, table: str) -> None:
    """Let an index on nothing pass for the one on the key ids in headers."""
    with closing_file(sqlite3.connect(shop.url.removeprefix("sqlite:///"))) as file:
        file.execute("PRAGMA writable_schema = 1")
        find = "SELECT name, sql FROM sqlite_master WHERE name LIKE 'eventseal_key_id%' AND tbl_name = ?"
        name, sql = file.execute(find, (table,)).fetchone()
        file.execute(f'DROP INDEX "{name}"')
        file.execute(f"""CREATE INDEX "{name}" ON "{table}" (hex(''))""")
        file.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, name))
        file.execute("PRAGMA schema_version = 1000")  # other connections read the schema again
        file.commit()


@pytest.mark.parametrize("table", ["integer_sequenced_items", "it's an order"])
def test_an_index_that_hides_items_stops_it_until_the_index_is_made_again(sqlite_shop, table) -> None:
    class Base(DeclarativeBase):
        pass

    class Order(IntegerSequencedColumns, Base):
        __tablename__ = "it's an order"
        __collection__ = "orders"

    shop = sqlite_shop
    shop.seal.datastore.tables = (*shop.seal.datastore.tables, Order)
    shop.seal.datastore.setup_tables(application="shop")
    own = shop.seal.datastore.tables
    (item,) = shop.append(record=next(found for found in own if found.__tablename__ == table))
    rotate_keys(shop.seal)
    forge_index(shop, table)
    # Somebody writes meanwhile: the check waits for nobody.
    with shop.again().seal.datastore.engine.connect() as writer:
        begin_writing(writer)
        with pytest.raises(IntegrityError, match=f"{table}.*row 1 missing from index") as caught:
            retire(shop.seal, dry_run=True)
    with pytest.raises(IntegrityError):
        retire(shop.seal)
    assert record(shop, item.key_id).state is KeyState.DEACTIVATED
    (statement,) = re.findall(r"`(REINDEX .*?)`", caught.value.remedy)
    shop.execute(statement)
    assert retire(shop.seal).by_key == {item.key_id: 1}


VERBS_THAT_COUNT = {
    "retire": retire,
    "retire --dry-run": partial(retire, dry_run=True),
    "reencrypt": reencrypt,
    "verify": verify,
    "shred --dry-run": partial(shred, scope="a", dry_run=True),
    "status": lambda seal: status(seal.key_store, seal.datastore, "shop"),
}


@pytest.fixture
def owned_shop(open_shop, postgres_url):
    """A store whose tables belong to a role that is no superuser: policies of row-level security bind it."""
    url = make_url(postgres_url)
    role = f"owner_{url.database}"
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        connection.execute(text(f"GRANT CREATE ON SCHEMA public TO {role}"))
    yield open_shop(url.set(username=role).render_as_string(hide_password=False))
    with engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role} CASCADE"))
        connection.execute(text(f"DROP ROLE {role}"))


def hide_rows(shop, table: str, *, unless: str = "false") -> None:
    for statement in ("ENABLE ROW LEVEL SECURITY", "FORCE ROW LEVEL SECURITY"):
        shop.execute(f"ALTER TABLE {table} {statement}")
    shop.execute(f"CREATE POLICY hides ON {table} USING ({unless}) WITH CHECK (true)")


@pytest.mark.postgres
def test_a_policy_that_hides_fences_stops_a_re_encryption_before_it_makes_one(owned_shop) -> None:
    shop = owned_shop
    shop.append(scope="a")
    rotate_keys(shop.seal)
    new = shop.seal.key_store.active("shop", ["a"])["a"].key_id
    hide_rows(shop, "eventseal_key_fences")
    with pytest.raises(StoreError, match=r"row-level security policy .*eventseal_key_fences"):
        reencrypt(shop.seal)
    shop.execute("ALTER TABLE eventseal_key_fences NO FORCE ROW LEVEL SECURITY")
    assert fence(shop, new) is None


@pytest.mark.postgres
@pytest.mark.parametrize("verb", VERBS_THAT_COUNT.values(), ids=VERBS_THAT_COUNT)
def test_a_policy_that_hides_items_stops_what_counts_them(owned_shop, verb) -> None:
    shop = owned_shop
    (item,) = shop.append(scope="a")
    rotate_keys(shop.seal)
    hide_rows(shop, "integer_sequenced_items")
    with pytest.raises(StoreError, match=r"row-level security policy .*integer_sequenced_items") as caught:
        verb(shop.seal)
    assert "NO FORCE ROW LEVEL SECURITY" in caught.value.remedy
    assert record(shop, item.key_id).state is KeyState.DEACTIVATED
    shop.execute("ALTER TABLE integer_sequenced_items NO FORCE ROW LEVEL SECURITY")
    assert retire(shop.seal).by_key == {item.key_id: 1}


@pytest.mark.postgres
def test_a_policy_that_hides_keys_keeps_the_branch_key_that_wraps_them(owned_shop) -> None:
    shop = owned_shop.again(branches=1)
    shop.append(scope="a")
    branch = branch_of(shop)
    shop.seal.keyring.rotate_branches()
    hide_rows(shop, "eventseal_key_wrappings")
    hide_rows(shop, "eventseal_encryption_keys", unless="purpose <> 'data'")
    for call in (retire, partial(retire, keys=[branch])):
        with pytest.raises(StoreError, match="row-level security policy"):
            call(shop.seal)


@pytest.mark.postgres
def test_an_application_appends_and_reads_what_its_policies_allow(owned_shop) -> None:
    shop = owned_shop
    (seen,) = shop.append()
    hide_rows(shop, "integer_sequenced_items", unless=f"sequence_id = '{seen.sequence_id}'")
    for table in (
        "eventseal_encryption_keys",
        "eventseal_key_wrappings",
        "eventseal_key_fences",
        "eventseal_sealed_tables",
    ):
        hide_rows(shop, table, unless="true")
    other = shop.again()
    (hidden,) = other.append()
    other.append(scope="b")
    assert [len(other.strategy().get_items(item.sequence_id)) for item in (seen, hidden)] == [1, 0]
    assert (
        other.seal.cipher.decrypt(seen.data, ItemContext(seen.sequence_id, 0, "shop:Placed"))
        == b"the-secret-of-the-item"
    )


@pytest.mark.slow
@pytest.mark.parametrize("tables", ["one", "all"])
def test_a_table_counts_whoever_the_registry_says_it_belongs_to(shop, tables) -> None:
    (item,) = shop.append()
    rotate_keys(shop.seal)
    where = " WHERE table_name = 'integer_sequenced_items'" * (tables == "one")
    shop.execute(f"UPDATE eventseal_sealed_tables SET application = 'other'{where}")
    if tables == "all":
        with pytest.raises(ConfigurationError, match="no table is registered"):
            retire(shop.seal)
    else:
        assert retire(shop.seal).by_key == {item.key_id: 1}
        assert reencrypt(shop.seal).done == 1
        assert retire(shop.seal).done == 1


@pytest.mark.slow
def test_a_table_that_only_another_application_registered_counts(open_shop, store_url) -> None:
    """Application b writes into the table that a registered, and retires its key."""
    first = open_shop(store_url, application="a")
    first.append()
    first.execute("UPDATE eventseal_sealed_tables SET application = 'b' WHERE table_name = 'snapshots'")
    second = first.again(application="b")
    (item,) = second.append()
    rotate_keys(second.seal)
    assert retire(second.seal).by_key == {item.key_id: 1}
    assert record(second, item.key_id).state is KeyState.DEACTIVATED
    assert reencrypt(second.seal).done == 1
    assert retire(second.seal).done == 1


@pytest.mark.slow
def test_a_table_of_another_application_that_is_not_there_is_named(shop) -> None:
    empty = active(shop)
    rotate_keys(shop.seal)
    shop.execute(
        "INSERT INTO eventseal_sealed_tables (application, database_name, table_name, collection, columns) "
        "SELECT 'other', database_name, 'archive', collection, columns FROM eventseal_sealed_tables "
        "WHERE table_name = 'snapshots'"
    )
    with pytest.raises(ConfigurationError, match=r"archive.*Another application registered it") as caught:
        retire(shop.seal)
    assert "DELETE FROM eventseal_sealed_tables" in caught.value.remedy
    assert record(shop, empty).state is KeyState.DEACTIVATED


@pytest.mark.parametrize("columns", ["*", "data AS what"])
def test_a_copy_without_types_is_found_by_what_it_holds(open_shop, sqlite_url, columns) -> None:
    shop = open_shop(sqlite_url)
    (item,) = shop.append()
    shop.execute(f"CREATE TABLE copy AS SELECT {columns} FROM integer_sequenced_items")
    shop.execute("CREATE TABLE pictures (id, picture BLOB)")
    shop.execute("INSERT INTO pictures VALUES (1, x'89504e47'), ('two', zeroblob(100)), (3, NULL)")
    rotate_keys(shop.seal)
    reencrypt(shop.seal)
    with pytest.raises(ConfigurationError, match="copy") as caught:
        retire(shop.seal)
    assert "pictures" not in str(caught.value)
    assert record(shop, item.key_id).state is KeyState.DEACTIVATED
    assert retire(shop.again(unsealed_tables=("copy",)).seal).done == 1


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        *((f"(d {kind})", "d") for kind in ("", "TEXT", "BYTEA", "VARBINARY(200)", "NUM", "JSON", "INTEGER")),
        ("(d ANY) STRICT", "d"),
        ("(id INTEGER DEFAULT 1, d VARCHAR PRIMARY KEY) WITHOUT ROWID", "d"),
        ('("d "" % x" DATE)', '"d "" % x"'),
        (f"({', '.join([f'c{number} INT' for number in range(150)])}, d INT)", "d"),
    ],
)
def test_a_copy_is_found_whatever_its_column_is_declared_as(open_shop, sqlite_url, columns, name) -> None:
    shop = open_shop(sqlite_url)
    (item,) = shop.append()
    shop.execute(f"CREATE TABLE copy {columns}")
    shop.execute(f"INSERT INTO copy ({name}) SELECT data FROM integer_sequenced_items")
    shop.execute("DELETE FROM integer_sequenced_items")
    rotate_keys(shop.seal)
    with pytest.raises(ConfigurationError, match=r"tables with sealed items are not registered: copy\."):
        retire(shop.seal)
    assert record(shop, item.key_id).state is KeyState.DEACTIVATED


@pytest.mark.slow
@pytest.mark.parametrize("data", [b'{"amount":5}', b"", "cut", "one bit"], ids=repr)
def test_a_row_that_is_no_envelope_blocks_every_retire_until_it_is_restored(shop, data) -> None:
    (first, _) = shop.append(2)
    empty = active(shop, "b")
    rotate_keys(shop.seal)
    damaged = {"cut": first.data[:40], "one bit": bytes([first.data[0] ^ 4]) + first.data[1:]}
    shop.edit(first, data=damaged.get(data, data))
    for call in (retire, partial(retire, keys=[empty]), partial(retire, dry_run=True)):
        with pytest.raises(IntegrityError) as caught:
            call(shop.seal)
        assert f"1 item of integer_sequenced_items: {first.sequence_id}, 0" in str(caught.value)
        assert "backup" in caught.value.remedy
    assert record(shop, empty).state is KeyState.DEACTIVATED
    shop.edit(first, data=first.data)
    assert retire(shop.seal).done == 1


def test_rows_that_are_no_envelopes_are_counted_and_a_few_are_named(shop) -> None:
    shop.append_plain(5)
    rotate_keys(shop.seal)
    with pytest.raises(
        IntegrityError, match=r"5 items of integer_sequenced_items: .*, 0; .*, 1; .*, 2; \.\.\."
    ):
        retire(shop.seal)


@pytest.mark.slow
@pytest.mark.parametrize("accepted", ["by setting", "by migration"])
def test_what_may_be_in_plain_blocks_nothing(shop, accepted) -> None:
    shop.append_plain()
    empty = active(shop, "b")
    rotate_keys(shop.seal)
    if accepted == "by migration":
        shop.execute("""UPDATE eventseal_sealed_tables SET old_formats = '["plain-json"]'""")
        shop.append_plain(data=b"\1\3\0" + uuid4().bytes + bytes(40))  # an old item that looks like one
    formats = ["plain-json"] if accepted == "by migration" else []
    other = shop.again(always_encrypt=accepted != "by setting", old_formats=formats)
    result = retire(other.seal, keys=[empty])
    assert (result.done, result.failed, result.complete) == (1, 0, True)


FIRST_BYTES = {"masked": b"\xff", "like JSON": b"{"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["masked", "like JSON", "as text"])
@pytest.mark.parametrize("accepted", ["by setting", "by migration"])
def test_what_no_reader_takes_blocks_every_retire_where_plain_items_are_allowed(
    shop, accepted, how, monkeypatch
) -> None:
    monkeypatch.setattr(item_checks, "PAGE_SIZE", 2)
    # Few rows are sorted for each page, many are not.
    monkeypatch.setattr(table_checks, "FEW_ITEMS", 2 if accepted == "by setting" else 4)
    items = shop.append(3)
    shop.append_plain()
    rotate_keys(shop.seal)
    if accepted == "by migration":
        shop.execute("""UPDATE eventseal_sealed_tables SET old_formats = '["plain-json"]'""")
    formats = ["plain-json"] if accepted == "by migration" else []
    other = shop.again(always_encrypt=accepted != "by setting", old_formats=formats)
    if how == "as text":
        if not shop.url.startswith("sqlite"):
            pytest.skip("PostgreSQL's column holds nothing but bytes")
        shop.execute("UPDATE integer_sequenced_items SET data = CAST(data AS TEXT) WHERE key_id IS NOT NULL")
    else:
        for item in items:
            shop.edit(item, data=FIRST_BYTES[how] + item.data[1:])
    shop.execute("UPDATE integer_sequenced_items SET key_id = NULL")
    for call in (retire, partial(retire, dry_run=True)):
        with pytest.raises(IntegrityError, match=r"3 items of .*_items: .*, 0; .*, 1; .*, 2$"):
            call(other.seal)
    for item in items:
        shop.edit(item, data=item.data, key_id=item.key_id)
    assert retire(other.seal).by_key == {items[0].key_id: 3}


@pytest.mark.slow
def test_keys_of_fields_are_never_retired(shop) -> None:
    key_id = shop.seal.keyring.sealing_keys({"b": 0}, purpose=KeyPurpose.FIELD)["b"].key_id
    shop.execute(
        "UPDATE eventseal_encryption_keys SET state = 'deactivated' WHERE key_id = :key", key=shop.raw(key_id)
    )
    with pytest.raises(JobError, match="of purpose field, and such keys are never retired"):
        retire(shop.seal, keys=[key_id])
    assert retire(shop.seal).by_key == {}
    assert record(shop, key_id).state is KeyState.DEACTIVATED
