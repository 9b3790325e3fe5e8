"""What a re-encryption meets half-way: a clear error, nothing blamed on an item, and the job resumes."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, text
from tests.fixtures.dependencies import Fault, Faults, count_database_calls
from tests.fixtures.sealed_shops import TENANTS, SealedShop, assert_sound, datastore_at, places_of, scope_of

from eventseal.errors import ConfigurationError, JobError, KmsKeyStateError, StoreUnavailableError
from eventseal.rotation import list_jobs, reencrypt, retire, rotate_keys
from eventseal.rotation.jobs.jobs import FINISHED
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    import sqlite3

pytestmark = pytest.mark.slow

EACH = 40
BATCH = 5


class FadingKms(FakeKms):
    """A KMS whose KEK is disabled after some more unwraps, if told so."""

    unwraps: int | None = None

    def unwrap(self, wrapped, context):
        if self.unwraps is not None:
            self.unwraps -= 1
            if self.unwraps < 0:
                self.disable()
        return super().unwrap(wrapped, context)


@pytest.fixture
def kms() -> FadingKms:
    return FadingKms()


@pytest.fixture
def filled(store_url, kms) -> str:
    """The URL of a store with items of two tenants under keys that were rotated."""
    with SealedShop(store_url, kms) as shop:
        shop.set_up().append_for_all(0, EACH)
        rotate_keys(shop)
    return store_url


def interrupted(url: str, kms: FakeKms) -> None:
    """Begin to re-encrypt, and lose the database half-way."""
    faults = Faults()
    with closing(datastore_at(url)) as datastore, SealedShop(datastore, kms) as shop:
        count_database_calls(datastore.engine, faults)
        faults.arm(Fault.FROM_THEN_ON, 180)
        with pytest.raises(StoreUnavailableError):
            reencrypt(shop, batch=BATCH)


def assert_complete(shop: SealedShop) -> None:
    assert_sound(shop, {place for tenant in TENANTS for place in places_of(tenant, EACH)})
    assert shop.items_by_key().keys() == set(shop.active_keys().values())


def test_a_kek_that_is_disabled_half_way_stops_the_job_and_blames_no_item(filled, kms) -> None:
    kms.unwraps = 4  # the store key's, the first tenant's two keys, and one of the other's
    with SealedShop(filled, kms) as shop, pytest.raises(KmsKeyStateError, match="disabled"):
        reencrypt(shop, batch=BATCH)
    kms.unwraps = None
    kms.recover()
    with SealedShop(filled, kms) as shop:
        (job,) = list_jobs(shop)
        assert job.state != FINISHED
        resumed = reencrypt(shop, resume=job.job_id)
        assert (resumed.job_id, resumed.done, resumed.failed, resumed.left) == (job.job_id, 2 * EACH, 0, 0)
        assert_complete(shop)


def test_a_resumed_job_moves_to_the_key_that_is_active_by_then(filled, kms) -> None:
    interrupted(filled, kms)
    with SealedShop(filled, kms) as shop:
        (job,) = list_jobs(shop)
        first = shop.active_keys()
        assert 0 < sum(shop.items_by_key()[key_id] for key_id in first.values()) < 2 * EACH
        rotate_keys(shop)
        resumed = reencrypt(shop, resume=job.job_id)
        assert (resumed.job_id, resumed.failed, resumed.left) == (job.job_id, 0, 0)
        assert not set(shop.active_keys().values()) & set(first.values())
        assert_complete(shop)
        assert retire(shop).done == 2 * len(TENANTS)
    with SealedShop(filled, kms) as shop:
        assert_complete(shop)


def test_a_job_of_another_release_is_named_and_a_new_one_does_the_rest(filled, kms) -> None:
    interrupted(filled, kms)
    with SealedShop(filled, kms) as shop:
        (old,) = list_jobs(shop)
        moved = sum(shop.items_by_key()[key_id] for key_id in shop.active_keys().values())
        with shop.datastore.engine.begin() as connection:
            connection.execute(text("UPDATE eventseal_reencryption_jobs SET layout = 0, release = '0.0.7'"))
        with pytest.raises(JobError, match=r"0\.0\.7") as refused:
            reencrypt(shop, resume=old.job_id)
        assert "starts a new job" in refused.value.remedy
        result = reencrypt(shop)
        assert result.job_id != old.job_id
        assert (result.done, result.failed, result.left) == (2 * EACH - moved, 0, 0)
        assert_complete(shop)


def test_a_full_disk_stops_the_job_and_it_goes_on_when_there_is_room(sqlite_url, kms) -> None:
    with SealedShop(sqlite_url, kms) as shop:
        shop.set_up().append_for_all(0, EACH)
        rotate_keys(shop, compromised=True)  # keeps a digest of what it replaces, hence needs room
    full = datastore_at(sqlite_url)

    @event.listens_for(full.engine, "connect")
    def limit(connection: sqlite3.Connection, _record: object) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    with closing(full), SealedShop(full, kms) as shop, pytest.raises(StoreUnavailableError, match="full"):
        reencrypt(shop, batch=BATCH)
    with SealedShop(sqlite_url, kms) as shop:
        assert len(shop.readable_places()) == 2 * EACH
        result = reencrypt(shop)
        assert (result.failed, result.left) == (0, 0)
        assert_complete(shop)


@pytest.mark.postgres
def test_connections_that_are_cut_again_and_again_do_not_stop_the_job(postgres_url, kms) -> None:
    cut = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()")
    with SealedShop(postgres_url, kms) as shop, closing(datastore_at(postgres_url)) as datastore:
        shop.set_up().append_for_all(0, EACH)
        rotate_keys(shop)
        batches = iter(range(1_000))

        @event.listens_for(datastore.engine, "checkin")
        def cut_it(_connection: object, _record: object) -> None:
            if next(batches) % 5 == 0:
                with shop.datastore.engine.connect() as connection:
                    own = text(f"{cut.text} AND pid <> pg_backend_pid()")
                    connection.execute(own)

        with SealedShop(datastore, kms) as cut_off:
            result = reencrypt(cut_off, batch=BATCH)
        assert (result.done, result.failed, result.left) == (2 * EACH, 0, 0)
        assert next(batches) > 20
        assert_complete(shop)


def test_what_does_not_exist_is_refused_before_anything_is_done(filled, kms) -> None:
    with SealedShop(filled, kms) as shop:
        before = shop.rows(), shop.active_keys()
        with pytest.raises(ConfigurationError, match="tenant:nobody"):
            rotate_keys(shop, scopes=[scope_of(TENANTS[0]), "tenant:nobody"])
        with pytest.raises(ConfigurationError, match="no_such_table"):
            reencrypt(shop, tables=["no_such_table"])
        with shop.datastore.engine.begin() as connection:
            binary = "BLOB" if filled.startswith("sqlite") else "BYTEA"
            kind = "BLOB" if filled.startswith("sqlite") else "UUID"
            connection.execute(text(f"CREATE TABLE theirs (id INTEGER, key_id {kind}, data {binary})"))
        for verb in (reencrypt, retire):
            with pytest.raises(ConfigurationError, match="theirs"):
                verb(shop)
        assert (shop.rows(), shop.active_keys()) == before
        assert list_jobs(shop) == []
