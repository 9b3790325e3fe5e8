"""A million subject keys in a database cost as many KMS calls as there are branch keys, and one."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import func, select
from tests.fixtures.subjects import PAGE, replay_subjects, seal_subjects

from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.storage.keys.tables import encryption_keys
from eventseal.testing import FakeKms

SUBJECTS, BRANCHES = 1_000_000, 16


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_a_million_subject_keys_cost_a_call_for_each_branch_and_one_for_the_store_key(
    tmp_path, sqlite_url, capsys
) -> None:
    kms = FakeKms()
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(sqlite_url))
    datastore.setup_tables()
    store = SQLAlchemyKeyStore(datastore)
    started = time.perf_counter()
    made = seal_subjects(SUBJECTS, kms, store, tmp_path / "items", branches=BRANCHES)
    sealed = time.perf_counter()
    assert made.kms == kms.count("generate_data_key") == kms.count() == BRANCHES + 1
    assert made.store <= 2 * SUBJECTS / PAGE + 10
    kms.calls.clear()
    read = replay_subjects(SUBJECTS, kms, store, tmp_path / "items")
    opened = time.perf_counter()
    assert read.kms == kms.count("unwrap") == kms.count() == BRANCHES + 1
    assert read.store <= SUBJECTS / PAGE + 10
    with datastore.key_engine.connect() as connection:
        counted = select(encryption_keys.c.purpose, func.count()).group_by(encryption_keys.c.purpose)
        purposes = {row[0]: row[1] for row in connection.execute(counted)}
    assert purposes == {"store": 1, "branch": BRANCHES, "data": SUBJECTS}
    datastore.close()
    size = (tmp_path / "store.sqlite").stat().st_size
    with capsys.disabled():
        print(
            f"\n{SUBJECTS:,} subjects, {made.kms} and {read.kms} KMS calls: "
            f"{(sealed - started) / SUBJECTS * 1e6:.0f} µs to make a key and seal an item, "
            f"{(opened - sealed) / SUBJECTS * 1e6:.0f} µs to load a key and open it, "
            f"{size / SUBJECTS:.0f} bytes a key"
        )
