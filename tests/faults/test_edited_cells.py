"""One bad row costs one row: each cell of each table of EventSeal's own, with junk of every kind in it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from tests.faults.edited_cells import BESIDE, ITEMS, Cell, cells, doctor, events, fill, tenants_of, typed
from tests.fixtures.lax_tables import LEDGER, create_lax_tables
from tests.fixtures.sealed_shops import APPLICATION, SealedShop, datastore_at, scope_of

from eventseal.erasure import reopen, shred
from eventseal.erasure.ledger.entries import parsed
from eventseal.erasure.ledger.lines import LedgerTable, erasure_ledger
from eventseal.errors import EventSealError, IntegrityError
from eventseal.keys.revocation_tree import leaf_of_key
from eventseal.rotation import reencrypt, retire, rewrap, rotate_keys, status, verify
from eventseal.rotation.status.application_status import list_keys
from eventseal.rotation.status.key_totals import settles_at
from eventseal.storage.database.column_types import DatabaseClock
from eventseal.storage.jobs.tables import (
    compromised_marks,
    job_metadata,
    marked_envelopes,
    reencrypted_keys,
    reencryption_failures,
    reencryption_jobs,
    reencryption_shards,
    replaced_envelopes,
)
from eventseal.storage.keys.epochs import begin_epoch
from eventseal.storage.keys.tables import (
    encryption_keys,
    epochs,
    erased_items,
    fence_metadata,
    kek_fences,
    key_changes,
    key_claims,
    key_fences,
    key_metadata,
    key_wrappings,
    revocation_nodes,
    sealed_tables,
)

if TYPE_CHECKING:
    from sqlalchemy import Table

pytestmark = pytest.mark.slow


def test_every_table_is_among_these():
    tested = {encryption_keys, key_wrappings, kek_fences, epochs, key_changes, sealed_tables, key_fences}
    tested |= {reencryption_jobs, reencryption_shards, reencrypted_keys, reencryption_failures}
    tested |= {compromised_marks, marked_envelopes, replaced_envelopes, revocation_nodes, erased_items}
    tested.add(key_claims)  # an edited claim costs at most a call of the KMS
    assert tested == {*key_metadata.sorted_tables, *fence_metadata.sorted_tables, *job_metadata.sorted_tables}


@pytest.mark.parametrize("table", [encryption_keys, key_wrappings, key_fences], ids=str)
def test_a_keys_row_costs_the_key(shop, again, store_url, kms, table: Table):
    edited = tenants_of(cells(table, shop.datastore.engine))
    fill(shop, [*edited, BESIDE])
    keys = shop.active_keys()
    for tenant, cell in edited.items():
        cell.put(shop.datastore.engine, "key_id = :key_id", key_id=keys[scope_of(tenant)])

    again.keyring.refresh()
    assert events(again, BESIDE) == 1
    fill(again, [BESIDE], 1)
    for tenant, cell in edited.items():
        typed(partial(events, again, tenant))
        appended = typed(partial(fill, again, [tenant], 1))
        if (cell.table, cell.column) == ("eventseal_key_fences", "state"):
            assert isinstance(appended, IntegrityError)
            assert f"fence of key {keys[scope_of(tenant)]} in eventseal_key_fences" in str(appended)
    assert status(again.key_store, again.datastore, APPLICATION).items[ITEMS]
    list_keys(again.key_store, again.datastore, APPLICATION)
    doctor(store_url, kms)
    checked = verify(again)
    assert checked.by_key[keys[scope_of(BESIDE)]] == 2
    if table is encryption_keys:
        unreadable = [record for record in again.key_store.page(APPLICATION) if record.unreadable]
        named = [failure.key_id for failure in checked.failures if failure.table == table.name]
        by_id = {record.key_id for record in unreadable if "key_id" not in record.unreadable}
        assert by_id <= set(named)
        assert named.count(None) == len(unreadable) - len(by_id)
    rotated = rotate_keys(again)
    assert keys[scope_of(BESIDE)] in rotated.by_key
    rewrap(again)
    moved = reencrypt(again)
    assert moved.by_key[keys[scope_of(BESIDE)]] == 2
    assert retire(again).by_key[keys[scope_of(BESIDE)]] == 0
    assert events(again, BESIDE) == 2


def test_a_fences_row_costs_the_items_of_its_key(shop, again):
    fill(shop, ["edited", BESIDE])
    old = shop.active_keys()
    rotate_keys(shop)
    new = shop.active_keys()[scope_of("edited")]
    with shop.datastore.engine.begin() as connection:
        connection.execute(key_fences.insert().values(key_id=new, state="edited"))
    moved = reencrypt(again)
    assert (moved.done, moved.failed, moved.left) == (1, 1, 0)
    assert moved.by_key == {old[scope_of(BESIDE)]: 1}
    (failure,) = moved.failures
    assert f"fence of key {new} in eventseal_key_fences was edited" in failure.message
    statement = failure.remedy[failure.remedy.index("DELETE") :]
    with shop.datastore.engine.begin() as connection:
        connection.exec_driver_sql(statement)
    assert reencrypt(again).done == 1


def test_the_change_marks_row_stops_everything_by_name(shop, again):
    fill(shop, [BESIDE])
    engine = shop.datastore.engine
    with engine.begin() as connection:
        stored = connection.execute(select(key_changes)).one()
    unreadable = set()
    for cell in cells(key_changes, engine):
        cell.put(engine, "true")
        for work in (
            again.keyring.refresh,
            partial(events, again, BESIDE),
            partial(status, again.key_store, again.datastore, APPLICATION),
        ):
            found = typed(work)
            if isinstance(found, EventSealError) and "cannot be read" in str(found):
                assert "eventseal_key_changes" in str(found)
                assert cell.column in str(found)
                unreadable.add(cell.column)
        with engine.begin() as connection:
            connection.execute(key_changes.update().values(stored._asdict()))
    assert "refresh_interval" in unreadable
    assert events(again, BESIDE) == 1  # as before, once the row is put back


def test_the_remedy_for_the_interval_works_as_it_stands(shop, again):
    fill(shop, [BESIDE])
    Cell("eventseal_key_changes", "refresh_interval", "-1").put(shop.datastore.engine, "true")
    error = typed(again.keyring.refresh)
    assert isinstance(error, IntegrityError)
    statement = error.remedy[error.remedy.index("UPDATE") :]
    with shop.datastore.engine.begin() as connection:
        connection.exec_driver_sql(statement)
    assert events(again, BESIDE) == 1


@pytest.mark.parametrize("table", [revocation_nodes, erased_items], ids=str)
def test_a_row_about_what_was_erased_costs_its_own_keys(shop, store_url, kms, table: Table):
    fill(shop, ["gone", BESIDE])
    leaf = leaf_of_key(shop.active_keys()[scope_of("gone")])
    shred(shop, scope_of("gone"))
    reopen(shop, scope_of("gone"))
    engine = shop.datastore.engine
    for cell in cells(table, engine):
        if (cell.column, cell.junk) in {("path", "''"), ("path", "x''")}:
            continue  # the root's own
        with engine.begin() as connection:
            there = connection.execute(select(table)).all()
        if table is revocation_nodes:
            cell.put(engine, "path = :path", path=leaf)
        else:
            cell.put(engine, "true")
        with SealedShop(store_url, kms) as fresh:
            assert events(fresh, BESIDE) == 1
            assert isinstance(typed(partial(events, fresh, "gone")), EventSealError)
        with engine.begin() as connection:
            connection.execute(table.delete())
            connection.execute(table.insert(), [row._asdict() for row in there])


def test_the_epochs_row_costs_the_roll(shop, again):
    engine = shop.datastore.engine
    for cell in cells(epochs, engine):
        with engine.begin() as connection:
            connection.execute(epochs.delete())
        begin = partial(begin_epoch, engine, APPLICATION, again.keyring.tables.seals(), shreds=0)
        begin()
        cell.put(engine, "true")
        found = typed(begin)
        assert isinstance(found, EventSealError) or (cell.column, cell.junk) != ("kek_versions", "'[]'")
        if isinstance(found, EventSealError):
            assert isinstance(found, IntegrityError)
            assert "in eventseal_epochs was edited: it" in str(found)


def test_a_stop_that_was_edited_hides_no_other(shop, again):
    fill(shop, ["edited", BESIDE])
    old = shop.active_keys()
    rotate_keys(shop)
    Cell("eventseal_encryption_keys", "deactivated_at", "'9999-12-31 23:59:59.999999'").put(
        shop.datastore.engine, "key_id = :key_id", key_id=old[scope_of("edited")]
    )
    stopped = again.key_store.get([old[scope_of(BESIDE)]])[old[scope_of(BESIDE)]].deactivated_at
    settled = settles_at(again, None)
    assert stopped is not None
    assert settled is not None
    assert (settled - stopped).total_seconds() == 60
    assert reencrypt(again).done == 1


def test_a_kek_fences_row_stops_nobody(shop, again):
    edited = cells(kek_fences, shop.datastore.engine)
    closed = {"kek_version": "", "closed_at": "2026-01-01 00:00:00.000000"}
    for number, cell in enumerate(edited):
        with shop.datastore.engine.begin() as connection:
            connection.exec_driver_sql(
                f"INSERT INTO eventseal_kek_fences VALUES ('fake://{number}', '{closed['kek_version']}', "
                f"'{closed['closed_at']}')"
            )
        cell.put(shop.datastore.engine, "kek_uri = :uri", uri=f"fake://{number}")
    fill(again, [BESIDE])
    assert rotate_keys(again).done == 1


def test_a_registry_row_costs_its_table_and_what_destroys_refuses(shop, again, store_url, kms):
    fill(shop, [BESIDE])
    old = shop.active_keys()[scope_of(BESIDE)]
    rotate_keys(shop)
    engine = shop.datastore.engine
    edited = cells(sealed_tables, engine)
    columns = "application, database_name, table_name, collection, columns, old_formats"
    for number, cell in enumerate(edited):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE TABLE other_{number} AS SELECT * FROM snapshots WHERE false")
            connection.exec_driver_sql(
                f"INSERT INTO eventseal_sealed_tables ({columns}) SELECT application, database_name, "
                f"'other_{number}', "
                "collection, columns, old_formats FROM eventseal_sealed_tables WHERE table_name = 'snapshots'"
            )
        cell.put(engine, "table_name = :name", name=f"other_{number}")
    found = status(again.key_store, again.datastore, APPLICATION)
    assert found.items[ITEMS]
    unreadable = [str(problem) for problem in found.edited]
    assert any("table other_" in said and "its columns" in said for said in unreadable)
    if engine.dialect.name == "sqlite":
        texts = [said for said in unreadable if "its application" in said]
        assert len(texts) == 3  # bytes, what is not UTF-8, and NUL; none is every application's
    assert list_keys(again.key_store, again.datastore, APPLICATION).unreadable
    assert events(again, BESIDE) == 1
    doctor(store_url, kms)
    refused = typed(partial(retire, again))
    assert isinstance(refused, IntegrityError)
    assert "eventseal_sealed_tables" in str(refused)
    assert again.key_store.get([old])[old].wrappings


def test_verify_goes_on_beside_a_registry_row(sqlite_url, kms):
    with SealedShop(sqlite_url, kms).set_up() as shop:
        fill(shop, [BESIDE])
        Cell("eventseal_sealed_tables", "columns", "'{}'").put(
            shop.datastore.engine, "table_name = 'snapshots'"
        )
        checked = verify(shop)
        assert (checked.done, checked.failed) == (1, 1)
        assert (checked.failures[0].table, dict(checked.failures[0].row)) == (
            "eventseal_sealed_tables",
            {"table_name": "snapshots"},
        )
        assert reencrypt(shop, tables=[ITEMS]).complete
        assert isinstance(typed(partial(reencrypt, shop)), IntegrityError)


def test_what_is_kept_of_compromised_keys_costs_the_key(shop, again):
    engine = shop.datastore.engine
    tables = [compromised_marks, replaced_envelopes]
    tables += [marked_envelopes] if engine.dialect.name == "sqlite" else []
    edited = tenants_of([cell for table in tables for cell in cells(table, engine)])
    fill(shop, [*edited, BESIDE])
    keys = shop.active_keys()
    rotate_keys(shop, compromised=True)
    with engine.begin() as connection:
        for tenant, cell in edited.items():
            if cell.table == replaced_envelopes.name:
                row = {"key_id": keys[scope_of(tenant)], "table_name": "other", "sha256": b"x"}
                row |= {"sequence_id": "1", "position": "1", "replaced_at": DatabaseClock()}
                connection.execute(replaced_envelopes.insert().values(row))
    for tenant, cell in edited.items():
        where = "key_id = :key_id" + f" AND table_name = '{ITEMS}'" * (cell.table == compromised_marks.name)
        cell.put(engine, where, key_id=keys[scope_of(tenant)])
    moved = reencrypt(again)
    assert moved.by_key[keys[scope_of(BESIDE)]] == 1
    unreadable = [
        failure for failure in moved.failures if "eventseal_compromised_marks was edited" in failure.message
    ]
    named = {failure.key_id for failure in unreadable}
    wrong = [tenant for tenant, cell in edited.items() if cell.junk in {"'text'", "'infinity'"}]
    marks = [
        tenant
        for tenant in wrong
        if edited[tenant].table == compromised_marks.name and edited[tenant].column != "key_id"
    ]
    assert {keys[scope_of(tenant)] for tenant in marks} <= named
    assert keys[scope_of(BESIDE)] not in named


def test_a_ledgers_row_is_refused_by_name(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    ledger = LedgerTable(url)
    whole = (
        b'{"entry":{"application":"shop","at":"2026-01-01T00:00:00","details":{},"keys":{},"kind":"created",'
        b'"ledger":"00000000-0000-0000-0000-000000000000","number":%s,"open":[%s],"previous":"","scope":null,'
        b'"wrapped_in":1},"mac":"00"}'
    )
    far = whole % (b"1e999", b""), whole % (b"1", b"1e999")
    for line in (b"[" * 900 + b"]" * 900, b"{}", b"[]", b"\xff", b"", *far):
        with pytest.raises(IntegrityError, match="is not an entry of an erasure ledger"):
            parsed(line, where="entry 1", application="shop")
    engine = datastore_at(url).engine
    create_lax_tables(engine, LEDGER)
    ledger.append("shop", lambda _: b"line", create=True)
    for cell in cells(erasure_ledger, engine):
        with engine.begin() as connection:
            connection.execute(erasure_ledger.delete())
            connection.execute(erasure_ledger.insert().values(application="shop", number=1, line=b"line"))
        cell.put(engine, "true")
        typed(partial(ledger.last, "shop"))
        typed(lambda: list(ledger.read("shop", after=0)))
