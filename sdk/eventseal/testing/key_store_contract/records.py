"""What a subclass gives the suite, and the records and marks that the tests are made of."""

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

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import Literal
    from uuid import UUID

    from eventseal.keys.records import Changes, NextMark, Replacement
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


_Result = TypeVar("_Result")

THREADS = 8


class RefusedMarkError(Exception):
    """What the suite's ``next_mark`` raises when it refuses a mark."""


def make_record(
    application: str, scope: str, *, purpose: KeyPurpose = KeyPurpose.DATA, items_reserved: int = 0
) -> KeyRecord:
    """Make a complete active record; its binding and seal are random, since a key store checks neither."""
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
    """Give the record that follows *record* in *state*."""
    return replace(
        record,
        state=state,
        active_scope=record.active_scope if keep_slot else None,
        destroyed_by=destroyed_by,
        row_version=record.row_version + 1,
        seal=os.urandom(32),
    )


def replace_one(store: KeyStore, replacement: Replacement, *, next_mark: NextMark) -> KeyRecord:
    """Close one active key and make another; give the record that holds the slot now."""
    return store.replace_all_active([replacement], next_mark=next_mark)[replacement.old.scope]


class GivenMark:
    """
    A ``next_mark`` that stores given nodes.

    Args:
        changed: By path the contents to store.
        paths: The nodes to read before.

    Attributes:
        found: The nodes that were there when it was called last.
        given: The mark that it gave last.
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
        """Give a mark with the next counter and values of its own."""
        self.found = nodes
        self.given = replace(mark, counter=mark.counter + 1, revoked=os.urandom(32), seal=os.urandom(32))
        return self.given, self._changed


class GivenAdmission:
    """
    An ``admit`` with a given answer.

    Args:
        revoked: What a mark has under which it is not asked.
        admits: The answer.
        paths: The nodes to read.

    Attributes:
        asked: What it was called with last.
    """

    def __init__(self, revoked: bytes, *, admits: bool, paths: Collection[bytes] = ()) -> None:
        self.revoked = revoked
        self.paths = paths
        self.asked: tuple[ChangeMark, Mapping[bytes, bytes]] | None = None
        self._admits = admits

    def __call__(self, mark: ChangeMark, nodes: Mapping[bytes, bytes]) -> bool:
        """Give the answer."""
        self.asked = mark, nodes
        return self._admits


class RefusedMark(GivenMark):
    """A ``next_mark`` that refuses, as a keyring does that finds a mark edited."""

    def __call__(
        self, mark: ChangeMark, nodes: Mapping[bytes, bytes]
    ) -> tuple[ChangeMark, Mapping[bytes, bytes]]:
        """Refuse *mark*."""
        raise RefusedMarkError(f"mark {mark.counter} of {mark.application}, {len(nodes)} nodes")


next_mark = GivenMark()
refuse_mark = RefusedMark()


def in_threads(work: Callable[[int], _Result], count: int = THREADS) -> list[_Result]:
    """Run *work* with 0, 1, ... in that many threads that start together."""
    barrier = Barrier(count)

    def run(number: int) -> _Result:
        barrier.wait(timeout=30)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def the_changes(store: KeyStore, application: str, since: int, key_ids: Iterable[UUID] = ()) -> Changes:
    """Read the changes of an application that has a mark."""
    changes = store.changes(application, since, list(key_ids))
    assert changes is not None
    return changes


def assert_same(stored: KeyRecord, given: KeyRecord) -> None:
    """Compare everything but the times, which are the store's; wrappings in any order."""
    untimed = replace(stored, created_at=None, deactivated_at=None, compromised_at=None, destroyed_at=None)
    expected = replace(given, created_at=None, deactivated_at=None, compromised_at=None, destroyed_at=None)
    assert replace(untimed, wrappings=()) == replace(expected, wrappings=())
    assert sorted(untimed.wrappings, key=repr) == sorted(expected.wrappings, key=repr)
