"""Scopes get new keys, one or all; and keys that leaked are marked by their ids."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from tests.fixtures.key_marks import mark_of

from eventseal.errors import (
    ConfigurationError,
    KeyClosedError,
    KeyDestroyedError,
    KeyNotFoundError,
    KmsUnavailableError,
    StoreUnavailableError,
)
from eventseal.keys import KeyState
from eventseal.keys.records import new_key_id
from eventseal.rotation import JobResult, mark_compromised, reencrypt, retire, rotate_keys, status
from eventseal.storage.items.fences import CLOSED, fence_states
from eventseal.storage.jobs.compromised_items import load_compromised_items
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from uuid import UUID


def active(shop, scope: str = "application") -> UUID:
    return shop.seal.keyring.sealing_keys({scope: 0})[scope].key_id


def state(shop, key_id) -> KeyState:
    return shop.seal.key_store.get([key_id])[key_id].state


def fence(shop, key_id) -> str | None:
    with shop.seal.datastore.engine.connect() as connection:
        return fence_states(connection, [key_id]).get(key_id)


def marked_items(shop, key_id) -> int:
    with shop.seal.datastore.engine.connect() as connection:
        return load_compromised_items(connection, "integer_sequenced_items")[key_id].items


def test_every_scope_gets_a_new_key_and_no_item_is_touched(shop) -> None:
    items = [shop.append(scope=scope)[0] for scope in ("a", "b", "c")]
    result = rotate_keys(shop.seal)
    assert (result.verb, result.done, result.left, result.failed, result.complete) == (
        "rotate",
        3,
        0,
        0,
        True,
    )
    assert result.by_key == {item.key_id: 1 for item in items}
    for scope, item in zip(("a", "b", "c"), items, strict=True):
        assert state(shop, item.key_id) is KeyState.DEACTIVATED
        assert state(shop, active(shop, scope)) is KeyState.ACTIVE
        assert fence(shop, item.key_id) == "open"
    rows = shop.execute("SELECT data FROM integer_sequenced_items")
    assert {bytes(row.data) for row in rows} == {item.data for item in items}


def test_no_key_is_passed_over_because_of_the_time_in_its_row(shop) -> None:
    a, b = active(shop, "a"), active(shop, "b")
    shop.execute(
        "UPDATE eventseal_encryption_keys SET created_at = '2998-01-01 00:00:00.000000' WHERE scope = 'a'"
    )
    result = rotate_keys(shop.seal, compromised=True)
    assert result.by_key == {a: 1, b: 1}
    assert state(shop, a) is KeyState.COMPROMISED


@pytest.mark.slow
@pytest.mark.parametrize("column", ["state", "purpose"])
def test_a_key_whose_state_or_purpose_there_is_not_is_a_failure_and_named(shop, column) -> None:
    edited, other = active(shop, "a"), active(shop, "b")
    shop.execute(f"UPDATE eventseal_encryption_keys SET {column} = 'weird' WHERE scope = 'a'")
    for result in (rotate_keys(shop.seal, compromised=True), retire(shop.seal)):
        (failure,) = result.failures
        assert (result.complete, result.failed) == (False, 1)
        assert (failure.key_id, failure.error) == (edited, "IntegrityError")
        assert f"{column} cannot be read" in failure.message
        assert other in result.by_key
    found = status(shop.seal.key_store, shop.seal.datastore, shop.seal.keyring.application)
    assert [problem.key_id for problem in found.edited] == [edited]
    assert found.next_steps[0].command == "eventseal verify"


def test_named_scopes_alone_are_rotated(shop) -> None:
    a, b = active(shop, "a"), active(shop, "b")
    result = rotate_keys(shop.seal, scopes=["a", "a"])
    assert result.by_key == {a: 1}
    assert active(shop, "b") == b


def test_nothing_to_rotate_is_no_error(shop) -> None:
    result = rotate_keys(shop.seal)
    assert (result.done, result.complete) == (0, True)


@pytest.mark.parametrize("compromised", [False, True])
def test_an_unknown_scope_is_refused_before_anything_is_done(shop, compromised) -> None:
    a = active(shop, "a")
    for unknown in ("A", "store", "branch:0"):
        with pytest.raises(ConfigurationError, match=repr(unknown)):
            rotate_keys(shop.seal, scopes=["a", unknown], compromised=compromised)
    with pytest.raises(ConfigurationError):
        rotate_keys(shop.seal, scopes=["a", ""])
    assert state(shop, a) is KeyState.ACTIVE


def test_a_closed_scope_is_refused_by_name_and_passed_over_otherwise(shop) -> None:
    a, _ = active(shop, "a"), active(shop, "subject:1")
    shop.seal.keyring.shred("subject:1")
    with pytest.raises(KeyDestroyedError, match="subject:1"):
        rotate_keys(shop.seal, scopes=["a", "subject:1"])
    assert state(shop, a) is KeyState.ACTIVE
    assert rotate_keys(shop.seal).by_key == {a: 1}


def test_a_scope_that_lost_its_key_gets_one(shop) -> None:
    old = active(shop, "a")
    record = shop.seal.key_store.get([old])[old]
    seals = shop.seal.keyring._ring.store_key.made_seals()
    from dataclasses import replace

    closed = replace(record, state=KeyState.DEACTIVATED, active_scope=None, row_version=2)
    shop.seal.key_store.set_states([seals.sealed(closed)], next_mark=mark_of(seals))
    result = rotate_keys(shop.seal, scopes=["a"])
    assert (result.done, result.by_key) == (1, {})
    assert active(shop, "a") != old


@pytest.mark.slow
def test_every_one_of_many_scopes_is_rotated_once(shop, monkeypatch) -> None:
    monkeypatch.setattr("eventseal.rotation.sealed_store.PAGE_SIZE", 7)
    monkeypatch.setattr("eventseal.rotation.key_rotation._BATCH_SIZE", 3)
    scopes = [f"tenant:{number}" for number in range(20)]
    shop.seal.keyring.prepare(scopes)
    olds = {active(shop, scope) for scope in scopes}
    seen: list[JobResult] = []
    result = rotate_keys(shop.seal, progress=seen.append)
    assert (result.done, result.left) == (20, 0)
    assert {so_far.done + so_far.left for so_far in seen} == {20}
    told = [so_far.done for so_far in seen]
    assert set(result.by_key) == olds
    assert told == sorted(told)
    assert told[-1] == 20
    keys = [found for found in shop.seal.key_store.page("shop") if found.scope in scopes]
    assert len(keys) == 40


@pytest.mark.slow
def test_with_branches_ten_thousand_scopes_would_cost_no_call_each(open_shop, sqlite_url) -> None:
    kms = FakeKms()
    shop = open_shop(sqlite_url, kms, branches=2)
    shop.seal.keyring.prepare([f"tenant:{number}" for number in range(300)])
    before = len(kms.calls)
    other = shop.again(branches=2)
    assert rotate_keys(other.seal).done == 300
    assert len(kms.calls) - before <= 1 + 2  # the store key, and a branch key for each branch


def test_one_bad_row_fails_alone(shop) -> None:
    bad, fine = active(shop, "bad"), active(shop, "fine")
    shop.execute("UPDATE eventseal_encryption_keys SET seal = binding WHERE key_id = :key", key=shop.raw(bad))
    result = rotate_keys(shop.seal)
    assert (result.done, result.failed, result.complete) == (1, 1, False)
    (failure,) = result.failures
    assert (failure.table, failure.key_id, failure.error) == (
        "eventseal_encryption_keys",
        bad,
        "IntegrityError",
    )
    assert result.by_key == {fine: 1}


def test_an_outage_of_the_kms_stops_it_and_it_is_run_again(open_shop, sqlite_url) -> None:
    kms = FakeKms()
    shop = open_shop(sqlite_url, kms)
    keys = {active(shop, scope) for scope in ("a", "b")}
    kms.fail_always(KmsUnavailableError("away"))
    with pytest.raises(KmsUnavailableError):
        rotate_keys(shop.seal)
    kms.recover()
    assert {state(shop, key_id) for key_id in keys} == {KeyState.ACTIVE}
    assert rotate_keys(shop.seal).done == 2


@pytest.mark.slow
def test_two_that_rotate_at_once_leave_each_scope_with_one_active_key(shop) -> None:
    scopes = [f"tenant:{number}" for number in range(20)]
    shop.seal.keyring.prepare(scopes)
    shops = [shop.again(), shop.again()]
    barrier = threading.Barrier(2)

    def rotate(one):
        barrier.wait(60)
        return rotate_keys(one.seal)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(rotate, shops))
    assert all(result.complete for result in results)
    found = shop.seal.key_store.page("shop", state=KeyState.ACTIVE)
    assert sorted(record.scope for record in found if record.purpose == "data") == sorted(scopes)


# --- compromised ---


def test_compromised_keys_are_marked_and_closed_and_their_items_recorded(shop) -> None:
    items = shop.append(3, scope="a")
    late = shop.append(scope="b")[0]
    result = rotate_keys(shop.seal, scopes=["a"], compromised=True)
    assert result.by_key == {items[0].key_id: 1}
    assert state(shop, items[0].key_id) is KeyState.COMPROMISED
    assert state(shop, late.key_id) is KeyState.ACTIVE
    assert fence(shop, items[0].key_id) == CLOSED
    assert marked_items(shop, items[0].key_id) == 3
    with pytest.raises(KeyClosedError):
        shop.strategy().append([items[0]._replace(position=99)])
    assert reencrypt(shop.seal).failed == 0
    assert retire(shop.seal).done == 1


def test_a_key_that_leaked_long_ago_is_marked_without_a_rotation(shop) -> None:
    leaked = shop.append(2, scope="a")[0].key_id
    rotate_keys(shop.seal, scopes=["a"])
    now = active(shop, "a")
    result = mark_compromised(shop.seal, [leaked])
    assert (result.done, result.by_key, result.complete) == (1, {leaked: 1}, True)
    assert state(shop, leaked) is KeyState.COMPROMISED
    assert active(shop, "a") == now
    assert marked_items(shop, leaked) == 2


def test_an_active_key_that_leaked_is_replaced(shop) -> None:
    leaked = shop.append(scope="a")[0].key_id
    mark_compromised(shop.seal, [leaked])
    assert state(shop, leaked) is KeyState.COMPROMISED
    assert active(shop, "a") != leaked


def test_a_compromised_key_is_marked_anew(shop) -> None:
    (item,) = shop.append(scope="a")
    mark_compromised(shop.seal, [item.key_id])
    shop.execute("DELETE FROM integer_sequenced_items")
    assert marked_items(shop, item.key_id) == 1
    assert mark_compromised(shop.seal, [item.key_id]).done == 1
    assert marked_items(shop, item.key_id) == 0


def test_keys_that_cannot_be_marked_stop_it_before_anything_is_done(shop) -> None:
    live, gone = active(shop, "a"), active(shop, "b")
    rotate_keys(shop.seal, scopes=["b"])
    retire(shop.seal, keys=[gone])
    with pytest.raises(KeyNotFoundError):
        mark_compromised(shop.seal, [live, new_key_id()])
    with pytest.raises(KeyDestroyedError):
        mark_compromised(shop.seal, [live, gone])
    (store_key,) = [r for r in shop.seal.key_store.page("shop") if r.purpose == "store"]
    with pytest.raises(ConfigurationError, match="purpose store"):
        mark_compromised(shop.seal, [live, store_key.key_id])
    assert state(shop, live) is KeyState.ACTIVE


def test_a_branch_key_is_marked_without_items(open_shop, sqlite_url) -> None:
    shop = open_shop(sqlite_url, branches=1)
    active(shop)
    (branch,) = [r for r in shop.seal.key_store.page("shop") if r.purpose == "branch"]
    assert mark_compromised(shop.seal, [branch.key_id]).by_key == {branch.key_id: 1}
    assert state(shop, branch.key_id) is KeyState.COMPROMISED
    assert fence(shop, branch.key_id) is None


@pytest.mark.slow
def test_a_fence_that_somebody_holds_keeps_no_other_leaked_key_from_its_mark(open_shop, postgres_url) -> None:
    shop = open_shop(postgres_url)
    olds = {scope: shop.append(2, scope=scope)[0].key_id for scope in ("a", "b", "c")}
    with shop.seal.datastore.engine.begin() as writer:
        hold = text("SELECT 1 FROM eventseal_key_fences WHERE key_id = :k FOR SHARE")
        writer.execute(hold, {"k": olds["b"]})
        result = rotate_keys(shop.seal, compromised=True)
    assert (result.done, result.failed, result.complete) == (3, 1, False)
    (failure,) = result.failures
    assert (failure.table, failure.key_id) == ("eventseal_key_fences", olds["b"])
    assert f"eventseal rotate --compromised --key {olds['b']}" in failure.remedy
    assert {state(shop, old) for old in olds.values()} == {KeyState.COMPROMISED}
    assert [fence(shop, old) == CLOSED for old in olds.values()] == [True, False, True]
    assert marked_items(shop, olds["c"]) == 2
    mark_compromised(shop.seal, [olds["b"]])
    assert fence(shop, olds["b"]) == CLOSED


@pytest.mark.slow
def test_a_named_key_whose_fence_somebody_holds_is_an_error_after_the_others_were_marked(
    open_shop, postgres_url
) -> None:
    shop = open_shop(postgres_url)
    olds = [shop.append(2, scope=scope)[0].key_id for scope in ("a", "b")]
    with shop.seal.datastore.engine.begin() as writer:
        writer.execute(text("SELECT 1 FROM eventseal_key_fences WHERE key_id = :k FOR SHARE"), {"k": olds[0]})
        with pytest.raises(StoreUnavailableError, match=str(olds[0])):
            mark_compromised(shop.seal, olds)
    assert marked_items(shop, olds[1]) == 2
