"""The keyring: which key seals, which opens."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from eventseal.errors import (
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    WrongApplicationError,
)
from eventseal.keys.counters import KeyringCounters
from eventseal.keys.data_key import DataKey
from eventseal.keys.key_ids import new_key_id
from eventseal.keys.policy import BootClock, CachePolicy, RotationPolicy
from eventseal.keys.records import DEFAULT_SCOPE, STORE_SCOPE, KeyRecord, checked_application, checked_scope
from eventseal.keys.seals import Seals, binding_of, is_bound
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping import Keks, context_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.policy import Clock
    from eventseal.keys.source import KeySource
    from eventseal.keys.store import KeyStore
    from eventseal.kms.adapter import KmsAdapter

_FIRST_BLOCK = 1024


class Keyring:
    """Decides which key seals and finds the key that opens."""

    def __init__(
        self,
        kms: KmsAdapter | Sequence[KmsAdapter],
        key_store: KeyStore,
        *,
        application: str = "default",
        policy: RotationPolicy | None = None,
        cache: CachePolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.counters = KeyringCounters()
        self._application = checked_application(application)
        self._keks = Keks(kms, count_calls=self._count_kms_calls)
        self._store = key_store
        self._policy = policy or RotationPolicy()
        self._cache_policy = cache or CachePolicy()
        self._clock = clock or BootClock()
        self._lock = threading.RLock()
        self._seals: Seals | None = None
        self._keys: dict[UUID, DataKey] = {}
        self._active: dict[str, DataKey] = {}

    @property
    def application(self) -> str:
        """The application that owns every key of this keyring."""
        return self._application

    def sealing_keys(self, items_by_scope: Mapping[str, int], *, make: bool = True) -> dict[str, DataKey]:
        """Give each scope's active key."""
        with self._lock:
            missing = [checked_scope(scope) for scope in items_by_scope if scope not in self._active]
            if missing:
                self._load_active(missing, make=make)
            return {scope: self._active[scope] for scope in items_by_scope if scope in self._active}

    def opening_keys(self, key_ids: Collection[UUID]) -> dict[UUID, DataKey | EventSealError]:
        """Give each key, or why there is none."""
        with self._lock:
            missing = [key_id for key_id in key_ids if key_id not in self._keys]
            found: dict[UUID, DataKey | EventSealError] = {}
            if missing:
                records = self._store.get(missing)
                for key_id in missing:
                    found[key_id] = self._open(key_id, records.get(key_id))
            return {key_id: found.get(key_id) or self._keys[key_id] for key_id in key_ids}

    def rotate(self, scope: str = DEFAULT_SCOPE, *, compromised: bool = False) -> KeyRecord:
        """Give *scope* a new active key; the old one opens only."""
        with self._lock:
            old = self._store.active(self._application, [scope]).get(scope)
            if old is None:
                self.prepare([scope])
                return self._store.active(self._application, [scope])[scope]
            seals = self._store_seals()
            if old.state is KeyState.DESTROYED:
                raise KeyDestroyedError(
                    f"scope {scope!r} is closed", scope=scope, destroyed_by=old.destroyed_by
                )
            state = KeyState.COMPROMISED if compromised else KeyState.DEACTIVATED
            closed = seals.sealed(
                replace(old, state=state, active_scope=None, row_version=old.row_version + 1)
            )
            key, new = self._make(scope, KeyPurpose.DATA)
            revoked = seals.set_hash([old.key_id]) if compromised else 0
            kept = self._store.replace_active(
                old, closed, seals.sealed(new), next_mark=lambda mark: seals.next_mark(mark, revoked=revoked)
            )
            self._active.pop(scope, None)
            self._keys.pop(old.key_id, None)
            if kept.key_id == new.key_id:
                self._remember(key, kept)
            return kept

    def prepare(self, scopes: Collection[str]) -> None:
        """Make the keys of *scopes* that have none."""
        self.sealing_keys(dict.fromkeys(scopes, 0))

    def refresh(self) -> None:
        """Look at once for keys whose state changed."""
        with self._lock:
            self._active.clear()
            self._keys.clear()

    def close(self) -> None:
        """Forget every key."""
        with self._lock:
            for key in self._keys.values():
                key.close()
            self._active.clear()
            self._keys.clear()

    def _count_kms_calls(self, calls: int) -> None:
        self.counters.kms_calls += calls

    def _load_active(self, scopes: list[str], *, make: bool) -> None:
        seals = self._store_seals()
        records = self._store.active(self._application, scopes)
        absent = [scope for scope in scopes if scope not in records]
        if make and absent:
            made = {scope: self._make(scope, KeyPurpose.DATA) for scope in absent}
            stored = self._store.add_active([seals.sealed(record) for _, record in made.values()])
            for scope, record in stored.items():
                key, mine = made[scope]
                if record.key_id == mine.key_id:
                    self._remember(key, record)
                else:
                    records[scope] = record
        for scope, record in records.items():
            outcome = self._open(record.key_id, record)
            if isinstance(outcome, EventSealError):
                raise outcome
            self._active[scope] = outcome

    def _open(self, key_id: UUID, record: KeyRecord | None) -> DataKey | EventSealError:
        try:
            if record is None:
                raise KeyNotFoundError(f"the key store has no key {key_id}", key_id=key_id)
            if record.application != self._application:
                raise WrongApplicationError(
                    f"key {key_id} belongs to application {record.application!r}, not to {self._application!r}",
                    expected=self._application,
                    found=record.application,
                )
            self._store_seals().check(record)
            if record.state is KeyState.DESTROYED:
                raise KeyDestroyedError(
                    f"key {key_id} was {record.destroyed_by}",
                    key_id=key_id,
                    scope=record.scope,
                    destroyed_by=record.destroyed_by,
                )
            return self._remember(self._unwrapped(record), record)
        except EventSealError as error:
            return error

    def _unwrapped(self, record: KeyRecord) -> bytes:
        (key,) = self._keks.unwrap([record])
        if isinstance(key, EventSealError):
            raise key
        if not is_bound(key, record):
            raise IntegrityError(
                f"key {record.key_id} is not the one its row was made for", key_id=record.key_id
            )
        return key

    def _remember(self, key: bytes, record: KeyRecord) -> DataKey:
        handle = self._handle(key, record)
        self._keys[record.key_id] = handle
        if record.active_scope is not None:
            self._active[record.scope] = handle
        return handle

    def _handle(self, key: bytes, record: KeyRecord) -> DataKey:
        return DataKey(
            key,
            key_id=record.key_id,
            application=record.application,
            scope=record.scope,
            purpose=record.purpose,
            state=record.state,
        )

    def _make(self, scope: str, purpose: KeyPurpose) -> tuple[bytes, KeyRecord]:
        record = KeyRecord(
            key_id=new_key_id(),
            application=self._application,
            scope=scope,
            active_scope=scope,
            purpose=purpose,
            state=KeyState.ACTIVE,
            binding=b"",
            items_reserved=_FIRST_BLOCK,
            seal=b"",
        )
        ((key, wrappings),) = self._keks.generate([context_of(record)])
        return key, replace(record, binding=binding_of(key, record), wrappings=wrappings)

    def _store_seals(self) -> Seals:
        if self._seals is None:
            record = self._store.active(self._application, [STORE_SCOPE], purpose=KeyPurpose.STORE).get(
                STORE_SCOPE
            )
            if record is None:
                key, made = self._make(STORE_SCOPE, KeyPurpose.STORE)
                seals = Seals(self._handle(key, made))
                made = seals.sealed(made)
                record = self._store.add_active([made], mark=seals.first_mark())[STORE_SCOPE]
            seals = Seals(self._handle(self._unwrapped(record), record))
            seals.check(record)
            self._seals = seals
        return self._seals


if TYPE_CHECKING:
    _: type[KeySource] = Keyring
