"""Databases that real releases wrote: each entity comes out as it was; then the old key opens nothing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from base64 import b64encode
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from eventsourcing.utils import clear_topic_cache
from sqlalchemy import create_engine, make_url, text
from tests.fixtures import legacy

from eventseal.cipher import ItemContext
from eventseal.configuration import EventSeal
from eventseal.errors import (
    ConfigurationError,
    EncryptionRequiredError,
    EventSealError,
    IntegrityError,
    JobError,
)
from eventseal.example import construct_example_application
from eventseal.integrations.eventsourcing.sealing import process_seal
from eventseal.items.formats import EventsourcingCBC, EventsourcingGCM
from eventseal.rotation import begin_migration, copy_items, finish_migration, migrate, verify
from eventseal.storage import SQLAlchemySettings
from eventseal_kms.local import LocalKmsAdapter

pytestmark = pytest.mark.slow

CHILD = Path(__file__).with_name("migrate_child.py")
ROOT = Path(__file__).parents[2]
MODULES = Path(legacy.__file__).parent / "legacy_modules"
ITEMS = "integer_sequenced_items"
EVENTS, SNAPSHOTS = "stored_events", "stored_snapshots"
ON_POSTGRESQL = {EVENTS: "dogschool_events", SNAPSHOTS: "dogschool_snapshots"}
"""The library names its tables by the application there."""
WRONG = b64encode(b"another key, of the same length!").decode()


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    for name in os.environ:
        if name.upper().startswith(("EVENTSEAL_", "POSTGRES_", "SQLITE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(MODULES))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(MODULES), str(ROOT), os.environ.get("PYTHONPATH", "")])
    )


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Sets this process up, and gives EventSeals by its environment."""
    seals = []
    LocalKmsAdapter.create(tmp_path / "dev.key")

    def open_one(**settings: str) -> EventSeal:
        names = {"kms_key": f"local://{tmp_path}/dev.key", "application": "shop", **settings}
        for name, value in names.items():
            monkeypatch.setenv(f"EVENTSEAL_{name.upper()}", value)
        seals.append(EventSeal.from_settings())
        return seals[-1]

    yield open_one
    process_seal.close()
    for seal in seals:
        seal.close()


def die(*words: str) -> None:
    child = subprocess.run(
        [sys.executable, str(CHILD), *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == -9, child.stderr


# --- releases 1 to 3: copied ---


@pytest.fixture
def oldest(tmp_path, monkeypatch, opened):
    """The oldest database, and an empty store beside it that accepts what is in it."""
    path = legacy.copied(legacy.OLDEST, tmp_path)
    monkeypatch.setenv("OLD", legacy.old_key_64(legacy.OLDEST))
    seal = opened(
        store_url=f"sqlite:///{tmp_path}/new.sqlite",
        old_formats="eventsourcing-cbc key=env:OLD,plain-json",
        event_modules="tests.fixtures.old_example",
    )
    seal.datastore.setup_tables(application="shop")
    return seal, SQLAlchemySettings(f"sqlite:///{path}"), path


def check_examples(seal: EventSeal) -> None:
    session, cipher = seal.datastore.session, seal.cipher
    with construct_example_application(session, always_encrypt=True, cipher=cipher) as app:
        for entity in legacy.expected(legacy.OLDEST)["entities"]:
            example = app.example_repository[UUID(entity["id"])]
            assert (example.foo, example.a, example.b) == (entity["foo"], entity["a"], entity["b"])


@pytest.mark.parametrize("when", ["before a batch", "behind a batch"])
def test_the_oldest_database_is_copied_to_the_last_entity_though_the_copier_is_killed(oldest, when):
    seal, source, path = oldest
    before = path.read_bytes()
    looked = copy_items(seal, source=source, table=ITEMS, into=ITEMS, dry_run=True)
    assert (looked.left, looked.done) == (130, 0)
    assert looked.by_table[ITEMS]["eventsourcing-cbc"] == 120
    assert looked.by_table[ITEMS]["plain-json"] == 10

    die(f"copy, killed {when}", f"sqlite:///{path}", ITEMS)

    there = 30 if when == "before a batch" else 40
    assert verify(seal).done == there
    result = copy_items(seal, source=source, table=ITEMS, into=ITEMS)
    assert (result.complete, result.done, result.failed) == (True, 130 - there, 0)
    assert copy_items(seal, source=source, table=ITEMS, into=ITEMS).done == 0
    check_examples(seal)
    assert verify(seal).done == 130
    assert path.read_bytes() == before  # only read
    finish_migration(seal)
    key = legacy.old_key(legacy.OLDEST)
    for row in seal.datastore.session.execute(text(f"SELECT data FROM {ITEMS}")).scalars():
        assert row[:1] == b"\x01"
        with pytest.raises(EventSealError):
            EventsourcingCBC(key).open(row, ItemContext(UUID(int=1), 0, "t"))


def test_a_wrong_key_of_the_oldest_database_is_named_and_nothing_is_copied(oldest, opened, monkeypatch):
    seal, source, _ = oldest
    monkeypatch.setenv("OLD", WRONG)
    wrong = opened(store_url=seal.settings.store_url.get_secret_value())
    with pytest.raises(ConfigurationError, match="the key of eventsourcing-cbc") as refused:
        copy_items(wrong, source=source, table=ITEMS, into=ITEMS)
    assert WRONG not in str(refused.value)
    assert verify(seal).done == 0


def test_rows_that_do_not_open_are_named_and_the_rest_is_copied(oldest):
    seal, source, path = oldest
    with closing(sqlite3.connect(path)) as connection, connection:
        first = connection.execute(f"SELECT rowid FROM {ITEMS} WHERE data NOT LIKE '{{%'").fetchone()[0]
        connection.execute(f"UPDATE {ITEMS} SET data = 'AAAA' || substr(data, 5) WHERE rowid = ?", (first,))
        connection.execute(
            f"INSERT INTO {ITEMS} VALUES (x'00112233445566778899aabbccddeeff', 0, 't', '{{\"x\":NaN}}')"
        )
        connection.execute(f"INSERT INTO {ITEMS} VALUES ('no id', 0, 't', '{{}}')")
    result = copy_items(seal, source=source, table=ITEMS, into=ITEMS)
    assert (result.complete, result.done, result.failed) == (True, 129, 3)
    assert sorted(failure.error for failure in result.failures) == [
        "IntegrityError",
        "SerializationError",
        "SerializationError",
    ]


def test_a_table_is_not_copied_into_itself_and_unknown_ones_are_named(oldest, opened):
    seal, source, path = oldest
    itself = opened(store_url=f"sqlite:///{path}")
    with pytest.raises(ConfigurationError, match="into itself"):
        copy_items(itself, source=source, table=ITEMS, into=ITEMS)
    with pytest.raises(ConfigurationError, match="no table nowhere"):
        copy_items(seal, source=source, table=ITEMS, into="nowhere")
    with pytest.raises(ConfigurationError, match="no table nowhere"):
        copy_items(seal, source=source, table="nowhere", into=ITEMS)
    with pytest.raises(ConfigurationError, match="no column what"):
        copy_items(seal, source=source, table=ITEMS, into=ITEMS, columns={"topic": "what"})


# --- releases 8 and 9: in place ---


def in_sqlite(tmp_path, _url) -> str:
    return f"sqlite:///{legacy.copied(legacy.NEWEST, tmp_path)}"


def in_postgresql(tmp_path, url) -> str:
    """The same states in tables that the library made on PostgreSQL."""
    from eventsourcing.postgres import (
        PostgresAggregateRecorder,
        PostgresApplicationRecorder,
        PostgresDatastore,
    )

    parts = make_url(url)
    datastore = PostgresDatastore(
        dbname=parts.database, host=parts.query["host"], port="5432", user="postgres", password=""
    )
    PostgresApplicationRecorder(datastore, events_table_name=ON_POSTGRESQL[EVENTS]).create_table()
    PostgresAggregateRecorder(datastore, events_table_name=ON_POSTGRESQL[SNAPSHOTS]).create_table()
    datastore.close()
    engine = create_engine(url)
    with closing(sqlite3.connect(legacy.copied(legacy.NEWEST, tmp_path))) as old, engine.begin() as new:
        for table in (EVENTS, SNAPSHOTS):
            for row in old.execute(f"SELECT * FROM {table}"):
                columns = "(originator_id, originator_version, topic, state) VALUES (:a, :b, :c, :d)"
                insert = text(f"INSERT INTO {ON_POSTGRESQL[table]} {columns}")
                new.execute(insert, dict(zip("abcd", (UUID(row[0]), *row[1:]), strict=True)))
    engine.dispose()
    return url


def tables_of(url: str) -> list[str]:
    return [EVENTS, SNAPSHOTS] if url.startswith("sqlite") else [*ON_POSTGRESQL.values()]


@pytest.fixture
def newest_url(tmp_path, store_url) -> str:
    return (in_sqlite if store_url.startswith("sqlite") else in_postgresql)(tmp_path, store_url)


@pytest.fixture
def newest(newest_url, monkeypatch, opened):
    """The newest database, registered, in a process that accepts what is in it."""
    monkeypatch.setenv("OLD", legacy.old_key_64(legacy.NEWEST))
    seal = opened(
        store_url=newest_url,
        old_formats="eventsourcing-gcm+zlib key=env:OLD",
        event_modules="dogschool",
        eventsourcing_tables=",".join(tables_of(newest_url)),
        cache_refresh_interval="1ms",
    )
    seal.datastore.setup_tables(application="shop")
    return seal


@pytest.fixture
def school(newest, newest_url):
    """Its application, with our mapper."""
    import dogschool

    clear_topic_cache()
    parts = make_url(newest_url)
    if parts.get_backend_name() == "sqlite":
        environment = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": parts.database}
    else:
        environment = {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": parts.database,
            "POSTGRES_HOST": parts.query["host"],
            "POSTGRES_PORT": "5432",
            "POSTGRES_USER": "postgres",
            "POSTGRES_PASSWORD": "",
        }
    mapper = "eventseal.integrations.eventsourcing:EncryptingMapper"
    application = dogschool.DogSchool(env={**environment, "MAPPER_TOPIC": mapper})
    yield application
    application.close()


def check_dogs(school) -> None:
    for expected in legacy.expected(legacy.NEWEST)["aggregates"]:
        dog = school.repository.get(UUID(expected["id"]))
        assert (dog.name, list(dog.tricks)) == (expected["name"], expected["tricks"])
        events = list(school.events.get(UUID(expected["id"])))  # all of them, whatever snapshots say
        assert [event.trick for event in events[1:]] == expected["tricks"]


@pytest.mark.parametrize("when", ["before a commit", "behind a step"])
def test_the_newest_database_is_migrated_in_place_though_the_migration_is_killed(
    newest, newest_url, school, when
):
    seal, tables = newest, tables_of(newest_url)
    begun = begin_migration(seal)
    assert (begun.left, begun.failed) == (95, 0)
    assert begun.by_table[tables[0]]["eventsourcing-gcm+zlib"] == 90
    check_dogs(school)
    mixed = school.register("Rex", "sits")  # step 1: sealed beside what is old

    die(f"killed {when}")

    check_dogs(school)
    result = migrate(seal)
    assert (result.complete, result.done, result.failed) == (True, 95, 0)
    check_dogs(school)
    assert school.repository.get(mixed).tricks == ["sits"]
    checked = verify(seal)
    assert (checked.done, checked.failed) == (97, 0)
    finish_migration(seal)

    gcm = EventsourcingGCM(legacy.old_key(legacy.NEWEST), compressed=True)
    with seal.datastore.engine.connect() as connection:
        for table in tables:
            for state in connection.execute(text(f"SELECT state FROM {table}")).scalars():
                with pytest.raises(IntegrityError):
                    gcm.open(bytes(state), ItemContext(UUID(int=1), 0, "t"))
    check_dogs(school)


def test_what_an_old_process_writes_after_the_end_is_refused_and_named(newest, school, newest_url):
    begin_migration(newest)
    migrate(newest)
    finish_migration(newest)
    expected = legacy.expected(legacy.NEWEST)["aggregates"][0]
    with closing(sqlite3.connect(legacy.FOLDER / f"{legacy.NEWEST}.sqlite")) as old:
        (state,) = old.execute(
            f"SELECT state FROM {EVENTS} WHERE originator_id = ? AND originator_version = 1",
            (UUID(expected["id"]).hex,),
        ).fetchone()
    with newest.datastore.engine.begin() as connection:
        connection.execute(
            text(
                f"UPDATE {tables_of(newest_url)[0]} SET state = :s "
                "WHERE originator_id = :i AND originator_version = 1"
            ),
            {
                "s": state,
                "i": UUID(expected["id"]).hex if newest_url.startswith("sqlite") else UUID(expected["id"]),
            },
        )
    with pytest.raises(EncryptionRequiredError):
        list(school.events.get(UUID(expected["id"])))
    checked = verify(newest)
    assert (checked.failed, checked.failures[0].row["position"]) == (1, "1")
    with pytest.raises(JobError, match=f"1 item in {tables_of(newest_url)[0]}"):
        finish_migration(newest)


def test_a_wrong_key_of_the_newest_database_is_named_and_nothing_is_written(
    newest, newest_url, opened, monkeypatch
):
    monkeypatch.setenv("OLD", WRONG)
    wrong = opened(store_url=newest_url)
    with pytest.raises(ConfigurationError, match=r"the key of eventsourcing-gcm\+zlib"):
        begin_migration(wrong)
    monkeypatch.setenv("OLD", legacy.old_key_64(legacy.NEWEST))
    assert begin_migration(newest).left == 95
