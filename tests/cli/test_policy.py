"""`eventseal policy`: what it prints for settings, which it only reads."""

from __future__ import annotations

import json

import pytest
from sqlalchemy.engine import Engine

KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
TRANSIT = "vault-transit://transit/orders"


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    """Settings of databases and KMSs that do not answer, without the variables that a call would need."""

    def connect(_engine):
        pytest.fail("a database was opened")

    monkeypatch.setattr(Engine, "connect", connect)
    monkeypatch.delenv("VAULT_ADDR", raising=False)
    for name, value in {
        "KMS_KEY": KEY,
        "STORE_URL": "postgresql://u:s3cret@nowhere.example/shop",
        "APPLICATION": "shop",
    }.items():
        monkeypatch.setenv(f"EVENTSEAL_{name}", value)


def statements(answer):
    return {part["holds"]: part["statements"] for part in answer["databases"]}


def test_it_prints_what_can_be_pasted(run):
    said = run("policy", "--role", "reader").stdout
    assert f"# KMS key {KEY}" in said
    assert '"kms:Decrypt"' in said
    assert "CREATE ROLE eventseal_reader" in said
    assert "\nGRANT SELECT ON integer_sequenced_items TO eventseal_reader;\n" in said
    assert "s3cret" not in said


def test_no_grant_token_of_a_key_uri_is_printed(run, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", f"aws-kms://{KEY}?grant_token=s3cret")
    for words in ((), ("--json",)):
        said = run("policy", "--role", "reader", *words).stdout
        assert KEY in said
        assert "s3cret" not in said


def test_a_reader_may_write_nothing(run_json):
    answer = run_json("policy", "--role", "reader")
    assert (answer["verb"], answer["role"], answer["application"]) == ("policy", "reader", "shop")
    (grants,) = statements(answer).values()
    assert all(grant.startswith("GRANT SELECT ON ") for grant in grants)
    (key,) = answer["kms"]
    (statement,) = json.loads(key["policy"])["Statement"]
    assert statement["Action"] == ["kms:Decrypt"]


def test_the_role_of_the_database_can_be_named(run_json):
    answer = run_json("policy", "--role", "auditor", "--sql-role", "Shop auditor")
    assert all(grant.endswith(' TO "Shop auditor";') for grant in statements(answer)["items and keys"])


def test_a_role_must_be_named_and_known(run):
    assert "--role" in run("policy", exits=2).stderr
    assert "owner" in run("policy", "--role", "owner", exits=2).stderr


def test_each_database_has_its_own_grants(run_json, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_KEY_STORE_URL", "postgresql://nowhere.example/keys")
    monkeypatch.setenv("EVENTSEAL_LEDGER", "postgresql://nowhere.example/ledger")
    found = statements(run_json("policy", "--role", "custodian"))
    assert list(found) == ["items", "keys", "ledger"]
    assert any(" ON eventseal_encryption_keys " in grant for grant in found["keys"])
    assert not any(" ON eventseal_encryption_keys " in grant for grant in found["items"])
    assert found["ledger"] == [
        "GRANT SELECT, INSERT, UPDATE ON eventseal_erasure_ledger TO eventseal_custodian;"
    ]
    assert list(statements(run_json("policy", "--role", "writer"))) == ["items", "keys"]


def test_files_have_rights_and_no_grants(run_json, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_STORE_URL", "sqlite:///shop.sqlite")
    monkeypatch.setenv("EVENTSEAL_LEDGER", "erasures.jsonl")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key")
    for role, right in (("auditor", "read these"), ("custodian", "read and write these")):
        answer = run_json("policy", "--role", role)
        found = statements(answer)
        (said,) = found["items and keys"]
        assert said.endswith(f"{right}: shop.sqlite, shop.sqlite-wal, shop.sqlite-shm")
        assert found["ledger"][0].endswith(f"{right}: erasures.jsonl")
        assert "dev.key: owned by the user" in answer["kms"][0]["policy"]


def test_the_tables_of_the_eventsourcing_library_have_their_schema_and_sequence(run_json, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_EVENTSOURCING_TABLES", "Lib.orders_events,Lib.orders_snapshots")
    grants = statements(run_json("policy", "--role", "writer"))["items and keys"]
    assert [grant for grant in grants if "Lib" in grant] == [
        'GRANT USAGE ON SCHEMA "Lib" TO eventseal_writer;',
        'GRANT SELECT, INSERT, UPDATE ON "Lib".orders_events TO eventseal_writer;',
        'GRANT USAGE ON SEQUENCE "Lib".orders_events_notification_id_seq TO eventseal_writer;',
        'GRANT SELECT, INSERT ON "Lib".orders_snapshots TO eventseal_writer;',
    ]


@pytest.mark.parametrize(
    ("quorum", "first", "second"),
    [
        (None, {"encrypt", "decrypt", "keys"}, {"kms:Encrypt", "kms:Decrypt"}),
        ("1", {"encrypt", "decrypt", "keys"}, {"kms:GenerateDataKey", "kms:Encrypt", "kms:Decrypt"}),
    ],
)
def test_the_first_kms_key_creates_keys_and_below_the_quorum_each_does(
    run_json, monkeypatch, quorum, first, second
):
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", f"{TRANSIT},{KEY}")
    if quorum is not None:
        monkeypatch.setenv("EVENTSEAL_WRAP_QUORUM", quorum)
    vault, aws = run_json("policy", "--role", "writer")["kms"]
    assert vault["kms_key"] == TRANSIT
    assert {line.split("/")[1] for line in vault["policy"].splitlines()} == first
    assert {*json.loads(aws["policy"])["Statement"][0]["Action"]} == second
