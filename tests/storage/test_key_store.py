"""The key store, over the contract that all key stores share, and what is special about databases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore
from eventseal.testing.key_store_contract import KeyStoreContract

if TYPE_CHECKING:
    from eventseal.keys.store import KeyStore


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
