"""``eventseal keys``: what hangs on which key, without any KEK."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import pytest

from eventseal.configuration import EventSeal


def test_it_lists_every_key_with_its_items(run, run_json, store):
    (item, *_others) = store(5)
    shown = run_json("keys")
    assert shown["application"] == "shop"
    by_purpose = {key["purpose"]: key for key in shown["keys"]}
    data = by_purpose["data"]
    assert (data["key_id"], data["scope"], data["state"], data["items"]) == (
        str(item.key_id),
        "application",
        "active",
        5,
    )
    assert data["items_reserved"] >= 5
    assert data["wrapped_by"][0].startswith("local://")
    assert data["created_at"].endswith("+00:00")
    assert by_purpose["store"]["items"] == 0
    assert shown["next"] is None


def test_columns_stand_below_each_other(run, store):
    store(1200)
    heading, *rows = run("keys").stdout.splitlines()
    assert heading.split() == [
        "KEY",
        "PURPOSE",
        "SCOPE",
        "STATE",
        "ITEMS",
        "RESERVED",
        "CREATED",
        "WRAPPED",
        "BY",
    ]
    assert len(rows) == 2
    assert {row.index("dev.key (local://") for row in rows} == {heading.index("WRAPPED BY")}
    assert any("1,200" in row for row in rows)


def test_states_and_scopes_can_be_asked_for(run_json, store):
    old = store()[0].key_id
    with EventSeal.from_settings() as seal:
        seal.keyring.rotate()
        seal.keyring.prepare(["tenant:a"])
    (deactivated,) = run_json("keys", "--state", "deactivated")["keys"]
    assert deactivated["key_id"] == str(old)
    assert deactivated["deactivated_at"] is not None
    assert {key["scope"] for key in run_json("keys", "--state", "active")["keys"]} == {
        "application",
        "tenant:a",
        "store",
    }
    assert [key["scope"] for key in run_json("keys", "--scope", "tenant:a")["keys"]] == ["tenant:a"]
    assert run_json("keys", "--scope", "tenant:none")["keys"] == []


def test_pages_follow_each_other_without_gap(run, run_json, store):
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare([f"tenant:{n}" for n in range(5)])
    every = [key["key_id"] for key in run_json("keys")["keys"]]
    assert len(every) == 7
    seen, after = [], []
    for _ in range(10):
        page = run_json("keys", "--limit", "3", *after)
        seen += [key["key_id"] for key in page["keys"]]
        if page["next"] is None:
            break
        after = ["--after", page["next"]]
    assert seen == every
    assert run("keys", "--limit", "7").stdout.count("more:") == 0
    assert f"Next page: eventseal keys --after {every[2]}" in run("keys", "--limit", "3").stdout


def test_it_needs_no_kek(run, store):
    store()
    Path("dev.key").unlink()
    assert "active" in run("keys").stdout


def test_plain_items_and_unknown_keys_are_told(run, run_json, store, query):
    items = store(3)
    stranger = uuid4()
    query("UPDATE integer_sequenced_items SET data = x'7b7d', key_id = NULL WHERE position = 0")
    sealed = b"\1\3\0" + stranger.bytes + bytes(40)
    query(
        "UPDATE integer_sequenced_items SET data = ?, key_id = ? WHERE position = 1", sealed, stranger.bytes
    )
    shown = run_json("keys")
    assert shown["plain_items"] == 1
    assert shown["items_by_unknown_key"] == {str(stranger): 1}
    text = run("keys").stdout
    assert "1 plaintext item" in text
    assert f"has no key {stranger}, named by 1 item" in text
    assert UUID(shown["keys"][-1]["key_id"]) == items[0].key_id


def test_another_application_has_none_of_its_keys(run, run_json, store, query):
    item = store(2)[0]
    run(
        "--config",
        "billing.toml",
        "init",
        "--kms-key",
        "local://dev.key",
        "--store-url",
        "sqlite:///shop.sqlite",
        "--application",
        "billing",
    )
    shown = run_json("--config", "billing.toml", "keys")
    assert str(item.key_id) not in {key["key_id"] for key in shown["keys"]}
    assert shown["items_by_unknown_key"] == {str(item.key_id): 2}


def test_a_scope_does_not_reach_the_terminal_as_it_is(run, run_json, store):
    scope = "tenant:\x1b[31m\x9b\n"
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare([scope])
    assert not {"\x1b", "\x9b"} & set(run("keys").stdout + run("keys", "--json").stdout)
    assert scope in {key["scope"] for key in run_json("keys")["keys"]}


@pytest.mark.parametrize("words", [["--after", "nonsense"], ["--state", "asleep"], ["--limit", "0"]])
def test_wrong_words_are_refused(run, store, words):
    run("keys", *words, exits=2)


def test_a_row_that_cannot_be_read_is_named_and_the_others_are_listed(
    run, run_json, lax_tables, store, query
):
    key_id = store()[0].key_id
    query("UPDATE eventseal_encryption_keys SET state = 'edited', binding = 'edited' WHERE purpose = 'data'")
    states = {key["key_id"]: key["state"] for key in run_json("keys")["keys"]}
    assert states.pop(str(key_id)) == "unreadable"
    assert list(states.values()) == ["active"]
    shown = run("keys").stdout
    assert f"the row of key {key_id} was edited: its binding, state cannot be read" in shown
