"""Stores of earlier releases: they open as before, and `eventseal upgrade` renames their tables."""

from __future__ import annotations

import io
import os
import re
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.orm import Session
from tests.fixtures import older_stores
from tests.fixtures.older_stores import DATABASES, SETTINGS, Reader, dump, tables
from tests.fixtures.sealed_shops import SealedShop, places_of

from eventseal.configuration import EventSeal
from eventseal.configuration.diagnosis import diagnose
from eventseal.configuration.initialise import initialise
from eventseal.configuration.loading import write_settings_file
from eventseal.configuration.roles import Role
from eventseal.configuration.upgrade import own_tables, upgrade
from eventseal.errors import ConfigurationError, StoreUnavailableError
from eventseal.rotation import verify
from eventseal.storage.database.layout import OLDER_NAMES
from eventseal.storage.items.fences import install_fence_triggers, missing_fence_triggers
from eventseal.storage.renaming import rename_tables
from eventseal.testing import FakeKms

ROOT = Path(__file__).parents[2]
OLD_RELEASE = "327fae5"
STEPS = ["names", "columns", "tables", "indexes", "keys"]


@pytest.fixture
def older(tmp_path):
    older_stores.restore()
    return tmp_path


def changed(steps) -> list[str]:
    return [step.name for step in steps if step.changed]


def test_a_store_with_older_names_is_read_and_appended_to(older):
    before = {database: tables(database) for database in DATABASES}
    with EventSeal.from_settings() as seal:
        reader = Reader(seal)
        reader.check()
        reader.append("acme", 2)
        reader.append("new", 0)
        assert verify(seal).failed == 0
        seal.datastore.setup_tables(application="shop")
    with EventSeal.from_settings() as seal:
        assert Reader(seal).events.get_domain_event(older_stores.stream_of("acme"), 2).tenant == "acme"
    assert {database: tables(database) for database in DATABASES} == before


def test_a_session_of_another_engine_uses_the_older_names_too(older):
    engine = create_engine("sqlite:///items.sqlite")
    with EventSeal.from_settings() as seal, Session(engine) as session:
        reader = Reader(seal, session)
        reader.append("acme", 2)
        reader.check()
    engine.dispose()


def test_text_that_looks_like_a_name_is_not_changed(older):
    with EventSeal.from_settings() as seal:
        events, stream = Reader(seal).events, older_stores.stream_of("new")
        said = {"tenant": "eventseal_key_fences", "text": "x"}
        events.append(older_stores.Noted(originator_id=stream, originator_version=0, **said))
        assert events.get_domain_event(stream, 0).tenant == "eventseal_key_fences"
        assert "tenant:eventseal_key_fences" in dump("keys")


def test_it_renames_every_table_once(older):
    dumps = {database: dump(database) for database in DATABASES}
    assert [step.name for step in upgrade(dry_run=True)] == STEPS
    assert changed(upgrade(dry_run=True)) == ["names", "tables"]
    assert {database: dump(database) for database in DATABASES} == dumps
    assert changed(upgrade()) == ["names", "tables"]
    names = set().union(*map(tables, DATABASES))
    assert not names & set(OLDER_NAMES)
    assert names >= {table.name for table in own_tables()}
    assert changed(upgrade()) == []
    assert [step.name for step in initialise() if step.changed] == []
    assert [finding.text for finding in diagnose() if finding.severity == "error"] == []
    with EventSeal.from_settings() as seal:
        reader = Reader(seal)
        reader.check()
        reader.append("acme", 2)
        assert verify(seal).failed == 0
        (theirs,) = seal.datastore.described_eventsourcing_tables()
        assert missing_fence_triggers(seal.datastore.engine, theirs) == []


@contextmanager
def crash_at(number: int):
    """Crash at the statement that is the *number*-th of those that change something."""
    left = number

    def count(_connection, _cursor, statement, *_):
        nonlocal left
        if re.match(r"ALTER|CREATE|DROP|INSERT|UPDATE", statement):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    event.listen(Engine, "before_cursor_execute", count)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", count)


@pytest.mark.slow
def test_after_a_crash_at_any_statement_it_can_be_run_again(older):
    upgrade()
    wanted = {database: dump(database) for database in DATABASES}
    refused = crashes = 0
    while True:
        older_stores.restore()
        crashes += 1
        try:
            with crash_at(crashes):
                upgrade()
        except KeyboardInterrupt:
            pass
        else:
            break
        with EventSeal.from_settings() as seal:
            try:
                Reader(seal).check()
            except ConfigurationError as error:
                refused += "`eventseal upgrade`" in error.remedy
        upgrade()
        assert {database: dump(database) for database in DATABASES} == wanted
    assert crashes > len(own_tables())
    assert refused > 1


def half_way() -> None:
    """Leave the store as an upgrade does that ends after the keys' database."""
    with EventSeal.from_settings() as seal:
        rename_tables(seal.datastore.key_engine, own_tables())


def test_a_store_that_is_half_way_is_refused_until_it_is_upgraded(older):
    half_way()
    with EventSeal.from_settings() as seal, pytest.raises(ConfigurationError, match="interrupted") as refused:
        Reader(seal).check()
    assert "Run `eventseal upgrade`" in refused.value.remedy
    with pytest.raises(ConfigurationError, match="interrupted"):
        initialise()
    assert any("interrupted" in finding.text for finding in diagnose())
    assert changed(upgrade()) == ["names", "tables"]
    with EventSeal.from_settings() as seal:
        Reader(seal).check()


def test_a_ledger_that_was_not_renamed_is_refused(older):
    half_way()
    with EventSeal.from_settings() as seal:
        rename_tables(seal.datastore.engine, own_tables())
    with EventSeal.from_settings() as seal:
        Reader(seal).check()
        with pytest.raises(ConfigurationError, match="interrupted"):
            seal.ledger.last(seal)
    assert changed(upgrade()) == ["names", "tables"]


def test_a_database_with_both_names_is_refused_with_them(older):
    upgrade()
    with closing(sqlite3.connect("items.sqlite")) as connection:
        connection.execute("CREATE TABLE key_fences (key_id BLOB, state TEXT)")
    for opening in (lambda: Reader(EventSeal.from_settings()).check(), upgrade, initialise):
        with pytest.raises(
            ConfigurationError, match=r"both the table key_fences and .* eventseal_key_fences"
        ):
            opening()


def test_another_programs_table_of_an_older_name_stays(older):
    with closing(sqlite3.connect("items.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE epochs (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("INSERT INTO epochs VALUES (1, 'jura')")
        connection.execute("CREATE TABLE key_changes AS SELECT * FROM epochs")
    with closing(sqlite3.connect("ledger.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE key_fences (key_id TEXT, state INTEGER)")
    upgrade()
    assert "key_fences" in tables("ledger")
    with closing(sqlite3.connect("items.sqlite")) as connection:
        assert connection.execute("SELECT * FROM epochs").fetchall() == [(1, "jura")]
    assert "eventseal_epochs" in tables("keys")


def test_init_makes_no_new_keys_for_older_items(older):
    Path("keys.sqlite").unlink()
    with pytest.raises(ConfigurationError, match="earlier release"):
        initialise()
    assert not Path("keys.sqlite").exists()


def test_init_refuses_an_older_store_and_writes_nothing(older):
    Path("eventseal.toml").unlink()
    dumps = {database: dump(database) for database in DATABASES}
    for dry_run in (True, False):
        with pytest.raises(ConfigurationError, match="earlier release") as refused:
            initialise(**SETTINGS, dry_run=dry_run)
        assert "eventseal upgrade" in refused.value.remedy
    assert not Path("eventseal.toml").exists()
    assert {database: dump(database) for database in DATABASES} == dumps


def test_without_a_store_there_is_nothing_to_upgrade(tmp_path):
    sqlite3.connect("shop.sqlite").close()
    Path("eventseal.toml").write_text(
        'kms_key = "local://dev.key"\nstore_url = "sqlite:///shop.sqlite"\n', encoding="utf-8"
    )
    older_stores.restore_key_file()
    with pytest.raises(ConfigurationError, match="no store to upgrade") as refused:
        upgrade()
    assert "eventseal init" in refused.value.remedy


def test_a_running_program_goes_on_through_the_upgrade(older):
    with EventSeal.from_settings() as seal:
        reader = Reader(seal)
        reader.check()
        seal.datastore.session.remove()
        upgrade()
        reader.append("acme", 2)
        reader.append("later", 0)
        assert seal.ledger.last(seal).number > 1
        assert verify(seal).failed == 0


def test_a_statement_that_meets_the_renamed_table_is_sent_again(older):
    """The upgrade comes between the look at the names and the statement."""
    with EventSeal.from_settings() as seal:
        Reader(seal).check()
        done = []

        def upgrade_now(_connection, _cursor, statement, *_):
            if not done and "FROM encryption_keys" in statement:
                done.append(statement)
                upgrade()

        event.listen(seal.datastore.key_engine, "before_cursor_execute", upgrade_now)
        seal.datastore.close()
        assert seal.key_store.active("shop", ["application"])
        assert done


class TestOnPostgreSQL:
    @pytest.fixture
    def engine(self, postgres_url):
        engine = create_engine(postgres_url)
        older_stores.define_on_postgresql(engine)
        with engine.begin() as connection:
            connection.execute(
                text(
                    "CREATE TABLE stored_events (originator_id UUID, originator_version BIGINT, topic TEXT,"
                    " state BYTEA, PRIMARY KEY (originator_id, originator_version))"
                )
            )
        yield engine
        engine.dispose()

    @staticmethod
    def catalogue(engine) -> set[tuple[str, ...]]:
        with engine.connect() as connection:
            names = connection.execute(
                text(
                    "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace UNION ALL "
                    "SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
                )
            )
            return set(names.scalars())

    @pytest.mark.slow
    def test_it_renames_tables_indexes_constraints_and_functions(
        self, engine, postgres_url, new_postgres_database, tmp_path
    ):
        write_settings_file(
            tmp_path / "eventseal.toml",
            {
                "kms_key": "local://dev.key",
                "store_url": postgres_url,
                "eventsourcing_tables": ["stored_events"],
            },
        )
        kms = FakeKms()
        with SealedShop(postgres_url, kms) as shop:
            shop.append("acme", 0, 2)
            assert shop.readable_places() == places_of("acme", 2)
        older_stores.restore_key_file()
        with EventSeal.from_settings() as seal:
            (theirs,) = seal.datastore.described_eventsourcing_tables()
            install_fence_triggers(seal.datastore.engine, theirs)
            with engine.begin() as connection:
                source = connection.execute(text("SELECT string_agg(prosrc, '') FROM pg_proc")).scalar_one()
                assert "public.key_fences " in source
        assert changed(upgrade()) == ["names", "tables", "indexes"]
        with EventSeal.from_settings() as seal:
            assert missing_fence_triggers(seal.datastore.engine, theirs) == []
        fresh = new_postgres_database()
        with SealedShop(fresh, kms).set_up() as other:
            wanted = self.catalogue(other.datastore.engine)
        there = self.catalogue(engine)
        ours = {name for name in wanted if re.match(r"(ix_|uq_|ck_)?eventseal_(?!differ|key_id)", name)}
        assert len(ours) > 2 * len(own_tables())
        assert ours <= there
        assert not [name for name in there if re.match(rf"(ix_|uq_|ck_)?({'|'.join(OLDER_NAMES)})", name)]
        with SealedShop(postgres_url, kms) as shop:
            shop.append("acme", 2)
            assert shop.readable_places() == places_of("acme", 3)
        assert changed(upgrade()) == []

    @pytest.mark.slow
    def test_tables_of_the_release_before_the_revocation_tree_are_completed(self, postgres_url, tmp_path):
        engine = create_engine(postgres_url)
        older_stores.define_on_postgresql(engine, "key-tables-1")
        engine.dispose()
        settings = {"kms_key": "local://dev.key", "store_url": postgres_url}
        write_settings_file(tmp_path / "eventseal.toml", settings)
        older_stores.restore_key_file()
        assert changed(upgrade(dry_run=True)) == ["names", "columns", "tables"]
        assert changed(upgrade()) == ["names", "columns", "tables"]
        assert changed(upgrade()) == []
        assert changed(initialise()) == ["keys"]
        with SealedShop(postgres_url, FakeKms()) as shop:
            shop.append("acme", 0, 2)
            assert shop.readable_places() == places_of("acme", 2)

    @pytest.mark.slow
    def test_a_role_is_checked_under_the_older_names(self, engine, postgres_url, tmp_path):
        role = f"reader_{make_url(postgres_url).database}"
        url = make_url(postgres_url).set(username=role).render_as_string(hide_password=False)
        write_settings_file(tmp_path / "eventseal.toml", {"kms_key": "local://dev.key", "store_url": url})
        older_stores.restore_key_file()
        with engine.begin() as connection:
            connection.execute(text(f'CREATE ROLE "{role}" LOGIN'))
        try:
            said = [finding.remedy for finding in diagnose(role=Role.READER)]
        finally:
            with engine.begin() as connection:
                connection.execute(text(f'DROP ROLE "{role}"'))
        assert f"GRANT SELECT ON encryption_keys TO {role};" in said

    def test_a_long_transaction_stops_it_before_anything_is_renamed(self, engine, postgres_url):
        with SealedShop(postgres_url, FakeKms()) as shop:
            before = self.catalogue(engine)
            with engine.begin() as other:
                other.execute(text("LOCK TABLE sealed_tables IN ACCESS SHARE MODE"))
                with pytest.raises(StoreUnavailableError):
                    rename_tables(shop.datastore.engine, own_tables())
            assert self.catalogue(engine) == before
            assert rename_tables(shop.datastore.engine, own_tables())


APPEND = """
import sys
from eventseal.configuration import EventSeal
from tests.fixtures.sealed_shops import Noted, scope_of, stream_of, text_of
from eventseal.eventstore import EventStore
from eventseal.items import SequencedItemMapper
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy
tenant, position = sys.argv[1], int(sys.argv[2])
stream = stream_of(tenant)
with EventSeal.from_settings() as seal:
    strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
    mapper = SequencedItemMapper(cipher=seal.cipher, key_scope=lambda event: scope_of(event.tenant))
    events = EventStore(strategy, mapper)
    for before in range(position):
        assert events.get_domain_event(stream, before).text == text_of(stream, before)
    said = {"tenant": tenant, "text": text_of(stream, position)}
    events.append(Noted(originator_id=stream, originator_version=position, **said))
"""


@pytest.fixture(scope="session")
def older_release(tmp_path_factory):
    """The code of the release before, from the repository."""
    command = ["git", "-C", str(ROOT), "archive", OLD_RELEASE]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"this clone has no commit {OLD_RELEASE}, so the earlier release cannot run")
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    path = os.pathsep.join(str(folder / name) for name in ("sdk", "kms_adapters", "."))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )

    return run


@pytest.mark.slow
def test_both_releases_run_side_by_side_until_the_upgrade(older, older_release):
    with EventSeal.from_settings() as seal:
        reader = Reader(seal)
        for position in (2, 4):
            reader.append("acme", position)
            ended = older_release("-c", APPEND, "acme", str(position + 1))
            assert ended.returncode == 0, ended.stderr
        reader.events.get_domain_event(older_stores.stream_of("acme"), 5)
    upgrade()
    ended = older_release("-c", APPEND, "acme", "6")
    assert ended.returncode == 1
    assert re.search(r"MissingTableError: .*there is no table (key_changes|encryption_keys)", ended.stderr)
    ended = older_release("-m", "eventseal", "verify")
    assert ended.returncode
    assert "there is no table" in ended.stderr
    with EventSeal.from_settings() as seal:
        Reader(seal).check()
