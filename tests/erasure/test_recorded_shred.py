"""A shred with a ledger: the intent first, then the shred, then its end, whatever happens in between."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.ledger_shops import LedgerShop

from eventseal.erasure import (
    DatabaseLedger,
    FileLedger,
    adopt,
    after_restore,
    erased_subjects,
    reopen,
    shred,
)
from eventseal.erasure.ledger.recording import intents_fulfilled, shredded_keys
from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    JobError,
    KeyDestroyedError,
    StoreUnavailableError,
)
from eventseal.keys import KeyPurpose
from eventseal.rotation import retire, rotate_keys
from eventseal.storage.key_store import SQLAlchemyKeyStore
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

SCOPE = "subject:customer-42"


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def shop(store_url, tmp_path) -> Iterator[LedgerShop]:
    shop = LedgerShop(store_url, FakeKms(), tmp_path)
    yield shop
    shop.stop()


@pytest.fixture
def file_shop(sqlite_url, tmp_path) -> Iterator[LedgerShop]:
    shop = LedgerShop(sqlite_url, FakeKms(), tmp_path)
    yield shop
    shop.stop()


def crash(*_: object, **__: object) -> None:
    raise Crash


# --- what is recorded ---


def test_the_intent_names_every_key_that_the_scope_ever_had(shop) -> None:
    retired = shop.key(SCOPE)
    rotate_keys(shop.seal, scopes=[SCOPE])
    retire(shop.seal, keys=[retired])
    old = shop.append(SCOPE).key_id
    rotate_keys(shop.seal, scopes=[SCOPE])
    active = shop.append(SCOPE).key_id
    result = shred(shop.seal, SCOPE)
    created, intent, done = shop.ledger.entries(shop.seal)
    assert set(intent.keys) == {retired, old, active}
    assert set(done.keys) == set(shop.states(SCOPE)) > set(intent.keys)
    assert (intent.scope, done.scope, created.scope) == (SCOPE, SCOPE, None)
    assert done.details == {
        "destroyed": 2,
        "items": {"integer_sequenced_items": {"erased": 2}},
        "intents": [2],
    }
    assert (result.done, result.by_table) == (2, {"integer_sequenced_items": {"erased": 2}})
    assert intent.at <= done.at
    shred(shop.seal, SCOPE)
    again = list(shop.ledger.entries(shop.seal))[-2]
    assert (again.kind, set(again.keys)) == ("intent", set(done.keys))


def test_a_key_made_while_the_intent_is_written_is_named_before_it_is_destroyed(shop, monkeypatch) -> None:
    first = shop.key(SCOPE)
    other = LedgerShop.__new__(LedgerShop)
    other.__dict__.update(shop.__dict__)
    other.start()
    changed = SQLAlchemyKeyStore.set_states
    made: list[UUID] = []

    def rotated_meanwhile(store, records, **named):
        if not made and records:
            made.append(other.seal.keyring.rotate(SCOPE).key_id)
        return changed(store, records, **named)

    monkeypatch.setattr(SQLAlchemyKeyStore, "set_states", rotated_meanwhile)
    shred(shop.seal, SCOPE)
    other.stop()
    _, one, two, done = shop.ledger.entries(shop.seal)
    assert set(one.keys) == {first}
    assert set(two.keys) == {first, *made}
    assert done.details["intents"] == [2, 3]
    assert done.open_intents == ()


@pytest.mark.slow
def test_an_intent_that_names_a_key_more_stays_open(file_shop, monkeypatch) -> None:
    shop = file_shop
    first = shop.append(SCOPE).key_id
    shop.back_up()
    rotate_keys(shop.seal, scopes=[SCOPE])
    second = shop.append(SCOPE).key_id
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(SQLAlchemyKeyStore, "set_states", crash)
        shred(shop.seal, SCOPE)
    shop.restore(keys_only=True)  # the second key has no row now, and lives in later backups
    shred(shop.seal, SCOPE)
    _, begun, again, done = shop.ledger.entries(shop.seal)
    assert (set(begun.keys), set(again.keys)) == ({first, second}, {first})
    assert done.open_intents == (begun.number,)
    assert after_restore(shop.seal).complete
    assert shop.ledger.open_intents(shop.seal) == []
    assert shop.states(SCOPE)[second] == "destroyed"


def test_an_intent_of_another_scope_stays_open(file_shop) -> None:
    shop = file_shop
    keys = {shop.key(SCOPE): KeyPurpose.DATA}
    shred(shop.seal, SCOPE)
    for scope, named in ((SCOPE, keys), ("subject:other", keys), ("subject:other", {}), (SCOPE, {})):
        shop.ledger.append(shop.seal, "intent", scope=scope, keys=named)
    mine, *_, also_mine = intents = shop.ledger.open_intents(shop.seal)
    assert intents_fulfilled(SCOPE, keys, intents) == [mine.number, also_mine.number]
    assert intents_fulfilled(SCOPE, {}, intents) == [also_mine.number]


def test_a_ledger_that_is_gone_between_two_intents_is_not_made_anew(file_shop, monkeypatch) -> None:
    shop = file_shop
    item = shop.append(SCOPE)
    recorded = FileLedger.append

    def take_away(ledger, store, kind, **named):
        entry = recorded(ledger, store, kind, **named)
        monkeypatch.undo()
        shop.place.unlink()
        shop.seal.keyring.rotate(SCOPE)  # so the rows are read again, and meant again
        return entry

    monkeypatch.setattr(FileLedger, "append", take_away)
    with pytest.raises(IntegrityError, match="entries were removed"):
        shred(shop.seal, SCOPE)
    assert not shop.place.exists()
    shop.restart()
    assert shop.opens(item)


def test_the_receipt_says_what_and_where(file_shop) -> None:
    shop = file_shop
    item = shop.append(SCOPE)
    receipt = shred(shop.seal, SCOPE).receipt
    _, intent, done = shop.ledger.entries(shop.seal)
    shown = json.loads(json.dumps(receipt.to_json()))
    assert shown["scope"] == SCOPE
    assert shown["keys"][str(item.key_id)] == "data"
    assert shown["items"] == {"integer_sequenced_items": 1}
    assert shown["ledger"]["intent"] == {"entry": 2, "mac": intent.mac.hex()}
    assert shown["ledger"]["done"] == {"entry": 3, "mac": done.mac.hex()}
    assert shown["ledger"]["id"] == str(done.ledger_id)
    assert (shown["intended_at"], shown["done_at"]) == (intent.at.isoformat(), done.at.isoformat())
    page = receipt.to_html()
    for fact in (SCOPE, str(item.key_id), intent.mac.hex(), done.mac.hex(), "integer_sequenced_items"):
        assert fact in page
    assert "http" not in page
    assert "<script" not in page


def test_a_receipts_page_is_for_people(file_shop) -> None:
    shop = file_shop
    shop.append(SCOPE)
    shop.seal.keyring.prepare([SCOPE], purpose=KeyPurpose.FIELD)
    first, again = (shred(shop.seal, SCOPE).receipt for _ in range(2))
    assert f"{first.done_at:%Y-%m-%d %H:%M:%S} UTC" in first.to_html()
    # Three tombstones, and the third never was a key: it keeps one from being made.
    for receipt, destroyed, others in ((first, 2, 1), (again, 0, 3)):
        page = receipt.to_html()
        assert f"<td>Keys destroyed by this run</td><td>{destroyed}</td>" in page
        assert f"<td>{others}: keys that were destroyed earlier, or tombstones that only prevent" in page
    assert "field: encrypted single fields inside items" in first.to_html()


def test_a_receipts_page_shows_no_markup_of_a_scope(file_shop) -> None:
    scope = "subject:<script>alert(1)</script>&{fact}"
    file_shop.key(scope)
    page = shred(file_shop.seal, scope).receipt.to_html()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;{fact}" in page


def test_a_ledger_in_a_database_serves_as_well(shop, tmp_path) -> None:
    ledger = DatabaseLedger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    item = shop.append(SCOPE)
    receipt = shred(shop.seal, SCOPE, ledger=ledger).receipt
    assert receipt.done_entry == 3
    assert not shop.opens(item)
    assert not shop.place.exists()


# --- nothing is shredded that was not recorded ---


def test_where_the_ledger_cannot_be_written_nothing_is_shredded(shop, monkeypatch) -> None:
    import os

    item = shop.append(SCOPE)
    shred(shop.seal, SCOPE, dry_run=True)
    shop.ledger.create(shop.seal)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreUnavailableError):
            shred(shop.seal, SCOPE)
    shop.restart()
    assert shop.opens(item)
    assert shop.kinds() == []


def test_where_the_ledger_is_forged_nothing_is_shredded(shop) -> None:
    shop.append("subject:other")
    item = shop.append(SCOPE)
    shred(shop.seal, "subject:other")
    shop.place.write_bytes(shop.place.read_bytes().replace(b"subject:other", b"subject:owner"))
    shop.restart()
    with pytest.raises(IntegrityError):
        shred(shop.seal, SCOPE)
    assert shop.opens(item)


def test_where_the_ledger_is_gone_nothing_is_shredded(shop) -> None:
    shop.append("subject:other")
    item = shop.append(SCOPE)
    shred(shop.seal, "subject:other")
    shop.place.unlink()
    shop.restart()
    with pytest.raises(ConfigurationError, match="although keys were shredded before"):
        shred(shop.seal, SCOPE)
    assert shop.opens(item)
    assert not shop.place.exists()


def test_of_two_first_erasures_at_once_the_one_makes_the_ledger_and_both_are_in_it(shop, monkeypatch) -> None:
    items = [shop.append(SCOPE), shop.append("subject:other")]
    other = LedgerShop.__new__(LedgerShop)
    other.__dict__.update(shop.__dict__)
    other.start()

    def looked_at_late(store):
        monkeypatch.undo()
        assert shred(other.seal, "subject:other").complete  # since there was no ledger a moment ago
        return shredded_keys(store)

    monkeypatch.setattr("eventseal.erasure.ledger.recording.shredded_keys", looked_at_late)
    assert shred(shop.seal, SCOPE).receipt is not None
    other.stop()
    shop.restart()
    assert shop.kinds() == ["intent", "done", "intent", "done"]
    assert not any(map(shop.opens, items))


def test_what_was_shredded_before_there_was_a_ledger_is_noted_in_a_new_one(shop, monkeypatch) -> None:
    monkeypatch.setattr("eventseal.rotation.sealed_store.PAGE_SIZE", 1)
    for scope in ("subject:1", "subject:2"):
        shop.key(scope)
        shop.seal.keyring.shred(scope)
    assert adopt(shop.seal, shop.ledger) == 2
    assert adopt(shop.seal, shop.ledger) == 0
    assert shop.kinds() == ["intent", "done", "intent", "done"]
    assert shop.ledger.last(shop.seal).open_intents == ()
    shop.key(SCOPE)
    assert shred(shop.seal, SCOPE).receipt is not None


@pytest.mark.slow
def test_a_new_ledger_names_no_key_that_lives_or_was_retired(file_shop) -> None:
    shop = file_shop
    retired = shop.key(SCOPE)
    rotate_keys(shop.seal, scopes=[SCOPE])
    retire(shop.seal, keys=[retired])
    shredded = shop.key(SCOPE)
    shred(shop.seal, SCOPE)
    reopen(shop.seal, SCOPE)
    item = shop.append(SCOPE)
    shop.place.unlink()
    shop.restart()
    assert adopt(shop.seal, shop.ledger) == 1
    _, intent, done, reopened = shop.ledger.entries(shop.seal)
    assert shredded in intent.keys
    assert not {retired, item.key_id} & {*intent.keys, *done.keys, *reopened.keys}
    after_restore(shop.seal)
    shop.restart()
    assert shop.opens(item)


def test_an_unknown_scope_leaves_no_entry(shop) -> None:
    with pytest.raises(ConfigurationError, match="never had a key"):
        shred(shop.seal, SCOPE)
    assert not shop.place.exists()


def test_the_applications_own_scope_needs_to_be_allowed(shop) -> None:
    item = shop.append("application")
    with pytest.raises(ConfigurationError, match="holds every event without its own scope"):
        shred(shop.seal, "application")
    assert shop.opens(item)
    result = shred(shop.seal, "application", destroy_application_items=True)
    assert (result.done, result.receipt.scope) == (1, "application")
    assert not shop.opens(item)


def test_a_dry_run_counts_and_writes_nothing(shop) -> None:
    item = shop.append(SCOPE)
    result = shred(shop.seal, SCOPE, dry_run=True)
    assert (result.done, result.by_key, result.receipt) == (1, {item.key_id: 1}, None)
    assert result.by_table == {"integer_sequenced_items": {"erased": 1}}
    assert shop.opens(item)
    assert not shop.place.exists()


# --- crashes ---


CRASHES = {
    "before the intent": "eventseal.erasure.ledger.lines.LedgerFile._write",
    "after the intent": "eventseal.storage.key_store.SQLAlchemyKeyStore.set_states",
    "after the shred": "eventseal.erasure.shredding.close_and_count",
    "before the end": "eventseal.erasure.ledger.recording.Recording.finish",
}


@pytest.mark.parametrize("point", CRASHES)
def test_after_a_crash_another_run_completes_it(shop, monkeypatch, point) -> None:
    item = shop.append(SCOPE)
    shop.ledger.create(shop.seal)
    heard: list[object] = []
    module, _, name = CRASHES[point].rpartition(".")
    import pkgutil

    with monkeypatch.context() as patch:
        patch.setattr(pkgutil.resolve_name(module), name, crash)
        with pytest.raises(Crash):
            shred(shop.seal, SCOPE, notify=heard.append)
    assert heard == []
    shop.restart()
    begun = point != "before the intent"
    assert len(shop.ledger.open_intents(shop.seal)) == int(begun)
    assert shop.opens(item) == (point in {"before the intent", "after the intent"})
    result = shred(shop.seal, SCOPE, notify=heard.append)
    assert result.complete
    assert not shop.opens(item)
    assert shop.ledger.open_intents(shop.seal) == []
    assert shop.kinds()[-1] == "done"
    assert result.receipt.items == {"integer_sequenced_items": 1}
    assert [event.scope for event in heard] == [SCOPE]


@pytest.mark.slow
def test_a_fence_that_is_held_leaves_the_intent_open(request, postgres_url, tmp_path) -> None:
    shop = LedgerShop(postgres_url, FakeKms(), tmp_path)
    item = shop.append(SCOPE)
    holder = LedgerShop.__new__(LedgerShop)
    holder.__dict__.update(shop.__dict__)
    holder.start()
    from sqlalchemy import text

    with holder.seal.datastore.engine.connect() as connection:
        connection.execute(text("SELECT * FROM eventseal_key_fences FOR SHARE"))
        result = shred(shop.seal, SCOPE)
        assert (result.failed, result.complete, result.receipt) == (1, False, None)
        assert shop.kinds() == ["intent"]
        with pytest.raises(StoreUnavailableError):
            reopen(shop.seal, SCOPE)
        connection.rollback()
    with pytest.raises(JobError, match="was begun and is not done"):
        reopen(shop.seal, SCOPE)
    assert shred(shop.seal, SCOPE).receipt is not None
    assert not shop.opens(item)
    for each in (shop, holder):
        each.stop()


# --- who follows ---


def test_projections_hear_of_it_when_it_is_done_and_again_when_it_is_run_again(shop) -> None:
    item = shop.append(SCOPE)
    heard = []

    def drop(event) -> None:
        assert shop.kinds()[-1] == "done"
        assert not shop.opens(item)
        heard.append(event)

    shred(shop.seal, SCOPE, notify=drop)
    shred(shop.seal, SCOPE, notify=drop)
    assert [(event.scope, event.entry) for event in heard] == [(SCOPE, 3), (SCOPE, 5)]
    assert item.key_id in heard[0].key_ids
    assert [event.entry for event in erased_subjects(shop.seal, shop.ledger)] == [3, 5]
    assert [event.entry for event in erased_subjects(shop.seal, shop.ledger, after=3)] == [5]


def test_a_projection_that_fails_undoes_nothing(shop) -> None:
    item = shop.append(SCOPE)

    def fail(_: object) -> None:
        raise RuntimeError("the search index is away")

    with pytest.raises(RuntimeError):
        shred(shop.seal, SCOPE, notify=fail)
    assert not shop.opens(item)
    assert shop.ledger.open_intents(shop.seal) == []


# --- reopening ---


def test_a_reopening_is_told_before_it_is_done(shop, monkeypatch) -> None:
    shop.key(SCOPE)
    shred(shop.seal, SCOPE)
    with monkeypatch.context() as patch:
        patch.setattr(SQLAlchemyKeyStore, "set_states", crash)
        with pytest.raises(Crash):
            reopen(shop.seal, SCOPE)
    assert shop.kinds() == ["intent", "done", "reopen"]
    shop.restart()
    with pytest.raises(KeyDestroyedError):
        shop.key(SCOPE)
    assert reopen(shop.seal, SCOPE).done == 1
    assert shop.key(SCOPE)
    assert reopen(shop.seal, SCOPE).done == 0
    assert shop.kinds() == ["intent", "done", "reopen", "reopen"]


def test_a_scope_stays_closed_where_the_ledger_cannot_be_told(shop) -> None:
    shop.key(SCOPE)
    shred(shop.seal, SCOPE)
    shop.place.write_bytes(shop.place.read_bytes()[:-40] + b"\n")
    shop.restart()
    with pytest.raises(IntegrityError):
        reopen(shop.seal, SCOPE)
    with pytest.raises(KeyDestroyedError):
        shop.key(SCOPE)


@pytest.mark.slow
def test_shredders_of_several_processes_share_a_ledger(shop) -> None:
    from concurrent.futures import ThreadPoolExecutor

    scopes = [f"subject:{number}" for number in range(12)]
    shop.seal.keyring.prepare(scopes)
    with ThreadPoolExecutor(4) as threads:
        results = list(
            threads.map(lambda scope: shred(shop.seal, scope, ledger=FileLedger(shop.place)), scopes)
        )
    assert all(result.receipt is not None for result in results)
    assert sorted(shop.kinds()) == ["done"] * 12 + ["intent"] * 12
    assert shop.ledger.last(shop.seal).open_intents == ()


def test_no_key_and_no_plaintext_is_in_the_ledger(file_shop) -> None:
    file_shop.append(SCOPE)
    shred(file_shop.seal, SCOPE)
    written = file_shop.place.read_bytes()
    assert b"personal" not in written
    assert re.findall(rb'"ciphertext":"([^"]+)"', written)  # of the ledger's own key alone
    assert written.count(b"ciphertext") == 1


def test_a_scope_that_was_reopened_without_a_ledger_is_noted_as_open(shop):
    """Else the next look after a restore would shred what was written since the reopening."""
    shop.append(SCOPE)
    shop.seal.keyring.shred(SCOPE)
    shop.seal.keyring.destroyer.reopen(SCOPE)
    item = shop.append(SCOPE)
    assert adopt(shop.seal, shop.ledger) == 1
    assert shop.kinds() == ["intent", "done", "reopen"]
    found = after_restore(shop.seal)
    assert (found.done, found.failed, found.scopes) == (0, 0, ())
    assert shop.opens(item)
