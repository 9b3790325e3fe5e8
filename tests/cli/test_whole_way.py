"""The commands one after the other, each a process of its own, on both databases, and through outages."""

from __future__ import annotations

import json
import subprocess
import sys
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool
from tests.cli.conftest import Order

from eventseal.configuration import EventSeal
from eventseal.items import SequencedItemMapper
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy
from eventseal.storage.database.engines import SQLAlchemySettings

pytestmark = pytest.mark.slow


def eventseal(*words: str, exits: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eventseal", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == exits, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def answer(*words: str, exits: int = 0):
    return json.loads(eventseal("--json", *words, exits=exits).stdout)


@pytest.fixture
def shop(store_url, filled_shop):
    """On each database."""
    return filled_shop(store_url)


@pytest.fixture
def filled_shop(monkeypatch):
    """Makes a store of 200 items in two scopes, by the environment alone; rotations are noticed at once."""

    def fill(store_url: str) -> str:
        monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key")
        monkeypatch.setenv("EVENTSEAL_STORE_URL", store_url)
        monkeypatch.setenv("EVENTSEAL_APPLICATION", "shop")
        monkeypatch.setenv("EVENTSEAL_LEDGER", "erasures.jsonl")
        eventseal("init", "--yes")
        with EventSeal.from_settings() as seal:
            strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
            for scope in ("tenant:a", "tenant:b"):
                order = uuid4()
                mapper = SequencedItemMapper(cipher=seal.cipher, key_scope=scope)
                strategy.append(mapper.to_sequenced_items([Order(order, n, "Ada") for n in range(100)]))
            with seal.datastore.engine.begin() as connection:
                connection.execute(text("UPDATE eventseal_key_changes SET refresh_interval = 0"))
        return store_url

    return fill


def test_from_an_empty_database_to_keys_that_are_gone(shop):
    rotated = answer("rotate", "--reencrypt", "--retire", "--yes", "--workers", "2")
    assert (rotated["done"], rotated["reencrypt"]["done"], rotated["retire"]["done"]) == (3, 200, 3)
    assert answer("rewrap")["failed"] == 0
    verified = answer("verify")
    assert (verified["done"], verified["failed"]) == (200, 0)
    status = answer("status")
    assert status["items"]["integer_sequenced_items"] == {"active": 200}
    assert status["next"] == []
    found = answer("doctor", exits=0 if shop.startswith("sqlite") else 1)["findings"]
    amiss = [finding["finding"] for finding in found if finding["severity"] in {"warning", "error"}]
    assert all("fsync is off" in text for text in amiss)


@pytest.mark.postgres
def test_a_database_that_goes_half_way_exits_with_3_and_the_job_goes_on(
    postgres_url, postgres_server, filled_shop
):
    filled_shop(postgres_url)
    eventseal("rotate")
    command = [sys.executable, "-m", "eventseal", "reencrypt", "--batch", "10", "--items-per-second", "20"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert any(line.startswith("reencrypt: ") for line in running.stderr)
    with EventSeal.from_settings() as seal, seal.datastore.engine.begin() as connection:
        # From here on it waits, however long the rest takes.
        connection.execute(text("UPDATE eventseal_reencryption_jobs SET paced_until = paced_until + 3600"))
    name = make_url(postgres_url).database
    server = create_engine(
        SQLAlchemySettings(postgres_server).url, isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    with server.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        ended = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
        connection.execute(ended, {"name": name})
        try:
            _, err = running.communicate(timeout=120)
        finally:
            running.kill()
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
    server.dispose()
    assert running.returncode == 3, err
    assert "eventseal: remedy: Try again" in err
    assert "Traceback" not in err
    (job,) = answer("status")["jobs"]
    assert 0 < job["done"] < 200
    assert answer("reencrypt", "--items-per-second", "1000000")["left"] == 0
    assert answer("verify")["done"] == 200


def test_a_kms_that_is_gone_half_way_exits_with_2_or_3_and_moves_nothing_wrong(shop, tmp_path):
    key = tmp_path / "dev.key"
    eventseal("rotate")
    hidden = key.rename(tmp_path / "hidden.key")
    eventseal("reencrypt", exits=2)
    hidden.rename(key)
    assert answer("reencrypt")["done"] == 200
    assert answer("verify")["done"] == 200
