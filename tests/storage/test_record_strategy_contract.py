"""The record strategy, held to the contract that third parties' strategies are held to."""

import pytest

from eventseal.storage import (
    IntegerSequencedItemRecord,
    SQLAlchemyActiveRecordStrategy,
    SQLAlchemyDatastore,
    SQLAlchemySettings,
)
from eventseal.testing.record_strategy_contract import RecordStrategyContract


class TestSQLAlchemyRecordStrategy(RecordStrategyContract):
    @pytest.fixture
    def open_strategy(self, store_url):
        opened = []

        def make():
            datastore = SQLAlchemyDatastore(
                SQLAlchemySettings(uri=store_url), tables=(IntegerSequencedItemRecord,)
            )
            datastore.setup_tables()
            opened.append(datastore)
            return SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, session=datastore.session)

        yield make
        for datastore in opened:
            datastore.close()

    @pytest.fixture
    def strategy(self, open_strategy):
        return open_strategy()

    @pytest.fixture
    def other_strategy(self, strategy, open_strategy):
        return open_strategy()
