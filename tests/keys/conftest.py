"""A key store that fails and stops on command, and keyrings over it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.key_marks import mark_of

from eventseal.errors import EventSealError, StoreUnavailableError
from eventseal.keys import CachePolicy, InMemoryKeyStore, KeyRecord, Keyring, KeyState, RotationPolicy
from eventseal.keys.authentication.row_macs import Seals
from eventseal.keys.records import STORE_SCOPE
from eventseal.keys.states import KeyPurpose
from eventseal.testing import FakeKms, ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

pytest.register_assert_rewrite("eventseal.testing.key_store_contract")

READS = {"active", "get", "changes", "of_scope", "revocations"}
WRITES = {"add_active", "replace_all_active", "set_states", "advance", "reserve"}


class TestedStore(InMemoryKeyStore):
    """The key store in memory, with faults, gates and a clock that follows the keyring's."""

    __test__ = False

    def __init__(self, clock: ManualClock, **options: Any) -> None:
        super().__init__(
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=clock.now()), **options
        )
        self.calls: list[str] = []
        self.seals: dict[str, Seals] = {}
        self.failing: dict[str, EventSealError] = {}
        self._gates: dict[str, Gate] = {}

    def fail(self, *operations: str, error: EventSealError | None = None) -> None:
        """Answer *operations*, or all, with *error* until :meth:`recover`."""
        failure = error or StoreUnavailableError("the key store is away")
        self.failing.update(dict.fromkeys(operations or (READS | WRITES), failure))

    def recover(self) -> None:
        self.failing.clear()

    @contextmanager
    def gate(self, operation: str, *, after: bool = True) -> Iterator[Gate]:
        """Stop the next call of *operation*, its answer in hand or before it asks, until the gate opens."""
        gate = self._gates[operation] = Gate(after)
        try:
            yield gate
        finally:
            gate.open()

    # Records of the store, edited as somebody with a database client would.

    def edit(self, key_id: UUID, **changes: Any) -> None:
        self._records[key_id] = replace(self._records[key_id], **changes)

    def record(self, key_id: UUID) -> KeyRecord:
        return self._records[key_id]

    def records(self, application: str = "default") -> list[KeyRecord]:
        return self.page(application, limit=100_000)

    def data_records(self, application: str = "default") -> list[KeyRecord]:
        return [record for record in self.records(application) if record.purpose is KeyPurpose.DATA]

    def snapshot(self) -> tuple[Any, ...]:
        tables = self._records, self._changed, self._slots, self._marks, self._nodes
        return tuple([dict(table) for table in tables])

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        tables = [dict(table) for table in snapshot]
        self._records, self._changed, self._slots, self._marks, self._nodes = tables

    def active(self, *args: Any, **options: Any) -> Any:
        return self._through("active", super().active, *args, **options)

    def get(self, *args: Any, **options: Any) -> Any:
        return self._through("get", super().get, *args, **options)

    def of_scope(self, *args: Any, **options: Any) -> Any:
        return self._through("of_scope", super().of_scope, *args, **options)

    def changes(self, *args: Any, **options: Any) -> Any:
        return self._through("changes", super().changes, *args, **options)

    def add_active(self, *args: Any, **options: Any) -> Any:
        return self._through("add_active", super().add_active, *args, **options)

    def replace_all_active(self, *args: Any, **options: Any) -> Any:
        return self._through("replace_all_active", super().replace_all_active, *args, **options)

    def set_states(self, *args: Any, **options: Any) -> Any:
        return self._through("set_states", super().set_states, *args, **options)

    def advance(self, *args: Any, **options: Any) -> Any:
        return self._through("advance", super().advance, *args, **options)

    def revocations(self, *args: Any, **options: Any) -> Any:
        return self._through("revocations", super().revocations, *args, **options)

    def reserve(self, *args: Any, **options: Any) -> Any:
        return self._through("reserve", super().reserve, *args, **options)

    def _through(self, operation: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self.calls.append(operation)
        if operation in self.failing:
            raise self.failing[operation]
        gate = self._gates.pop(operation, None)
        if gate is not None and not gate.after:
            gate.stop()
        answer = call(*args, **options)
        if gate is not None and gate.after:
            gate.stop()
        return answer


class Gate:
    """A place where one call stops until it is let through."""

    def __init__(self, after: bool) -> None:
        self.after = after
        self._reached = threading.Event()
        self._opened = threading.Event()

    def stop(self) -> None:
        self._reached.set()
        assert self._opened.wait(60), "nobody opened the gate"

    def wait_reached(self) -> None:
        assert self._reached.wait(60), "nobody came to the gate"

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def kms() -> FakeKms:
    return FakeKms()


@pytest.fixture
def store(clock: ManualClock) -> TestedStore:
    return TestedStore(clock)


@pytest.fixture
def new_keyring(kms: FakeKms, store: TestedStore, clock: ManualClock) -> Callable[..., Keyring]:
    """Make a keyring as another process would have it: over the same KMS, key store and clock."""

    def make(**options: Any) -> Keyring:
        given = {"kms": kms, "key_store": store, "clock": clock} | options
        cache = {name: given.pop(name) for name in CachePolicy.__dataclass_fields__ if name in given}
        policy = {name: given.pop(name) for name in RotationPolicy.__dataclass_fields__ if name in given}
        return Keyring(
            given.pop("kms"),
            given.pop("key_store"),
            cache=CachePolicy(**cache),
            policy=RotationPolicy(**policy),
            **given,
        )

    return make


@pytest.fixture
def keyring(new_keyring: Callable[..., Keyring]) -> Keyring:
    return new_keyring()


@pytest.fixture
def destroy(store: TestedStore, kms: FakeKms) -> Callable[..., KeyRecord]:
    """Destroy a key as an erasure or a retirement in another process would."""

    def destroy(key_id: UUID, *, by: str = "retired", keep_slot: bool = False) -> KeyRecord:
        seals = seals_of(store, kms)
        record = store.record(key_id)
        tombstone = seals.sealed(
            replace(
                record,
                state=KeyState.DESTROYED,
                destroyed_by=by,
                active_scope=record.active_scope if keep_slot else None,
                row_version=record.row_version + 1,
            )
        )
        closed = {(record.purpose, record.scope): True} if keep_slot else {}
        with nothing_is_wrapped_under_branches():
            (stored,) = InMemoryKeyStore.set_states(
                store,
                [tombstone],
                next_mark=mark_of(seals, [tombstone], scopes=closed),
            )
        return stored

    return destroy


@contextmanager
def nothing_is_wrapped_under_branches() -> Iterator[None]:
    """Let a branch key be destroyed that others need, as no key store would and only an edit could."""
    from eventseal.storage.keys import state_changes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InMemoryKeyStore, "_wraps_others", lambda *_: False)
        patch.setattr(state_changes, "_wraps_others", lambda *_: False)
        yield


@pytest.fixture
def needed_branches_end() -> Callable[[], Any]:
    """Gives :func:`nothing_is_wrapped_under_branches`."""
    return nothing_is_wrapped_under_branches


def seals_of(store: TestedStore, kms: FakeKms, application: str = "default") -> Seals:
    """The seals of an application, as any process with access to the KMS can make them."""
    from eventseal.keys.authentication.row_checks import KeyringCounters
    from eventseal.keys.wrapping.kek_calls import KekCalls
    from eventseal.keys.wrapping.keks import Keks

    if application not in store.seals:
        record = InMemoryKeyStore.active(store, application, [STORE_SCOPE], purpose=KeyPurpose.STORE)[
            STORE_SCOPE
        ]
        calls = list(kms.calls)
        (key,) = Keks([kms], calls=KekCalls(KeyringCounters())).unwrap([record])
        kms.calls[:] = calls  # not one of the keyring under test
        store.seals[application] = Seals(key)
    return store.seals[application]


@pytest.fixture
def seals(store: TestedStore, kms: FakeKms) -> Callable[[], Seals]:
    return lambda: seals_of(store, kms)
