"""``eventseal repair``: what it asks, what it lists, and what it exits with."""

from __future__ import annotations

import json
import shutil

import pytest

from eventseal.cli import output

ITEMS = "integer_sequenced_items"


@pytest.fixture
def damaged(store, query, tmp_path):
    """Five events with a backup in ``backup.sqlite``, of which two do not open any more."""
    items = store(5)
    query("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy("shop.sqlite", "backup.sqlite")
    query(f"UPDATE {ITEMS} SET data = x'00' WHERE position IN (1, 3)")
    with (tmp_path / "eventseal.toml").open("a") as settings:
        settings.write('ledger = "erasures.jsonl"\n')
    return items


def test_it_lists_the_rows_and_repairs_them(run, damaged):
    run("verify", exits=1)
    shown = run("repair", "--from-backup", "sqlite:///backup.sqlite", "--yes").stdout
    assert "Rows repaired: 2. Rows that cannot be repaired: 0." in shown
    assert str(damaged[1].sequence_id) in shown
    assert shown.rstrip().endswith("Next: eventseal verify")
    run("verify")
    assert "Rows repaired: 0." in run("repair", "--from-backup", "sqlite:///backup.sqlite").stdout


def test_a_dry_run_changes_nothing(run_json, run, damaged, query):
    before = query(f"SELECT * FROM {ITEMS}")
    shown = run_json("--dry-run", "repair", "--from-backup", "sqlite:///backup.sqlite")
    assert (shown["verb"], shown["done"], shown["left"], shown["dry_run"]) == ("repair", 0, 2, True)
    assert [row["position"] for row in shown["rows"]] == ["1", "3"]
    assert query(f"SELECT * FROM {ITEMS}") == before
    assert (
        "Rows that can be repaired: 2. Rows that cannot: 0."
        in run("repair", "--dry-run", "--from-backup", "sqlite:///backup.sqlite").stdout
    )


def test_without_a_terminal_it_needs_yes(run, damaged, query):
    before = query(f"SELECT * FROM {ITEMS}")
    said = run("repair", "--from-backup", "sqlite:///backup.sqlite", exits=2)
    assert "2 rows are about to be replaced with rows of sqlite:///backup.sqlite." in said.stderr
    assert query(f"SELECT * FROM {ITEMS}") == before


def test_who_says_no_gets_nothing_changed(run, damaged, query, monkeypatch):
    monkeypatch.setattr(output, "is_anybody_there", lambda: True)
    before = query(f"SELECT * FROM {ITEMS}")
    said = run("repair", "--from-backup", "sqlite:///backup.sqlite", exits=4, input="n\n")
    assert ITEMS in said.stdout
    assert query(f"SELECT * FROM {ITEMS}") == before


def test_without_a_ledger_it_refuses_and_says_which_line_to_add(run, damaged, tmp_path):
    settings = tmp_path / "eventseal.toml"
    settings.write_text(settings.read_text().replace('ledger = "erasures.jsonl"\n', ""))
    said = run("repair", "--from-backup", "sqlite:///backup.sqlite", "--yes", exits=2)
    assert 'ledger = "erasures.jsonl"' in said.stderr
    run("repair", "--from-backup", "sqlite:///backup.sqlite", "--dry-run")


def test_rows_that_cannot_be_repaired_are_failures(run, damaged, query):
    query(f"UPDATE {ITEMS} SET data = x'00' WHERE position = 0")
    shutil.copy("shop.sqlite", "later.sqlite")
    said = run("repair", "--from-backup", "sqlite:///later.sqlite", "--yes", exits=1)
    assert "Rows repaired: 0. Rows that cannot be repaired: 3." in said.stdout
    assert "eventseal set-aside" in said.stdout
    assert "3 more" not in said.stdout


def test_a_password_in_the_url_is_shown_nowhere(run):
    said = run("repair", "--from-backup", "postgresql://somebody:hunter2@localhost:1/shop", exits=2)
    assert "hunter2" not in said.stdout + said.stderr


def test_renamed_takes_pairs(run, damaged):
    said = run("repair", "--from-backup", "sqlite:///backup.sqlite", "--renamed", "orders", exits=2)
    assert "--renamed needs two names" in said.stderr
    assert (
        json.loads(run("--json", "repair", "--yes", "--from-backup", "sqlite:///backup.sqlite").stdout)[
            "done"
        ]
        == 2
    )


def test_without_a_backup_only_key_ids_are_put_right(run, damaged, query):
    query(f"UPDATE {ITEMS} SET key_id = NULL WHERE position = 0")
    said = run("repair", "--yes", exits=1)
    assert "Rows repaired: 1. Rows that cannot be repaired: 2." in said.stdout
    assert "no backup was named" in said.stdout
    assert query(f"SELECT count(*) FROM {ITEMS} WHERE key_id IS NULL") == [(0,)]
    refused = run("repair", "--backup-keys", "sqlite:///keys.sqlite", exits=2)
    assert "--from-backup" in refused.stderr


def test_a_backup_that_is_not_there_or_is_the_store_itself_is_named(run, damaged):
    said = run("repair", "--from-backup", "sqlite:///nowhere.sqlite", exits=2)
    assert "there is no backup nowhere.sqlite" in said.stderr
    for same in ("sqlite:///./shop.sqlite", "sqlite+pysqlite:///shop.sqlite"):
        assert "own database" in run("repair", "--from-backup", same, exits=2).stderr
    words = ["repair", "--from-backup", "sqlite:///backup.sqlite", "--renamed", "orders=x"]
    assert "no table orders is registered" in run(*words, exits=2).stderr
