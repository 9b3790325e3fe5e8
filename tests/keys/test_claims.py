"""One process creates a key while the others wait, and a claim that is lost or stays costs a key at most."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from sqlalchemy import event

from eventseal.errors import KmsForbiddenError
from eventseal.keys import CachePolicy, Keyring
from eventseal.keys.ring import claims
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.storage.keys.tables import key_claims
from eventseal.testing import FakeKms, ManualClock

RINGS = 8
SCOPE = "tenant:acme"


@pytest.fixture
def datastore(store_url):
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(store_url, pool_size=RINGS))
    datastore.setup_tables()
    yield datastore
    datastore.close()


@pytest.fixture
def kms():
    kms = FakeKms()
    kms.delay = 0.02
    return kms


@pytest.fixture
def make_ring(datastore, kms):
    """Makes a keyring as another process has it."""

    def make(**options):
        return Keyring(kms, SQLAlchemyKeyStore(datastore), application="shop", **options)

    return make


def at_once(work, *arguments):
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(work, arguments))


def key_of(ring):
    return ring.sealing_keys({SCOPE: 1})[SCOPE].key_id


@pytest.mark.parametrize("branches", [None, 4])
def test_keyrings_that_start_together_make_one_key_of_each_purpose(make_ring, kms, branches):
    rings = [make_ring(branches=branches) for _ in range(RINGS)]
    assert len(set(at_once(key_of, *rings))) == 1
    assert kms.count("generate_data_key") == 2  # with the store key; then a branch key or the data key


def test_threads_of_one_keyring_make_one_key(make_ring, kms):
    assert len(set(at_once(key_of, *[make_ring()] * RINGS))) == 1
    assert kms.count("generate_data_key") == 2


def test_several_scopes_are_made_once_in_whatever_order(make_ring, kms):
    scopes = [f"tenant:{number}" for number in range(6)]

    def prepare(shift):
        make_ring().prepare(scopes[shift:] + scopes[:shift])

    at_once(prepare, *range(4))
    assert kms.count("generate_data_key") == 1 + len(scopes)


def test_a_key_is_replaced_once_by_all_that_find_it_due(make_ring, kms):
    clocks, cache = [ManualClock() for _ in range(RINGS)], CachePolicy(ttl=1e9)
    rings = [make_ring(clock=clock, cache=cache) for clock in clocks]
    (old,) = {key_of(ring) for ring in rings}
    made = kms.count("generate_data_key")
    for clock in clocks:
        clock.advance(91 * 86400)
    at_once(key_of, *rings)
    assert kms.count("generate_data_key") == made + 1
    for ring in rings:
        ring.refresh()
    (new,) = {key_of(ring) for ring in rings}
    assert new != old


def test_whoever_waits_for_a_replacement_gets_it_and_calls_no_kms(make_ring, kms, monkeypatch):
    first, second = make_ring(), make_ring()
    assert key_of(first) == key_of(second)
    waits, sleep = threading.Event(), time.sleep

    def note_and_sleep(seconds):
        waits.set()
        sleep(seconds)

    monkeypatch.setattr(claims.time, "sleep", note_and_sleep)
    with ThreadPoolExecutor(2) as pool, kms.hold():
        replacing = pool.submit(first.rotate, SCOPE)
        kms.wait_inside(1)
        waiting = pool.submit(second.rotate, SCOPE)
        assert waits.wait(60)
    assert waiting.result(60).key_id == replacing.result(60).key_id
    assert kms.count("generate_data_key") == 3  # with the store key and the first data key


def test_a_process_that_finds_its_key_replaced_calls_no_kms(make_ring, kms):
    clock = ManualClock()
    late = make_ring(clock=clock)
    key_of(late)
    new = make_ring().rotate(SCOPE).key_id
    calls = kms.count("generate_data_key")
    clock.advance(91 * 86400)
    assert key_of(late) == new
    assert kms.count("generate_data_key") == calls


def test_if_the_kms_refuses_the_next_process_need_not_wait(make_ring, kms, monkeypatch):
    first, second = make_ring(), make_ring()
    for ring in (first, second):  # whose store key is in memory then
        ring.prepare(["other"])
    monkeypatch.setattr(claims.time, "sleep", lambda _: pytest.fail("it waited"))
    kms.fail_next(error=KmsForbiddenError("no"))
    with pytest.raises(KmsForbiddenError):
        key_of(first)
    key_of(second)


def test_a_scope_that_was_reopened_gets_its_key_without_waiting(make_ring, monkeypatch):
    key_of(make_ring())
    make_ring().shred(SCOPE)
    make_ring().destroyer.reopen(SCOPE)
    monkeypatch.setattr(claims.time, "sleep", lambda _: pytest.fail("it waited"))
    key_of(make_ring())


def leave_claim(datastore, ring, *, seconds):
    """Claim the key's slot as a process that then dies."""
    ring.prepare(["other"])
    ring.tables.seals()
    captured = []
    store = SQLAlchemyKeyStore(datastore)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            SQLAlchemyKeyStore,
            "claim_slots",
            lambda _self, slots, **_options: captured.extend(slots) or set(slots),
        )
        patch.setattr(FakeKms, "generate_data_key", _refused)
        with pytest.raises(KmsForbiddenError):
            key_of(ring)
    assert store.claim_slots(captured, owner=uuid4(), seconds=seconds) == set(captured)


def _refused(_kms, _context):
    raise KmsForbiddenError("it dies here")


def test_if_the_claimer_dies_another_process_takes_over(datastore, make_ring, kms, monkeypatch):
    monkeypatch.setattr(claims, "_PAUSES", (0.02,))
    leave_claim(datastore, make_ring(), seconds=0.2)
    made = kms.count("generate_data_key")
    assert len(set(at_once(key_of, *[make_ring() for _ in range(3)]))) == 1
    assert kms.count("generate_data_key") == made + 1


def test_a_claim_that_never_ends_only_costs_a_bounded_wait(datastore, make_ring, monkeypatch):
    monkeypatch.setattr(claims, "_PAUSES", (0.02,))
    monkeypatch.setattr(claims, "LONGEST_WAIT", 0.1)
    leave_claim(datastore, make_ring(), seconds=1e9)
    assert len(set(at_once(key_of, *[make_ring() for _ in range(3)]))) == 1


def test_without_its_table_keys_are_made_as_before(datastore, make_ring):
    key_claims.drop(datastore.engine)
    assert len(set(at_once(key_of, *[make_ring() for _ in range(3)]))) == 1


def test_a_slot_is_claimed_by_one_owner_until_it_releases_it_or_the_time_is_over(datastore):
    store = SQLAlchemyKeyStore(datastore)
    one, other = uuid4(), uuid4()
    slot, same_place, elsewhere = bytes(32), bytes(31) + b"\1", b"\1" * 32
    assert store.claim_slots([slot, elsewhere], owner=one, seconds=60) == {slot, elsewhere}
    assert store.claim_slots([slot, elsewhere], owner=other, seconds=60) == set()
    assert store.claim_slots([slot], owner=one, seconds=60) == {slot}
    store.release_slots([slot], owner=other)
    assert store.claim_slots([slot], owner=other, seconds=60) == set()
    store.release_slots([slot], owner=one)
    assert store.claim_slots([slot], owner=other, seconds=0) == {slot}
    assert store.claim_slots([slot], owner=one, seconds=60) == {slot}
    assert store.claim_slots([same_place], owner=other, seconds=60) == {same_place}


def test_a_key_costs_one_statement_more_and_a_key_in_memory_none(datastore, make_ring):
    ring, found = make_ring(), []
    ring.prepare(["other"])
    event.listen(
        datastore.engine,
        "before_cursor_execute",
        lambda *arguments: found.append(arguments[2]) if "key_claims" in arguments[2] else None,
    )
    key_of(ring)
    key_of(ring)
    assert len(found) == 1
    assert "INSERT" in found[0]
