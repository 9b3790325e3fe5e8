"""Wrappings that were deleted are in none of the database's files at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from sqlalchemy import create_engine, delete, insert, make_url, select, text
from sqlalchemy.pool import NullPool

from eventseal.configuration import EventSeal, Settings
from eventseal.erasure import after_restore, shred
from eventseal.keys import KeyState
from eventseal.rotation import retire, rotate_keys
from eventseal.storage.keys.tables import encryption_keys, key_changes, key_wrappings, revocation_nodes
from eventseal.storage.keys.wrapping_rows import overwrite_deleted
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUBJECTS = [f"subject:customer-{number}" for number in range(60)]
ERASED = SUBJECTS[::5]


@pytest.fixture
def open_seal() -> Iterator[Callable[..., EventSeal]]:
    opened: list[EventSeal] = []

    kms = FakeKms()

    def make(url: str, **settings: object) -> EventSeal:
        seal = EventSeal(Settings(store_url=url, application="shop", **settings), kms=kms)
        seal.datastore.setup_tables(application="shop")
        opened.append(seal)
        return seal

    yield make
    for seal in opened:
        seal.close()


def wrapped_bytes(seal: EventSeal) -> dict[str, bytes]:
    records = seal.key_store.page("shop", limit=1000)
    return {
        record.scope: record.wrappings[0].ciphertext
        for record in records
        if record.state is not KeyState.DESTROYED
    }


def files_of(seal: EventSeal) -> list[Path]:
    """The files of the key tables: SQLite's with its log, PostgreSQL's table."""
    engine = seal.datastore.key_engine
    if engine.dialect.name == "sqlite":
        file = Path(str(engine.url.database))
        return [path for path in (file, Path(f"{file}-wal")) if path.exists()]
    # VACUUM and CHECKPOINT run in no transaction.
    direct = create_engine(engine.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with direct.connect() as connection:
        connection.execute(text("CHECKPOINT"))
        folder = connection.execute(text("SHOW data_directory")).scalar_one()
        table = connection.execute(
            text("SELECT pg_relation_filepath('eventseal_key_wrappings')")
        ).scalar_one()
    return [Path(folder, table)]


def is_in_files(seal: EventSeal, needle: bytes) -> bool:
    return any(needle in path.read_bytes() for path in files_of(seal))


@pytest.mark.slow
def test_the_wrappings_of_a_shredded_scope_are_gone_from_the_files(open_seal, store_url) -> None:
    seal = open_seal(store_url)
    seal.keyring.prepare(SUBJECTS)
    wrapped = wrapped_bytes(seal)
    assert all(is_in_files(seal, wrapped[scope]) for scope in SUBJECTS)
    for scope in ERASED:
        assert shred(seal, scope).leftover == ""
    assert not [scope for scope in ERASED if is_in_files(seal, wrapped[scope])]
    assert all(is_in_files(seal, wrapped[scope]) for scope in SUBJECTS if scope not in ERASED)


def test_the_wrappings_of_retired_keys_are_gone_from_the_file(open_seal, sqlite_url) -> None:
    seal = open_seal(sqlite_url)
    seal.keyring.prepare(SUBJECTS)
    wrapped = wrapped_bytes(seal)
    rotate_keys(seal, scopes=ERASED)
    result = retire(seal)
    assert (result.done, result.leftover) == (len(ERASED), "")
    assert not [scope for scope in ERASED if is_in_files(seal, wrapped[scope])]


@pytest.mark.slow
def test_the_wrappings_that_a_restore_brought_back_are_gone_from_the_files_again(
    open_seal, store_url, tmp_path
) -> None:
    # VACUUM leaves the youngest bytes of a page: of one row those of a row that lives.
    erased = ERASED if store_url.startswith("sqlite") else ERASED[:1]
    seal = open_seal(store_url, ledger=str(tmp_path / "erasures.jsonl"))
    seal.keyring.prepare(SUBJECTS)
    wrapped = wrapped_bytes(seal)
    tables = (key_changes, revocation_nodes, encryption_keys, key_wrappings)
    with seal.datastore.key_engine.begin() as connection:
        backup = [(table, connection.execute(select(table)).mappings().all()) for table in tables]
    for scope in erased:
        shred(seal, scope)
    with seal.datastore.key_engine.begin() as connection:
        for table, _ in reversed(backup):
            connection.execute(delete(table))
        for table, rows in backup:
            if rows:
                connection.execute(insert(table), [dict(row) for row in rows])
    assert all(is_in_files(seal, wrapped[scope]) for scope in erased)
    restarted = open_seal(store_url, ledger=str(tmp_path / "erasures.jsonl"))
    assert after_restore(restarted, dry_run=True).leftover == ""
    assert all(is_in_files(seal, wrapped[scope]) for scope in erased)

    result = after_restore(restarted)

    assert (len(result.scopes), result.leftover) == (len(erased), "")
    assert not [scope for scope in erased if is_in_files(seal, wrapped[scope])]


@pytest.mark.postgres
def test_a_retirement_vacuums_the_table(open_seal, postgres_url) -> None:
    seal = open_seal(postgres_url)
    seal.keyring.prepare(SUBJECTS)
    wrapped = wrapped_bytes(seal)
    rotate_keys(seal, scopes=ERASED[:1])
    assert is_in_files(seal, wrapped[ERASED[0]])
    assert retire(seal).leftover == ""
    assert not is_in_files(seal, wrapped[ERASED[0]])


@pytest.mark.slow
def test_keys_in_a_file_of_their_own_are_cleared_there(open_seal, tmp_path) -> None:
    seal = open_seal(
        f"sqlite:///{tmp_path / 'items.sqlite'}", key_store_url=f"sqlite:///{tmp_path / 'keys.sqlite'}"
    )
    seal.keyring.prepare(SUBJECTS)
    wrapped = wrapped_bytes(seal)
    for scope in SUBJECTS:  # whole pages become free
        shred(seal, scope)
    assert not [scope for scope in SUBJECTS if is_in_files(seal, wrapped[scope])]


def test_a_reader_in_the_way_is_told_and_the_shred_is_done(open_seal, sqlite_url, monkeypatch) -> None:
    seal = open_seal(sqlite_url)
    seal.keyring.prepare(SUBJECTS)
    with monkeypatch.context() as patch, seal.datastore.key_engine.connect() as reader:
        patch.setattr("eventseal.storage.keys.wrapping_rows.PATIENCE", 50)
        reader.exec_driver_sql("BEGIN")
        reader.exec_driver_sql("SELECT count(*) FROM eventseal_key_wrappings").fetchall()
        result = shred(seal, ERASED[0])
        assert result.complete
        assert "the SQLite file is in use" in result.leftover
        assert result.to_json()["leftover"] == result.leftover
    again = shred(seal, ERASED[0])
    assert again.leftover == ""
    assert "leftover" not in again.to_json()


@pytest.mark.postgres
def test_another_user_than_the_owner_is_told_that_it_could_not_vacuum(open_seal, postgres_url) -> None:
    seal = open_seal(postgres_url)
    role = f"writer_{UUID(int=0).hex[:4]}_{make_url(postgres_url).database}"
    with seal.datastore.key_engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        writes = "SELECT, INSERT, UPDATE, DELETE"
        connection.execute(text(f"GRANT {writes} ON ALL TABLES IN SCHEMA public TO {role}"))
    url = make_url(postgres_url).set(username=role)
    engine = create_engine(url.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    assert "does not own eventseal_key_wrappings" in overwrite_deleted(engine)
    assert overwrite_deleted(seal.datastore.key_engine) == ""


@pytest.mark.postgres
def test_a_table_that_somebody_holds_is_not_waited_for_long(open_seal, postgres_url, monkeypatch) -> None:
    seal = open_seal(postgres_url)
    with monkeypatch.context() as patch, seal.datastore.key_engine.connect() as holder:
        patch.setattr("eventseal.storage.keys.wrapping_rows.PATIENCE", 50)
        holder.execute(text("LOCK TABLE eventseal_key_wrappings IN SHARE UPDATE EXCLUSIVE MODE"))
        assert "refused to clear" in overwrite_deleted(seal.datastore.key_engine)
        holder.rollback()
    assert overwrite_deleted(seal.datastore.key_engine) == ""


def test_nothing_is_left_of_a_database_in_memory(open_seal) -> None:
    assert overwrite_deleted(open_seal("sqlite://").datastore.key_engine) == ""
