"""``eventseal rotate``: one step, or the whole way in one go."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from tests.cli.conftest import Order

from eventseal.cipher import AESCipher
from eventseal.configuration import EventSeal
from eventseal.errors import KmsUnavailableError
from eventseal.items import SequencedItemMapper
from eventseal.keys import Keyring
from eventseal.rotation.jobs import passes
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy
from eventseal.testing import ManualClock
from eventseal_kms.local import LocalKmsAdapter

if TYPE_CHECKING:
    from uuid import UUID

EXECUTABLE = Path(sys.executable).with_name("eventseal")
ITEMS = "integer_sequenced_items"


@pytest.fixture
def settled(query):
    """Every process notices a rotation at once."""
    query("UPDATE eventseal_key_changes SET refresh_interval = 0")


def states(query):
    return sorted(
        query("SELECT scope, state, destroyed_by FROM eventseal_encryption_keys WHERE purpose = 'data'")
    )


def test_it_gives_every_scope_a_new_key_and_touches_no_item(run_json, store, query):
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(["tenant:a"])
    old = store(3)[0].key_id
    before = query(f"SELECT * FROM {ITEMS}")
    result = run_json("rotate")
    assert (result["verb"], result["done"], result["failed"]) == ("rotate", 2, 0)
    assert str(old) in result["by_key"]
    assert result["retire_after"].endswith("+00:00")
    assert states(query) == [
        ("application", "active", None),
        ("application", "deactivated", None),
        ("tenant:a", "active", None),
        ("tenant:a", "deactivated", None),
    ]
    assert query(f"SELECT * FROM {ITEMS}") == before


def test_it_tells_people_when_a_retire_is_worth_running(run, store):
    lines = run("rotate").stdout.splitlines()
    assert lines[0] == "Scopes with a new active key: 1. Failed: 0."
    assert lines[1].startswith("Next: run `eventseal reencrypt`, then `eventseal retire` after 20")


def test_only_the_named_scopes_are_rotated(run_json, store):
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(["tenant:a", "tenant:b"])
    assert run_json("rotate", "--scope", "tenant:a", "--scope", "tenant:b")["done"] == 2
    assert run_json("status")["keys"][0] == {
        "purpose": "data",
        "kind": "application",
        "state": "active",
        "keys": 1,
    }


def test_an_unknown_scope_names_the_nearest_and_rotates_nothing(run, store, query):
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(["tenant:acme"])
    before = states(query)
    shown = run("rotate", "--scope", "application", "--scope", "tenant:amce", exits=2).stderr
    assert "no key of scope 'tenant:amce'" in shown
    assert "remedy: Did you mean tenant:acme?" in shown
    assert states(query) == before


def test_no_other_persons_scope_is_suggested(run, store):
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(["subject:customer-42"])
    for typed in ("subject:customer-43", "customer-42", "subjekt:customer-42"):
        shown = run("rotate", "--scope", typed, exits=2).stderr
        assert "subject:customer-42" not in shown.replace(repr(typed), "")
        assert "remedy: List the scopes that have keys: eventseal keys" in shown


def test_an_unrelated_key_is_not_suggested(run, store):
    with EventSeal.from_settings() as seal:
        known = str(seal.keyring.rotate("tenant:acme").key_id)
    other = known[:18] + "".join("f" if char != "f" else "0" for char in known[18:])  # of the same minute
    for words in (("retire", "--yes"), ("rotate", "--compromised"), ("reencrypt",)):
        shown = run(*words, "--key", other, exits=2).stderr
        assert "Did you mean" not in shown
        assert "remedy: List the keys: eventseal keys" in shown


def test_a_dry_run_counts_and_changes_nothing(run, run_json, store, query):
    store(3)
    before = states(query)
    assert run_json("rotate", "--dry-run")["scopes"] == 1
    assert run("--dry-run", "rotate").stdout == "1 scope would get a new active key\n"
    assert run_json("rotate", "--dry-run", "--reencrypt")["reencrypt"]["left"] == 0
    run("rotate", "--dry-run", "--reencrypt", "--retire")
    assert states(query) == before


def test_reencrypt_moves_what_was_active_and_destroys_nothing(run, run_json, store, query):
    old = store(50)[0].key_id
    result = run_json("rotate", "--reencrypt", "--yes")
    assert result["reencrypt"]["done"] == 50
    assert result["reencrypt"]["by_key"] == {str(old): 50}
    assert result["retire_after"] is not None
    assert "retire" not in result
    assert [state for _, state, _ in states(query)] == ["active", "deactivated"]
    assert run_json("verify")["done"] == 50


def test_the_whole_way_in_one_go(run_json, store, settled, query):
    store(50)
    result = run_json("rotate", "--reencrypt", "--retire", "--yes")
    assert (result["reencrypt"]["done"], result["retire"]["done"]) == (50, 1)
    assert result["retire_after"] is None
    assert states(query) == [("application", "active", None), ("application", "destroyed", "retired")]
    assert run_json("verify")["done"] == 50
    assert run_json("status")["next"] == []


def test_a_damaged_row_stops_a_retire_before_anything_is_rotated(run, store, query):
    store(3)
    query(f"UPDATE {ITEMS} SET data = x'00' WHERE position = 1")
    before = states(query)
    shown = run("rotate", "--reencrypt", "--retire", "--yes", exits=1).stderr
    assert f"1 item of {ITEMS}" in shown
    assert states(query) == before


@pytest.fixture
def late(store):
    """A process that notices nothing, since its clock stands still: it appends, and gives the key's id."""
    with EventSeal.from_settings() as seal:
        keyring = Keyring(LocalKmsAdapter("dev.key"), seal.key_store, application="shop", clock=ManualClock())
        mapper = SequencedItemMapper(cipher=AESCipher(keyring))
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)

        def append() -> UUID:
            items = mapper.to_sequenced_items([Order(uuid4(), 0, "Bea")])
            strategy.append(items)
            return items[0].key_id

        yield append
        keyring.close()


def until_it_waits(*words):
    command = [EXECUTABLE, "--yes", "rotate", "--reencrypt", "--retire", *words]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert any("waiting" in line for line in running.stderr)
    return running


@pytest.mark.slow
def test_it_waits_until_every_process_has_noticed_and_moves_what_was_appended_meanwhile(store, query, late):
    store(3)
    old = late()
    query("UPDATE eventseal_key_changes SET refresh_interval = 3")
    running = until_it_waits()
    running.send_signal(signal.SIGSTOP)  # so that it waits for this process, however slow that is
    assert late() == old
    running.send_signal(signal.SIGCONT)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, out + err
    assert "Keys destroyed: 1. Kept: 0." in out
    assert query(f"SELECT count(*), count(DISTINCT key_id) FROM {ITEMS}") == [(5, 1)]
    subprocess.run([EXECUTABLE, "verify"], check=True, capture_output=True)


@pytest.mark.slow
def test_interrupted_while_it_waits_it_says_how_to_go_on(run_json, store, query):
    store(3)
    query("UPDATE eventseal_key_changes SET refresh_interval = 600")
    running = until_it_waits()
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "run `eventseal reencrypt`, then `eventseal retire`" in err
    query("UPDATE eventseal_key_changes SET refresh_interval = 0")
    assert run_json("reencrypt")["complete"] is True
    assert run_json("retire", "--yes")["done"] == 1


def test_a_row_that_cannot_be_moved_keeps_its_key_and_exits_with_1(run, store, settled, query):
    store(20)
    damaged = "CAST(substr(data, 1, length(data) - 1) || iif(substr(data, -1) = x'00', x'01', x'00') AS BLOB)"
    query(f"UPDATE {ITEMS} SET data = {damaged} WHERE position = 7")
    result = json.loads(run("rotate", "--reencrypt", "--retire", "--yes", "--json", exits=1).stdout)
    assert (result["reencrypt"]["done"], result["reencrypt"]["failed"]) == (19, 1)
    assert (result["retire"]["done"], result["retire"]["left"]) == (0, 1)
    assert [state for _, state, _ in states(query)] == ["active", "deactivated"]


@pytest.fixture
def cut_short(run, monkeypatch):
    """Runs ``rotate --reencrypt`` until its first batch, where an outage ends it as a kill would."""

    def is_out(*_arguments):
        raise KmsUnavailableError("the KMS went away")

    def run_cut_short(*words):
        with monkeypatch.context() as patched:
            patched.setattr(AESCipher, "reseal_many", is_out)
            run("rotate", "--reencrypt", *words, exits=3)

    return run_cut_short


def append_in(scope, many):
    with EventSeal.from_settings() as seal:
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
        mapper = SequencedItemMapper(cipher=seal.cipher, key_scope=scope)
        strategy.append(mapper.to_sequenced_items([Order(uuid4(), n, "Ada") for n in range(many)]))


def unfinished(status):
    return [job for job in status["jobs"] if job["state"] != "finished"]


@pytest.mark.slow
def test_run_again_after_runs_that_were_cut_short_it_moves_what_they_left(
    run_json, store, settled, query, cut_short
):
    for _ in range(3):
        store(10)
        cut_short()
    result = run_json("rotate", "--reencrypt", "--retire", "--yes")
    assert (result["reencrypt"]["done"], result["reencrypt"]["left"]) == (30, 0)
    assert (result["retire"]["done"], result["retire"]["left"]) == (4, 0)
    assert query(f"SELECT count(*), count(DISTINCT key_id) FROM {ITEMS}") == [(30, 1)]
    status = run_json("status")
    assert (unfinished(status), status["next"]) == ([], [])


@pytest.mark.slow
def test_a_scope_that_is_rotated_again_takes_what_was_left_of_it_and_no_other_scopes(
    run_json, store, settled, query, cut_short
):
    for _ in range(2):
        append_in("tenant:a", 10)
        append_in("tenant:b", 10)
        cut_short("--scope", "tenant:a")
    cut_short("--scope", "tenant:b")
    result = run_json("rotate", "--scope", "tenant:a", "--reencrypt", "--retire", "--yes")
    assert (result["reencrypt"]["done"], result["reencrypt"]["left"]) == (20, 0)
    assert (result["retire"]["done"], result["retire"]["left"]) == (3, 0)
    status = run_json("status")
    assert status["items"][ITEMS] == {"active": 20, "deactivated": 20}
    (job,) = unfinished(status)
    assert job["done"] == 0
    run_json("rotate", "--scope", "tenant:b", "--reencrypt", "--retire", "--yes")
    assert unfinished(run_json("status")) == []


def test_where_items_are_left_no_key_is_destroyed_and_the_exit_code_is_1(
    run, store, settled, query, monkeypatch
):
    store(5)
    monkeypatch.setattr(passes, "MOST_PASSES", 0)
    shown = run("rotate", "--reencrypt", "--retire", "--yes", exits=1).stdout
    assert "Left: 5." in shown
    assert "destroyed" not in shown
    assert [state for _, state, _ in states(query)] == ["active", "deactivated"]


def test_without_yes_and_with_nobody_to_ask_nothing_is_destroyed_or_rotated(run, store, query):
    before = states(query)
    shown = run("rotate", "--reencrypt", "--retire", exits=2).stderr
    assert "1 old key is about to be destroyed permanently. Not a terminal, so" in shown
    assert states(query) == before


@pytest.mark.parametrize(
    "words",
    [
        ["--retire"],
        ["--key", "x"],
        ["--key", "x", "--compromised", "--scope", "application"],
        ["--workers", "0"],
    ],
    ids=" ".join,
)
def test_words_that_say_nothing_are_wrong_use(run, store, query, words):
    before = states(query)
    run("rotate", *words, "--yes", exits=2)
    assert states(query) == before


@pytest.mark.slow
def test_a_compromised_key_is_marked_and_its_items_move_first(run_json, store, settled, query):
    store(5)
    result = run_json("rotate", "--compromised")
    assert result["done"] == 1
    assert [state for _, state, _ in states(query)] == ["active", "compromised"]
    assert run_json("reencrypt")["done"] == 5
    assert run_json("retire", "--yes")["done"] == 1


def test_a_key_that_was_replaced_long_ago_is_marked_by_its_id(run, run_json, store, settled, query):
    old = store(5)[0].key_id
    run("rotate")
    assert "Keys marked compromised: 1." in run("rotate", "--compromised", "--key", str(old)).stdout
    assert [state for _, state, _ in states(query)] == ["active", "compromised"]
    assert f"Did you mean {old}?" in run("rotate", "--compromised", "--key", str(old)[:-1], exits=2).stderr


def test_the_whole_way_is_refused_before_anything_is_rotated_if_it_would_end_in_the_middle(run, store, query):
    store(3)
    query("CREATE TABLE strangers (key_id BLOB, data BLOB)")
    refused = run("rotate", "--reencrypt", "--retire", "--yes", exits=2)
    assert "strangers" in refused.stderr
    assert states(query) == [("application", "active", None)]
