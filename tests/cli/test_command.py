"""The command as a whole: its help, its global options, how it says errors and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer.main

from eventseal import errors
from eventseal.cli.app import app
from eventseal.cli.exits import ExitCode, exit_code

COMMANDS = (
    "init",
    "upgrade",
    "doctor",
    "policy",
    "keys",
    "inspect",
    "rotate",
    "rewrap",
    "reencrypt",
    "migrate",
    "repair",
    "retire",
    "verify",
    "status",
    "fields",
    "shred",
    "reopen",
    "roll-epoch",
    "receipt",
    "kek",
    "set-aside",
)
EXECUTABLE = Path(sys.executable).with_name("eventseal")


def test_help_names_every_command_and_exit_code(run):
    shown = run("--help").stdout
    for word in (*COMMANDS, "130  Interrupted.", "EVENTSEAL_CONFIG", "eventseal init --kms-key"):
        assert word in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_examples_that_parse(run, command):
    shown = run(command, "--help").stdout
    examples = [
        line.split("| eventseal")[-1].split() for line in shown.splitlines() if f"eventseal {command}" in line
    ]
    assert len(examples) >= 2
    known = {word.split("=")[0].rstrip(",") for word in shown.split() if word.startswith("--")}
    for words in examples:
        assert {word for word in words if word.startswith("--")} <= known | {"--json"}


def test_every_command_there_is_has_its_help_tried():
    assert set(COMMANDS) == set(typer.main.get_command(app).commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_summary_of_each_command_begins_its_help(command):
    """The root's help shows the summary of the table, and does not import the command."""
    listed = typer.main.get_command(app).commands[command]
    for width in (20, 40, 60, 200):
        assert listed.get_short_help_str(width) == listed.load().get_short_help_str(width)


def test_the_version_is_the_packages(run):
    assert run("--version").stdout == f"eventseal {version('eventseal')}\n"


@pytest.mark.parametrize(
    "words", [["verif"], ["verify", "--tabel", "x"], ["keys", "--state", "asleep"], ["keys", "--limit", "0"]]
)
def test_wrong_words_exit_with_2(run, words):
    assert "Error" in run(*words, exits=2).stderr


@pytest.mark.parametrize("words", [["--json", "keys"], ["keys", "--json"]])
def test_global_options_stand_before_or_behind_the_command(run, store, words):
    assert json.loads(run(*words).stdout)["verb"] == "keys"


def test_the_settings_file_can_be_named_in_both_places(run, store):
    Path("eventseal.toml").rename("other.toml")
    run("keys", exits=2)
    run("keys", "--config", "other.toml")
    run("--config", "other.toml", "keys")


@pytest.mark.parametrize(
    "command", [["verify"], ["keys"], ["inspect", "--table", "t", "--sequence", "s", "--position", "0"]]
)
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_an_error_is_told_with_its_remedy_on_standard_error_alone(run, command, as_json):
    Path("eventseal.toml").write_text('stor_url = "postgresql://app:hunter2@db/shop"')
    result = run(*as_json, *command, exits=2)
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "eventseal: error: unknown setting stor_url in eventseal.toml",
        "eventseal: remedy: Did you mean store_url?",
    ]


def test_an_unknown_variable_names_the_nearest(run, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_KMSKEY", "local://dev.key")
    assert "Did you mean EVENTSEAL_KMS_KEY?" in run("verify", exits=2).stderr


def test_without_a_kek_it_says_which_lines_to_add(run):
    Path("eventseal.toml").write_text('store_url = "sqlite:///shop.sqlite"')
    shown = run("verify", exits=2).stderr
    assert "no KMS key is configured" in shown
    assert 'kms_key = "local:///' in shown


def test_a_key_file_that_others_can_read_is_refused(run, store):
    Path("dev.key").chmod(0o640)
    shown = run("verify", exits=2).stderr
    assert "To protect the file from now on, run: chmod 600 dev.key" in shown


def test_a_database_that_is_not_there_is_not_made(run, store):
    Path("shop.sqlite").unlink()
    for command in ("verify", "keys"):
        shown = run(command, exits=3).stderr
        assert "does not exist" in shown
        assert "eventseal init" in shown
    assert not Path("shop.sqlite").exists()


def test_a_missing_table_sends_to_init(run, store, query):
    query("DROP TABLE eventseal_sealed_tables")
    assert "eventseal init" in run("verify", exits=2).stderr
    assert run("init").exit_code == 0
    run("verify")


def test_a_locked_database_can_be_tried_again(run, store, query, monkeypatch):
    import sqlite3
    from contextlib import closing

    query("PRAGMA journal_mode = DELETE")
    Path("eventseal.toml").write_text(
        Path("eventseal.toml").read_text().replace("shop.sqlite", "shop.sqlite?timeout=0")
    )
    with closing(sqlite3.connect("shop.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "eventseal: remedy: End long transactions, then try again" in run("verify", exits=3).stderr
    run("verify")


def test_a_read_only_database_can_be_verified_but_not_made_ready(run, store):
    file = Path("eventseal.toml")
    file.write_text(
        file.read_text().replace(
            "sqlite:///shop.sqlite", f"sqlite:///file:{Path.cwd()}/shop.sqlite?mode=ro&uri=true"
        )
    )
    run("verify")
    run("keys")
    file.write_text(file.read_text().replace('"shop"', '"second"'))
    assert "read" in run("init", exits=2).stderr


def test_exit_codes_follow_what_is_to_be_done_next():
    assert exit_code(errors.ConfigurationError("x")) is ExitCode.USAGE
    assert exit_code(errors.MissingTableError("x")) is ExitCode.USAGE
    assert exit_code(errors.KmsForbiddenError("x")) is ExitCode.USAGE
    assert exit_code(errors.KmsKeyStateError("x")) is ExitCode.USAGE
    assert exit_code(errors.StoreReadOnlyError("x")) is ExitCode.USAGE
    assert exit_code(errors.KmsUnavailableError("x")) is ExitCode.TRY_AGAIN
    assert exit_code(errors.StoreUnavailableError("x")) is ExitCode.TRY_AGAIN
    assert exit_code(errors.IntegrityError("x")) is ExitCode.FAILED_ITEMS
    assert exit_code(errors.KeyDestroyedError("x")) is ExitCode.FAILED_ITEMS
    assert exit_code(errors.JobError("x")) is ExitCode.REFUSED


def test_an_interruption_says_that_it_can_be_run_again(run, store, monkeypatch):
    def interrupted(*_arguments, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr("eventseal.cli.verify_command.verify_store", interrupted)
    shown = run("verify", exits=130).stderr
    assert "eventseal: error: interrupted" in shown
    assert "eventseal: remedy: Run it again" in shown


def test_a_missing_extra_is_told_with_its_install_command(run, store, monkeypatch):
    def missing(*_arguments, **_named):
        raise ImportError("PostgreSQL needs psycopg: pip install 'eventseal[postgres]'", name="psycopg")

    monkeypatch.setattr("eventseal.cli.verify_command.verify_store", missing)
    shown = run("verify", exits=2).stderr
    assert "pip install 'eventseal[postgres]'" in shown
    assert "Traceback" not in shown


# Real processes.


def process(*words: str, check: bool = True, **named) -> subprocess.CompletedProcess[str]:
    return subprocess.run([EXECUTABLE, *words], capture_output=True, text=True, check=check, **named)


@pytest.mark.slow
def test_a_new_folder_becomes_a_store_with_one_command():
    process("--yes", "init", "--kms-key", "local://dev.key", "--store-url", "sqlite:///shop.sqlite")
    assert {path.name for path in Path.cwd().iterdir()} >= {"eventseal.toml", "dev.key", "shop.sqlite"}
    done = process("verify", "--json")
    assert json.loads(done.stdout)["complete"] is True
    assert "eventseal: warning: key file dev.key" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_record_classes_of_the_working_directory_are_found():
    Path("shop_records.py").write_text(
        "from eventseal.storage import ActiveRecord, IntegerSequencedColumns\n"
        "class OrderRecord(IntegerSequencedColumns, ActiveRecord):\n"
        "    __tablename__ = 'orders'\n"
        "    __collection__ = 'orders'\n"
    )
    words = [
        "--kms-key",
        "local://dev.key",
        "--store-url",
        "sqlite:///shop.sqlite",
        "--table",
        "shop_records:OrderRecord",
    ]
    process("init", *words)
    assert "orders" in json.loads(process("verify", "--json").stdout)["by_table"]


@pytest.mark.slow
def test_output_can_be_cut_short():
    """As with ``| head``: no traceback when the reader goes away."""
    process("--yes", "init", "--kms-key", "local://dev.key", "--store-url", "sqlite:///shop.sqlite")
    shell = f"'{EXECUTABLE}' keys | head -c 10"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr


_HEEDING_INTERRUPTS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
def test_an_interrupt_from_the_keyboard_exits_with_130(tmp_path):
    process("--yes", "init", "--kms-key", "local://dev.key", "--store-url", "sqlite:///shop.sqlite")
    os.mkfifo("pipe")
    # Tests that run in the background hand down that interrupts are ignored.
    command = [sys.executable, "-c", _HEEDING_INTERRUPTS, EXECUTABLE, "inspect", "pipe"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with Path("pipe").open("wb"):  # opens once the command waits on the other end
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=120) == 130
    assert running.stderr is not None
    with running.stderr:
        assert "eventseal: error: interrupted" in running.stderr.read()


_INTERRUPTED_WHILE_IT_IS_READ = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupting:
    def find_spec(self, name, *_):
        if name == "typer":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from eventseal.cli import main
main()
"""


def test_an_interrupt_before_the_command_begins_shows_no_traceback():
    code = [sys.executable, "-c", _INTERRUPTED_WHILE_IT_IS_READ, "status"]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.splitlines() == [
        "eventseal: error: interrupted",
        "eventseal: remedy: Nothing was changed. Run it again.",
    ]
