"""`eventseal upgrade`: what it shows, asks and refuses. What it does: tests/configuration/test_upgrade.py."""

from __future__ import annotations

import pytest
from tests.fixtures import older_stores
from tests.fixtures.older_stores import DATABASES, dump


@pytest.fixture(autouse=True)
def _older(run):  # after the fixture that goes to an empty folder
    older_stores.restore()


def test_a_dry_run_says_what_would_change(run):
    before = [dump(database) for database in DATABASES]
    shown = run("upgrade", "--dry-run").stdout
    assert "would upgrade  tables of the keys, items, ledger, with names that begin with eventseal_" in shown
    assert "up to date     columns" in shown
    assert [dump(database) for database in DATABASES] == before


def test_without_a_person_it_needs_yes(run):
    before = [dump(database) for database in DATABASES]
    refused = run("upgrade", exits=2)
    assert "No earlier release can use them after that" in refused.stderr
    assert "--yes" in refused.stderr
    assert [dump(database) for database in DATABASES] == before


def test_run_again_it_says_that_nothing_was_changed(run, run_json):
    assert "upgraded    tables of the keys, items, ledger" in run("upgrade", "--yes").stdout
    assert run("upgrade").stdout.endswith("Nothing was changed: the store is up to date.\n")
    assert run_json("upgrade") == {
        "verb": "upgrade",
        "dry_run": False,
        "changed": False,
        "steps": [
            {"name": "names", "changed": False, "detail": "names of tables"},
            {"name": "columns", "changed": False, "detail": "columns"},
            {"name": "tables", "changed": False, "detail": "tables"},
            {"name": "indexes", "changed": False, "detail": "indexes and triggers"},
            {"name": "keys", "changed": False, "detail": "key tables"},
        ],
    }
