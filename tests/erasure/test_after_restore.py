"""After a real restore of a backup nothing that was shredded opens, once the ledger was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from tests.fixtures.ledger_shops import LedgerShop

from eventseal.erasure import after_restore, reopen, shred
from eventseal.erasure.restore import Reading, undone_scopes
from eventseal.errors import ConfigurationError, IntegrityError, KeyDestroyedError
from eventseal.keys import KeyPurpose
from eventseal.rotation import retire, rotate_keys, verify
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Iterator

SCOPE, OTHER = "subject:customer-42", "subject:other"
ALL_SLOTS = {"data", "field", "index"}


@pytest.fixture
def shop(store_url, tmp_path) -> Iterator[LedgerShop]:
    shop = LedgerShop(store_url, FakeKms(), tmp_path)
    yield shop
    shop.stop()


def is_settled(shop: LedgerShop) -> bool:
    """Whether a further run finds nothing more to do."""
    shop.restart()
    again = after_restore(shop.seal)
    return (again.done, again.failed, again.scopes) == (0, 0, ())


@pytest.mark.slow
@pytest.mark.parametrize("keys_only", [False, True], ids=["everything", "keys-only"])
@pytest.mark.parametrize("branches", [None, 2], ids=["keks", "branches"])
def test_a_restore_from_before_the_shred_brings_nothing_back(
    store_url, tmp_path, keys_only, branches
) -> None:
    shop = LedgerShop(store_url, FakeKms(), tmp_path, branches=branches)
    erased = [shop.append(SCOPE)]
    rotate_keys(shop.seal, scopes=[SCOPE])
    erased.append(shop.append(SCOPE))
    kept = shop.append(OTHER)
    shop.back_up()
    shred(shop.seal, SCOPE)
    shop.restore(keys_only=keys_only)
    assert all(map(shop.opens, erased)), "the backup was restored"
    shop.restart()
    would = after_restore(shop.seal, dry_run=True)
    (scope,) = would.scopes
    assert set(scope.alive) == {item.key_id for item in erased}
    assert len(scope.lost) == 2  # the tombstones of the purposes that had no key
    assert (scope.closed, scope.intent_open, scope.strangers) == (True, False, ())
    assert all(map(shop.opens, erased)), "a dry run changes nothing"
    heard: list[object] = []
    result = after_restore(shop.seal, notify=heard.append)
    assert (result.done, result.failed, result.complete) == (4, 0, True)
    assert result.by_table == {"integer_sequenced_items": {"erased": 2}}
    assert [event.scope for event in heard] == [SCOPE]
    shop.restart()
    assert not any(map(shop.opens, erased))
    assert shop.opens(kept)
    assert shop.slots(SCOPE) == ALL_SLOTS
    with pytest.raises(KeyDestroyedError):
        shop.key(SCOPE)
    assert shop.kinds()[-1] == "done"
    assert is_settled(shop)
    shop.stop()


def test_without_it_the_restore_brings_them_back(shop) -> None:
    item = shop.append(SCOPE)
    shop.back_up()
    shred(shop.seal, SCOPE)
    assert not shop.opens(item)
    shop.restore()
    assert shop.opens(item)


def test_keys_made_after_the_backup_get_their_tombstones_back(shop) -> None:
    shop.append(SCOPE)
    shop.back_up()
    rotate_keys(shop.seal, scopes=[SCOPE])
    lost = shop.append(SCOPE)
    shred(shop.seal, SCOPE)
    shop.restore(keys_only=True)
    after_restore(shop.seal)
    assert shop.states(SCOPE)[lost.key_id] == "destroyed"
    shop.restart()
    place = lost.sequence_id, lost.position, lost.topic
    from eventseal.cipher import ItemContext

    (outcome,) = shop.seal.cipher.open_many([(lost.data, ItemContext(*place))])
    assert isinstance(outcome, KeyDestroyedError)
    assert (outcome.destroyed_by, outcome.scope) == ("shredded", SCOPE)
    assert is_settled(shop)


def test_a_scope_that_the_backup_does_not_know_at_all_is_closed_again(shop) -> None:
    shop.append(OTHER)
    shop.back_up()
    item = shop.append(SCOPE)
    shred(shop.seal, SCOPE)
    shop.restore(keys_only=True)
    assert shop.states(SCOPE) == {}
    assert after_restore(shop.seal).done == 3
    assert shop.states(SCOPE)[item.key_id] == "destroyed"
    with pytest.raises(KeyDestroyedError):
        shop.key(SCOPE)
    assert is_settled(shop)


def test_a_retired_key_that_the_restore_brought_back_ends_with_its_scope(shop) -> None:
    old = shop.key(SCOPE)
    shop.back_up()
    rotate_keys(shop.seal, scopes=[SCOPE])
    retire(shop.seal, keys=[old])
    shred(shop.seal, SCOPE)
    shop.restore()
    after_restore(shop.seal)
    assert set(shop.states(SCOPE).values()) == {"destroyed"}


# --- reopened scopes ---


def test_keys_made_after_a_reopening_outlive_the_restore(shop) -> None:
    erased = shop.append(SCOPE)
    shred(shop.seal, SCOPE)
    reopen(shop.seal, SCOPE)
    kept = shop.append(SCOPE)
    shop.back_up()
    shop.restore()
    result = after_restore(shop.seal)
    assert (result.done, result.failed, result.scopes) == (0, 0, ())
    assert shop.opens(kept)
    assert not shop.opens(erased)


@pytest.mark.slow
def test_the_active_key_of_a_reopened_scope_that_came_back_is_destroyed_and_the_scope_stays_open(
    shop,
) -> None:
    erased = shop.append(SCOPE)
    shop.back_up()
    shred(shop.seal, SCOPE)
    reopen(shop.seal, SCOPE)
    shop.append(SCOPE)
    shop.restore()
    assert shop.opens(erased)
    shop.restart()
    (scope,) = after_restore(shop.seal).scopes
    assert (scope.closed, scope.alive) == (False, (erased.key_id,))
    shop.restart()
    assert not shop.opens(erased)
    assert shop.opens(shop.append(SCOPE))
    assert is_settled(shop)


@pytest.mark.slow
def test_a_scope_that_was_shredded_again_after_its_reopening_is_closed(shop) -> None:
    first = shop.append(SCOPE)
    shred(shop.seal, SCOPE)
    reopen(shop.seal, SCOPE)
    shop.back_up()
    second = shop.append(SCOPE)
    shred(shop.seal, SCOPE)
    shop.restore(keys_only=True)
    after_restore(shop.seal)
    assert not shop.opens(first)
    assert not shop.opens(second)
    assert shop.slots(SCOPE) == ALL_SLOTS
    assert is_settled(shop)


@pytest.mark.slow
def test_slots_that_the_restore_freed_are_taken_again(shop) -> None:
    shop.append(SCOPE)
    shred(shop.seal, SCOPE)
    reopen(shop.seal, SCOPE)
    shop.back_up()
    shred(shop.seal, SCOPE)  # no key was made meanwhile: only the slots differ
    shop.restore()
    assert shop.slots(SCOPE) == set()
    result = after_restore(shop.seal)
    assert (result.done, len(result.scopes)) == (0, 1)
    assert shop.slots(SCOPE) == ALL_SLOTS
    assert is_settled(shop)


@pytest.mark.slow
def test_one_lost_tombstone_is_enough_although_every_slot_is_taken(shop) -> None:
    shop.append(SCOPE)
    shred(shop.seal, SCOPE)
    shop.back_up()
    reopen(shop.seal, SCOPE)
    item = shop.append(SCOPE)
    shred(shop.seal, SCOPE)
    shop.restore(keys_only=True)
    assert shop.slots(SCOPE) == ALL_SLOTS
    assert after_restore(shop.seal).done == 1
    assert shop.states(SCOPE)[item.key_id] == "destroyed"
    assert is_settled(shop)


# --- what was begun, what is not known ---


def test_a_shred_that_was_begun_is_carried_through(shop, monkeypatch) -> None:
    from eventseal.storage.key_store import SQLAlchemyKeyStore

    item = shop.append(SCOPE)
    with monkeypatch.context() as patch:
        patch.setattr(SQLAlchemyKeyStore, "set_states", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shred(shop.seal, SCOPE)
    rotate_keys(shop.seal, scopes=[SCOPE])
    newer = shop.append(SCOPE)
    shop.restart()
    (scope,) = after_restore(shop.seal, dry_run=True).scopes
    assert (scope.intent_open, set(scope.alive)) == (True, {item.key_id, newer.key_id})
    assert after_restore(shop.seal).complete
    shop.restart()
    assert not shop.opens(item)
    assert not shop.opens(newer)
    assert shop.ledger.open_intents(shop.seal) == []
    assert is_settled(shop)


@pytest.mark.slow
def test_a_shred_that_was_done_but_not_noted_is_noted(shop, monkeypatch) -> None:
    shop.append(SCOPE)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("eventseal.erasure.ledger.recording.Recording.finish", lambda *_, **__: 1 / 0)
        shred(shop.seal, SCOPE)
    shop.restart()
    (scope,) = after_restore(shop.seal, dry_run=True).scopes
    assert (scope.intent_open, scope.alive) == (True, ())
    assert after_restore(shop.seal).complete
    assert shop.ledger.open_intents(shop.seal) == []


def test_a_reopened_scope_that_is_as_it_should_be_is_none_to_look_at(shop) -> None:
    shop.append(SCOPE)
    shred(shop.seal, SCOPE)
    reopen(shop.seal, SCOPE)
    shop.append(SCOPE)
    assert after_restore(shop.seal, dry_run=True).scopes == ()


def test_what_an_overtaken_shred_notes_does_not_open_a_scope_that_is_to_be_closed(shop) -> None:
    first = shop.append(SCOPE).key_id
    shred(shop.seal, SCOPE)
    reopen(shop.seal, SCOPE)
    keys = {first: KeyPurpose.DATA}
    begun = shop.ledger.append(shop.seal, "intent", scope=SCOPE, keys=keys)
    shop.ledger.append(shop.seal, "done", scope=SCOPE, keys=keys, details={"intents": [2]})
    reading = Reading.of(shop.seal, shop.ledger)
    undone = undone_scopes(shop.seal, shop.ledger, reading, progress=lambda _: None)[SCOPE]
    assert (undone.closed, undone.intent_open) == (True, True)
    assert begun.number > reading.reopened[SCOPE] > 2


def test_a_shred_that_was_begun_is_carried_through_where_the_restore_took_all_rows(shop, monkeypatch) -> None:
    shop.append(OTHER)
    shop.back_up()
    item = shop.append(SCOPE)
    monkeypatch.setattr("eventseal.erasure.ledger.recording.Recording.finish", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shred(shop.seal, SCOPE)
    monkeypatch.undo()
    shop.restore(keys_only=True)
    assert after_restore(shop.seal).complete
    assert shop.states(SCOPE)[item.key_id] == "destroyed"
    assert shop.ledger.open_intents(shop.seal) == []
    assert is_settled(shop)


@pytest.mark.slow
def test_a_key_made_since_the_restore_is_told_and_left_alone(shop) -> None:
    shop.append(OTHER)
    shop.back_up()
    shop.append(SCOPE)
    shred(shop.seal, SCOPE)
    shop.restore(keys_only=True)
    newcomer = shop.append(SCOPE)  # an application was started too early
    shop.restart()
    result = after_restore(shop.seal)
    assert (result.failed, result.complete) == (1, False)
    assert result.failures[0].key_id == newcomer.key_id
    assert "eventseal shred" in result.failures[0].remedy
    assert shop.opens(newcomer)
    entries = len(shop.kinds())
    assert after_restore(shop.seal).failed == 1
    assert len(shop.kinds()) == entries
    shred(shop.seal, SCOPE)
    assert not shop.opens(newcomer)
    assert is_settled(shop)


@pytest.mark.slow
def test_a_ledger_whose_last_entries_are_gone_is_told_from_the_tombstones(shop) -> None:
    for scope in (SCOPE, OTHER):
        shop.append(scope)
        shred(shop.seal, scope)
    shop.place.write_bytes(b"".join(shop.place.read_bytes().splitlines(keepends=True)[:3]))
    shop.restart()
    result = after_restore(shop.seal)
    assert (result.failed, result.scopes) == (1, ())
    assert OTHER in result.failures[0].message
    shred(shop.seal, OTHER)
    assert is_settled(shop)


# --- only what verifies is acted by ---


def test_nothing_is_done_by_a_ledger_that_does_not_verify(shop) -> None:
    item, other = shop.append(SCOPE), shop.append(OTHER)
    shop.back_up()
    shred(shop.seal, SCOPE)
    shred(shop.seal, OTHER)
    shop.restore()
    lines = shop.place.read_bytes().splitlines(keepends=True)
    lines[-1] = lines[-1].replace(b"customer", b"costumer").replace(b'"destroyed":1', b'"destroyed":2')
    shop.place.write_bytes(b"".join(lines))
    with pytest.raises(IntegrityError):
        after_restore(shop.seal)
    assert shop.opens(item)
    assert shop.opens(other)


def test_without_a_ledger_nothing_can_be_told(shop) -> None:
    shop.append(SCOPE)
    with pytest.raises(ConfigurationError, match="has no entry"):
        after_restore(shop.seal)
    shop.seal.ledger = None
    with pytest.raises(ConfigurationError, match="no erasure ledger is configured"):
        after_restore(shop.seal)


@pytest.mark.slow
def test_a_row_of_a_scope_that_was_edited_fails_alone(shop) -> None:
    bad, good = shop.append(SCOPE), shop.append(OTHER)
    shop.back_up()
    shred(shop.seal, SCOPE)
    shred(shop.seal, OTHER)
    shop.restore()
    with shop.seal.datastore.engine.begin() as connection:
        connection.execute(
            text("UPDATE eventseal_encryption_keys SET row_version = 9 WHERE scope = :scope"),
            {"scope": SCOPE},
        )
    result = after_restore(shop.seal)
    assert (result.failed, result.failures[0].error) == (1, "IntegrityError")
    shop.restart()
    assert not shop.opens(good)
    assert not shop.opens(bad)  # its row is not what was sealed


def test_a_key_of_another_scope_is_not_destroyed_for_this_one(shop) -> None:
    item, other = shop.append(SCOPE), shop.append(OTHER)
    shred(shop.seal, SCOPE)
    shop.ledger.append(shop.seal, "done", scope=SCOPE, keys={other.key_id: KeyPurpose.DATA})
    shop.restart()
    result = after_restore(shop.seal)
    assert (result.failed, result.failures[0].error) == (1, "IntegrityError")
    assert shop.opens(other)
    assert not shop.opens(item)


@pytest.mark.slow
def test_a_crash_in_between_is_made_up_for_by_another_run(shop, monkeypatch) -> None:
    items = [shop.append(f"subject:{number}") for number in range(3)]
    shop.back_up()
    for number in range(3):
        shred(shop.seal, f"subject:{number}")
    shop.restore()
    for step in (
        "eventseal.erasure.restore.close_scope_fences",
        "eventseal.erasure.ledger.ledger.Ledger.append",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(step, lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                after_restore(shop.seal)
        shop.restart()
    after_restore(shop.seal)
    shop.restart()
    assert not any(map(shop.opens, items))
    assert is_settled(shop)


@pytest.mark.slow
def test_many_scopes_and_entries_are_compared_in_pages(shop, monkeypatch) -> None:
    monkeypatch.setattr("eventseal.erasure.restore._CHUNK", 3)
    items = [shop.append(f"subject:{number}") for number in range(7)]
    kept = shop.append(OTHER)
    shop.back_up()
    for number in range(7):
        shred(shop.seal, f"subject:{number}")
    seen: list[int] = []
    shop.restore()
    result = after_restore(shop.seal, progress=lambda so_far: seen.append(so_far.done))
    assert len(result.scopes) == 7
    assert seen == sorted(seen)
    assert seen[-1] == result.entries
    shop.restart()
    assert not any(map(shop.opens, items))
    assert shop.opens(kept)
    counts = verify(shop.seal).by_table["integer_sequenced_items"]
    assert (counts["done"], counts["erased"], counts["failed"]) == (1, 7, 0)
