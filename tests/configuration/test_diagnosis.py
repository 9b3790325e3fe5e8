"""The diagnosis: each thing that can be amiss is found, with a remedy that mends it; nothing is changed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from eventseal.configuration import EventSeal
from eventseal.configuration.diagnosis import Severity, diagnose
from eventseal.configuration.initialise import initialise
from eventseal.configuration.upgrade import upgrade
from eventseal.keys import Keyring
from eventseal.rotation import begin_migration, finish_migration, rotate_keys
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy
from eventseal.storage.database.engines import SQLAlchemySettings
from eventseal.storage.database.transactions import write
from eventseal.storage.items.fences import close_fence
from eventseal_kms.local import LocalKmsAdapter

ITEMS = "integer_sequenced_items"


class Order:
    def __init__(self, originator_id: UUID, originator_version: int) -> None:
        self.originator_id = originator_id
        self.originator_version = originator_version


@pytest.fixture
def shop(store_url, monkeypatch):
    """A store that is ready, by the environment alone; gives its URL."""
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key")
    monkeypatch.setenv("EVENTSEAL_STORE_URL", store_url)
    monkeypatch.setenv("EVENTSEAL_APPLICATION", "shop")
    monkeypatch.setenv("EVENTSEAL_LEDGER", "erasures.jsonl")
    initialise()
    return store_url


@pytest.fixture
def sql(shop):
    """Runs SQL behind everybody's back."""
    engine = create_engine(SQLAlchemySettings(shop).url, poolclass=NullPool)

    def run(*statements: str, **values):
        with engine.begin() as connection:
            for statement in statements:
                result = connection.execute(text(statement), values)
            return result.fetchall() if result.returns_rows else []

    yield run
    engine.dispose()


@pytest.fixture
def make_trigger(shop):
    """Pastes a remedy of two statements as a person does: with no parameters in it."""

    def make(script: str) -> None:
        if shop.startswith("sqlite"):
            with closing(sqlite3.connect("store.sqlite")) as connection:
                connection.executescript(script)
            return
        engine = create_engine(SQLAlchemySettings(shop).url, poolclass=NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql(script.replace("%", "%%"))
        engine.dispose()

    return make


@pytest.fixture
def append(shop):
    def append_one(count: int = 1) -> UUID:
        with EventSeal.from_settings() as seal:
            strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
            order = uuid4()
            items = seal.mapper.to_sequenced_items([Order(order, n) for n in range(count)])
            strategy.append(items)
            return items[0].key_id

    return append_one


def amiss():
    """What asks for action; that the tests' PostgreSQL does not wait for its disk is so on purpose."""
    found = [finding for finding in diagnose() if finding.severity.asks_for_action]
    return [finding for finding in found if "fsync is off" not in finding.text]


def the_one(word: str):
    (finding,) = [finding for finding in amiss() if word in finding.text]
    assert finding.remedy
    assert "\n" not in finding.text
    return finding


def test_tables_of_an_older_store_are_left_as_they_are(lax_tables, shop, sql):
    tables = "SELECT name, sql FROM sqlite_master WHERE type = 'table'"
    if shop.startswith("postgresql"):
        tables = "SELECT conname FROM pg_constraint WHERE contype = 'c' AND conname LIKE 'ck_%'"
    before = sql(tables)
    older = [str(row) for row in before if "eventseal_key_claims" not in str(row)]  # which no older store has
    assert not any("STRICT" in row or "ck_" in row for row in older)
    assert not any(step.changed for step in initialise())
    assert sql(tables) == before
    assert amiss() == []


@pytest.mark.slow
def test_a_store_that_is_ready_has_nothing_amiss_in_any_area(append):
    append(3)
    assert amiss() == []
    areas = {finding.area for finding in diagnose() if finding.severity is Severity.OK}
    places = {"settings", "kms", "database", "clock", "tables", "registry"}
    assert areas == places | {"fences", "keys", "ledger", "migration", "jobs"}


def test_a_store_without_a_ledger_is_warned(shop, monkeypatch):
    monkeypatch.delenv("EVENTSEAL_LEDGER")
    (finding,) = amiss()
    assert (finding.severity, finding.area) == (Severity.WARNING, "ledger")
    assert finding.text.startswith("no erasure ledger is configured")
    assert 'ledger = "erasures.jsonl" to eventseal.toml' in finding.remedy


def test_a_ledger_that_cannot_be_read_is_a_finding_of_the_ledger(shop):
    Path("erasures.jsonl").write_text("no entry\n")
    finding = the_one("erasures.jsonl")
    assert (finding.severity, finding.area) == (Severity.ERROR, "ledger")


def test_jobs_that_cannot_be_read_are_a_finding_of_the_jobs(sql):
    sql("ALTER TABLE eventseal_reencryption_jobs RENAME COLUMN total TO other")
    assert the_one("reading the progress of jobs").area == "jobs"


def test_nothing_is_changed(append, sql, shop):
    append(3)

    def content():
        tables = (
            "eventseal_encryption_keys",
            "eventseal_key_wrappings",
            "eventseal_key_changes",
            "eventseal_sealed_tables",
            "eventseal_key_fences",
            ITEMS,
        )
        return [sorted(map(repr, sql(f"SELECT * FROM {table}"))) for table in tables]

    before = content(), sorted(Path.cwd().iterdir())
    list(diagnose())
    assert (content(), sorted(Path.cwd().iterdir())) == before


def test_settings_that_cannot_be_read_are_the_only_finding(monkeypatch):
    monkeypatch.setenv("EVENTSEAL_STOR_URL", "sqlite:///x")
    (finding,) = diagnose()
    assert (finding.area, finding.severity) == ("settings", Severity.ERROR)
    assert "EVENTSEAL_STORE_URL" in finding.remedy


def test_without_a_kek_the_databases_are_looked_at_even_so(shop, monkeypatch):
    monkeypatch.delenv("EVENTSEAL_KMS_KEY")
    found = list(diagnose())
    errors = [f.text for f in found if f.severity == "error"]
    assert errors == ["no KMS key is configured: kms_key is missing"]
    assert "tables" in {finding.area for finding in found}


def test_without_a_database_the_kek_is_looked_at_even_so(shop, monkeypatch):
    monkeypatch.delenv("EVENTSEAL_STORE_URL")
    found = list(diagnose())
    assert [f.text.split(": ")[1] for f in found if f.severity == "error"] == ["store_url is missing"]
    assert "kms" in {finding.area for finding in found}


def test_a_settings_file_that_others_read_is_told_with_its_chmod(shop):
    Path("eventseal.toml").write_text('compression = "zstd"')
    Path("eventseal.toml").chmod(0o644)
    assert the_one("may hold passwords").remedy == "chmod 600 eventseal.toml"


def test_a_database_that_is_away_ends_what_needs_it(shop, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_STORE_URL", "postgresql://nobody@127.0.0.1:1/none")
    found = list(diagnose())
    (away,) = [finding for finding in found if finding.severity == "error"]
    assert (away.area, type(away.cause).__name__) == ("database", "StoreUnavailableError")
    assert not {"tables", "keys"} & {finding.area for finding in found}


def test_a_file_that_is_not_there_is_not_made(shop, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_STORE_URL", "sqlite:///elsewhere.sqlite")
    assert the_one("does not exist").remedy.endswith("create the file with `eventseal init`.")
    assert not Path("elsewhere.sqlite").exists()


@pytest.mark.slow
def test_missing_tables_send_to_init(shop, sql):
    sql("DROP TABLE eventseal_key_fences")
    assert the_one("there is no table eventseal_key_fences").remedy == "eventseal init"
    initialise()
    assert amiss() == []


@pytest.mark.slow
def test_a_missing_index_on_key_ids_sends_to_upgrade(shop, sql):
    catalogue = "sqlite_master" if shop.startswith("sqlite") else "pg_indexes"
    name = "name" if shop.startswith("sqlite") else "indexname"
    ((index,),) = sql(f"SELECT {name} FROM {catalogue} WHERE {name} LIKE 'eventseal_differ_%_{ITEMS}'")
    sql(f"DROP INDEX {index}")
    assert the_one("lacks an index on the key ids").remedy == "eventseal upgrade"
    assert [step.name for step in upgrade(dry_run=True) if step.changed] == ["indexes"]
    upgrade()
    assert amiss() == []


@pytest.mark.slow
def test_a_missing_index_beside_the_items_is_told_with_the_statement_that_makes_it(shop, sql):
    sql("DROP INDEX ix_eventseal_reencryption_jobs_state")
    remedy = the_one("has no index on application, state").remedy
    assert remedy.startswith("CREATE INDEX")
    sql(remedy.replace("CONCURRENTLY ", ""))
    assert amiss() == []


def test_a_missing_unique_key_is_an_error(shop, sql):
    if shop.startswith("sqlite"):
        sql(
            "ALTER TABLE snapshots RENAME TO o",
            "CREATE TABLE snapshots AS SELECT * FROM o",
            "DROP TABLE o",
        )
    else:
        sql("ALTER TABLE snapshots DROP CONSTRAINT snapshots_pkey")
    assert the_one("table snapshots does not keep").severity is Severity.ERROR


@pytest.mark.slow
def test_a_column_that_was_dropped_is_named(shop, sql):
    sql("ALTER TABLE eventseal_key_wrappings DROP COLUMN verified_at")
    finding = the_one("eventseal_key_wrappings has no column verified_at")
    assert finding.remedy.startswith("ALTER TABLE eventseal_key_wrappings ADD COLUMN verified_at")
    sql(finding.remedy)
    assert amiss() == []


def test_a_registered_table_that_is_gone_is_named(shop, sql):
    sql("UPDATE eventseal_sealed_tables SET table_name = 'gone' WHERE table_name = 'snapshots'")
    texts = {finding.text: finding.remedy for finding in amiss()}
    assert "DELETE FROM eventseal_sealed_tables" in texts["table gone is registered, but does not exist"]
    assert texts["table snapshots is not registered for application shop"] == "eventseal init"


@pytest.mark.slow
def test_a_table_that_looks_sealed_and_is_not_registered_is_named(shop, sql, monkeypatch):
    kind = "BLOB" if shop.startswith("sqlite") else "uuid"
    data = "BLOB" if shop.startswith("sqlite") else "bytea"
    sql(f"CREATE TABLE strangers (key_id {kind}, data {data})")
    finding = the_one("strangers")
    assert 'unsealed_tables = ["strangers"]' in finding.remedy
    monkeypatch.setenv("EVENTSEAL_UNSEALED_TABLES", "strangers")
    assert amiss() == []


@pytest.mark.slow
def test_a_closed_fence_of_a_live_key_is_an_interrupted_retire(append, shop):
    key_id = append()
    with EventSeal.from_settings() as seal:
        seal.keyring.rotate()
        write(seal.datastore.engine, lambda connection: close_fence(connection, key_id), doing="closing")
    assert the_one("a `retire` was interrupted").remedy == f"eventseal retire --key {key_id}"


@pytest.mark.slow
def test_another_applications_items_in_a_shared_table_are_in_order(append, shop, monkeypatch):
    append()
    with monkeypatch.context() as other:
        other.setenv("EVENTSEAL_APPLICATION", "other")
        initialise()
        append()
    assert amiss() == []


def test_the_fence_of_a_compromised_key_is_closed_as_it_should_be(append, shop):
    append()
    with EventSeal.from_settings() as seal:
        rotate_keys(seal, compromised=True)
    assert amiss() == []


@pytest.mark.slow
def test_what_writes_without_a_fence_is_told_with_a_trigger_that_takes_it(append, sql, make_trigger, shop):
    key_id = append()
    sql("DELETE FROM eventseal_key_fences")
    finding = the_one(f"{ITEMS} has items under key {key_id} without a fence")
    make_trigger(finding.remedy)
    assert amiss() == []
    # What copies a row, without any fence of its own, takes one now (on SQLite its write lock is one); and
    # finds it closed later.
    copy = (
        f"INSERT INTO {ITEMS} SELECT sequence_id, position + :more, topic, data, key_id FROM {ITEMS}"
        " WHERE position = 0"
    )
    sql(copy, more=1)
    if not shop.startswith("sqlite"):
        assert [tuple(row) for row in sql("SELECT state FROM eventseal_key_fences")] == [("open",)]
    close = (
        "INSERT INTO eventseal_key_fences VALUES (:k, 'closed') ON CONFLICT (key_id) DO "
        "UPDATE SET state = 'closed'"
    )
    sql(close, k=key_id.bytes if shop.startswith("sqlite") else key_id)
    with pytest.raises(Exception, match="is closed: seal the item again"):
        sql(copy, more=2)
    assert sql(f"SELECT count(*) FROM {ITEMS}")[0][0] == 2


def test_items_of_keys_that_are_not_there_are_told(append, sql, shop):
    append()
    stranger = uuid4()
    sql(
        f"UPDATE {ITEMS} SET data = :d, key_id = :k",
        d=b"\1\3\0" + stranger.bytes + bytes(40),
        k=stranger.bytes if shop.startswith("sqlite") else stranger,
    )
    assert str(stranger) in the_one("does not have").text


@pytest.mark.slow
def test_items_whose_column_names_another_key_than_their_envelope_are_told(append, sql):
    append()
    sql(f"UPDATE {ITEMS} SET key_id = NULL")
    assert "eventseal verify" in the_one(f"1 item of {ITEMS} names another key").remedy


def test_an_edited_row_of_a_key_is_found_by_its_seal(shop, sql):
    sql("UPDATE eventseal_encryption_keys SET scope = 'tenant:x' WHERE purpose = 'data'")
    assert "does not match its MAC" in the_one("was edited").text


def test_a_store_key_that_is_gone_is_an_error(shop, sql):
    sql(
        "DELETE FROM eventseal_key_wrappings", "DELETE FROM eventseal_encryption_keys WHERE purpose = 'store'"
    )
    assert "store key" in the_one("was deleted").text


def test_a_store_key_that_goes_while_the_keys_are_checked_is_not_made_again(sql, monkeypatch):
    def deleted_before(*arguments, **named):
        sql(
            "DELETE FROM eventseal_key_wrappings",
            "DELETE FROM eventseal_encryption_keys",
            "DELETE FROM eventseal_key_changes",
        )
        return Keyring(*arguments, **named)

    monkeypatch.setattr("eventseal.configuration.diagnosis.key_checks.Keyring", deleted_before)
    assert "has no keys yet" in the_one("has no keys yet").text
    assert sql("SELECT key_id FROM eventseal_encryption_keys") == []


def test_tables_without_keys_send_to_init(shop, sql):
    for table in ("eventseal_key_wrappings", "eventseal_encryption_keys", "eventseal_key_changes"):
        sql(f"DELETE FROM {table}")
    assert the_one("has no keys yet").remedy == "eventseal init"


@pytest.mark.slow
def test_a_wrapping_under_a_kek_that_is_not_configured_is_told_and_so_are_keys_without_another(
    shop, monkeypatch
):
    LocalKmsAdapter.create("other.key")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://other.key")
    assert "2 wrappings under local://" in the_one("which is not configured").text
    assert the_one("wrapped under no configured KMS key").text.startswith("2 keys are")


def test_keys_that_miss_a_wrapping_under_a_further_kek_are_counted(shop, monkeypatch):
    LocalKmsAdapter.create("other.key")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key,local://other.key")
    finding = the_one("no wrapping under")
    assert finding.text.startswith("2 keys have no wrapping")
    assert finding.remedy == "eventseal rewrap"


def test_a_wrapping_that_was_changed_is_found_by_trying_it(shop, sql):
    (wrapped,) = sql("SELECT wrapped FROM eventseal_key_wrappings ORDER BY key_id DESC LIMIT 1")[0]
    sql(
        "UPDATE eventseal_key_wrappings SET wrapped = :w",
        w=bytes(wrapped)[:-1] + bytes([bytes(wrapped)[-1] ^ 1]),
    )
    assert any(finding.area == "keys" and finding.severity == "error" for finding in amiss())


@pytest.mark.slow
def test_branch_keys_that_are_gone_are_an_error(shop, sql, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_BRANCHES", "2")
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(["tenant:a", "tenant:b", "tenant:c"])
    assert amiss() == []
    sql(
        "DELETE FROM eventseal_key_wrappings WHERE key_id IN"
        " (SELECT key_id FROM eventseal_encryption_keys WHERE purpose = 'branch')",
        "DELETE FROM eventseal_encryption_keys WHERE purpose = 'branch'",
    )
    assert any("which is missing" in finding.text for finding in amiss())


def test_keys_that_are_due_for_rotation_are_a_note_with_the_command(shop, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_ROTATION_MAX_AGE", "1ms")
    (note,) = [finding for finding in diagnose() if "due for rotation" in finding.text]
    assert (note.severity, note.remedy) == (Severity.NOTE, "eventseal rotate --scope application")


def of_migration():
    found = [finding for finding in diagnose() if finding.area == "migration"]
    return [(finding.severity, finding.text, finding.remedy) for finding in found]


@pytest.mark.slow
def test_a_migration_without_event_modules_is_a_warning_with_the_line_to_add(shop, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_OLD_FORMATS", "plain-json")
    with EventSeal.from_settings() as seal:
        begin_migration(seal)
    (found,) = amiss()
    assert (found.area, found.severity) == ("migration", Severity.WARNING)
    assert "event_modules is not set" in found.text
    assert found.remedy.endswith('event_modules = ["shop"]')
    monkeypatch.setenv("EVENTSEAL_EVENT_MODULES", "shop")  # which is not imported here
    assert amiss() == []


@pytest.mark.slow
def test_what_stands_of_a_migration_is_told_at_each_step(shop, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_EVENT_MODULES", "shop")
    ((severity, text, _),) = of_migration()
    assert (severity, text) == (Severity.OK, "no older format is accepted, and old_formats is not set")
    monkeypatch.setenv("EVENTSEAL_OLD_FORMATS", "plain-json")
    ((severity, text, remedy),) = of_migration()
    assert severity is Severity.NOTE
    assert text == "old_formats names plain-json, which no table accepts yet"
    assert remedy.endswith("eventseal migrate begin")
    with EventSeal.from_settings() as seal:
        begin_migration(seal)
        ((severity, text, remedy),) = of_migration()
        assert severity is Severity.NOTE
        assert "began and is not finished. In addition to envelopes, " in text
        assert text.endswith(" accept plain-json")
        assert remedy.endswith("run `eventseal migrate finish`.")
        finish_migration(seal)
    ((severity, text, remedy),) = of_migration()
    assert severity is Severity.WARNING
    assert remedy.startswith("Remove old_formats from the settings")
    monkeypatch.delenv("EVENTSEAL_OLD_FORMATS")
    assert [severity for severity, _, _ in of_migration()] == [Severity.OK]


@pytest.mark.slow
def test_a_process_that_cannot_read_what_it_is_to_accept_is_told(shop, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_EVENT_MODULES", "shop")
    monkeypatch.setenv("OLD", "MDEyMzQ1Njc4OWFiY2RlZg==")
    monkeypatch.setenv("EVENTSEAL_OLD_FORMATS", "eventsourcing-gcm key=env:OLD")
    with EventSeal.from_settings() as seal:
        begin_migration(seal)
    monkeypatch.delenv("OLD")
    (refused,) = amiss()
    assert (refused.area, refused.severity) == ("migration", Severity.ERROR)
    assert "env:OLD, does not exist" in refused.text
    monkeypatch.delenv("EVENTSEAL_OLD_FORMATS")
    (found,) = amiss()
    assert (found.area, found.severity) == ("migration", Severity.WARNING)
    assert found.text == (
        f"the readers of {ITEMS}, snapshots, timestamp_sequenced_items must accept eventsourcing-gcm, "
        "but old_formats does not name it here: this process refuses such items"
    )


@pytest.mark.slow
def test_a_clock_that_is_off_is_told(shop, monkeypatch):
    from eventseal.configuration.diagnosis import database_checks

    class Late(database_checks.datetime):
        @classmethod
        def now(cls, zone):
            return super().now(zone) - timedelta(minutes=5)

    monkeypatch.setattr(database_checks, "datetime", Late)
    assert "300 s fast, compared with this machine" in the_one("the clock of the database").text


@pytest.mark.postgres
def test_a_role_without_rights_is_told_with_its_grant(postgres_url, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key")
    monkeypatch.setenv("EVENTSEAL_STORE_URL", postgres_url)
    initialise()
    engine = create_engine(SQLAlchemySettings(postgres_url).url, poolclass=NullPool)
    role = f"reader_{uuid4().hex[:8]}"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        connection.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
        connection.execute(text(f"REVOKE SELECT ON snapshots FROM {role}"))
    with monkeypatch.context() as patch:
        options = f"{'&' if '?' in postgres_url else '?'}options=-crole%3D{role}"
        patch.setenv("EVENTSEAL_STORE_URL", postgres_url + options)
        found = {finding.remedy: finding.severity for finding in diagnose()}
    assert found[f"GRANT SELECT, INSERT, UPDATE, DELETE ON snapshots TO {role};"] is Severity.ERROR
    assert found[f"GRANT INSERT, UPDATE, DELETE ON eventseal_key_fences TO {role};"] is Severity.NOTE
    with engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))
    engine.dispose()


@pytest.mark.slow
@pytest.mark.postgres
def test_a_server_that_may_lose_keys_or_cannot_be_written_is_told(postgres_url, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key")
    monkeypatch.setenv("EVENTSEAL_STORE_URL", postgres_url)
    initialise()
    assert any("fsync is off" in finding.text for finding in diagnose())
    options = "options=-csynchronous_commit%3Doff%20-cdefault_transaction_read_only%3Don"
    monkeypatch.setenv("EVENTSEAL_STORE_URL", f"{postgres_url}{'&' if '?' in postgres_url else '?'}{options}")
    assert "synchronous_commit = on" in the_one("synchronous_commit is off").remedy
    read_only = the_one("transactions are read-only by default")
    assert type(read_only.cause).__name__ == "StoreReadOnlyError"


def test_a_file_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key")
    monkeypatch.setenv("EVENTSEAL_STORE_URL", "sqlite:///shop.sqlite")
    monkeypatch.setenv("EVENTSEAL_LEDGER", "erasures.jsonl")
    initialise()
    monkeypatch.setenv("EVENTSEAL_STORE_URL", f"sqlite:///file:{tmp_path}/shop.sqlite?mode=ro&uri=true")
    (finding,) = amiss()
    assert type(finding.cause).__name__ == "StoreReadOnlyError"


def test_a_file_without_a_write_ahead_log_and_without_patience_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key")
    monkeypatch.setenv("EVENTSEAL_STORE_URL", "sqlite:///shop.sqlite")
    initialise()
    with closing(sqlite3.connect("shop.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    url = f"sqlite:///file:{tmp_path}/shop.sqlite?mode=ro&uri=true&timeout=0"
    monkeypatch.setenv("EVENTSEAL_STORE_URL", url)
    found = [finding.text for finding in amiss()]
    assert any("the journal mode is delete" in text for text in found)
    assert any("the busy timeout is 0 s" in text for text in found)


def test_a_record_class_that_cannot_be_imported_is_told(shop, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_TABLES", "nowhere:Record")
    assert the_one("there is no module nowhere").area == "settings"


def test_keys_in_a_database_of_their_own_are_looked_at_there(tmp_path, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key")
    monkeypatch.setenv("EVENTSEAL_STORE_URL", "sqlite:///items.sqlite")
    monkeypatch.setenv("EVENTSEAL_KEY_STORE_URL", "sqlite:///keys.sqlite")
    monkeypatch.setenv("EVENTSEAL_LEDGER", "erasures.jsonl")
    initialise()
    texts = [finding.text for finding in diagnose() if finding.area == "database"]
    assert [text.split(":")[0] for text in texts] == ["items", "keys"]
    assert amiss() == []


# --- what is not encrypted ---


@pytest.mark.slow
def test_items_that_are_not_encrypted_are_an_error_until_a_migration_begins(append, sql, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_EVENT_MODULES", "shop")
    append(3)
    edit = f"UPDATE {ITEMS} SET key_id = NULL, data = :data WHERE position > 0"
    sql(edit, data=b"{}")
    finding = the_one("not encrypted, and no reader")
    assert (finding.severity, finding.area) == (Severity.ERROR, "migration")
    assert finding.text.startswith(f"2 items of {ITEMS} are not encrypted, and no reader accepts")
    assert "eventseal migrate begin" in finding.remedy
    monkeypatch.setenv("EVENTSEAL_ALWAYS_ENCRYPT", "false")
    assert amiss() == []
    monkeypatch.delenv("EVENTSEAL_ALWAYS_ENCRYPT")
    monkeypatch.setenv("EVENTSEAL_OLD_FORMATS", "plain-json")
    sql("UPDATE eventseal_sealed_tables SET old_formats = '[\"plain-json\"]'")
    assert amiss() == []
    sql(edit, data=b"\xff, which no reader takes")
    for allowed in ("true", "false"):
        monkeypatch.setenv("EVENTSEAL_ALWAYS_ENCRYPT", allowed)
        assert the_one("not encrypted, and no reader").text.startswith(f"2 items of {ITEMS}")


@pytest.mark.slow
@pytest.mark.postgres
def test_tables_of_events_by_tags_are_a_warning(append, sql, shop, monkeypatch):
    if shop.startswith("sqlite"):
        pytest.skip("SQLite has no arrays, hence none of these tables")
    sql("CREATE TABLE dcb_events (id BIGSERIAL, type TEXT, data BYTEA, tags TEXT[])")
    finding = the_one("dcb_events")
    assert finding.severity is Severity.WARNING
    monkeypatch.setenv("EVENTSEAL_UNSEALED_TABLES", "dcb_events")
    assert amiss() == []
