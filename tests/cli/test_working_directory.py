"""What lies in the working directory is not run, but for modules that the settings or options name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from eventseal.cli.shared_options import load_modules, working_directory_last
from eventseal.configuration import EventSeal
from eventseal.errors import ConfigurationError
from eventseal.items import SequencedItem
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy

EXECUTABLE = Path(sys.executable).with_name("eventseal")
INSTALLED = (
    "boto3",
    "hvac",
    "rich",
    "typer",
    "sqlalchemy",
    "json",
    "pickle",
    "runpy",
    "signal",
)
OPTIONAL = ("brotli", "brotlicffi", "simplejson", "chardet", "awscrt", "IPython", "ujson", "psycopg_c")
SHOP = """
class Placed: ...
def tenant_of(context, plaintext): return "tenant:a"
"""


@pytest.fixture
def traps(tmp_path) -> Path:
    """Files with the names of modules, each of which writes another file when it is run."""
    ran = tmp_path / "ran"
    for name in (*INSTALLED, *OPTIONAL):
        (tmp_path / f"{name}.py").write_text(
            f"with open({str(ran)!r}, 'a') as ran:\n    ran.write('{name} ')\n"
        )
    return ran


def eventseal(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return subprocess.run(
        [EXECUTABLE, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "kek",
    [
        "aws-kms://arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "vault-transit://transit/shop",
    ],
)
def test_no_package_is_taken_from_there(store, traps, kek):
    for command in ("status", "doctor", "verify"):
        eventseal(
            command,
            EVENTSEAL_KMS_KEY=kek,
            AWS_ENDPOINT_URL="http://127.0.0.1:9",
            AWS_MAX_ATTEMPTS="1",
            AWS_ACCESS_KEY_ID="a",
            AWS_SECRET_ACCESS_KEY="b",
            VAULT_ADDR="http://127.0.0.1:9",
            VAULT_TOKEN="t",
        )
    assert not traps.exists(), traps.read_text()


@pytest.fixture
def old(store, tmp_path, monkeypatch):
    """Older items of a module that lies in the working directory."""
    (tmp_path / "shop_here.py").write_text(SHOP)
    monkeypatch.setenv("EVENTSEAL_OLD_FORMATS", "plain-json")
    monkeypatch.setenv("EVENTSEAL_CACHE_REFRESH_INTERVAL", "1ms")
    with EventSeal.from_settings() as seal:
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
        strategy.append([SequencedItem(uuid4(), n, "shop_here:Placed", b"{}") for n in range(30)])
    monkeypatch.setenv("EVENTSEAL_EVENT_MODULES", "shop_here")
    yield
    sys.modules.pop("shop_here", None)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_the_settings_name_is_found_there_and_workers_run_nothing_else(old, traps, query, workers):
    rule = ("--key-scope-function", "shop_here:tenant_of")
    for words in (("--begin",), ("--workers", workers, "--batch", "5", *rule), ("--finish",)):
        done = eventseal("migrate", *words)
        assert done.returncode == 0, done.stderr
    assert query("SELECT count(*) FROM integer_sequenced_items WHERE key_id IS NULL") == [(0,)]
    assert not traps.exists(), traps.read_text()


@pytest.mark.slow
def test_fields_finds_its_modules_there_and_none_else(tmp_path, traps):
    (tmp_path / "shop_here.py").write_text(SHOP)
    assert eventseal("fields", "shop_here").returncode == 0
    assert not traps.exists(), traps.read_text()


def test_a_stopped_migration_is_resumed_with_the_command_that_is_printed(old, run, query, monkeypatch):
    run("migrate", "begin")
    with monkeypatch.context() as patched:
        patched.setattr("eventseal.rotation.jobs.passes.MOST_PASSES", 0)
        stopped = run("migrate", "--key-scope-function", "shop_here:tenant_of", exits=1).stdout
    command = stopped.rpartition("To continue: ")[2].strip()
    assert command.endswith("--key-scope-function shop_here:tenant_of")
    refused = run(*command.partition(" --key-scope-function")[0].split()[1:], exits=2).stderr
    assert command in refused
    query("UPDATE eventseal_reencryption_jobs SET updated_at = '2020-01-01 00:00:00.000000'")
    said = run("status").stdout
    assert command in said
    assert "Check that the function is yours" in said
    assert "Encrypted 30 items" in run(*command.split()[1:]).stdout


def test_only_a_migration_needs_the_event_modules(store, run, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_EVENT_MODULES", "not_on_this_machine")
    store(1)
    for command in ("status", "verify", "rotate", "reencrypt"):
        run(command)
    monkeypatch.setenv("EVENTSEAL_OLD_FORMATS", "plain-json")
    assert "no module not_on_this_machine" in run("migrate", "begin", exits=2).stderr
    run("migrate", "finish")


def test_it_is_on_the_path_last_and_only_while_those_modules_are_loaded(tmp_path, monkeypatch):
    before = [entry for entry in sys.path if entry not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", [*before])
    with working_directory_last():
        assert sys.path == [*before, str(tmp_path)]
    assert sys.path == before
    with pytest.raises(ConfigurationError):
        load_modules(event_modules=["no_such_shop"])
    assert sys.path == before
    with working_directory_last(), working_directory_last():
        assert sys.path == [*before, str(tmp_path)]
    assert sys.path == before
