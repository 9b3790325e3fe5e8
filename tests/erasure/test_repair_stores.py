"""Repairs of other kinds of stores and from other kinds of backups."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, make_url, text
from tests.fixtures import legacy
from tests.fixtures.eventsourcing_store import EVENTS, SNAPSHOTS, LibraryStore
from tests.fixtures.ledger_shops import LedgerShop
from tests.fixtures.sealed_shops import SealedShop, stream_of, text_of

from eventseal.configuration import EventSeal, Settings
from eventseal.configuration.upgrade import own_tables
from eventseal.erasure import Backup, FileLedger, adopt, repair
from eventseal.erasure.reopening import upgrade_key_tables
from eventseal.errors import KeyDestroyedError
from eventseal.rotation import reencrypt, retire, rotate_keys, verify
from eventseal.storage.database.engines import SQLAlchemySettings, make_engine
from eventseal.storage.renaming import rename_tables
from eventseal.testing import FakeKms
from eventseal_kms.local import LocalKmsAdapter

if TYPE_CHECKING:
    from eventseal.rotation.sealed_store import SealedStore

pytestmark = pytest.mark.slow

SCOPE = "subject:customer-42"


def move_on(seal: SealedStore) -> None:
    """Rotate every key, encrypt every item again and retire the old keys."""
    rotate_keys(seal)
    with seal.datastore.key_engine.begin() as connection:
        connection.execute(text("UPDATE eventseal_key_changes SET refresh_interval = 0"))
    assert reencrypt(seal).complete
    assert retire(seal).failed == 0


def copied(url: str, folder: Path, new_postgres_database: Any) -> str:
    """Copy a database, which nobody uses."""
    if url.startswith("sqlite"):
        file = Path(str(make_url(url).database))
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("VACUUM INTO ?", (str(folder / "backup.sqlite"),))
        return f"sqlite:///{folder / 'backup.sqlite'}"
    there = make_url(new_postgres_database())
    engine = create_engine(there.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {there.database}"))
        connection.execute(text(f"CREATE DATABASE {there.database} TEMPLATE {make_url(url).database}"))
    engine.dispose()
    return there.render_as_string(hide_password=False)


def test_the_eventsourcing_librarys_tables_are_repaired_under_their_fences(
    store_url, tmp_path, new_postgres_database
):
    library = LibraryStore(store_url, FakeKms(), ledger=str(tmp_path / "erasures.jsonl")).make()
    events, snapshot = library.append(3), library.take_snapshot()
    library.close()
    backup_url = copied(store_url, tmp_path, new_postgres_database)
    library = LibraryStore(store_url, library.kms, ledger=str(tmp_path / "erasures.jsonl"))
    move_on(library.seal)
    library.execute(f"UPDATE {EVENTS} SET state = :state WHERE originator_version = 2", state=b"damaged")
    library.execute(f"UPDATE {SNAPSHOTS} SET state = :state", state=b"damaged")
    with Backup(library.seal, backup_url) as backup:
        result = repair(library.seal, backup)
    assert (result.done, result.failed) == (1, 1)
    (failure,) = result.failures
    assert (failure.table, failure.row["sequence_id"]) == (SNAPSHOTS, str(snapshot.originator_id))
    assert "the application reads the events instead" in failure.remedy
    assert len(library.read(events[0].originator_id)) == 3
    assert verify(library.seal, tables=[EVENTS]).failed == 0
    library.close()


@pytest.fixture
def old_backup(tmp_path) -> Path:
    """A store of the release before the revocation tree, as a backup."""
    (tmp_path / "backups").mkdir()
    return Path(legacy.copied("key-tables-1", tmp_path / "backups"))


def test_a_backup_of_an_earlier_release_is_read_and_not_upgraded(tmp_path, old_backup):
    today = legacy.copied("key-tables-1", tmp_path)
    key_file = Path(shutil.copy(legacy.FOLDER / "key-tables-1.key", tmp_path))
    key_file.chmod(0o600)
    shop = SealedShop(f"sqlite:///{today}", LocalKmsAdapter.from_uri(f"local://{key_file}"))
    rename_tables(shop.datastore.engine, own_tables())
    shop.datastore.add_columns()
    shop.set_up()
    assert upgrade_key_tables(shop) is not None
    move_on(shop)
    with closing(sqlite3.connect(today)) as connection, connection:
        changed = connection.execute(
            "UPDATE integer_sequenced_items SET data = x'00' WHERE sequence_id = ? AND position = 0",
            (stream_of("active").bytes,),
        )
        assert changed.rowcount == 1
    ledger = FileLedger(tmp_path / "erasures.jsonl")
    adopt(shop, ledger)  # tenants were erased before
    before = old_backup.read_bytes()
    with Backup(shop, f"sqlite:///{old_backup}") as backup:
        result = repair(shop, backup, ledger=ledger)
    assert (result.done, result.failed) == (1, 0), result.failures
    assert shop.events.get_domain_event(stream_of("active"), 0).text == text_of(stream_of("active"), 0)
    with pytest.raises(KeyDestroyedError):
        shop.events.get_domain_event(stream_of("gone"), 0)
    assert old_backup.read_bytes() == before
    assert not list(old_backup.parent.glob("*-wal"))
    shop.close()


def test_a_backup_whose_keys_are_in_a_database_of_their_own(tmp_path):
    kms, items, keys = FakeKms(), tmp_path / "items.sqlite", tmp_path / "keys.sqlite"
    settings = Settings(
        store_url=f"sqlite:///{items}",
        key_store_url=f"sqlite:///{keys}",
        application="shop",
        ledger=str(tmp_path / "erasures.jsonl"),
    )
    with EventSeal(settings, kms=kms) as seal:
        shop = LedgerShop.over(seal)
        item = shop.append(SCOPE)
    for file in (items, keys):
        shutil.copy(file, file.with_suffix(".backup"))
    with EventSeal(settings, kms=kms) as seal:
        move_on(seal)
        shop = LedgerShop.over(seal)
        shop.edit(item, data=b"", key_id=None)
        url, keys_url = (f"sqlite:///{file.with_suffix('.backup')}" for file in (items, keys))
        with Backup(seal, url) as backup:
            alone = repair(seal, backup, dry_run=True)
        assert (alone.left, alone.failed) == (0, 1)
        with Backup(seal, url, keys_url=keys_url) as backup:
            assert repair(seal, backup).done == 1
        assert shop.opens(shop.stored(item))


@pytest.mark.parametrize("branches", [None, 2], ids=["keks", "branches"])
def test_keys_that_are_wrapped_otherwise_today(sqlite_url, tmp_path, branches):
    """The backup is from before a second KEK came, under which everything is now."""
    first, second = FakeKms(), FakeKms()
    shop = LedgerShop(sqlite_url, first, tmp_path, branches=branches)
    item = shop.append(SCOPE)
    shop.back_up()
    shop.stop()
    settings = Settings(store_url=sqlite_url, application="shop", ledger=str(tmp_path / "erasures.jsonl"))
    with EventSeal(settings, kms=[second, first]) as seal:
        move_on(seal)
        shop = LedgerShop.over(seal)
        shop.edit(item, data=b"", key_id=None)
        with Backup(seal, f"sqlite:///{tmp_path / 'backup'}") as backup:
            assert repair(seal, backup).done == 1
        assert shop.opens(shop.stored(item))


def test_a_read_only_connection_to_postgresql_writes_nothing(postgres_url):
    engine = make_engine(SQLAlchemySettings(postgres_url), reads_only=True)
    with engine.connect() as connection, pytest.raises(Exception, match="read-only transaction"):
        connection.execute(text("CREATE TABLE written (id integer)"))
    engine.dispose()
