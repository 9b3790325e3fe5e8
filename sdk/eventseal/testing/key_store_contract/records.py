"""The suite's fixtures, and the records and marks of its tests."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import pytest

from eventseal.keys.records import STORE_SCOPE, ChangeMark, KeyRecord, new_key_id
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.kms.adapter import WrappedKey
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import Literal
    from uuid import UUID

    from eventseal.keys.records import Changes, NextMark, Replacement
    from eventseal.keys.store import KeyStore


class KeyStoreFixtures:
    """The fixtures of the suite. Override ``store`` and ``other_store``."""

    @pytest.fixture
    def store(self) -> KeyStore:
        """A key store whose tables exist. Override it."""
        raise NotImplementedError("override the fixture `store`")

    @pytest.fixture
    def other_store(self, store: KeyStore) -> KeyStore:
        """A second handle on the database of *store*, like another process's. Override it."""
        raise NotImplementedError("override the fixture `other_store`")

    @pytest.fixture
    def application(self, store: KeyStore) -> str:
        """An application of this test, with its store key and first mark."""
        name = f"contract-{uuid4().hex[:12]}"
        record = make_record(name, STORE_SCOPE, purpose=KeyPurpose.STORE)
        mark = ChangeMark(application=name, counter=0, revoked=bytes(32), seal=os.urandom(32))
        store.add_active([record], mark=mark)
        return name


_Result = TypeVar("_Result")

THREADS = 8


class RefusedMarkError(Exception):
    """Raised by the suite's ``next_mark`` when it refuses a mark."""


def make_record(
    application: str, scope: str, *, purpose: KeyPurpose = KeyPurpose.DATA, items_reserved: int = 0
) -> KeyRecord:
    """Return a complete active record. Its binding and seal are random, since a key store checks neither."""
    return KeyRecord(
        key_id=new_key_id(),
        application=application,
        scope=scope,
        active_scope=scope,
        purpose=purpose,
        state=KeyState.ACTIVE,
        binding=os.urandom(32),
        items_reserved=items_reserved,
        seal=os.urandom(32),
        wrappings=(
            WrappedKey(kek_uri="fake://one", kek_version="7", ciphertext=b"\0first\xff"),
            WrappedKey(kek_uri="fake://two", kek_version=None, ciphertext=os.urandom(60)),
        ),
    )


def in_state(
    record: KeyRecord,
    state: KeyState,
    *,
    destroyed_by: Literal["retired", "shredded"] | None = None,
    keep_slot: bool = False,
) -> KeyRecord:
    """Return the record that follows *record* in *state*."""
    return replace(
        record,
        state=state,
        active_scope=record.active_scope if keep_slot else None,
        destroyed_by=destroyed_by,
        row_version=record.row_version + 1,
        seal=os.urandom(32),
    )


def replace_one(store: KeyStore, replacement: Replacement, *, next_mark: NextMark) -> KeyRecord:
    """Replace one active key, and return the holder of its slot."""
    return store.replace_all_active([replacement], next_mark=next_mark)[replacement.old.scope]


class GivenMark:
    """
    A ``next_mark`` that stores given nodes.

    Args:
        changed: The contents to store, by path.
        paths: The paths of the nodes to read first.

    Attributes:
        found: The nodes that existed at the last call.
        given: The mark that the last call returned.
    """

    def __init__(
        self, changed: Mapping[bytes, bytes] | None = None, *, paths: Collection[bytes] = ()
    ) -> None:
        self.paths = paths
        self.found: Mapping[bytes, bytes] = {}
        self.given: ChangeMark | None = None
        self._changed = changed or {}

    def __call__(
        self, mark: ChangeMark, nodes: Mapping[bytes, bytes]
    ) -> tuple[ChangeMark, Mapping[bytes, bytes]]:
        """Return a mark with the next counter and new random values."""
        self.found = nodes
        self.given = replace(mark, counter=mark.counter + 1, revoked=os.urandom(32), seal=os.urandom(32))
        return self.given, self._changed


class GivenAdmission:
    """
    An ``admit`` with a fixed answer.

    Args:
        revoked: The value in a mark under which a key store does not call it.
        admits: The answer.
        paths: The paths of the nodes to read.

    Attributes:
        asked: The arguments of the last call.
    """

    def __init__(self, revoked: bytes, *, admits: bool, paths: Collection[bytes] = ()) -> None:
        self.revoked = revoked
        self.paths = paths
        self.asked: tuple[ChangeMark, Mapping[bytes, bytes]] | None = None
        self._admits = admits

    def __call__(self, mark: ChangeMark, nodes: Mapping[bytes, bytes]) -> bool:
        """Return the answer."""
        self.asked = mark, nodes
        return self._admits


class RefusedMark(GivenMark):
    """A ``next_mark`` that refuses, as a keyring refuses an edited mark."""

    def __call__(
        self, mark: ChangeMark, nodes: Mapping[bytes, bytes]
    ) -> tuple[ChangeMark, Mapping[bytes, bytes]]:
        """Refuse *mark*."""
        raise RefusedMarkError(
            f"mark {mark.counter} of {mark.application} with {counted(len(nodes), 'node')} is refused"
        )


next_mark = GivenMark()
refuse_mark = RefusedMark()


def in_threads(work: Callable[[int], _Result], count: int = THREADS) -> list[_Result]:
    """Run *work* with 0, 1, ... in *count* threads that start together."""
    barrier = Barrier(count)

    def run(number: int) -> _Result:
        barrier.wait(timeout=30)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def the_changes(store: KeyStore, application: str, since: int, key_ids: Iterable[UUID] = ()) -> Changes:
    """Return the changes of an application that has a mark."""
    changes = store.changes(application, since, list(key_ids))
    assert changes is not None
    return changes


def assert_same(stored: KeyRecord, given: KeyRecord) -> None:
    """Compare two records, without their times and the order of wrappings. The key store sets the times."""
    untimed = replace(stored, created_at=None, deactivated_at=None, compromised_at=None, destroyed_at=None)
    expected = replace(given, created_at=None, deactivated_at=None, compromised_at=None, destroyed_at=None)
    assert replace(untimed, wrappings=()) == replace(expected, wrappings=())
    assert sorted(untimed.wrappings, key=repr) == sorted(expected.wrappings, key=repr)
