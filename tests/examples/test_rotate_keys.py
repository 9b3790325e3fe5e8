"""The helper script: the whole way through the library, on the store that the demo makes."""

from __future__ import annotations

import gzip
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SETTINGS = "demo-output/eventseal.toml"


def run(folder, *words):
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def sql(folder, statement, *values):
    with closing(sqlite3.connect(folder / "demo-output" / "loans.sqlite")) as connection, connection:
        return connection.execute(statement, values).fetchall()


@pytest.fixture
def demo(tmp_path):
    """The demo's store of 60 events, which has rotated once; its processes notice a rotation at once."""
    with gzip.open(EXAMPLES / "data" / "loan-events-sample.jsonl.gz", "rt") as sample:
        (tmp_path / "log.jsonl").write_text("".join(line for line, _ in zip(sample, range(60), strict=False)))
    done = run(tmp_path, EXAMPLES / "loan_applications.py", "--events", "log.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    sql(tmp_path, "UPDATE eventseal_key_changes SET refresh_interval = 0.2")
    return tmp_path


def rotate(folder):
    return run(folder, EXAMPLES / "rotate_keys.py", SETTINGS)


@pytest.mark.slow
def test_every_item_is_under_the_new_key_and_the_old_one_is_destroyed(demo):
    done = rotate(demo)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Scopes with a new key: 1" in done.stdout
    assert ", failed: 0" in done.stdout
    assert "Old keys destroyed: 2, kept: 0" in done.stdout
    (active,) = sql(
        demo, "SELECT key_id FROM eventseal_encryption_keys WHERE state = 'active' AND purpose = 'data'"
    )
    assert sql(demo, "SELECT DISTINCT key_id FROM integer_sequenced_items") == [active]
    verified = run(demo, "-m", "eventseal", "--config", SETTINGS, "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.slow
def test_a_row_that_does_not_open_is_named_keeps_its_key_and_makes_the_exit_code_1(demo):
    sql(
        demo,
        "UPDATE integer_sequenced_items SET data = "
        "CAST(substr(data, 1, length(data) - 1) || iif(substr(data, -1) = x'00', x'01', x'00') AS BLOB)"
        " WHERE rowid = (SELECT min(rowid) FROM integer_sequenced_items)",
    )
    done = rotate(demo)
    assert done.returncode == 1, done.stdout + done.stderr
    assert ", failed: 1" in done.stdout
    assert "IntegrityError: integer_sequenced_items" in done.stdout
    assert "Old keys destroyed: 1, kept: 1" in done.stdout


@pytest.mark.slow
def test_without_settings_it_exits_with_2(tmp_path):
    done = rotate(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no settings file" in done.stderr


def test_it_is_at_most_60_lines():
    assert len((EXAMPLES / "rotate_keys.py").read_text().splitlines()) <= 60
