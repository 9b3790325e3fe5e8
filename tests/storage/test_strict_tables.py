"""EventSeal's own tables are STRICT and have CHECKs; those of an older store have neither, and work."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import Column, MetaData, create_engine, insert, text
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import DatabaseError, DBAPIError
from sqlalchemy.schema import CreateTable
from tests.fixtures.lax_tables import create_lax_tables
from tests.fixtures.sealed_shops import TENANTS, SealedShop, scope_of, stream_of

from eventseal.erasure import reopen, shred
from eventseal.erasure.ledger.lines import erasure_ledger
from eventseal.errors import ConfigurationError
from eventseal.rotation import reencrypt, retire, rotate_keys, verify
from eventseal.storage.database import table_setup
from eventseal.storage.database.column_types import (
    BinaryUUID,
    Count,
    ExactBytes,
    Rate,
    Seconds,
    StoredJSON,
    StoredText,
    UTCTimestamp,
)
from eventseal.storage.database.faults import store_error
from eventseal.storage.database.table_setup import create_tables
from eventseal.storage.jobs.tables import job_metadata
from eventseal.storage.keys.epochs import begin_epoch
from eventseal.storage.keys.tables import fence_metadata, key_metadata
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OWN = (*key_metadata.sorted_tables, *fence_metadata.sorted_tables, *job_metadata.sorted_tables)
ALL = (*OWN, erasure_ledger)

KEY_ID = uuid4()
SOUND: Mapping[type[Any], Any] = {
    BinaryUUID: KEY_ID,
    StoredText: "text",
    Count: 1,
    ExactBytes: bytes(32),
    UTCTimestamp: datetime(2026, 1, 1, tzinfo=UTC),
    Seconds: 1.0,
    Rate: 1.0,
    StoredJSON: {},
}
REFUSED_BY_SQLITE: Mapping[type[Any], Sequence[str]] = {
    BinaryUUID: ("'text'", "x''", "zeroblob(17)", "7"),
    StoredText: ("x'ff'",),
    Count: ("'text'", "-1", "1.5", "x'00'"),
    ExactBytes: ("'text'", "7"),
    UTCTimestamp: ("x'00'",),
    Seconds: ("'text'", "-1", "9e999", "x''"),
    Rate: ("'text'", "-1", "0", "x''"),
    StoredJSON: ("x'7b7d'",),
}
REFUSED_BY_POSTGRESQL: Mapping[type[Any], Sequence[str]] = {
    Count: ("-1",),
    Seconds: ("-1", "'NaN'", "'Infinity'"),
    Rate: ("-1", "0"),
}


def refused(column: Column[Any], dialect: str) -> list[str]:
    on_sqlite = dialect == "sqlite"
    by_type = REFUSED_BY_SQLITE if on_sqlite else REFUSED_BY_POSTGRESQL
    found = list(by_type.get(type(column.type), ()))
    if isinstance(column.type, ExactBytes) and column.type.length:
        found.append("x'00'" if on_sqlite else r"'\x00'")
    return found


def storage_classes(shop: SealedShop) -> set[tuple[str, str, str]]:
    """Give each column of EventSeal's own tables with the storage classes of its values."""
    with shop.datastore.engine.connect() as connection:
        return {
            (table.name, column.name, kind)
            for table in OWN
            for column in table.columns
            for kind in connection.execute(text(f"SELECT typeof({column.name}) FROM {table.name}")).scalars()
        }


def live(shop: SealedShop) -> None:
    """Take steps that write to most of the tables."""
    shop.append_for_all(0, 3)
    rotate_keys(shop, compromised=True)
    assert reencrypt(shop, items_per_second=1e6).done == 3 * len(TENANTS)
    assert retire(shop).failed == 0
    shop.append("gone", 0)
    shred(shop, scope_of("gone"))
    reopen(shop, scope_of("gone"))
    rotate_keys(shop, compromised=True)
    begin_epoch(shop.datastore.key_engine, "shop", shop.keyring.tables.seals(), shreds=0)


def test_a_new_store_refuses_what_is_never_right(store_url):
    engine = create_engine(store_url)
    with engine.begin() as connection:
        create_tables(connection, ALL)
        for table in ALL:
            row = {column.name: SOUND[type(column.type)] for column in table.columns}
            connection.execute(insert(table).values(row))
    for table in ALL:
        for column in table.columns:
            for value in refused(column, engine.dialect.name):
                with engine.begin() as connection, pytest.raises(DBAPIError) as error:
                    connection.execute(text(f"UPDATE {table.name} SET {column.name} = {value}"))
                assert any(said in str(error.value.orig) for said in ("CHECK", "check", "cannot store"))
                connection.rollback()
    engine.dispose()


def test_sqlite_is_strict_with_every_table_of_eventseals_own(sqlite_url):
    engine = create_engine(sqlite_url)
    with engine.begin() as connection:
        create_tables(connection, ALL)
        listed = connection.execute(text("SELECT name, strict FROM pragma_table_list WHERE schema = 'main'"))
        strict = {name for name, is_strict in listed if is_strict}
    assert strict == {table.name for table in ALL}
    engine.dispose()


def test_an_older_store_goes_on_to_work(store_url, lax_tables):
    with SealedShop(store_url, FakeKms()).set_up() as shop:
        live(shop)
        assert verify(shop).failed == 0
        for tenant in TENANTS:
            assert len(shop.events.get_domain_events(stream_of(tenant))) == 3


def test_both_store_the_same_in_the_same_storage_classes(tmp_path):
    found = []
    for name in ("older", "new"):
        with SealedShop(f"sqlite:///{tmp_path / name}", FakeKms()) as shop:
            if name == "older":
                create_lax_tables(shop.datastore.engine)
            live(shop.set_up())
            found.append(storage_classes(shop))
    older, new = found
    assert older == new
    empty = {table.name for table in OWN} - {table for table, *_ in new}
    assert empty == {"eventseal_kek_fences", "eventseal_reencryption_failures"}


def test_a_sqlite_that_cannot_read_strict_tables_gets_a_remedy():
    said = 'malformed database schema (eventseal_encryption_keys) - near "STRICT": syntax error'
    error = store_error(DatabaseError("SELECT", None, sqlite3.DatabaseError(said)), "reading keys")
    assert isinstance(error, ConfigurationError)
    assert "SQLite 3.37 or newer" in error.remedy


def test_a_sqlite_that_has_no_strict_tables_gets_plain_ones(monkeypatch):
    monkeypatch.setattr(table_setup, "_STRICT", False)
    plain = table_setup.own_table("plain", MetaData(), Column("number", Count()))
    created = str(CreateTable(plain).compile(dialect=sqlite_dialect.dialect()))
    assert "STRICT" not in created
    assert "CHECK (number >= 0)" in created
