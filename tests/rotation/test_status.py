"""Where everything stands, read in totals on both databases."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import timedelta

import pytest

from eventseal.configuration import EventSeal, Settings
from eventseal.errors import ConfigurationError
from eventseal.keys import InMemoryKeyStore, RotationPolicy
from eventseal.rotation import reencrypt, rewrap
from eventseal.rotation.status.application_status import list_keys, status
from eventseal.rotation.status.key_totals import noticed_at
from eventseal.storage import SnapshotRecord, SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.storage.keys.tables import DEFAULT_REFRESH_INTERVAL
from eventseal.testing import FakeKms


def read(shop, **named):
    return status(shop.seal.key_store, shop.seal.datastore, "shop", **named)


def test_keys_items_and_keks_are_counted(shop):
    shop.append(3, scope="tenant:a")
    old = shop.append(2, scope="subject:x:y")[0].key_id
    shop.seal.keyring.rotate("subject:x:y")
    found = read(shop)
    assert {(total.purpose, total.kind, total.state): total.keys for total in found.keys} == {
        ("data", "subject", "active"): 1,
        ("data", "subject", "deactivated"): 1,
        ("data", "tenant", "active"): 1,
        ("store", "store", "active"): 1,
    }
    assert found.items["integer_sequenced_items"] == {"active": 3, "deactivated": 2}
    assert found.items_by_key[old] == 2
    assert sum(use.wrappings for use in found.keks) == 4
    assert found.refresh_interval == timedelta(seconds=60)
    (closed,) = found.closed
    assert (closed.key_id, closed.scope, closed.state) == (old, "subject:x:y", "deactivated")
    assert closed.since <= found.now


def test_keys_of_other_applications_are_not_counted(shop):
    shop.append(2)
    other = shop.again(application="other")
    other.seal.keyring.rotate("tenant:b")
    assert {total.kind for total in read(shop).keys} == {"application", "store"}
    assert read(shop).overdue.keys == 0


def test_the_oldest_keys_that_are_due_are_named(shop):
    shop.append()
    shop.append(scope="tenant:a")
    now = read(shop, policy=RotationPolicy(max_age=timedelta(microseconds=1)))
    assert (now.overdue.keys, now.overdue.scopes) == (2, ("application", "tenant:a"))
    by_items = read(shop, policy=RotationPolicy(max_age=None, max_items=1))
    assert by_items.overdue.keys == 2
    assert read(shop, policy=RotationPolicy(max_age=None)).overdue.keys == 0


def test_compromised_items_come_first_although_more_keys_were_replaced_than_are_listed(shop, monkeypatch):
    monkeypatch.setattr(sys.modules[status.__module__], "MOST_CLOSED_KEYS", 1)
    for scope in ("tenant:a", "tenant:b", "tenant:c"):
        shop.append(2, scope=scope)
    for scope in ("tenant:a", "tenant:b"):
        shop.seal.keyring.rotate(scope)
    shop.seal.keyring.rotate("tenant:c", compromised=True)
    first, second, *_ = read(shop).next_steps
    assert first.command == "eventseal reencrypt"
    assert first.reason == "2 items under compromised keys must be re-encrypted"
    assert second.reason == "4 items under deactivated keys can be re-encrypted"


def test_a_retire_is_worth_running_an_interval_after_the_key_was_deactivated(shop):
    shop.seal.keyring.prepare(["tenant:a"])
    shop.seal.keyring.rotate("tenant:a")
    found = read(shop)
    (step,) = found.next_steps
    assert step.command == "eventseal retire"
    assert step.after == found.closed[0].since + timedelta(seconds=60)


def test_of_more_keys_than_are_listed_it_says_that_there_are_more(shop, monkeypatch):
    monkeypatch.setattr(sys.modules[status.__module__], "MOST_CLOSED_KEYS", 2)
    for scope in ("tenant:a", "tenant:b"):
        shop.seal.keyring.rotate(scope)
        shop.seal.keyring.rotate(scope)
    needless = "deactivated or compromised keys that nothing needs"
    assert read(shop).next_steps[-1].reason == f"`eventseal retire` can destroy 2 {needless}"
    shop.seal.keyring.rotate("tenant:a")
    assert read(shop).next_steps[-1].reason == f"`eventseal retire` can destroy 2 or more {needless}"


def test_a_last_look_of_a_job_is_worth_running_when_all_have_noticed_the_new_keys(shop):
    shop.append(3)
    shop.seal.keyring.rotate()
    settles = reencrypt(shop.seal).settles_at
    step = read(shop).next_steps[0]
    assert step.command.startswith("eventseal reencrypt --resume ")
    assert step.after == settles
    assert step.reason.startswith("a re-encryption of 3 items is done, except for a last check")
    shop.execute("UPDATE eventseal_key_changes SET refresh_interval = 0")
    assert read(shop).next_steps[0].after is None


def test_without_a_change_mark_a_change_of_keys_is_noticed_after_the_default_interval(shop):
    (item,) = shop.append(1)
    shop.seal.keyring.rotate()
    stopped = shop.seal.key_store.get([item.key_id])[item.key_id].deactivated_at
    shop.execute("UPDATE eventseal_key_changes SET refresh_interval = 0")
    assert noticed_at(shop.seal) == stopped
    shop.execute("DELETE FROM eventseal_key_changes")
    assert (noticed_at(shop.seal) - stopped).total_seconds() == DEFAULT_REFRESH_INTERVAL


def test_keys_that_a_move_between_keks_has_not_reached_are_worth_a_rewrap(open_shop, store_url):
    old, new = FakeKms("old"), FakeKms("new")
    shop = open_shop(store_url, old)
    shop.append(1)
    assert read(shop).next_steps == ()
    both = EventSeal(Settings(store_url=store_url, application="shop"), kms=[old, new])
    with closing(both):
        both.keyring.prepare(["tenant:a"])
        (step,) = read(shop).next_steps
        assert step.command == "eventseal rewrap"
        assert step.reason.endswith(f"KMS keys in use: {new.uri}, {old.uri}")
        rewrap(both)
        assert read(shop).next_steps == ()


def test_a_key_store_that_is_no_database_is_refused_and_not_shown_as_empty(sqlite_shop):
    with pytest.raises(ConfigurationError, match="InMemoryKeyStore has none"):
        status(InMemoryKeyStore(), sqlite_shop.seal.datastore, "shop")


@pytest.mark.slow
def test_what_another_application_registered_is_shown_as_far_as_it_is_this_ones(open_shop, store_url):
    first = open_shop(store_url, application="a")
    first.append(3)
    first.append_plain()
    first.execute("UPDATE eventseal_sealed_tables SET application = 'b' WHERE table_name = 'snapshots'")
    second = first.again(application="b")
    second.append(2)
    found = status(second.seal.key_store, second.seal.datastore, "b")  # whose record classes list the table
    assert found.items["integer_sequenced_items"] == {"active": 2, "unknown": 3, "plain": 1}
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(store_url), [SnapshotRecord])
    with closing(datastore):
        found = status(SQLAlchemyKeyStore(datastore), datastore, "b")
        page = list_keys(SQLAlchemyKeyStore(datastore), datastore, "b")
    assert found.items == {
        "integer_sequenced_items": {"active": 2},
        "snapshots": {},
        "timestamp_sequenced_items": {},
    }
    assert sum(found.items_by_key.values()) == 2
    assert (page.plain_items, page.unknown_keys) == (0, {})
    assert [listed.items for listed in page.keys if listed.record.purpose == "data"] == [2]
