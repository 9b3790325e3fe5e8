"""A COMMIT that was not answered: no event is lost or stored twice, no conflict made up or hidden."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event
from tests.fixtures.commit_proxy import commit_proxy
from tests.fixtures.faulty_connection import FaultyConnection
from tests.fixtures.postgres_databases import wait_until_blocked

from eventseal.errors import SequencedItemConflictError, StoreUnavailableError
from eventseal.items.item import SequencedItem
from eventseal.keys.records import ChangeMark, Replacement
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.storage import (
    IntegerSequencedItemRecord,
    SQLAlchemyActiveRecordStrategy,
    SQLAlchemyDatastore,
    SQLAlchemyKeyStore,
    SQLAlchemySettings,
)
from eventseal.testing.key_store_contract.records import in_state, make_record, next_mark

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

TABLES = [IntegerSequencedItemRecord]


def new_item(sequence_id: UUID | None = None, position: int = 0, key_id: UUID | None = None) -> SequencedItem:
    return SequencedItem(sequence_id or uuid4(), position, "topic", uuid4().bytes, key_id)


def stored(url: str, open_datastore) -> list[SequencedItem]:
    """All items, by way of a connection without faults."""
    datastore = open_datastore(url, TABLES, setup=False)
    return list(SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session).all_items())


@pytest.fixture
def faulty(sqlite_url, open_datastore):
    """A strategy on a SQLite file with faulty connections."""
    open_datastore(sqlite_url)
    options = {"connect_args": {"factory": FaultyConnection}}
    datastore = open_datastore(sqlite_url, TABLES, setup=False, **options)
    yield SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
    FaultyConnection.fail = None


@pytest.fixture
def proxy(postgres_url, open_datastore):
    open_datastore(postgres_url)
    with commit_proxy(postgres_url) as proxy:
        yield proxy


@pytest.fixture
def behind_proxy(proxy):
    """A datastore that reaches its database by way of the proxy."""
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(proxy.url), TABLES)
    yield datastore
    datastore.close()


class TestOnSQLite:
    @pytest.mark.parametrize("count", [1, 5])
    def test_a_commit_that_failed_after_it_was_executed_succeeds(
        self, faulty, sqlite_url, open_datastore, count, caplog
    ):
        batch = [new_item(key_id=uuid4()) for _ in range(count)]
        FaultyConnection.fail = "after"
        with caplog.at_level(logging.WARNING):
            faulty.append(batch)
        assert FaultyConnection.fail is None
        assert "was committed" in caplog.text
        assert sorted(stored(sqlite_url, open_datastore)) == sorted(batch)
        with pytest.raises(SequencedItemConflictError):
            faulty.append(batch)

    def test_a_commit_that_failed_before_it_was_executed_is_unavailable_and_writes_nothing(
        self, faulty, sqlite_url, open_datastore
    ):
        item = new_item(key_id=uuid4())
        FaultyConnection.fail = "before"
        with pytest.raises(StoreUnavailableError, match="I/O"):
            faulty.append(item)
        assert stored(sqlite_url, open_datastore) == []
        faulty.append(item)
        assert stored(sqlite_url, open_datastore) == [item]

    def test_a_hook_that_raises_after_the_commit_does_not_make_it_fail(self, sqlite_url, open_datastore):
        datastore = open_datastore(sqlite_url)
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)

        def fail(session: Session) -> None:
            raise RuntimeError("a hook")

        item, session = new_item(key_id=uuid4()), datastore.session()
        event.listen(session, "after_commit", fail)
        strategy.append(item)
        event.remove(session, "after_commit", fail)
        assert strategy.get_item(item.sequence_id, 0) == item

    def test_a_hook_that_raises_before_the_commit_is_heard(self, sqlite_url, open_datastore):
        datastore = open_datastore(sqlite_url)
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)

        def fail(session: Session) -> None:
            raise RuntimeError("a hook")

        session = datastore.session()
        event.listen(session, "before_commit", fail)
        with pytest.raises(RuntimeError, match="a hook"):
            strategy.append(new_item(key_id=uuid4()))
        event.remove(session, "before_commit", fail)
        assert list(strategy.all_items()) == []
        strategy.append(new_item(key_id=uuid4()))

    def test_another_writers_item_in_the_place_is_not_taken_for_ours(
        self, faulty, sqlite_url, open_datastore
    ):
        """The commit fails unexecuted, and before the strategy reads back somebody else takes the place."""
        mine = new_item(key_id=uuid4())
        theirs = mine._replace(data=b"theirs")
        datastore = open_datastore(sqlite_url, TABLES, setup=False)
        other = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        session = faulty.session()

        def interfere(_session: Session, _previous: object) -> None:
            other.append(theirs)

        event.listen(session, "after_soft_rollback", interfere, once=True)
        FaultyConnection.fail = "before"
        with pytest.raises(StoreUnavailableError):
            faulty.append(mine)
        assert stored(sqlite_url, open_datastore) == [theirs]
        with pytest.raises(SequencedItemConflictError):
            faulty.append(mine)


@pytest.mark.postgres
class TestOnPostgreSQL:
    @pytest.fixture
    def strategy(self, behind_proxy):
        return SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, behind_proxy.session)

    @pytest.fixture
    def warm(self, strategy):
        """A key whose fence is there, so that the next COMMIT is that of an append."""
        key_id = uuid4()
        strategy.append(new_item(key_id=key_id))
        return key_id

    @pytest.mark.parametrize("count", [1, 5])
    def test_a_lost_answer_does_not_become_a_conflict_and_no_event_is_lost(
        self, strategy, warm, proxy, postgres_url, open_datastore, count
    ):
        before = stored(postgres_url, open_datastore)
        batch = [new_item(key_id=warm) for _ in range(count)]
        proxy.lose_answer()
        strategy.append(batch)
        assert proxy.lost == 1
        assert sorted(stored(postgres_url, open_datastore)) == sorted([*before, *batch])

    def test_a_lost_request_is_sent_again_where_the_transaction_is_the_strategys_own(
        self, strategy, warm, proxy, postgres_url, open_datastore
    ):
        before, item = stored(postgres_url, open_datastore), new_item(key_id=warm)
        proxy.lose_request()
        strategy.append(item)
        assert proxy.lost == 1
        assert sorted(stored(postgres_url, open_datastore)) == sorted([*before, item])

    def test_a_lost_request_is_unavailable_where_the_caller_had_added_rows(
        self, strategy, warm, proxy, behind_proxy, postgres_url, open_datastore
    ):
        before, item = stored(postgres_url, open_datastore), new_item(key_id=warm)
        other = IntegerSequencedItemRecord(sequence_id=uuid4(), position=0, topic="t", data=b"d")
        behind_proxy.session.add(other)
        proxy.lose_request()
        with pytest.raises(StoreUnavailableError):
            strategy.append(item)
        assert proxy.lost == 1
        assert stored(postgres_url, open_datastore) == before
        strategy.append(item)

    def test_a_commit_that_is_still_on_its_way_is_waited_for(
        self, strategy, warm, proxy, postgres_url, open_datastore
    ):
        """The server executes the COMMIT only after the strategy has begun to ask what became of it."""
        before, item = stored(postgres_url, open_datastore), new_item(key_id=warm)
        admin, asked = open_datastore(postgres_url, TABLES, setup=False), threading.Event()

        def until_somebody_waits() -> None:
            wait_until_blocked(admin.engine)
            asked.set()

        proxy.delay_request(until_somebody_waits)
        strategy.append(item)
        assert asked.is_set()
        assert sorted(stored(postgres_url, open_datastore)) == sorted([*before, item])

    def test_a_server_that_cannot_be_asked_leaves_the_outcome_unknown_and_says_so(
        self, strategy, warm, proxy, postgres_url, open_datastore
    ):
        before, item = stored(postgres_url, open_datastore), new_item(key_id=warm)
        proxy.lose_answer()
        proxy.refuse_new_connections()
        with pytest.raises(StoreUnavailableError, match="is unknown whether") as unknown:
            strategy.append(item)
        assert "Read the sequence" in unknown.value.remedy
        assert sorted(stored(postgres_url, open_datastore)) == sorted([*before, item])

    def test_a_real_conflict_stays_a_conflict(self, strategy, warm, proxy, postgres_url, open_datastore):
        """Equal commands, one of them with a lost answer: the second is told."""
        item = new_item(key_id=warm)
        proxy.lose_answer()
        strategy.append(item)
        with pytest.raises(SequencedItemConflictError):
            strategy.append(item)
        with pytest.raises(SequencedItemConflictError):
            strategy.append(item._replace(data=b"another iv"))
        assert stored(postgres_url, open_datastore).count(item) == 1

    @pytest.mark.slow
    def test_fifty_lost_answers_leave_fifty_events(self, strategy, warm, proxy, postgres_url, open_datastore):
        stream = uuid4()
        for position in range(50):
            proxy.lose_answer()
            strategy.append(new_item(stream, position, warm))
        assert proxy.lost == 50
        assert [item.position for item in strategy.get_items(stream)] == list(range(50))

    def test_a_lost_answer_to_the_key_store_gives_the_same_as_an_answer(self, behind_proxy, proxy):
        key_store = SQLAlchemyKeyStore(behind_proxy)
        mark = ChangeMark(application="shop", counter=0, revoked=bytes(32), seal=bytes(32))
        proxy.lose_answer()
        store_key = make_record("shop", "store", purpose=KeyPurpose.STORE)
        assert key_store.add_active([store_key], mark=mark)["store"].key_id == store_key.key_id
        proxy.lose_answer()
        old = key_store.add_active([make_record("shop", "a")])["a"]
        assert key_store.get([old.key_id])[old.key_id].wrappings == old.wrappings != ()
        new = make_record("shop", "a")
        proxy.lose_answer()
        stored_new = key_store.replace_all_active(
            [Replacement(old, in_state(old, KeyState.DEACTIVATED), new)], next_mark=next_mark
        )["a"]
        assert stored_new.key_id == new.key_id
        proxy.lose_answer()
        (closed,) = key_store.set_states([in_state(stored_new, KeyState.DEACTIVATED)], next_mark=next_mark)
        assert (closed.state, closed.row_version) == (KeyState.DEACTIVATED, 2)
        olds = key_store.add_active([make_record("shop", "b"), make_record("shop", "c")])
        replacements = [
            Replacement(old, in_state(old, KeyState.DEACTIVATED), make_record("shop", old.scope))
            for old in olds.values()
        ]
        proxy.lose_answer()
        holders = key_store.replace_all_active(replacements, next_mark=next_mark)
        assert {scope: record.key_id for scope, record in holders.items()} == {
            each.old.scope: each.new.key_id for each in replacements
        }
        changes = key_store.changes("shop", 0, [])
        assert changes is not None
        assert changes.mark.counter == 3
        assert proxy.lost == 5
