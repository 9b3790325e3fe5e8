"""``eventseal doctor``: what it prints, its exit codes, and the statements that each KMS needs."""

from __future__ import annotations

import json
import re
import uuid
from decimal import Decimal
from pathlib import Path

import pytest
from tests.fixtures.openbao import openbao

from eventseal.cipher import ItemContext, inspect
from eventseal.cli import doctor_command
from eventseal.configuration import EventSeal
from eventseal.configuration.diagnosis import Finding, Severity
from eventseal.errors import KmsForbiddenError, KmsUnavailableError, StoreUnavailableError
from eventseal.items import SequencedItem
from eventseal.storage import SQLAlchemyActiveRecordStrategy, TimestampSequencedItemRecord
from eventseal_kms.testing import FakeAwsKms

__all__ = ["openbao"]

ROLE = "arn:aws:iam::111122223333:role/shop"


def test_a_store_without_a_ledger_is_told(run):
    run("init", "--kms-key", "local://dev.key", "--store-url", "sqlite:///shop.sqlite")
    shown = run("doctor", exits=1).stdout
    assert "warning  ledger    no erasure ledger is configured" in shown
    assert 'ledger = "erasures.jsonl" to eventseal.toml' in shown


def test_a_healthy_store_exits_with_0_and_says_so(run, with_ledger):
    with_ledger(3)
    lines = run("doctor").stdout.splitlines()
    assert lines[-1] == "No problems found."
    assert {line.split()[0] for line in lines if line and not line.startswith(" ")} <= {
        "ok",
        "note",
        "No",
    }


def test_its_json_is_all_of_standard_output(run_json, with_ledger):
    shown = run_json("doctor")
    assert (shown["verb"], shown["healthy"]) == ("doctor", True)
    assert set(shown["findings"][0]) == {"severity", "area", "finding", "remedy", "error"}


def test_a_finding_that_is_nobodys_outage_exits_with_1(run, with_ledger, query):
    ((name,),) = query("SELECT name FROM sqlite_master WHERE name LIKE 'eventseal_key_id_%_snapshots'")
    query(f"DROP INDEX {name}")
    shown = run("doctor", exits=1).stdout
    assert "warning  registry  table snapshots lacks an index on the key ids in its envelopes" in shown
    assert "         remedy: eventseal upgrade" in shown
    assert shown.endswith("0 errors, 1 warning\n")


@pytest.mark.slow
def test_a_table_that_shares_its_collection_is_named_with_the_command_that_moves_it(run, with_ledger, query):
    with EventSeal.from_settings() as seal:
        place = ItemContext(uuid.uuid4(), Decimal(1), "shop:Noted", "items")
        data = seal.cipher.encrypt(b"{}", place)
        item = SequencedItem(place.sequence_id, place.position, place.topic, data, inspect(data).key_id)
        SQLAlchemyActiveRecordStrategy(TimestampSequencedItemRecord, seal.datastore.session).append(item)
    query(
        "UPDATE eventseal_sealed_tables SET collection = 'items' WHERE table_name = "
        "'timestamp_sequenced_items'"
    )
    assert "1 opened item is bound to a former collection" in run("verify").stdout
    move = "eventseal reencrypt --table timestamp_sequenced_items --to-collection timestamp_items"
    shown = run("doctor", exits=2).stdout
    assert "may still be bound to 'items'" in shown
    assert f"remedy: {move}" in shown
    run(*move.split()[1:])
    run("doctor")
    assert "former" not in run("verify").stdout


def test_two_tables_of_ones_own_with_one_collection_are_named(run, store, query):
    query("CREATE TABLE orders AS SELECT * FROM integer_sequenced_items")
    query(
        "INSERT INTO eventseal_sealed_tables SELECT application, database_name, 'orders', "
        "collection, columns, "
        "old_formats FROM eventseal_sealed_tables WHERE table_name = 'integer_sequenced_items'"
    )
    shown = run("doctor", exits=2).stdout
    assert "table orders has the collection 'items', like integer_sequenced_items" in shown
    assert "Then: eventseal reencrypt --table orders --to-collection orders" in shown
    refused = run("reencrypt", "--table", "orders", "--to-collection", "orders", exits=2).stderr
    assert "Set __collection__ = 'orders'" in refused


def test_wrong_settings_exit_with_2_and_are_told_in_json_too(run, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_KMSKEY", "local://dev.key")
    shown = json.loads(run("doctor", "--json", exits=2).stdout)
    assert [finding["error"] for finding in shown["findings"]] == ["ConfigurationError"]
    assert shown["healthy"] is False


def test_a_database_that_is_away_exits_with_3(run, store):
    Path("shop.sqlite").unlink()
    assert "In a new project, create the file with `eventseal init`" in run("doctor", exits=3).stdout
    assert not Path("shop.sqlite").exists()


@pytest.mark.parametrize(
    ("causes", "code"),
    [
        ([None, KmsForbiddenError("x"), StoreUnavailableError("x")], 2),
        ([None, KmsUnavailableError("x")], 3),
        ([None], 1),
        ([], 0),
    ],
    ids=["rights before outages", "outages before the rest", "the rest", "nothing"],
)
def test_what_must_be_corrected_decides_the_exit_code(causes, code):
    found = [Finding(severity=Severity.ERROR, area="kms", text="x", cause=cause) for cause in causes]
    found.append(Finding(severity=Severity.NOTE, area="kms", text="x", cause=KmsForbiddenError("x")))
    assert doctor_command._exit_code(found) == code


def test_what_an_edit_put_in_a_row_does_not_reach_the_terminal(run, store, query):
    query("UPDATE eventseal_sealed_tables SET table_name = '\x1b[2J' WHERE table_name = 'snapshots'")
    shown = run("doctor", exits=2).stdout
    assert "\\x1b[2J" in shown
    assert "\x1b" not in shown


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """AWS's stand-in behind the environment's endpoint; the caller is a role without any right."""
    kms = FakeAwsKms()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in kms.credentials(ROLE).items():
        monkeypatch.setenv(name.upper(), value)
    monkeypatch.setenv("EVENTSEAL_STORE_URL", "sqlite:///shop.sqlite")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", kms.create_key())
    monkeypatch.setenv("EVENTSEAL_LEDGER", "erasures.jsonl")
    with kms.serve() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", url)
        yield kms


def findings(run, code):
    return json.loads(run("doctor", "--json", exits=code).stdout)["findings"]


@pytest.mark.slow
def test_of_aws_each_missing_permission_stands_with_its_statement_and_adding_them_is_enough(run, aws):
    shown = [finding for finding in findings(run, 2) if finding["area"] == "kms"]
    denied = [re.search(r"does not grant (\S+?),?( |$)", finding["finding"])[1] for finding in shown]
    assert denied == [
        "kms:GenerateDataKey",
        "kms:Decrypt",
        "kms:Encrypt",
        "kms:ReEncrypt*",
        "kms:DescribeKey",
    ]
    assert [finding["severity"] for finding in shown] == ["error", "error", "note", "note", "note"]
    for _ in range(2):  # ReEncrypt names its two permissions one after the other
        shown = [finding for finding in findings(run, 2 if _ == 0 else 3) if finding["area"] == "kms"]
        statements = [
            json.loads(re.search(r"\{.*\}", finding["remedy"])[0]) for finding in shown if finding["remedy"]
        ]
        aws.attach_policy(ROLE, {"Version": "2012-10-17", "Statement": statements})
    run("init")
    run("doctor")


def test_an_outage_of_aws_exits_with_3(run, aws, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    shown = findings(run, 3)
    assert "KmsUnavailableError" in {finding["error"] for finding in shown}


@pytest.mark.slow
def test_of_openbao_each_missing_right_stands_with_its_policy_and_adding_them_is_enough(
    run, openbao, monkeypatch
):
    name = f"key-{uuid.uuid4().hex}"
    root = openbao.client()
    root.secrets.transit.create_key(name, derived=True)
    monkeypatch.setenv("EVENTSEAL_STORE_URL", "sqlite:///shop.sqlite")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", f"vault-transit://transit/{name}")
    monkeypatch.setenv("VAULT_ADDR", openbao.address)
    monkeypatch.setenv("EVENTSEAL_LEDGER", "erasures.jsonl")
    token = root.auth.token.create(policies=["default", f"told-{name}"])["auth"]["client_token"]
    monkeypatch.setenv("VAULT_TOKEN", token)
    shown = [finding for finding in findings(run, 2) if finding["area"] == "kms"]
    assert [finding["severity"] for finding in shown] == ["error", "error", "note", "error"]
    lines = [finding["remedy"] for finding in shown]
    assert f'path "transit/rewrap/{name}" {{ capabilities = ["update"] }}' in lines
    root.sys.create_or_update_policy(f"told-{name}", "\n".join(lines))
    run("init")
    run("doctor")
