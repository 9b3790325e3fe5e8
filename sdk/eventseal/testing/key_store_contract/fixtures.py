"""What a subclass of the suite gives it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from eventseal.keys.records import STORE_SCOPE, ChangeMark
from eventseal.keys.states import KeyPurpose
from eventseal.testing.key_store_contract.records import make_record

if TYPE_CHECKING:
    from eventseal.keys.store import KeyStore


class KeyStoreFixtures:
    """The fixtures of the suite; the first two are the subclass's own."""

    @pytest.fixture
    def store(self) -> KeyStore:
        """A key store with its tables made. Override it."""
        raise NotImplementedError("override the fixture `store`")

    @pytest.fixture
    def other_store(self, store: KeyStore) -> KeyStore:
        """A second handle on the database of *store*, as another process would have it. Override it."""
        raise NotImplementedError("override the fixture `other_store`")

    @pytest.fixture
    def application(self, store: KeyStore) -> str:
        """An application of the test's own, with its store key and first mark."""
        name = f"contract-{uuid4().hex[:12]}"
        record = make_record(name, STORE_SCOPE, purpose=KeyPurpose.STORE)
        mark = ChangeMark(application=name, counter=0, revoked=bytes(32), seal=os.urandom(32))
        store.add_active([record], mark=mark)
        return name
