"""The key store in memory passes the suite that every key store must pass."""

from __future__ import annotations

import pytest

from eventseal.keys import InMemoryKeyStore, KeyStore
from eventseal.testing.key_store_contract import KeyStoreContract


class TestInMemoryKeyStore(KeyStoreContract):
    @pytest.fixture
    def store(self) -> KeyStore:
        return InMemoryKeyStore()

    @pytest.fixture
    def other_store(self, store: KeyStore) -> KeyStore:
        return store
