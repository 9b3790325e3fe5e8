"""``eventseal init``: what it tells, what it asks, and that JSON stands alone."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr

from eventseal.configuration.assembly import default_ledger
from eventseal.configuration.loading import settings_from

WORDS = ("--kms-key", "local://dev.key", "--store-url", "sqlite:///shop.sqlite", "--application", "shop")


def test_it_tells_what_it_made(run):
    lines = run("init", *WORDS).stdout.splitlines()
    assert lines[0] == "created  settings file eventseal.toml"
    assert lines[1] == "created  KMS key local://dev.key"
    assert lines[-1] == "created  store key and first data key of application shop"
    assert any("integer_sequenced_items" in line for line in lines)


def test_run_again_it_says_that_nothing_was_changed(run):
    run("init", *WORDS)
    lines = run("init").stdout.splitlines()
    assert not any(line.startswith("created") for line in lines)
    assert lines[-1] == "Nothing was changed: everything exists."


def test_a_dry_run_says_would(run):
    result = run("init", *WORDS, "--dry-run")
    assert result.stdout.startswith("would create  settings file eventseal.toml\n")
    assert list(Path.cwd().iterdir()) == []


def test_its_json_lists_the_steps(run, run_json):
    shown = run_json("init", *WORDS)
    assert (shown["verb"], shown["dry_run"], shown["changed"]) == ("init", False, True)
    assert {step["name"]: step["changed"] for step in shown["steps"]} == {
        "settings": True,
        "kek": True,
        "kms": False,
        "tables": True,
        "keys": True,
    }
    assert run_json("init")["changed"] is False
    assert run_json("--dry-run", "init")["dry_run"] is True


def test_a_table_with_a_taken_collection_is_refused_before_anything_is_made(run, tmp_path, monkeypatch):
    (tmp_path / "logs.py").write_text(
        "from eventseal.storage import ActiveRecord, IntegerSequencedColumns\n"
        "class LogRecord(IntegerSequencedColumns, ActiveRecord):\n"
        "    __tablename__ = 'logs'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--kms-key", "local://dev.key", "--store-url", "sqlite:///shop.sqlite", "--application", "shop"]
    refused = run("init", *words, "--table", "logs:LogRecord", exits=2).stderr
    assert "the table logs cannot be registered" in refused
    assert not (tmp_path / "dev.key").exists()


def test_several_keks_and_tables_are_lists_in_the_file(run):
    words = [*WORDS, "--kms-key", "local://other.key", "--table", "eventseal.storage:SnapshotRecord"]
    run("init", *words)
    written = tomllib.loads(Path("eventseal.toml").read_text())
    assert written["kms_key"] == ["local://dev.key", "local://other.key"]
    assert written["tables"] == ["eventseal.storage:SnapshotRecord"]


def test_what_must_be_chosen_before_the_first_key_is_given_at_once(run):
    lines = run("init", *WORDS, "--ledger", "erasures.jsonl", "--scope-digest").stdout.splitlines()
    assert lines[-1] == "created  ledger erasures.jsonl"
    written = tomllib.loads(Path("eventseal.toml").read_text())
    assert (written["ledger"], written["scope_digest"]) == ("erasures.jsonl", True)
    assert "store:digest" in run("keys").stdout


def test_a_ledger_that_contradicts_the_file_is_refused(run):
    run("init", *WORDS, "--ledger", "erasures.jsonl")
    assert "ledger" in run("init", "--ledger", "others.jsonl", exits=2).stderr
    assert not Path("others.jsonl").exists()


def test_without_a_terminal_it_asks_nothing(run):
    assert "no KMS key is configured" in run("init", input="local://dev.key\n", exits=2).stderr


@pytest.fixture
def terminal(monkeypatch):
    """Standard input as a person's: the runner's own is none."""
    from typer.testing import CliRunner

    isolation = CliRunner.isolation

    def on_a_terminal(self, *arguments, **named):
        context = isolation(self, *arguments, **named)
        enter = context.__enter__

        def entered():
            found = enter()
            sys.stdin.isatty = lambda: True
            return found

        class Wrapped:
            def __enter__(self):
                return entered()

            def __exit__(self, *error):
                return context.__exit__(*error)

        return Wrapped()

    monkeypatch.setattr(CliRunner, "isolation", on_a_terminal)


def test_on_a_terminal_it_asks_for_what_is_not_given(run, terminal, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_APPLICATION", "shop")
    shown = run("init", input="local://asked.key\n\n\n")
    written = tomllib.loads(Path("eventseal.toml").read_text())
    asked = {"kms_key": "local://asked.key", "store_url": "sqlite:///events.sqlite"}
    assert written == {**asked, "ledger": "erasures.jsonl", "key_tables": 2}
    assert Path("asked.key").exists()
    assert Path("erasures.jsonl").exists()
    assert "no erasure ledger" not in shown.stderr


@pytest.mark.parametrize("word", ["--yes", "--json"])
def test_it_asks_nothing_when_told_so(run, terminal, word):
    run("init", word, input="local://asked.key\n\n\n", exits=2)
    assert not Path("asked.key").exists()


def test_with_a_file_it_asks_nothing(run, terminal):
    run("init", *WORDS, input="\n")
    run("init", input="")


def test_a_ledger_is_declined_by_a_word(run, terminal):
    shown = run("init", *WORDS, input="none\n").stderr
    assert "ledger" not in tomllib.loads(Path("eventseal.toml").read_text())
    assert 'Add a line to eventseal.toml: ledger = "erasures.jsonl"' in shown


def test_yes_takes_a_ledger_beside_the_store(run, tmp_path):
    (tmp_path / "var").mkdir()
    words = [*WORDS[:3], f"sqlite:///{tmp_path}/var/shop.sqlite", "--application", "shop"]
    run("init", *words, "--yes")
    written = tomllib.loads(Path("eventseal.toml").read_text())
    assert written["ledger"] == f"{tmp_path}/var/erasures.jsonl"
    assert Path(written["ledger"]).exists()


def test_yes_takes_a_ledger_beside_the_settings_file_if_the_store_is_a_server(tmp_path):
    settings = settings_from(None, store_url=SecretStr("postgresql://shop@db/shop"))
    assert default_ledger(settings, tmp_path / "eventseal.toml") == f"{tmp_path}/erasures.jsonl"


def test_another_applications_ledger_is_not_taken(run):
    run("init", *WORDS, "--ledger", "erasures.jsonl")
    Path("eventseal.toml").unlink()
    shown = run("init", *WORDS[:-1], "other", "--yes").stderr
    assert "ledger" not in tomllib.loads(Path("eventseal.toml").read_text())
    assert "No erasure ledger is configured" in shown


def test_with_all_settings_in_the_environment_yes_writes_no_file(run, monkeypatch):
    for name, value in (("KMS_KEY", "local://dev.key"), ("STORE_URL", "sqlite:///shop.sqlite")):
        monkeypatch.setenv(f"EVENTSEAL_{name}", value)
    run("init", "--yes")
    assert not Path("eventseal.toml").exists()
    assert not Path("erasures.jsonl").exists()


def test_without_a_terminal_it_configures_no_ledger_and_says_how(run):
    shown = run("init", *WORDS).stderr
    assert "ledger" not in tomllib.loads(Path("eventseal.toml").read_text())
    assert 'Add a line to eventseal.toml: ledger = "erasures.jsonl"' in shown


def test_leaving_at_a_question_makes_nothing(run, terminal):
    assert "interrupted" in run("init", input="", exits=130).stderr
    assert list(Path.cwd().iterdir()) == []
