"""Making ready: the file, the KEK, the tables, the keys; and that a second run changes nothing."""

from __future__ import annotations

import hashlib
import re
import sqlite3
import stat
import subprocess
import sys
import tomllib
import traceback
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from tests.fixtures.older_stores import Reader

from eventseal.cipher import ItemContext
from eventseal.configuration import EventSeal
from eventseal.configuration.diagnosis import diagnose
from eventseal.configuration.initialise import initialise
from eventseal.configuration.loading import as_toml, write_settings_file
from eventseal.configuration.upgrade import upgrade
from eventseal.erasure import shred
from eventseal.errors import (
    ConfigurationError,
    KmsError,
    KmsForbiddenError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from eventseal.kms import PermissionCheck
from eventseal.rotation import reencrypt, retire, rotate_keys, verify
from eventseal.storage.database.rows import deletion
from eventseal.storage.keys.tables import key_fences
from eventseal.testing import FakeKms
from eventseal_kms.local import LocalKmsAdapter
from eventseal_kms.testing import FakeAwsKms

OPTIONS = {"kms_key": "local://dev.key", "store_url": "sqlite:///shop.sqlite", "application": "shop"}
CONTEXT = ItemContext(sequence_id=uuid4(), position=0, topic="shop:Order.Placed")


def query(sql: str, file: str = "shop.sqlite") -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(file)) as connection, connection:
        return connection.execute(sql).fetchall()


def tables(file: str = "shop.sqlite") -> set[object]:
    return {name for (name,) in query("SELECT name FROM sqlite_master WHERE type = 'table'", file)}


def changed(steps) -> set[str]:
    return {step.name for step in steps if step.changed}


def fingerprint(folder: Path) -> dict[str, str]:
    with closing(sqlite3.connect("shop.sqlite")) as connection:
        dump = "\n".join(connection.iterdump())
    names = [path for path in folder.iterdir() if path.suffix in {".toml", ".key"}]
    return {"database": dump} | {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_kek_listed_later_must_wrap_other_keks_keys(monkeypatch, dry_run):
    """Else all looks well until a new key is made: the keys that are there need no wrapping under it."""
    LocalKmsAdapter.create("other.key")
    initialise(**OPTIONS)
    several = OPTIONS | {"kms_key": ["local://dev.key", "local://other.key"]}
    Path("eventseal.toml").unlink()
    (other,) = {LocalKmsAdapter("other.key").uri}
    wrap = LocalKmsAdapter.wrap

    def denied(self, key, context):
        if self.uri == other:
            raise KmsForbiddenError("kms:Encrypt is denied", kek_uri=self.uri)
        return wrap(self, key, context)

    with monkeypatch.context() as patch:
        patch.setattr(LocalKmsAdapter, "wrap", denied)
        with pytest.raises(KmsForbiddenError, match="kms:Encrypt"):
            initialise(**several, dry_run=dry_run)
    Path("eventseal.toml").unlink(missing_ok=True)
    assert "keys" not in changed(initialise(**several, dry_run=dry_run))


def test_it_makes_everything_and_a_store_opens_on_it(tmp_path):
    steps = initialise(**OPTIONS)
    assert [step.name for step in steps] == ["settings", "kek", "kms", "tables", "keys"]
    assert changed(steps) == {"settings", "kek", "tables", "keys"}
    with EventSeal.from_settings() as seal:
        assert seal.cipher.decrypt(seal.cipher.encrypt(b"x", CONTEXT), CONTEXT) == b"x"
        assert seal.keyring.counters.kms_calls == 2
    assert query("SELECT count(*) FROM eventseal_encryption_keys") == [(2,)]


def test_run_again_it_changes_nothing(tmp_path):
    initialise(**OPTIONS)
    before = fingerprint(tmp_path)
    for options in ({}, OPTIONS):
        assert changed(initialise(**options)) == set()
        assert fingerprint(tmp_path) == before


def test_the_file_holds_what_was_given_for_its_owner_alone(tmp_path):
    initialise(**OPTIONS)
    file = tmp_path / "eventseal.toml"
    assert tomllib.loads(file.read_text()) == {**OPTIONS, "key_tables": 2}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_file_goes_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_CONFIG", "named.toml")
    initialise(**OPTIONS)
    assert (tmp_path / "named.toml").exists()
    assert not (tmp_path / "eventseal.toml").exists()
    initialise("given.toml", **OPTIONS)
    assert (tmp_path / "given.toml").exists()


def test_what_the_environment_gives_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_STORE_URL", OPTIONS["store_url"])
    initialise(**OPTIONS)
    assert set(tomllib.loads((tmp_path / "eventseal.toml").read_text())) == {
        "kms_key",
        "application",
        "key_tables",
    }


def test_settings_from_the_environment_need_no_file(tmp_path, monkeypatch):
    for name, value in OPTIONS.items():
        monkeypatch.setenv(f"EVENTSEAL_{name.upper()}", value)
    steps = initialise()
    assert changed(steps) == {"kek", "tables", "keys"}
    assert steps[0].detail == "settings from the environment"
    assert not (tmp_path / "eventseal.toml").exists()


def test_an_option_that_the_file_contradicts_is_refused(tmp_path):
    initialise(**OPTIONS)
    before = fingerprint(tmp_path)
    with pytest.raises(ConfigurationError, match=r"application differs from the value in eventseal\.toml"):
        initialise(application="other")
    assert fingerprint(tmp_path) == before


def test_an_option_that_a_variable_contradicts_is_refused_without_showing_a_url(tmp_path, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_STORE_URL", "postgresql://app:hunter2@db/shop")
    with pytest.raises(
        ConfigurationError, match="store_url differs from the value in EVENTSEAL_STORE_URL"
    ) as caught:
        initialise(**OPTIONS | {"store_url": "postgresql://app:horse3@db/shop"})
    error = caught.value.with_traceback(caught.value.__traceback__.tb_next)
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert not {"hunter2", "horse3"} & set(re.findall(r"\w+", shown + repr(error) + error.remedy))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"kms_key": "hsm://key"},
        {"kms_key": []},
        {"store_url": "no url"},
        {"tables": ["no_such_module:Record"]},
        {"application": ""},
        {"unknown": "x"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_is_wrong_is_told_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ConfigurationError):
        initialise(**(OPTIONS | wrong))
    assert list(tmp_path.iterdir()) == []


def test_a_quorum_of_more_keks_than_are_listed_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigurationError, match=r"wrap_quorum is 2, but kms_key lists 1 KMS key$"):
        initialise(**OPTIONS, wrap_quorum="2")
    assert list(tmp_path.iterdir()) == []


def test_without_a_kek_it_makes_none(tmp_path):
    with pytest.raises(ConfigurationError, match="no KMS key is configured"):
        initialise(store_url="sqlite:///shop.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_tells_everything_and_writes_nothing(tmp_path):
    steps = initialise(dry_run=True, **OPTIONS)
    assert changed(steps) == {"settings", "kek", "tables", "keys"}
    assert list(tmp_path.iterdir()) == []
    initialise(**OPTIONS)
    before = fingerprint(tmp_path)
    assert changed(initialise(dry_run=True)) == set()
    assert fingerprint(tmp_path) == before


def test_an_existing_key_file_is_used_as_it_is(tmp_path):
    made = LocalKmsAdapter.create(tmp_path / "dev.key")
    steps = initialise(**OPTIONS)
    assert "kek" not in changed(steps)
    assert LocalKmsAdapter(tmp_path / "dev.key").uri == made.uri


def test_a_lost_key_file_is_not_replaced_while_keys_hang_on_it(tmp_path):
    """A new one would open nothing, and would hide that the first one is gone."""
    initialise(**OPTIONS)
    (tmp_path / "dev.key").unlink()
    with pytest.raises(ConfigurationError, match="there is no key file"):
        initialise()
    assert not (tmp_path / "dev.key").exists()


def test_a_key_file_that_others_can_read_stops_it(tmp_path):
    LocalKmsAdapter.create(tmp_path / "dev.key")
    (tmp_path / "dev.key").chmod(0o644)
    with pytest.raises(ConfigurationError, match="users other than its owner"):
        initialise(**OPTIONS)


def test_denied_permissions_stop_it_with_what_to_grant(tmp_path, monkeypatch):
    denied = [
        PermissionCheck(action="kms:Encrypt", granted=True),
        PermissionCheck(action="kms:Decrypt", granted=False, detail="grant kms:Decrypt to the role"),
    ]
    monkeypatch.setattr(LocalKmsAdapter, "check", lambda *_: denied)
    with pytest.raises(KmsForbiddenError, match="kms:Decrypt") as caught:
        initialise(**OPTIONS)
    assert caught.value.remedy == "grant kms:Decrypt to the role"
    assert "kms:Encrypt" not in str(caught.value)
    assert tables() == set()


def test_what_only_a_rotation_needs_does_not_stop_it(tmp_path, monkeypatch):
    checks = [PermissionCheck(action="kms:ReEncrypt*", granted=False, detail="grant it", required=False)]
    asked = []
    monkeypatch.setattr(
        LocalKmsAdapter, "check", lambda _self, application: asked.append(application) or checks
    )
    steps = initialise(**OPTIONS)
    (detail,) = [step.detail for step in steps if step.name == "kms"]
    assert "but not the optional kms:ReEncrypt*" in detail
    assert asked == [OPTIONS["application"]]


def test_an_adapter_that_cannot_be_asked_is_taken_at_its_word(monkeypatch):
    kms = FakeKms()
    for module in ("assembly", "initialise"):
        monkeypatch.setattr(f"eventseal.configuration.{module}.adapter_from_uri", lambda *_: kms)
    (detail,) = [step.detail for step in initialise(**OPTIONS) if step.name == "kms"]
    assert "has no check of permissions" in detail


def test_a_missing_key_id_is_added_with_its_index(tmp_path):
    query(
        "CREATE TABLE integer_sequenced_items (sequence_id BLOB, position BIGINT, topic TEXT, data BLOB,"
        " PRIMARY KEY (sequence_id, position))"
    )
    with pytest.raises(ConfigurationError, match="has no column key_id") as refused:
        initialise(**OPTIONS)
    assert "eventseal upgrade" in refused.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["shop.sqlite"]
    LocalKmsAdapter.create("dev.key")
    write_settings_file(tmp_path / "eventseal.toml", OPTIONS)
    assert changed(upgrade(dry_run=True)) == {"columns"}
    steps = upgrade()
    (detail,) = [step.detail for step in steps if step.name == "columns"]
    assert "integer_sequenced_items" in detail
    assert "key_id" in {name for _, name, *_ in query("PRAGMA table_info(integer_sequenced_items)")}
    assert changed(initialise()) == {"tables", "keys"}
    assert changed(upgrade()) == set()
    indexed = query(
        "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql LIKE '%integer_sequenced_items%'"
    )
    assert any("key_id" in sql for (sql,) in indexed)
    assert (changed(initialise()), changed(upgrade())) == (set(), set())


def test_keys_can_go_to_a_database_of_their_own(tmp_path):
    initialise(**OPTIONS, key_store_url="sqlite:///keys.sqlite")
    assert "eventseal_encryption_keys" in tables("keys.sqlite")
    assert "eventseal_encryption_keys" not in tables()
    assert changed(initialise()) == set()


def test_two_applications_share_a_database(tmp_path):
    initialise(**OPTIONS)
    second = OPTIONS | {"application": "billing"}
    assert changed(initialise("billing.toml", **second)) == {"settings", "keys"}
    for file, application in (("eventseal.toml", "shop"), ("billing.toml", "billing")):
        with EventSeal.from_settings(file) as seal:
            assert seal.cipher.application == application
            assert verify(seal).failed == 0


def test_a_folder_that_is_not_there_is_a_wrong_setting():
    with pytest.raises(ConfigurationError, match="there is no folder no/such/folder"):
        initialise(**(OPTIONS | {"store_url": "sqlite:///no/such/folder/shop.sqlite"}))


def test_a_locked_file_is_an_unavailable_database(tmp_path):
    initialise(**OPTIONS)
    with closing(sqlite3.connect("shop.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError):
            initialise(
                "second.toml",
                **(OPTIONS | {"application": "second", "store_url": "sqlite:///shop.sqlite?timeout=0"}),
            )
    initialise("second.toml")


def test_a_read_only_database_is_told_apart(tmp_path):
    query("CREATE TABLE t (x)")
    url = f"sqlite:///file:{tmp_path}/shop.sqlite?mode=ro&uri=true"
    with pytest.raises(StoreReadOnlyError):
        initialise(**(OPTIONS | {"store_url": url}))


@pytest.mark.slow
def test_it_makes_a_store_on_postgresql_once(postgres_url):
    options = OPTIONS | {"store_url": postgres_url}
    assert changed(initialise(**options)) == {"settings", "kek", "tables", "keys"}
    assert changed(initialise()) == set()
    with EventSeal.from_settings() as seal:
        assert seal.cipher.decrypt(seal.cipher.encrypt(b"x", CONTEXT), CONTEXT) == b"x"
        with seal.datastore.engine.begin() as connection:
            connection.execute(text("ALTER TABLE integer_sequenced_items DROP COLUMN key_id"))
    with EventSeal.from_settings() as seal, pytest.raises(ConfigurationError, match="key_id") as caught:
        seal.datastore.setup_tables()
    assert "eventseal upgrade" in caught.value.remedy
    assert changed(upgrade(dry_run=True)) == {"columns", "indexes"}
    assert changed(upgrade()) == {"columns", "indexes"}
    assert (changed(initialise()), changed(upgrade())) == (set(), set())


@pytest.mark.slow
def test_processes_that_start_together_make_one_store(tmp_path, monkeypatch):
    for name, value in OPTIONS.items():
        monkeypatch.setenv(f"EVENTSEAL_{name.upper()}", value)
    LocalKmsAdapter.create(tmp_path / "dev.key")
    command = [Path(sys.executable).with_name("eventseal"), "init", "--json"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    ends = [(process.communicate(), process.returncode) for process in running]
    assert [code for _, code in ends] == [0] * 4, ends
    assert query(
        "SELECT purpose, count(*) FROM eventseal_encryption_keys GROUP BY purpose ORDER BY purpose"
    ) == [
        ("data", 1),
        ("store", 1),
    ]


@pytest.mark.parametrize(
    "value",
    ["plain", 'a "quoted" \\ path', "tab\tnewline\n", "ü😀", "\x7f\x01", "", ["a", 'b"c'], True, False, 16],
)
def test_every_value_comes_back_from_the_file(value):
    read = tomllib.loads(as_toml({"x": value}))["x"]
    assert (type(read), read) == (type(value), value)


def test_a_settings_file_is_never_overwritten(tmp_path):
    (tmp_path / "eventseal.toml").write_text("mine")
    with pytest.raises(ConfigurationError, match="does not overwrite it"):
        write_settings_file(tmp_path / "eventseal.toml", {})
    assert (tmp_path / "eventseal.toml").read_text() == "mine"


def test_a_settings_file_in_no_folder_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_settings_file(tmp_path / "no" / "eventseal.toml", {})


@pytest.mark.parametrize("name", ["store_url", "key_store_url"])
def test_a_database_in_memory_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(ConfigurationError, match="in memory") as refusal:
        initialise(**OPTIONS | {name: "sqlite://"})
    assert "setup_tables()" in refusal.value.remedy
    assert not list(tmp_path.iterdir())


FOREIGN = {
    "all but the key id": "CREATE TABLE snapshots (id INTEGER PRIMARY KEY, name TEXT)",
    "a type": "CREATE TABLE snapshots (sequence_id TEXT, position BIGINT, topic TEXT, data BLOB)",
    "the data": "CREATE TABLE snapshots (sequence_id BLOB, position BIGINT, topic TEXT, data TEXT)",
    "a view": "CREATE VIEW snapshots AS SELECT x'' AS sequence_id, 1 AS position, '' AS topic, x'' AS data",
}


@pytest.mark.parametrize("create", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("run", [initialise, upgrade])
def test_another_programs_table_is_refused_and_stays_byte_for_byte(tmp_path, create, run):
    query(create)
    query(
        "CREATE TABLE integer_sequenced_items (sequence_id BLOB, position BIGINT, topic TEXT, data BLOB,"
        " PRIMARY KEY (sequence_id, position))"
    )
    options = OPTIONS
    if run is upgrade:
        LocalKmsAdapter.create("dev.key")
        write_settings_file(tmp_path / "eventseal.toml", OPTIONS)
        options = {}
    dump = fingerprint(tmp_path)
    with pytest.raises(ConfigurationError, match=r"snapshots.*Nothing was changed") as refused:
        run(**options)
    assert "another program" in refused.value.remedy
    assert fingerprint(tmp_path) == dump


def test_a_wrong_arn_leaves_nothing_that_refuses_the_right_one(tmp_path, monkeypatch):
    kms = FakeAwsKms()
    for name, value in kms.credentials().items():
        monkeypatch.setenv(name.upper(), value)
    with kms.serve() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", url)
        arn = kms.create_key()
        options = OPTIONS | {"kms_key": f"{arn[:-4]}0000", "ledger": "erasures.jsonl"}
        with pytest.raises((KmsError, ConfigurationError)):
            initialise(**options)
        assert list(tmp_path.iterdir()) == []
        assert changed(initialise(**options | {"kms_key": arn})) == {"settings", "tables", "keys", "ledger"}


def test_a_ledger_that_cannot_be_made_stops_it_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigurationError, match="folder of ledger"):
        initialise(**OPTIONS, ledger="no/such/folder/erasures.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_with_tables_of_the_eventsourcing_library_no_item_tables_are_made(tmp_path):
    options = OPTIONS | {"eventsourcing_tables": ["stored_events"]}
    initialise(**options)
    items = {"integer_sequenced_items", "timestamp_sequenced_items", "snapshots"}
    assert not tables() & items
    assert [finding.text for finding in diagnose() if finding.severity == "error"] == []
    (tmp_path / "eventseal.toml").unlink()
    named = ["eventseal.storage:SnapshotRecord"]
    assert changed(initialise(**options, tables=named)) == {"settings", "tables"}
    assert tables() & items == {"snapshots"}


def test_with_tables_of_the_eventsourcing_library_existing_item_tables_are_used(tmp_path):
    initialise(**OPTIONS)
    query("DROP TABLE snapshots")
    query("CREATE TABLE snapshots (id INTEGER PRIMARY KEY)")
    (tmp_path / "eventseal.toml").unlink()
    assert "tables" not in changed(initialise(**OPTIONS, eventsourcing_tables=["stored_events"]))
    with EventSeal.from_settings() as seal:
        names = {columns.table.name for columns in seal.datastore.needed_columns()}
        assert names == {"integer_sequenced_items", "timestamp_sequenced_items"}


def test_a_schema_is_refused_on_sqlite(tmp_path):
    with pytest.raises(ConfigurationError, match="only on PostgreSQL"):
        initialise(**OPTIONS, database_schema="app")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_schema_holds_every_table(postgres_url, new_postgres_database):
    schema = 'Shop "one"'
    options = OPTIONS | {"store_url": postgres_url, "database_schema": schema}
    ledger = new_postgres_database()
    with pytest.raises(ConfigurationError, match="schema") as refused:
        initialise(**options, ledger=ledger)
    assert 'CREATE SCHEMA "Shop ""one"""' in refused.value.remedy
    for url in (postgres_url, ledger):
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text('CREATE SCHEMA "Shop ""one"""'))
            connection.execute(text("CREATE TABLE snapshots (id INTEGER)"))
        engine.dispose()
    initialise(**options, ledger=ledger)
    assert (changed(initialise()), changed(upgrade())) == (set(), set())
    with EventSeal.from_settings(cache_refresh_interval="1ms") as seal:
        for tenant in ("acme", "gone"):
            for position in range(2):
                Reader(seal).append(tenant, position)
        rotate_keys(seal, scopes=["tenant:acme"])
        assert reencrypt(seal).done == 2
        assert shred(seal, "tenant:gone", ledger=seal.ledger).complete
        Reader(seal).check(tenants=["acme"])
        assert verify(seal).failed == 0
        assert retire(seal).done == 1
        statement = deletion(seal.datastore.engine, key_fences, "true")
        assert statement.startswith('DELETE FROM "Shop ""one""".eventseal_key_fences')
        with seal.datastore.engine.connect() as connection:
            schemas = connection.execute(
                text("SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'eventseal%'")
            )
            assert list(schemas.scalars()) == [schema]
    assert [finding.text for finding in diagnose() if finding.area == "tables" and finding.cause] == []
