"""The operations whose every dependency call is failed: how each begins, runs, and is seen done."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from tests.fixtures.dependencies import Fault
from tests.fixtures.old_formats import OLD_KEY, gcm
from tests.fixtures.sealed_shops import TENANTS, SealedShop, assert_sound, places_of, scope_of, stream_of

from eventseal.cipher import ItemContext
from eventseal.erasure import shred
from eventseal.errors import KeyDestroyedError
from eventseal.eventstore import EventStore
from eventseal.items import SequencedItemMapper
from eventseal.items.acceptance import AcceptedFormats
from eventseal.items.formats import EventsourcingGCM
from eventseal.keys.states import KeyState
from eventseal.rotation import (
    begin_migration,
    finish_migration,
    migrate,
    reencrypt,
    retire,
    rewrap,
    rotate_keys,
    verify,
)
from eventseal.rotation.jobs.jobs import FINISHED, list_jobs
from eventseal.rotation.rewrapping import kek_report
from eventseal.storage import IntegerSequencedItemRecord
from eventseal.storage.items.registry import read_registry
from eventseal.storage.jobs.jobs import SETTLING

if TYPE_CHECKING:
    from tests.fixtures.profiles import Profile
    from tests.fixtures.sealed_shops import Place

    from eventseal.kms import KmsAdapter

ACME, GLOBEX = TENANTS


WITHOUT_CLOCK = tuple(fault for fault in Fault if fault is not Fault.SUSPENDED)


class Operation:
    """
    One run of an operation against a fault.

    Args:
        profile: How much there is to do.

    Attributes:
        branches: Of the keyrings.
        makes_many_calls: Of which a sample fails in every run of the tests.
        items: Events that there are before, of two tenants.
        faults: Those that it can meet.
    """

    branches: int | None = None
    makes_many_calls = False
    faults: tuple[Fault, ...] = tuple(Fault)

    def __init__(self, profile: Profile) -> None:
        self.items = min(profile.items, 20)

    @classmethod
    def keks(cls, keks: list[KmsAdapter]) -> list[KmsAdapter]:
        """Those that the process under test has, of the two that there are."""
        return keks[:1]

    def prepare(self, shop: SealedShop) -> None:
        """What is there before, made without faults."""
        for tenant in TENANTS:
            shop.append(tenant, 0, self.items // 2)

    def run(self, shop: SealedShop) -> None:
        """Do it; again, after a fault, with the same objects."""
        raise NotImplementedError

    def places(self, shop: SealedShop) -> set[Place]:
        """The events that there must be now, after a fault or at the end, by what was acknowledged."""
        return {place for tenant in TENANTS for place in places_of(tenant, self.items // 2)}

    def assert_sound(self, shop: SealedShop) -> None:
        """See that these events are there, and every one of them whole; *shop* has nothing in memory."""
        assert_sound(shop, self.places(shop))

    def check(self, shop: SealedShop) -> None:
        """See that it is done."""


class Append(Operation):
    """Events of a new application, one transaction each: the store key and a data key are made first."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self.items = profile.appends
        self._acknowledged = 0

    def prepare(self, shop: SealedShop) -> None:
        pass

    def run(self, shop: SealedShop) -> None:
        while self._acknowledged < self.items:
            shop.append(ACME, self._acknowledged)
            self._acknowledged += 1

    def places(self, shop: SealedShop) -> set[Place]:
        stored = len(shop.strategy.get_items(stream_of(ACME)))
        # Of an append that failed, the outcome may be unknown: its caller reads before it appends again.
        assert stored in {self._acknowledged, self._acknowledged + 1}
        self._acknowledged = stored
        return places_of(ACME, stored)

    def check(self, shop: SealedShop) -> None:
        assert self._acknowledged == self.items


class AppendBatch(Operation):
    """Events of two tenants in one transaction."""

    def run(self, shop: SealedShop) -> None:
        if not self._is_stored(shop):
            shop.append_for_all(self.items // 2, self.items)

    def places(self, shop: SealedShop) -> set[Place]:
        count = self.items if self._is_stored(shop) else self.items // 2
        return {place for tenant in TENANTS for place in places_of(tenant, count)}

    def check(self, shop: SealedShop) -> None:
        assert self._is_stored(shop)

    def _is_stored(self, shop: SealedShop) -> bool:
        counts = {len(shop.strategy.get_items(stream_of(tenant))) for tenant in TENANTS}
        assert counts in ({self.items // 2}, {self.items}), "half a batch"
        return counts == {self.items}


class Read(Operation):
    """A replay by a process that has no key yet."""

    def run(self, shop: SealedShop) -> None:
        assert shop.readable_places() == self.places(shop)


class Rotate(Operation):
    """One scope's key is replaced."""

    def run(self, shop: SealedShop) -> None:
        shop.keyring.rotate(scope_of(ACME))

    def check(self, shop: SealedShop) -> None:
        states = shop.key_states()
        assert states[KeyState.ACTIVE] == 2
        assert states[KeyState.DEACTIVATED] >= 1
        assert states.keys() <= {KeyState.ACTIVE, KeyState.DEACTIVATED}


class RotateBranches(Rotate):
    """The branch keys are replaced, and then a data key."""

    branches = 2
    makes_many_calls = True

    def run(self, shop: SealedShop) -> None:
        shop.keyring.rotate_branches()
        super().run(shop)


class Rewrap(Operation):
    """Every key is wrapped under a second KEK as well, which was listed later."""

    makes_many_calls = True
    faults = WITHOUT_CLOCK

    @classmethod
    def keks(cls, keks: list[KmsAdapter]) -> list[KmsAdapter]:
        return keks

    def run(self, shop: SealedShop) -> None:
        result = rewrap(shop, batch=2)
        assert (result.failed, result.left) == (0, 0), result

    def check(self, shop: SealedShop) -> None:
        assert kek_report(shop).by_kek == {"fake://first": 3, "fake://second": 3}


class RewrapTo(Rewrap):
    """Every key moves to a second KEK, and loses its wrapping under the first."""

    def run(self, shop: SealedShop) -> None:
        to = shop.keyring.keks[1]
        result = rewrap(shop, to=to, batch=2)
        if result.left:  # the new wrappings could not be tried: processes that open keys do that
            for _ in range(2):
                with SealedShop(shop.datastore, shop.keyring.keks) as another:
                    assert verify(another).failed == 0
            result = rewrap(shop, to=to, batch=2)
        assert (result.failed, result.left) == (0, 0), result

    def check(self, shop: SealedShop) -> None:
        assert kek_report(shop).by_kek == {"fake://second": 3}


class RewrapBranches(RotateBranches):
    """Data keys move to their branches' new keys."""

    def prepare(self, shop: SealedShop) -> None:
        super().prepare(shop)
        shop.keyring.rotate_branches()

    def run(self, shop: SealedShop) -> None:
        result = rewrap(shop, batch=2)
        assert (result.failed, result.left) == (0, 0), result

    def check(self, shop: SealedShop) -> None:
        branches = {uri: count for uri, count in kek_report(shop).by_kek.items() if uri.startswith("branch:")}
        assert sum(branches.values()) == len(TENANTS)
        active = shop.key_store.page(shop.cipher.application, state=KeyState.ACTIVE)
        assert branches.keys() <= {f"branch:{record.key_id}" for record in active}


class Reencrypt(Operation):
    """Every item moves to the new key of its scope."""

    makes_many_calls = True
    compromised = False

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self.items = profile.items

    def prepare(self, shop: SealedShop) -> None:
        super().prepare(shop)
        for tenant in TENANTS:
            shop.keyring.rotate(scope_of(tenant), compromised=self.compromised)

    def run(self, shop: SealedShop) -> None:
        result = reencrypt(shop, batch=max(6, self.items // 10))
        assert (result.failed, result.left) == (0, 0), result

    def check(self, shop: SealedShop) -> None:
        assert shop.items_by_key().keys() == set(shop.active_keys().values())
        assert all(job.state in {SETTLING, FINISHED} for job in list_jobs(shop))


class ReencryptCompromised(Reencrypt):
    """Every item moves away from a key that may be known to others."""

    compromised = True


class RotateAll(Operation):
    """Every scope's key is replaced."""

    makes_many_calls = True
    compromised = False

    def run(self, shop: SealedShop) -> None:
        result = rotate_keys(shop, compromised=self.compromised)
        assert (result.failed, result.left) == (0, 0), result

    def check(self, shop: SealedShop) -> None:
        before = KeyState.COMPROMISED if self.compromised else KeyState.DEACTIVATED
        states = shop.key_states()
        assert states[KeyState.ACTIVE] == len(TENANTS)
        assert states[before] >= len(TENANTS)


class RotateAllCompromised(RotateAll):
    """Every scope's key may be known to others, and is replaced; what is under the old ones is recorded."""

    compromised = True


class Retire(Reencrypt):
    """Keys that no item names any more are destroyed."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self.items = min(profile.items, 20)

    def prepare(self, shop: SealedShop) -> None:
        super().prepare(shop)
        super().run(shop)

    def run(self, shop: SealedShop) -> None:
        result = retire(shop)
        assert (result.failed, result.left) == (0, 0), result

    def check(self, shop: SealedShop) -> None:
        states = shop.key_states()
        assert states == {KeyState.ACTIVE: len(TENANTS), KeyState.DESTROYED: len(TENANTS)}


class Shred(Operation):
    """A scope's keys are destroyed for good, and no other's."""

    makes_many_calls = True

    def run(self, shop: SealedShop) -> None:
        result = shred(shop, scope_of(ACME))
        if not result.complete:  # the keys are gone, and a fence may be open still: it is run again for that
            result = shred(shop, scope_of(ACME))
        assert result.complete, result

    def assert_sound(self, shop: SealedShop) -> None:
        if not self._is_shredded(shop):
            super().assert_sound(shop)
            return
        kept = shop.events.get_domain_events(stream_of(GLOBEX))
        assert {(event.originator_id, event.originator_version) for event in kept} == places_of(
            GLOBEX, self.items // 2
        )
        with pytest.raises(KeyDestroyedError) as destroyed:
            shop.events.get_domain_events(stream_of(ACME))
        assert destroyed.value.destroyed_by == "shredded"

    def check(self, shop: SealedShop) -> None:
        assert self._is_shredded(shop)
        with pytest.raises(KeyDestroyedError):
            shop.append(ACME, self.items)

    def _is_shredded(self, shop: SealedShop) -> bool:
        (item,) = shop.strategy.get_items(stream_of(ACME), limit=1)
        (record,) = shop.key_store.get([item.key_id]).values()
        return record.state is KeyState.DESTROYED


class Migrate(Operation):
    """Items of another program's cipher come under the keys of their scopes; then nothing older is read."""

    makes_many_calls = True

    def prepare(self, shop: SealedShop) -> None:
        super().prepare(shop)
        record = IntegerSequencedItemRecord
        with shop.datastore.session() as session, session.begin():
            for row in session.scalars(select(record)):
                place = ItemContext(row.sequence_id, row.position, row.topic)
                row.data, row.key_id = gcm(shop.cipher.decrypt(row.data, place), zipped=True), None

    def run(self, shop: SealedShop) -> None:
        _accept(shop)
        begin_migration(shop)
        result = migrate(shop, key_scope=scope_of_old_item, batch=max(6, self.items // 4))
        assert (result.complete, result.failed, result.left) == (True, 0, 0), result
        finish_migration(shop)

    def assert_sound(self, shop: SealedShop) -> None:
        _accept(shop)
        found = {(event.originator_id, event.originator_version) for event in shop.events.all_domain_events()}
        assert found == self.places(shop)
        with shop.datastore.key_engine.connect() as connection:
            has_begun = any(
                table.old_formats or table.is_migrated for table in read_registry(connection).complete()
            )
        result = verify(shop)
        assert result.failed == (0 if has_begun else len(found)), result.failures
        unmigrated = sum(counts["unmigrated"] for counts in result.by_table.values())
        assert result.done + unmigrated + result.failed == len(found)

    def check(self, shop: SealedShop) -> None:
        assert shop.items_by_key().keys() == set(shop.active_keys().values())
        assert all(job.state == FINISHED for job in list_jobs(shop))
        with shop.datastore.key_engine.connect() as connection:
            assert all(table.is_migrated for table in read_registry(connection).complete())


def scope_of_old_item(_context: ItemContext, plaintext: bytes) -> str:
    """The scope that the shop's mapper gives an event."""
    return scope_of(json.loads(plaintext)["tenant"])


def _accept(shop: SealedShop) -> None:
    """Configure a process with the older format, as the settings would."""
    accepted = AcceptedFormats([EventsourcingGCM(OLD_KEY, compressed=True)])
    shop.accepted_formats = accepted
    shop.events = EventStore(
        shop.strategy,
        SequencedItemMapper(
            cipher=shop.cipher, key_scope=lambda event: scope_of(event.tenant), accept=accepted
        ),
    )


OPERATIONS: tuple[type[Operation], ...] = (
    Append,
    AppendBatch,
    Read,
    Rotate,
    RotateBranches,
    RotateAll,
    RotateAllCompromised,
    Rewrap,
    RewrapTo,
    RewrapBranches,
    Reencrypt,
    ReencryptCompromised,
    Retire,
    Shred,
    Migrate,
)
