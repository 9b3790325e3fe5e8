"""The key store, over the contract that all key stores share, and what is special about databases."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, event, insert, make_url, select, update

from eventseal.errors import IntegrityError, StoreUnavailableError
from eventseal.keys.records import MOST_WRAPPINGS, STORE_SCOPE, ChangeMark, Replacement
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyDatastore, SQLAlchemyKeyStore
from eventseal.storage.database.transactions import begin_writing
from eventseal.storage.keys.tables import encryption_keys, key_changes, key_wrappings
from eventseal.testing.key_store_contract import KeyStoreContract
from eventseal.testing.key_store_contract.keys import RacingContract
from eventseal.testing.key_store_contract.records import GivenMark, in_state, make_record, next_mark
from eventseal.testing.key_store_contract.replacing import LeasesContract, ReplacingContract
from eventseal.testing.key_store_contract.states import StatesContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Engine

    from eventseal.keys.records import KeyRecord
    from eventseal.keys.store import KeyStore

AT_ONCE = 30  # s: far more than a slow machine needs
BUSY_TIMEOUT = 120  # s: a test that waits for the lock, although it must not, exceeds AT_ONCE by far


class OnTheSameDatabase(KeyStoreContract):
    @pytest.fixture
    def other_store(self, store, url, open_datastore) -> KeyStore:
        return SQLAlchemyKeyStore(open_datastore(url, setup=False))


class TestOnASQLiteFile(OnTheSameDatabase):
    @pytest.fixture
    def url(self, sqlite_url) -> str:
        return sqlite_url

    @pytest.fixture
    def store(self, url, open_datastore) -> KeyStore:
        return SQLAlchemyKeyStore(open_datastore(url))


class TestInMemory(KeyStoreContract):
    @pytest.fixture
    def datastore(self, open_datastore) -> SQLAlchemyDatastore:
        return open_datastore("sqlite:///:memory:")

    @pytest.fixture
    def store(self, datastore) -> KeyStore:
        return SQLAlchemyKeyStore(datastore)

    @pytest.fixture
    def other_store(self, datastore, store) -> KeyStore:
        return SQLAlchemyKeyStore(datastore)


@pytest.mark.postgres
class TestOnPostgreSQL(OnTheSameDatabase):
    @pytest.fixture
    def url(self, postgres_url) -> str:
        return postgres_url

    @pytest.fixture
    def store(self, url, open_datastore) -> KeyStore:
        return SQLAlchemyKeyStore(open_datastore(url))


@pytest.mark.postgres
class TestWhateverTheDefaultIsolation(RacingContract, ReplacingContract, StatesContract, LeasesContract):
    """What decides by what it read runs in READ COMMITTED."""

    @pytest.fixture
    def store(self, postgres_url, open_datastore) -> KeyStore:
        return SQLAlchemyKeyStore(open_datastore(postgres_url, isolation_level="SERIALIZABLE"))

    @pytest.fixture
    def other_store(self, store, postgres_url, open_datastore) -> KeyStore:
        return SQLAlchemyKeyStore(
            open_datastore(postgres_url, setup=False, isolation_level="REPEATABLE READ")
        )


@pytest.fixture
def key_store(datastore) -> SQLAlchemyKeyStore:
    return SQLAlchemyKeyStore(datastore)


@pytest.fixture
def active(key_store) -> KeyRecord:
    """An active key of an application with its store key."""
    mark = ChangeMark(application="shop", counter=0, revoked=bytes(32), seal=bytes(32))
    key_store.add_active([make_record("shop", STORE_SCOPE, purpose=KeyPurpose.STORE)], mark=mark)
    return key_store.add_active([make_record("shop", "a")])["a"]


def writes(key_store: SQLAlchemyKeyStore, active: KeyRecord) -> list[Callable[[], object]]:
    closed = in_state(active, KeyState.DEACTIVATED)
    new = make_record("shop", "a")
    return [
        lambda: key_store.add_active([make_record("shop", "b")]),
        lambda: key_store.reserve({active.key_id: 1}),
        lambda: key_store.replace_all_active([Replacement(active, closed, new)], next_mark=next_mark),
        lambda: key_store.replace_all_active(
            [Replacement(active, closed, new)], next_mark=next_mark, wait=False
        ),
        lambda: key_store.set_states([closed], next_mark=next_mark),
    ]


def record_of_an_item() -> IntegerSequencedItemRecord:
    return IntegerSequencedItemRecord(sequence_id=uuid4(), position=0, topic="t", data=b"d")


@contextmanager
def at_once() -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < AT_ONCE


@pytest.mark.slow
@pytest.mark.parametrize("many", [70, 2_000], ids=["read-and-left-out", "never-read"])
def test_of_a_key_with_thousands_of_wrappings_the_newest_are_read_and_the_others_counted(
    store_url, open_datastore, many
) -> None:
    datastore = open_datastore(store_url)
    key_store = SQLAlchemyKeyStore(datastore)
    stored = {scope: key_store.add_active([make_record("shop", scope)])[scope] for scope in "abc"}
    flooded, other = stored["a"], stored["b"]
    with datastore.key_engine.begin() as connection:
        rows = [
            {"key_id": flooded.key_id, "kek_uri": "fake://x", "kek_version": f"{n}", "wrapped": b"x"}
            for n in range(many)
        ]
        later = datetime(2100, 1, 1, tzinfo=UTC)
        connection.execute(insert(key_wrappings).values(created_at=later), rows)
    found = key_store.get([record.key_id for record in stored.values()])
    assert len(found[flooded.key_id].wrappings) == MOST_WRAPPINGS
    assert {wrapped.kek_uri for wrapped in found[flooded.key_id].wrappings} == {"fake://x"}
    assert found[flooded.key_id].more_wrappings == many + len(flooded.wrappings) - MOST_WRAPPINGS
    assert (found[other.key_id].wrappings, found[other.key_id].more_wrappings) == (other.wrappings, 0)


class TestInsideAnotherTransaction:
    """SQLite has one writer: whoever holds it must not wait for itself."""

    @pytest.fixture
    def datastore(self, store_url, open_datastore):
        patience = {"connect_args": {"timeout": BUSY_TIMEOUT}} if store_url.startswith("sqlite") else {}
        return open_datastore(store_url, **patience)

    def test_a_write_inside_the_sessions_write_transaction_is_refused_at_once(
        self, sqlite_url, open_datastore
    ):
        datastore = open_datastore(sqlite_url, connect_args={"timeout": BUSY_TIMEOUT})
        key_store = SQLAlchemyKeyStore(datastore)
        mark = ChangeMark(application="shop", counter=0, revoked=bytes(32), seal=bytes(32))
        store_key = make_record("shop", STORE_SCOPE, purpose=KeyPurpose.STORE)
        key_store.add_active([store_key], mark=mark)
        active = key_store.add_active([make_record("shop", "a")])["a"]
        datastore.session.add(record_of_an_item())
        datastore.session.flush()
        for write in writes(key_store, active):
            with at_once(), pytest.raises(StoreUnavailableError, match="transaction") as refused:
                write()
            assert "keyring.prepare(scopes)" in refused.value.remedy
        assert key_store.active("shop", ["a", "b"]) == {"a": active}
        assert key_store.changes("shop", 0, []) is not None
        datastore.session.rollback()
        assert set(key_store.add_active([make_record("shop", "b")])) == {"b"}

    def test_a_session_that_only_read_or_added_is_no_hindrance(self, datastore, key_store, active):
        datastore.session.scalars(select(IntegerSequencedItemRecord)).all()
        datastore.session.add(record_of_an_item())
        for write in writes(key_store, active):
            write()
        assert datastore.session.new

    @pytest.mark.postgres
    def test_a_key_stays_though_the_sessions_transaction_is_rolled_back(self, postgres_url, open_datastore):
        datastore = open_datastore(postgres_url)
        key_store = SQLAlchemyKeyStore(datastore)
        datastore.session.add(record_of_an_item())
        datastore.session.flush()
        key_store.add_active([make_record("shop", "a")])
        datastore.session.rollback()
        assert set(key_store.active("shop", ["a"])) == {"a"}

    def test_another_writer_is_waited_for_and_then_it_is_unavailable_with_the_same_remedy(
        self, sqlite_url, open_datastore
    ):
        open_datastore(sqlite_url)
        datastore = open_datastore(sqlite_url, setup=False, connect_args={"timeout": 0.2})
        with closing(sqlite3.connect(make_url(sqlite_url).database or "")) as other:
            other.execute("BEGIN IMMEDIATE")
            begun = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="locked") as refused:
                SQLAlchemyKeyStore(datastore).add_active([make_record("shop", "a")])
            assert time.monotonic() - begun >= 0.2
            assert "keyring.prepare(scopes)" in refused.value.remedy
            other.rollback()

    @pytest.mark.parametrize("held", ["the mark", "the key"])
    def test_a_rotation_that_must_not_wait_gives_up_at_once(self, datastore, key_store, active, held):
        closed, new = in_state(active, KeyState.DEACTIVATED), make_record("shop", "a")
        with datastore.key_engine.connect() as other:
            begin_writing(other)
            self.hold(other, held, active)
            with at_once(), pytest.raises(StoreUnavailableError):
                key_store.replace_all_active(
                    [Replacement(active, closed, new)], next_mark=next_mark, wait=False
                )
            other.rollback()
        stored = key_store.replace_all_active(
            [Replacement(active, closed, new)], next_mark=next_mark, wait=False
        )["a"]
        assert stored.key_id == new.key_id

    @staticmethod
    def hold(other, held: str, active: KeyRecord) -> None:
        if held == "the mark":
            other.execute(update(key_changes).values(counter=key_changes.c.counter))
        else:
            reserved = encryption_keys.c.items_reserved
            ours = encryption_keys.c.key_id == active.key_id
            other.execute(update(encryption_keys).where(ours).values(items_reserved=reserved))

    def test_sqlite_waits_again_after_a_write_that_did_not(self, sqlite_url, open_datastore):
        datastore = open_datastore(sqlite_url, pool_size=1, max_overflow=0)
        key_store = SQLAlchemyKeyStore(datastore)
        mark = ChangeMark(application="shop", counter=0, revoked=bytes(32), seal=bytes(32))
        store_key = make_record("shop", STORE_SCOPE, purpose=KeyPurpose.STORE)
        key_store.add_active([store_key], mark=mark)
        old = key_store.add_active([make_record("shop", "a")])["a"]
        closed = in_state(old, KeyState.DEACTIVATED)
        key_store.replace_all_active(
            [Replacement(old, closed, make_record("shop", "a"))], next_mark=next_mark, wait=False
        )
        with datastore.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 30_000


def test_a_slot_that_another_key_has_taken_is_not_taken_from_it(key_store, active):
    """A shred closes a scope while somebody makes a new key in it: it must look again."""
    stored = key_store.set_states([in_state(active, KeyState.DEACTIVATED)], next_mark=next_mark)
    late = key_store.add_active([make_record("shop", "a")])["a"]
    tombstone = replace(in_state(stored[0], KeyState.DESTROYED, destroyed_by="shredded"), active_scope="a")
    assert key_store.set_states([tombstone], next_mark=next_mark) == []
    assert key_store.get([active.key_id, late.key_id]) == {active.key_id: stored[0], late.key_id: late}
    changes = key_store.changes("shop", 0, [])
    assert changes is not None
    assert changes.mark.counter == 1


class TestSnapshots:
    def test_a_refresh_reads_one_moment(self, datastore, key_store, active, store_url, open_datastore):
        """Somebody closes a key between the statements of the refresh: all of it is seen, or nothing."""
        other = SQLAlchemyKeyStore(open_datastore(store_url, setup=False))
        second = other.add_active([make_record("shop", "b")])["b"]
        first, late = GivenMark({b"": b"first"}), GivenMark({b"": b"late"})
        other.set_states([in_state(second, KeyState.COMPROMISED)], next_mark=first)

        with after_statement(datastore.key_engine, "FROM eventseal_key_changes") as once:
            once(lambda: other.set_states([in_state(active, KeyState.COMPROMISED)], next_mark=late))
            changes = key_store.changes("shop", 0, [active.key_id, second.key_id])
        assert changes is not None
        assert changes.mark.counter == 1
        assert [record.key_id for record in changes.records] == [second.key_id]
        assert changes.root == b"first"
        later = key_store.changes("shop", 1, [active.key_id, second.key_id])
        assert later is not None
        assert [record.key_id for record in later.records] == [active.key_id]
        assert later.root == b"late"

    def test_the_mark_and_the_nodes_are_of_one_moment(
        self, datastore, key_store, active, store_url, open_datastore
    ):
        other = SQLAlchemyKeyStore(open_datastore(store_url, setup=False))
        first, late = GivenMark({b"": b"first"}), GivenMark({b"": b"late"})
        other.advance("shop", next_mark=first)
        with after_statement(datastore.key_engine, "FROM eventseal_key_changes") as once:
            once(lambda: other.advance("shop", next_mark=late))
            assert key_store.revocations("shop", [b""]) == (first.given, {b"": b"first"})
        assert key_store.revocations("shop", [b""]) == (late.given, {b"": b"late"})

    def test_a_record_and_its_wrappings_are_of_one_moment(
        self, datastore, key_store, active, store_url, open_datastore
    ):
        other = SQLAlchemyKeyStore(open_datastore(store_url, setup=False))
        tombstone = in_state(active, KeyState.DESTROYED, destroyed_by="shredded")
        with after_statement(datastore.key_engine, "FROM eventseal_encryption_keys") as once:
            once(lambda: other.set_states([tombstone], next_mark=next_mark))
            assert key_store.get([active.key_id]) == {active.key_id: active}
        assert key_store.get([active.key_id])[active.key_id].wrappings == ()


class TestEditedTables:
    def test_a_change_without_the_applications_mark_is_an_integrity_error(self, datastore, key_store, active):
        with datastore.key_engine.begin() as connection:
            connection.execute(delete(key_changes))
        closed = in_state(active, KeyState.DEACTIVATED)
        for change in (
            lambda: key_store.set_states([closed], next_mark=next_mark),
            lambda: key_store.replace_all_active(
                [Replacement(active, closed, make_record("shop", "a"))], next_mark=next_mark
            ),
        ):
            with pytest.raises(IntegrityError, match="shop"):
                change()
        assert key_store.get([active.key_id]) == {active.key_id: active}

    def test_wrappings_know_when_they_were_made_and_that_nobody_used_them_yet(
        self, datastore, key_store, active
    ):
        with datastore.key_engine.connect() as connection:
            rows = connection.execute(
                select(key_wrappings).where(key_wrappings.c.key_id == active.key_id)
            ).all()
        assert rows
        assert all(abs((row.created_at - key_store.now()).total_seconds()) < 60 for row in rows)
        assert {row.verified_at for row in rows} == {None}


@contextmanager
def after_statement(engine: Engine, part: str) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Run something once, right after the first statement that has *part* in it."""
    pending: list[Callable[[], object]] = []

    def look(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if part in statement and pending:
            pending.pop()()

    event.listen(engine, "after_cursor_execute", look)
    try:
        yield pending.append
        assert not pending
    finally:
        event.remove(engine, "after_cursor_execute", look)


@pytest.fixture
def shop_url(sqlite_url, lax_tables, open_datastore) -> str:
    """A database in which an application has its store key and the active keys of scopes a and b."""
    store = SQLAlchemyKeyStore(open_datastore(sqlite_url))
    mark = ChangeMark(application="shop", counter=0, revoked=bytes(32), seal=bytes(32))
    store.add_active([make_record("shop", STORE_SCOPE, purpose=KeyPurpose.STORE)], mark=mark)
    store.add_active([make_record("shop", "a"), make_record("shop", "b")])
    return sqlite_url


def run_sql(url: str, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(make_url(url).database or "")) as connection, connection:
        connection.execute(statement, values)


@pytest.mark.parametrize("column", ["counter", "revoked", "seal", "refresh_interval"])
def test_a_mark_that_cannot_be_read_was_edited(open_datastore, shop_url, column):
    run_sql(shop_url, f"UPDATE eventseal_key_changes SET {column} = 'edited'")
    with pytest.raises(IntegrityError, match="edited"):
        SQLAlchemyKeyStore(open_datastore(shop_url)).changes("shop", -1, [])


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("eventseal_encryption_keys", "state", "'edited'"),
        ("eventseal_encryption_keys", "purpose", "'edited'"),
        ("eventseal_encryption_keys", "application", "x'00'"),
        ("eventseal_encryption_keys", "scope", "7"),
        ("eventseal_encryption_keys", "scope", "x'00'"),
        ("eventseal_encryption_keys", "scope", "CAST(x'ff' AS TEXT)"),
        ("eventseal_encryption_keys", "binding", "'edited'"),
        ("eventseal_encryption_keys", "seal", "'edited'"),
        ("eventseal_encryption_keys", "row_version", "'edited'"),
        ("eventseal_encryption_keys", "items_reserved", "'edited'"),
        ("eventseal_encryption_keys", "created_at", "'edited'"),
        ("eventseal_encryption_keys", "change", "'edited'"),
        ("eventseal_key_wrappings", "wrapped", "'edited'"),
        ("eventseal_key_wrappings", "verified_at", "'edited'"),
        ("eventseal_key_wrappings", "kek_uri", "CAST(x'ff' AS TEXT)"),
    ],
)
def test_an_edited_row_that_cannot_be_read_leaves_the_rows_beside_it_alone(
    open_datastore, shop_url, table, column, value
):
    store = SQLAlchemyKeyStore(open_datastore(shop_url))
    held = store.active("shop", ["a", "b"])
    bad, good = held["a"], held["b"]
    run_sql(shop_url, f"UPDATE {table} SET {column} = {value} WHERE key_id = ?", bad.key_id.bytes)
    found = store.get([bad.key_id, good.key_id])
    assert found[good.key_id] == good
    assert set(found) == {bad.key_id, good.key_id}
    if value != "7":  # a column of text turns it into text, so that only the seal can tell
        assert found[bad.key_id].unreadable == (column,)
        assert found[bad.key_id].seal == b""
        assert found[bad.key_id].state is not KeyState.DESTROYED  # nothing looks twice at a tombstone
    listed = {record.key_id for record in store.page("shop")}
    assert good.key_id in listed
    assert bad.key_id in listed or column == "application"
    if column not in {"purpose", "application"}:
        assert store.active("shop", ["a", "b"]) == {"a": found[bad.key_id], "b": good}


def test_what_cannot_be_read_is_not_written_over(open_datastore, shop_url):
    store = SQLAlchemyKeyStore(open_datastore(shop_url))
    active = store.active("shop", ["a"])["a"]
    run_sql(
        shop_url,
        "UPDATE eventseal_encryption_keys SET state = 'edited' WHERE key_id = ?",
        active.key_id.bytes,
    )
    closed = in_state(active, KeyState.DEACTIVATED)
    assert store.set_states([closed], next_mark=next_mark) == []
    kept = store.replace_all_active(
        [Replacement(active, closed, make_record("shop", "a"))], next_mark=next_mark
    )["a"]
    assert kept.unreadable == ("state",)
    assert store.get([active.key_id])[active.key_id].unreadable == ("state",)


@pytest.mark.parametrize("key_id", ["'edited'", "7", "x''", "x'01'", "zeroblob(17)", "x'{id}00'"])
def test_a_row_whose_very_id_cannot_be_read_is_listed_first_and_hides_no_other(
    open_datastore, shop_url, key_id
):
    store = SQLAlchemyKeyStore(open_datastore(shop_url))
    before = store.page("shop")
    active = store.active("shop", ["a", "b"])
    key_id = key_id.format(id=active["b"].key_id.hex)  # also one that begins like another's
    run_sql(shop_url, "DELETE FROM eventseal_key_wrappings")
    run_sql(shop_url, f"UPDATE eventseal_encryption_keys SET key_id = {key_id} WHERE scope = 'a'")
    first = store.page("shop", limit=1)
    assert [record.unreadable for record in first] == [("key_id",), ()]
    assert (first[0].scope, first[0].key_id) == ("a", UUID(int=0))
    rest = store.page("shop", after=first[-1].key_id)
    others = {record.key_id for record in before} - {active["a"].key_id}
    assert {record.key_id for record in (*first[1:], *rest)} == others
    assert store.active("shop", ["a", "b"])["a"].unreadable == ("key_id",)
    assert store.get([active["b"].key_id]).keys() == {active["b"].key_id}
    assert store.changes("shop", -1, list(others)) is not None
