"""A store that the release before the revocation tree wrote: it opens, and is upgraded once."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from uuid import UUID

import pytest
from tests.fixtures import legacy
from tests.fixtures.sealed_shops import SealedShop, scope_of, stream_of, text_of

from eventseal.configuration.upgrade import own_tables
from eventseal.erasure import FileLedger, reopen, roll_epoch, shred
from eventseal.erasure.reopening import upgrade_key_tables
from eventseal.errors import (
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KmsForbiddenError,
    StoreReadOnlyError,
)
from eventseal.keys import DataKey, KeyPurpose, KeyState
from eventseal.rotation import (
    begin_migration,
    finish_migration,
    migrate,
    reencrypt,
    retire,
    rewrap,
    rotate_keys,
    verify,
)
from eventseal.storage.renaming import rename_tables
from eventseal.testing import FakeKms
from eventseal_kms.local import LocalKmsAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "key-tables-1"
READABLE = {"active": 2, "rotated": 3, "compromised": 3, "retired": 2, "leaked": 2, "back": 3}
"""Events of each tenant; the first two of ``back`` are erased."""


class OldStore:
    """A copy of the store's database and key file, and processes of an application over it."""

    def __init__(self, folder: Path) -> None:
        self.path = legacy.copied(NAME, folder)
        self.key_file = Path(shutil.copy(legacy.FOLDER / f"{NAME}.key", folder))
        self.key_file.chmod(0o600)
        said: dict[str, Any] = legacy.expected(NAME)
        self.first_keys = {tenant: UUID(key_id) for tenant, key_id in said["first_keys"].items()}
        self.copies = said["copies"]
        self._shops: list[SealedShop] = []

    def process(self, **keyring: Any) -> SealedShop:
        kms = LocalKmsAdapter.from_uri(f"local://{self.key_file}")
        self._shops.append(SealedShop(f"sqlite:///{self.path}", kms, **keyring))
        return self._shops[-1]

    def with_new_tables(self) -> SealedShop:
        """Do what `eventseal upgrade` does first: rename, and create what this release has more of."""
        shop = self.process()
        rename_tables(shop.datastore.engine, own_tables())
        shop.datastore.add_columns()
        return shop.set_up()

    def upgrade(self) -> SealedShop:
        shop = self.with_new_tables()
        assert upgrade_key_tables(shop) is not None
        return shop

    @property
    def prefix(self) -> str:
        """What the names of the tables begin with now."""
        with closing(sqlite3.connect(self.path)) as connection:
            renamed = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'eventseal_epochs'")
            return "eventseal_" if renamed.fetchone() else ""

    def execute(self, statement: str, *values: Any) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(statement, values)

    def put_back(self, tenant: str) -> UUID:
        """Put the row and the wrappings of a key back that was destroyed."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            for name, rows in self.copies[tenant].items():
                table, key_id = f"{self.prefix}{name}", bytes.fromhex(rows[0]["key_id"])
                if name == "key_wrappings":
                    connection.execute(f"DELETE FROM {table} WHERE key_id = ?", [key_id])
                for row in rows:
                    kinds = {"key_id", "binding", "seal", "wrapped"}
                    values = {
                        name: bytes.fromhex(value) if name in kinds else value for name, value in row.items()
                    }
                    names, marks = ", ".join(values), ", ".join("?" * len(values))
                    connection.execute(
                        f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})", list(values.values())
                    )
        return self.first_keys[tenant]

    def close(self) -> None:
        for shop in self._shops:
            shop.close()


@pytest.fixture
def old(tmp_path: Path) -> Iterator[OldStore]:
    store = OldStore(tmp_path)
    yield store
    store.close()


@pytest.fixture
def upgraded(old: OldStore) -> OldStore:
    old.upgrade()
    return old


def key_of(shop: SealedShop, key_id: UUID) -> object:
    return shop.keyring.opening_keys([key_id])[key_id]


def check_everything(shop: SealedShop, more: int = 0) -> None:
    """See that every event reads as it did, and what was erased stays so."""
    for tenant, count in READABLE.items():
        stream, start = stream_of(tenant), 2 if tenant == "back" else 0
        for position in range(start, count + (more if tenant == "active" else 0)):
            assert shop.events.get_domain_event(stream, position).text == text_of(stream, position)
    for tenant in ("gone", "back"):
        with pytest.raises(KeyDestroyedError):
            shop.events.get_domain_event(stream_of(tenant), 0)


def rotated_key(shop: SealedShop) -> UUID:
    """Give the key that opens only, and is not compromised."""
    (found,) = [
        record.key_id
        for record in shop.key_store.page("shop")
        if (record.purpose, record.state) == (KeyPurpose.DATA, KeyState.DEACTIVATED)
    ]
    return found


CHANGES: dict[str, Callable[[SealedShop], object]] = {
    "a new key": lambda shop: shop.append("new", 0),
    "a new key for fields": lambda shop: shop.keyring.prepare(["tenant:new"], purpose=KeyPurpose.FIELD),
    "rotate": lambda shop: shop.keyring.rotate(scope_of("active")),
    "rotate a compromised key": lambda shop: shop.keyring.rotate(scope_of("active"), compromised=True),
    "compromise": lambda shop: shop.keyring.compromise([rotated_key(shop)]),
    "retire": lambda shop: shop.keyring.destroyer.retire([rotated_key(shop)]),
    "shred": lambda shop: shred(shop, scope_of("active")),
    "shred again": lambda shop: shred(shop, scope_of("gone")),
    "reopen": lambda shop: reopen(shop, scope_of("gone")),
    "rewrap": rewrap,
    "roll-epoch": roll_epoch,
    "rewrap to another KEK": lambda shop: rewrap(shop, to=FakeKms()),
    "reencrypt": reencrypt,
    "begin a migration": begin_migration,
    "migrate": migrate,
    "finish a migration": finish_migration,
}


@pytest.mark.parametrize("set_up", [False, True], ids=["untouched", "with new tables"])
def test_an_old_store_is_read_and_appended_to_under_its_keys(old: OldStore, set_up: bool) -> None:
    if set_up:
        old.with_new_tables()
    shop = old.process()
    check_everything(shop)
    shop.append("active", 2)
    check_everything(old.process(), more=1)
    running = old.process()
    check_everything(running, more=1)
    running.keyring.refresh()
    check_everything(running, more=1)
    assert shop.keyring.tables.age() == "old"


@pytest.mark.parametrize("set_up", [False, True], ids=["untouched", "with new tables"])
@pytest.mark.parametrize("change", CHANGES)
def test_no_key_of_an_old_store_is_made_or_changed(old: OldStore, change: str, set_up: bool) -> None:
    shop = old.with_new_tables() if set_up else old.process()
    before = shop.key_store.page("shop")
    with pytest.raises(StoreReadOnlyError) as caught:
        CHANGES[change](shop)
    assert "`eventseal upgrade`" in caught.value.remedy
    assert shop.key_store.page("shop") == before
    check_everything(old.process())


def test_a_dry_run_looks_at_an_old_store_and_changes_nothing(old: OldStore) -> None:
    shop = old.with_new_tables()
    before = shop.rows(), shop.key_store.page("shop")
    assert rewrap(shop, dry_run=True).failed == 0
    assert reencrypt(shop, dry_run=True).failed == 0
    assert (shop.rows(), shop.key_store.page("shop")) == before


def test_a_worker_without_the_right_to_unwrap_rewraps_no_old_store(old: OldStore) -> None:
    shop = old.process()
    with (
        patch.object(shop.keyring.tables, "age", side_effect=KmsForbiddenError("no unwrap")),
        pytest.raises(StoreReadOnlyError),
    ):
        rewrap(shop)


@pytest.mark.parametrize("verb", [rewrap, reencrypt, finish_migration])
def test_an_old_copy_that_was_put_back_is_told_as_that(old: OldStore, verb: Callable[..., object]) -> None:
    old.upgrade()
    put_old_copy_back(old)
    with pytest.raises(IntegrityError, match="old tables were put back"):
        verb(old.process(key_tables=2))


@pytest.mark.parametrize("key_of_row", [None, "gone", "back"])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("data", 'plain text {"$sealed":'),
        ("data", 5),
        ("topic", b"\xff"),
        ("topic", 5),
        ("position", "x"),
        ("sequence_id", "x"),
    ],
)
def test_one_edited_item_does_not_stop_the_upgrade(
    old: OldStore, key_of_row: str | None, column: str, value: object
) -> None:
    row = {"data": b'plain {"$sealed":', "topic": "t", "position": 77, "sequence_id": bytes(16)}
    if key_of_row:
        row["data"] = b"\1\3\0" + old.first_keys[key_of_row].bytes + bytes(56)
    row |= {column: value}
    old.execute(f"INSERT INTO integer_sequenced_items ({', '.join(row)}) VALUES (?, ?, ?, ?)", *row.values())
    assert upgrade_key_tables(old.with_new_tables()) is not None
    check_everything(old.process())


@pytest.mark.parametrize(("verb", "tenant"), [(shred, "active"), (reopen, "gone")])
def test_the_ledger_is_told_of_no_change_of_an_old_store(
    old: OldStore, tmp_path: Path, verb: Callable[..., object], tenant: str
) -> None:
    shop, path = old.with_new_tables(), tmp_path / "erasures.jsonl"
    ledger = FileLedger(path)
    with pytest.raises(StoreReadOnlyError):
        verb(shop, scope_of(tenant), ledger=ledger)
    told = path.read_text() if path.exists() else ""
    assert scope_of(tenant) not in told


def test_an_old_store_refuses_what_its_mark_shows_to_be_put_back(old: OldStore) -> None:
    key_id = old.put_back("gone")
    error = key_of(old.process(), key_id)
    assert isinstance(error, IntegrityError)
    upgrader = old.with_new_tables()
    with pytest.raises(IntegrityError, match="are not the keys that its change mark counts"):
        upgrade_key_tables(upgrader)


def test_the_upgrade_is_made_once_and_leaves_everything_as_it_was(old: OldStore) -> None:
    shop = old.with_new_tables()
    before = shop.key_store.page("shop")
    rows = upgrade_key_tables(shop)
    assert rows is not None
    assert shop.keyring.tables.age() == "upgraded"
    assert upgrade_key_tables(shop) is None
    assert upgrade_key_tables(old.process()) is None
    assert shop.key_store.page("shop") == before
    for each in (shop, old.process(), old.process(key_tables=2)):
        check_everything(each)
        for tenant in ("gone", "retired", "leaked"):
            assert isinstance(key_of(each, old.first_keys[tenant]), KeyDestroyedError)


@pytest.mark.slow
def test_an_upgraded_store_works_as_a_new_one(upgraded: OldStore) -> None:
    shop = upgraded.process(branches=2, key_tables=2)
    shop.append("new", 0)
    with pytest.raises(KeyDestroyedError):
        shop.append("gone", 2)
    rotate_keys(shop)
    assert reencrypt(shop).left == 0
    assert verify(shop).failed == 0
    retire(shop)
    assert shred(shop, scope_of("back")).complete
    assert reopen(shop, scope_of("gone")).complete
    upgraded.process().append("gone", 2)


@pytest.mark.parametrize("tenant", ["retired", "leaked", "gone"])
def test_a_key_that_ended_before_the_upgrade_does_not_come_back_after_it(
    upgraded: OldStore, tenant: str
) -> None:
    running = upgraded.process()
    assert isinstance(key_of(running, upgraded.first_keys[tenant]), KeyDestroyedError)
    key_id = upgraded.put_back(tenant)
    error = key_of(upgraded.process(), key_id)
    assert isinstance(error, IntegrityError)
    assert error.key_id == key_id
    assert not isinstance(key_of(running, key_id), DataKey)
    other = upgraded.process().events.get_domain_event(stream_of("active"), 0)
    assert other.text == text_of(stream_of("active"), 0)


def put_old_copy_back(old: OldStore) -> None:
    """Put the database of before the upgrade back, with the tables that it has not."""
    before = legacy.FOLDER / f"{NAME}.sqlite"
    tables = ("key_wrappings", "encryption_keys", "key_changes")
    with closing(sqlite3.connect(old.path)) as connection, connection:
        connection.execute("ATTACH ? AS old", [str(before)])
        for table in tables:
            connection.execute(f"DELETE FROM main.eventseal_{table}")
        for table in reversed(tables):
            connection.execute(f"INSERT INTO main.eventseal_{table} SELECT * FROM old.{table}")
        connection.execute("DELETE FROM main.eventseal_revocation_nodes")
        connection.commit()
        connection.execute("DETACH old")


def test_an_old_copy_is_refused_by_whoever_is_told_or_has_seen_the_upgrade(old: OldStore) -> None:
    unaware, running = old.process(), old.upgrade()
    for shop in (unaware, running):
        check_everything(shop)
    put_old_copy_back(old)
    told = old.process(key_tables=2)
    for shop in (running, unaware, told):
        with pytest.raises(IntegrityError, match=r"old tables were put back|went back"):
            shop.keyring.refresh()
    with pytest.raises(IntegrityError):
        told.append("active", 2)
    error = key_of(old.process(key_tables=2), old.first_keys["active"])
    assert isinstance(error, IntegrityError)
    check_everything(old.process())  # a process that is told nothing cannot tell


def test_an_old_copy_that_was_worked_on_is_refused_by_whoever_has_seen_the_upgrade(old: OldStore) -> None:
    """A process of the earlier release has moved its counter past the new mark's."""
    running = old.upgrade()
    put_old_copy_back(old)
    seals, mark = running.keyring._ring.store_key.made_seals(), running.key_store.changes("shop", -1, []).mark
    later = replace(mark, counter=mark.counter + 100)
    seal = seals._mark_seal(seals._old_mark_key, later)
    old.execute("UPDATE eventseal_key_changes SET counter = ?, seal = ?", later.counter, seal)
    old.process().keyring.refresh()
    with pytest.raises(IntegrityError, match="old tables were put back"):
        running.keyring.refresh()


def test_a_running_process_goes_on_through_the_upgrade(old: OldStore) -> None:
    running = old.process()
    check_everything(running)
    old.upgrade()
    running.keyring.refresh()
    check_everything(running)
    running.append("new", 0)
    assert running.keyring.tables.age() == "upgraded"


def test_a_live_key_that_was_made_to_look_retired_is_left_out_of_the_tree(old: OldStore) -> None:
    """Else the upgrade would destroy it for good: no old mark counts what was retired."""
    key_id = old.first_keys["active"]
    edit = "UPDATE {}encryption_keys SET state = ?, destroyed_by = ? WHERE key_id = ?"
    old.execute(edit.format(""), "destroyed", "retired", key_id.bytes)
    rows = upgrade_key_tables(old.with_new_tables())
    assert rows is not None
    assert rows.edited == 1
    assert isinstance(key_of(old.process(), key_id), IntegrityError)
    old.execute(edit.format(old.prefix), "active", None, key_id.bytes)
    check_everything(old.process())


@pytest.mark.parametrize("tenant", ["gone", "compromised"])
def test_a_row_that_was_edited_stops_the_upgrade_if_its_key_must_be_in_the_tree(
    old: OldStore, tenant: str
) -> None:
    key_id = old.first_keys[tenant]
    old.execute("UPDATE encryption_keys SET scope = 'x' WHERE key_id = ?", key_id.bytes)
    shop = old.with_new_tables()
    with pytest.raises(EventSealError) as caught:
        upgrade_key_tables(shop)
    assert str(key_id) in str(caught.value)
    assert old.process().keyring.tables.age() == "old"
