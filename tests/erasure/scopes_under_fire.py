"""
A scope that is shredded while others load, seal, rotate, encrypt again, wrap again and make its keys.

The keyrings and their ciphers are the real ones. Around them, every call to the key store, the KMS, the clock
and what a process remembers is a step of a schedule, and the items are a table in memory whose transactions
keep the fences' rules: `tests/lifecycle` plays the same against databases.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from uuid import UUID, uuid5

from tests.erasure.scheduling import step

from eventseal.cipher import AESCipher, ItemContext, Opened
from eventseal.errors import EventSealError, KeyClosedError, KeyDestroyedError
from eventseal.keys import CachePolicy, DataKey, InMemoryKeyStore, KeyPurpose, Keyring, KeyState
from eventseal.keys.ring.held_keys import HeldKeys
from eventseal.testing import FakeKms, ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SCOPE, OTHER = "subject:c-1", "subject:c-2"
APPLICATION = "default"
INTERVAL = 60.0
PURPOSES = (KeyPurpose.DATA, KeyPurpose.FIELD)
_NAMESPACE = UUID(int=0)
_TOPIC = "shop:Noted"


class CameBackError(AssertionError):
    """Something of a shredded scope came back."""


class SteppingClock(ManualClock):
    """A clock: between what it says and what is done then, others may go on."""

    def now(self) -> float:
        now = super().now()
        step()
        return now


_STORE_CALLS = (
    "active",
    "get",
    "of_scope",
    "add_active",
    "replace_all_active",
    "set_states",
    "put_wrappings",
    "mark_wrappings_verified",
    "drop_wrappings",
    "kek_uses",
    "page",
    "reserve",
    "changes",
    "revocations",
    "advance",
)
_REMEMBERED = (
    "moment",
    "asked",
    "learn",
    "keep",
    "admit",
    "seat",
    "unseat",
    "bury",
    "note_change",
    "outlives_kms",
)
_KMS_CALLS = ("generate_data_key", "wrap", "unwrap")


def _first_a_step(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        step()
        return method(*arguments, **options)

    return call


def _between_steps(cls: type[Any], name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        step()
        answer = getattr(cls, name)(*arguments, **options)
        step()
        return answer

    return call


class SteppingStore(InMemoryKeyStore):
    """A key store: others may go on before each of its transactions, and before its answer comes back."""


class SteppingKms(FakeKms):
    """A KMS: others may go on before each call, and before its answer comes back."""


for _name in _STORE_CALLS:
    setattr(SteppingStore, _name, _between_steps(InMemoryKeyStore, _name))
for _name in _KMS_CALLS:
    setattr(SteppingKms, _name, _between_steps(FakeKms, _name))


@contextmanager
def stepping() -> Iterator[None]:
    """Make a step before each thing that a process remembers or forgets, and before each use of a handle."""
    with ExitStack() as patches:
        for name in _REMEMBERED:
            patches.enter_context(patch.object(HeldKeys, name, _first_a_step(getattr(HeldKeys, name))))
        patches.enter_context(patch.object(DataKey, "pool", _first_a_step(DataKey.pool)))
        yield


@dataclass
class Items:
    """The table of items with its fences: each method but the reads is one transaction."""

    rows: dict[ItemContext, bytes] = field(default_factory=dict)
    closed: set[UUID] = field(default_factory=set)

    def append(self, place: ItemContext, data: bytes) -> None:
        step()
        self._hold_fence(data)
        assert place not in self.rows
        self.rows[place] = data
        step()

    def swap(self, place: ItemContext, old: bytes, new: bytes, *, source_lives: Callable[[], bool]) -> bool:
        step()
        self._hold_fence(new)
        if self.rows[place] != old or not source_lives():
            return False
        self.rows[place] = new
        step()
        return True

    def close_fences(self, key_ids: Sequence[UUID]) -> None:
        step()
        self.closed.update(key_ids)

    def _hold_fence(self, data: bytes) -> None:
        key_id = UUID(bytes=data[3:19])
        if key_id in self.closed:
            raise KeyClosedError(f"the fence of key {key_id} is closed", key_ids=(key_id,))


class Process:
    """A process of the application: a keyring, and what is known of it from outside."""

    def __init__(self, world: World, **options: Any) -> None:
        self.world = world
        self.keyring = Keyring(
            options.pop("kms", world.kms),
            world.store,
            application=APPLICATION,
            clock=world.clock,
            cache=CachePolicy(refresh_interval=INTERVAL, **options.pop("cache", {})),
            **options,
        )
        self.cipher = AESCipher(self.keyring)
        self.saw_shred = False

    def warm(self) -> None:
        """Load the store key and another scope's, and confirm what there is."""
        self.keyring.sealing_keys({OTHER: 0})

    # --- what actors do; each judges what it got by what was settled before it asked ---

    def load(self, key_ids: Sequence[UUID], *, purpose: KeyPurpose = KeyPurpose.DATA) -> None:
        """Ask for keys that open."""
        settled = self._is_settled()
        for key_id, outcome in self.keyring.opening_keys(key_ids, purpose=purpose).items():
            self._judge(outcome, settled, f"key {key_id}")

    def read(self, places: Sequence[ItemContext]) -> None:
        """Open items."""
        settled = self._is_settled()
        asked = [(self.world.items.rows[place], place) for place in places]
        for outcome in self.cipher.open_many(asked):
            self._judge(outcome, settled, "an item")

    def seal(self, *, purpose: KeyPurpose = KeyPurpose.DATA) -> None:
        """Ask for the key that seals, making one if there is none."""
        settled = self._is_settled()
        self._judge(
            self._tried(lambda: self.keyring.sealing_keys({SCOPE: 1}, purpose=purpose)[SCOPE]),
            settled,
            "a key",
        )

    def append(self, number: int) -> None:
        """Store an item, sealed once more if the fence was closed, as an event store does."""
        settled = self._is_settled()
        place = place_of(number)

        def once() -> bytes:
            data = self.cipher.encrypt(b"a snapshot of the whole", place, scope=SCOPE)
            self.world.items.append(place, data)
            return data

        def twice() -> bytes:
            try:
                return once()
            except KeyClosedError:
                self.cipher.refresh()
                return once()

        self._judge(self._tried(twice), settled, "an append")

    def snapshot(self, number: int) -> None:
        """Replay, hold what was read in memory, and store it sealed."""
        self.read([place_of(0)])
        self.append(number)

    def reencrypt(self, numbers: Sequence[int]) -> None:
        """Seal items again under the active key, and swap each; as a batch of a rotation does."""
        world = self.world
        places = [place_of(number) for number in numbers]
        olds = [world.items.rows[place] for place in places]
        settled = self._is_settled()
        columns = _Columns(places, olds)
        outcomes = self._tried(lambda: self.cipher.reseal_many(columns, "items"))
        if isinstance(outcomes, EventSealError):
            self._judge(outcomes, settled, "a re-encryption")
            return
        for place, old, new in zip(places, olds, outcomes, strict=True):
            if not isinstance(new, bytes):
                if new is not None:
                    self._judge(new, settled, "a re-encryption")
                continue
            source = UUID(bytes=old[3:19])

            def source_lives(source: UUID = source) -> bool:
                return world.store._records[source].state is not KeyState.DESTROYED

            try:
                world.items.swap(place, old, new, source_lives=source_lives)
            except KeyClosedError:
                continue

    def rotate(self) -> None:
        settled = self._is_settled()
        self._judge(self._tried(lambda: self.keyring.rotate(SCOPE)), settled, "a rotation")

    def compromise(self, key_ids: Sequence[UUID]) -> None:
        settled = self._is_settled()
        self._judge(self._tried(lambda: self.keyring.compromise(key_ids)), settled, "a compromise")

    def retire(self, key_ids: Sequence[UUID]) -> None:
        """Destroy keys of which no item is left; what a shred was quicker with stays shredded."""
        self.keyring.destroyer.retire(key_ids)

    def rewrap(self) -> None:
        """Wrap every key again, wherever it should be."""
        self.keyring.rewrap(batch=10, verify=True)

    def refresh(self) -> None:
        was_shredded = self.world.shredded_at is not None
        self.keyring.refresh()
        self.saw_shred |= was_shredded

    def shred(self) -> None:
        """Shred the scope, and close its fences."""
        ended = self.keyring.shred(SCOPE)
        world = self.world
        world.items.close_fences([record.key_id for record in ended.keys])
        if world.shredded_at is None:
            world.shredded_at = ManualClock.now(world.clock)
            world.keys_then = {record.key_id for record in world.rows()}
        self.saw_shred = True

    def _is_settled(self) -> bool:
        """Whether nothing of the scope may open or seal in this process from now on."""
        at = self.world.shredded_at
        return at is not None and (self.saw_shred or ManualClock.now(self.world.clock) > at + INTERVAL)

    def _tried(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (KeyDestroyedError, KeyClosedError) as error:
            return error

    def _judge(self, outcome: Any, settled: bool, what: str) -> None:
        if isinstance(outcome, EventSealError):
            if isinstance(outcome, KeyDestroyedError):
                is_fair = outcome.destroyed_by in self.world.endings
            else:
                is_fair = isinstance(outcome, self.world.fair)
            if not is_fair:
                raise CameBackError(f"{what}: {outcome!r}") from outcome
        elif settled:
            raise CameBackError(
                f"{what}: {outcome!r}, though the scope was shredded and this process knew it"
            )


class _Columns:
    """Items column by column, as ``reseal_many`` takes them."""

    def __init__(self, places: Sequence[ItemContext], envelopes: Sequence[bytes]) -> None:
        self.sequence_ids = [place.sequence_id for place in places]
        self.positions = [place.position for place in places]
        self.topics = [place.topic for place in places]
        self.envelopes = list(envelopes)


def place_of(number: int) -> ItemContext:
    """The place of an item of the scope."""
    return ItemContext(uuid5(_NAMESPACE, "acme"), number, _TOPIC)


class World:
    """
    A key store, a KMS, a table of items, and the processes on them.

    Args:
        keys: How many data keys the scope has: all but the last are deactivated.
        branches: Of each keyring; ``None``: every key is wrapped by the KEK.

    Attributes:
        shredded_at: When the first shred had returned, by the clock.
        keys_then: Every key that the scope had then.
        endings: How its keys may have ended.
        fair: What else may keep an actor from a key than its end.
    """

    def __init__(self, *, keys: int = 2, branches: int | None = None) -> None:
        self.clock = SteppingClock()
        self.store = SteppingStore(
            refresh_interval=INTERVAL,
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=ManualClock.now(self.clock)),
        )
        self.kms = SteppingKms("first")
        self.items = Items()
        self.processes: list[Process] = []
        self.shredded_at: float | None = None
        self.keys_then: set[UUID] = set()
        self.endings = {"shredded"}
        self.fair: tuple[type[EventSealError], ...] = (KeyClosedError,)
        self._branches = branches
        maker = self.process()
        self.key_ids: list[UUID] = []
        for number in range(keys):
            if number:
                maker.keyring.rotate(SCOPE)
            self.key_ids.append(maker.keyring.sealing_keys({SCOPE: 1})[SCOPE].key_id)
            place = place_of(number)
            self.items.append(place, maker.cipher.encrypt(b"personal", place, scope=SCOPE))
        self.others_place = ItemContext(uuid5(_NAMESPACE, "other"), 0, _TOPIC)
        self.items.append(self.others_place, maker.cipher.encrypt(b"kept", self.others_place, scope=OTHER))

    def process(self, *, cold: bool = False, **options: Any) -> Process:
        """Start a process that knows of nothing but another scope; a cold one not even of that."""
        started = Process(self, **{"branches": self._branches, **options})
        if not cold:
            started.warm()
        self.processes.append(started)
        return started

    def rows(self) -> list[Any]:
        """Every key of the scope, as it is stored."""
        return InMemoryKeyStore.of_scope(self.store, APPLICATION, SCOPE)

    # --- what must hold in the end ---

    def check(self) -> None:
        """
        See that nothing of the scope opens or seals anywhere once the interval has gone by.

        Raises:
            CameBackError: Something does.
        """
        if self.shredded_at is None:
            raise CameBackError("the shred did not return")
        over = self.shredded_at + INTERVAL + 0.001
        self.clock.advance(max(0.0, over - ManualClock.now(self.clock)))
        self._check_store()
        for process in [*self.processes, self.process()]:
            self._check_process(process)
        self._check_store()  # nor has anybody made a key while being asked

    def _check_store(self) -> None:
        rows = self.rows()
        stored = InMemoryKeyStore.get(self.store, [row.key_id for row in rows])
        for row in stored.values():
            if row.state is not KeyState.DESTROYED or row.wrappings or row.destroyed_by not in self.endings:
                raise CameBackError(f"a key of the scope lives: {row}")
        if {row.key_id for row in rows} != self.keys_then:
            raise CameBackError("a key of the scope was made after the shred")
        slots = {row.purpose for row in rows if row.active_scope == SCOPE and row.destroyed_by == "shredded"}
        if slots != {KeyPurpose.DATA, KeyPurpose.FIELD, KeyPurpose.INDEX}:
            raise CameBackError(f"the scope is not closed: tombstones hold {slots}")

    def _check_process(self, process: Process) -> None:
        for row in self.rows():
            if row.purpose in PURPOSES:
                process.load([row.key_id], purpose=row.purpose)
        for purpose in PURPOSES:
            process.seal(purpose=purpose)
            if process.keyring.sealing_keys({OTHER: 0})[OTHER].scope != OTHER:
                raise CameBackError("another scope is not sealed for")
        process.read([place for place in self.items.rows if place is not self.others_place])
        (kept,) = process.cipher.open_many([(self.items.rows[self.others_place], self.others_place)])
        if not isinstance(kept, Opened):
            raise CameBackError(f"another scope's item does not open: {kept!r}")
        memory = process.keyring._held_keys
        for purpose in PURPOSES:
            held = [cached.key for cached in memory.of(purpose).keys.values() if cached.record.scope == SCOPE]
            if held or SCOPE in memory.of(purpose).active:
                raise CameBackError(f"a process still holds {held}")
