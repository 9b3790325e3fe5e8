"""``eventseal set-aside``: what it shows, asks and refuses, and what the other commands say afterwards."""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest

from eventseal.configuration import EventSeal
from eventseal.items import SequencedItem
from eventseal.storage import SQLAlchemyActiveRecordStrategy, TimestampSequencedItemRecord
from eventseal.wording import moment

ITEMS = "integer_sequenced_items"
REASON = ("--reason", "disk failure")
EVERY = ("--table", ITEMS, "--every-damaged-row", *REASON)


@pytest.fixture
def broken(with_ledger, query):
    """Two of four items that do not open; gives the sequence id of all."""
    (item, *_) = with_ledger(4)
    query(f"UPDATE {ITEMS} SET data = CAST(data || x'00' AS BLOB) WHERE position < 2")
    return str(item.sequence_id)


@pytest.mark.slow
def test_every_damaged_row_of_a_table(run, run_json, broken):
    run("verify", exits=1)
    would = run_json("set-aside", *EVERY, "--dry-run")
    assert (would["verb"], would["done"], would["dry_run"]) == ("set-aside", 2, True)
    assert run_json("status", exits=0)["set_aside"] == []
    shown = run("set-aside", *EVERY, "--yes").stdout
    assert f"UnknownFormatError: {ITEMS} sequence_id={broken} position=0" in shown
    assert "Rows set aside: 2. Failed: 0." in shown
    shown = run("verify").stdout
    assert "2 damaged rows are set aside. To list them: eventseal set-aside --list" in shown
    assert run_json("verify", "--workers", "2")["by_table"][ITEMS]["set_aside"] == 2
    assert "Rows set aside: 0. Set aside before: 2. Failed: 0." in run("set-aside", *EVERY, "--yes").stdout


@pytest.mark.slow
def test_one_row_with_its_reason_and_time(run, run_json, broken):
    place = ("--table", ITEMS, "--sequence", broken, "--position", "1")
    (row,) = run_json("set-aside", *place, *REASON, "--yes")["set_aside"]
    assert row["row"] == {"sequence_id": broken, "position": "1"}
    assert (row["table"], row["reason"], row["entry"], len(row["sha256"])) == (ITEMS, "disk failure", 2, 64)
    assert run_json("verify", exits=1)["failed"] == 1
    assert run_json("set-aside", "--list")["set_aside"] == [row]
    assert run_json("set-aside", "--list", "--table", "snapshots")["set_aside"] == []
    assert run_json("status")["set_aside"] == [row]
    since = moment(datetime.fromisoformat(row["at"]))
    line = f"set aside: {ITEMS} sequence_id={broken} position=1, since {since}: disk failure"
    assert line in run("status").stdout
    assert run("set-aside", "--list").stdout.splitlines() == [line, "1 row is set aside"]


@pytest.mark.slow
def test_undo_makes_it_a_failure_again(run, run_json, broken):
    run("set-aside", *EVERY, "--yes")
    one = ("--table", ITEMS, "--sequence", broken, "--position", "0")
    assert "Rows that would no longer be set aside: 1" in run("set-aside", "--undo", *one, "--dry-run").stdout
    assert run_json("set-aside", "--undo", *one, "--yes")["done"] == 1
    assert run_json("verify", exits=1)["failed"] == 1
    assert "no such row" in run("set-aside", "--undo", *one, "--yes", exits=4).stderr
    assert "Rows no longer set aside: 1" in run("set-aside", "--undo", "--table", ITEMS, "--yes").stdout
    assert run_json("verify", exits=1)["failed"] == 2


@pytest.mark.slow
def test_the_remedy_of_a_row_that_is_gone_can_be_pasted(run, run_json, broken, query):
    run("set-aside", *EVERY, "--yes")
    query(f"DELETE FROM {ITEMS} WHERE position = 0")
    shown = run("verify", exits=1).stdout
    command = next(line for line in shown.splitlines() if "--undo" in line).partition("eventseal ")[2]
    run(*command.split(), "--yes")
    run("verify")


@pytest.mark.slow
def test_undo_takes_a_place_as_set_aside_takes_it(run, run_json, broken):
    with EventSeal.from_settings() as seal:
        strategy = SQLAlchemyActiveRecordStrategy(TimestampSequencedItemRecord, seal.datastore.session)
        strategy.append([SequencedItem(UUID(broken), Decimal("1.5"), "shop:Placed", b"x" * 90, None)])
    for table, position in ((ITEMS, "00"), ("timestamp_sequenced_items", "1.50")):
        place = ("--table", table, "--sequence", broken.upper().replace("-", ""), "--position", position)
        run("set-aside", *place, *REASON, "--yes")
        assert run_json("set-aside", "--undo", *place, "--yes")["done"] == 1
    shown = run("set-aside", "--undo", *place[:-1], "first", "--yes", exits=2).stderr
    assert "'first' does not fit column position" in shown


def test_undo_takes_a_place_that_only_an_edit_made_as_verify_writes_it(run, broken, query):
    query(f"UPDATE {ITEMS} SET sequence_id = 'it''s gone', position = 'first' WHERE position = 0")
    run("set-aside", *EVERY, "--yes")
    query(f"DELETE FROM {ITEMS} WHERE position = 'first'")
    shown = run("verify", exits=1).stdout
    command = next(line for line in shown.splitlines() if "--undo" in line).partition("eventseal ")[2]
    run(*shlex.split(command), "--yes")
    run("verify")


def test_every_damaged_row_shows_progress(run, broken):
    shown = run("set-aside", *EVERY, "--dry-run").stderr
    assert "set-aside: 4 of 4 items, 2 failed" in shown


@pytest.mark.parametrize(("answer", "code", "done"), [("y\n", 0, 2), ("n\n", 4, 0), ("", 130, 0)])
def test_on_a_terminal_it_asks(run, run_json, broken, monkeypatch, answer, code, done):
    monkeypatch.setattr("eventseal.cli.output.is_anybody_there", lambda: True)
    shown = run("set-aside", *EVERY, input=answer, exits=code).stderr
    assert ("remedy: Run it again" in shown) == (code == 130)
    assert "2 rows are about to be set aside as lost. Continue? [y/N]" in shown
    assert len(run_json("set-aside", "--list")["set_aside"]) == done


def test_without_yes_and_with_nobody_to_ask_nothing_is_set_aside(run, run_json, broken):
    run("set-aside", *EVERY, exits=2)
    assert run_json("set-aside", "--list")["set_aside"] == []


def test_without_a_ledger_it_is_refused_with_the_line_to_add(run, broken, monkeypatch):
    monkeypatch.delenv("EVENTSEAL_LEDGER")
    for words in (EVERY, ("--list",), ("--undo", "--table", ITEMS)):
        shown = run("set-aside", *words, exits=2).stderr
        assert 'remedy: Add a line to eventseal.toml: ledger = "erasures.jsonl"' in shown
    Path("eventseal.toml").write_text(Path("eventseal.toml").read_text() + 'ledger = "erasures.jsonl"\n')
    run("set-aside", *EVERY, "--yes")


def test_the_ledger_is_made_at_first_use(run, broken):
    Path("erasures.jsonl").unlink()
    run("set-aside", *EVERY, "--yes")
    run("verify")


def test_a_row_that_opens_or_is_not_there_is_refused(run, broken):
    place = ("--table", ITEMS, "--sequence", broken, "--position")
    assert "opens" in run("set-aside", *place, "3", *REASON, "--yes", exits=4).stderr
    assert "there is no item" in run("set-aside", *place, "9", *REASON, "--yes", exits=2).stderr


def test_a_missing_key_is_a_refusal_and_exits_with_1_among_others(run, run_json, broken, query):
    query(
        "DELETE FROM eventseal_key_wrappings WHERE key_id = (SELECT min(key_id) FROM integer_sequenced_items)"
    )
    place = ("--table", ITEMS, "--sequence", broken, "--position", "3")
    assert "its key cannot be used" in run("set-aside", *place, *REASON, "--yes", exits=4).stderr
    result = run_json("set-aside", *EVERY, "--yes", exits=1)
    assert (result["done"], result["failed"]) == (2, 2)  # two are of no length that an envelope has


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--table", ITEMS],
        ["--table", ITEMS, "--every-damaged-row"],
        ["--table", ITEMS, "--sequence", "x", *REASON],
        ["--table", ITEMS, "--sequence", "x", "--position", "1", "--every-damaged-row", *REASON],
        ["--undo", "--table", ITEMS, *REASON],
        ["--list", "--undo"],
        ["--undo"],
    ],
)
def test_words_that_say_nothing_together_are_wrong_use(run, broken, words):
    run("set-aside", *words, exits=2)


# --- retire and rotate ---


@pytest.fixture
def held(run, run_json, broken, query):
    """A rotated key that only two rows hold which are set aside."""
    query("UPDATE eventseal_key_changes SET refresh_interval = 0")
    run("set-aside", *EVERY, "--yes")
    with EventSeal.from_settings() as seal:
        seal.keyring.rotate("application")
    shown = run_json("reencrypt")
    assert (shown["failed"], shown["by_table"][ITEMS]["set_aside"]) == (0, 2)
    return broken


@pytest.mark.slow
def test_retire_names_the_rows_and_the_option(run, run_json, held):
    shown = run("retire", "--yes").stdout
    assert "Keys destroyed: 0. Kept: 1. Failed: 0." in shown
    assert f"set aside: {ITEMS} sequence_id={held} position=1" in shown
    assert "Rows that are set aside and keep their keys: 2." in shown
    assert "eventseal retire --give-up-set-aside" in shown
    assert "eventseal reencrypt" not in shown
    assert len(run_json("retire", "--yes")["set_aside"]) == 2
    (key, _) = max(run_json("retire", "--yes")["by_key"].items(), key=lambda item: item[1])
    shown = run("retire", "--key", key, "--yes", exits=4).stderr
    assert "only rows that are set aside need it" in shown


@pytest.mark.slow
def test_giving_up_asks_and_names_what_is_lost(run, run_json, held, monkeypatch):
    monkeypatch.setattr("eventseal.cli.output.is_anybody_there", lambda: True)
    shown = run("retire", "--give-up-set-aside", input="n\n", exits=4)
    assert f"set aside: {ITEMS} sequence_id={held} position=0" in shown.stdout
    assert "2 rows that are set aside become permanently unreadable. Continue?" in shown.stderr
    result = run_json("retire", "--give-up-set-aside", "--yes")
    assert (result["done"], len(result["given_up"])) == (1, 2)
    run("verify")
    assert run_json("status")["next"] == []


@pytest.mark.slow
def test_a_rotation_of_the_whole_way_completes_beside_rows_that_are_set_aside(run, held, query):
    shown = run("rotate", "--reencrypt", "--retire", "--yes").stdout
    assert "Rows that are set aside and keep their keys: 2." in shown
    assert query("SELECT count(*) FROM eventseal_encryption_keys WHERE state = 'deactivated'") == [(1,)]
    shown = run("rotate", "--reencrypt", "--retire", "--give-up-set-aside", "--yes").stdout
    assert "Rows that are set aside and were given up with their keys: 2" in shown
    assert query("SELECT count(*) FROM eventseal_encryption_keys WHERE state = 'deactivated'") == [(0,)]
    run("verify")


def test_giving_up_goes_with_destroying_alone(run, held):
    run("rotate", "--give-up-set-aside", exits=2)
    run("retire", "--kek", "local://dev.key", "--give-up-set-aside", exits=2)


def test_its_json_is_all_of_standard_output(run, broken):
    shown = run("--json", "set-aside", *EVERY, "--yes")
    assert json.loads(shown.stdout)["done"] == 2
