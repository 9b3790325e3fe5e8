"""A store behind a real PgBouncer, which gives each transaction another client's server connection."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from tests.faults.crashes import check_everything_rotates
from tests.faults.workers import POOLER, READER, ROTATOR, WRITER, Crew
from tests.fixtures.pgbouncer import pgbouncer
from tests.fixtures.sealed_shops import TENANTS, SealedShop, assert_sound, datastore_at, places_of, scope_of

from eventseal.configuration.diagnosis import Severity, diagnose
from eventseal.configuration.diagnosis.database_checks import check_pooler
from eventseal.configuration.initialise import initialise
from eventseal.erasure import shred
from eventseal.errors import ConfigurationError, SequencedItemConflictError
from eventseal.rotation import reencrypt, retire, rotate_keys, verify
from eventseal.storage.database.engines import SQLAlchemySettings, make_engine
from eventseal.storage.database.faults import store_error
from eventseal.testing import FakeKms
from eventseal_kms.local import LocalKmsAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.postgres

TENANT = TENANTS[0]
LEFT_BEHIND = """
SELECT 'setting', name || '=' || setting FROM pg_settings WHERE source = 'session'
UNION ALL SELECT 'statement', name FROM pg_prepared_statements
UNION ALL SELECT 'cursor', name FROM pg_cursors WHERE is_holdable
UNION ALL SELECT 'lock', objid::text FROM pg_locks WHERE locktype = 'advisory'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
UNION ALL SELECT 'channel', channel FROM pg_listening_channels() AS channel
UNION ALL SELECT 'table', relname FROM pg_class WHERE relpersistence = 't'
UNION ALL SELECT 'read only', current_setting('transaction_read_only') ORDER BY 1, 2
"""

OF_A_SESSION = re.compile(
    r"\s*(SET (?!LOCAL|TRANSACTION)|RESET|LISTEN|PREPARE|DECLARE|CREATE TEMP)", re.IGNORECASE
)


@pytest.fixture
def pooled_url(postgres_url: str) -> Iterator[str]:
    """A database whose clients share one server connection, with the tables of a shop."""
    with closing(datastore_at(postgres_url)) as datastore:
        datastore.setup_tables(application="shop")
    with pgbouncer(postgres_url, servers=1) as url:
        yield url


def left_behind(url: str) -> list[tuple[str, str]]:
    """What the next client of the server connection finds there."""
    engine = create_engine(SQLAlchemySettings(url).url, poolclass=NullPool)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(LEFT_BEHIND))]


@pytest.mark.slow
def test_six_processes_share_two_server_connections(postgres_url, tmp_path):
    key_file = tmp_path / "kek.key"
    LocalKmsAdapter.create(key_file)
    kek = LocalKmsAdapter.from_uri(f"local://{key_file}")
    with SealedShop(postgres_url, kek) as shop:
        shop.set_up().keyring.prepare([scope_of(tenant) for tenant in TENANTS])
    roles = (ROTATOR, ROTATOR, WRITER, WRITER, WRITER, READER)
    with pgbouncer(postgres_url, servers=2) as url:
        with Crew(url, [f"local://{key_file}"], roles, environment={POOLER: "transaction"}) as crew:
            crew.wait_for("done", 2)
            answers = crew.stop()
        assert sum(answer["retired"] for answer in answers) > 0
        assert not any(answer["outages"] for answer in answers)
    positions = {answer["number"]: answer["position"] for answer in answers if answer["role"] == WRITER}
    assert all(positions.values())
    check_everything_rotates(postgres_url, kek, positions)


def test_a_store_leaves_nothing_on_the_server_connection(pooled_url):
    before = left_behind(pooled_url)
    with closing(datastore_at(pooled_url, pooler="transaction")) as datastore:
        ran: list[str] = []
        event.listen(datastore.engine, "before_cursor_execute", lambda *found: ran.append(found[2]))
        with SealedShop(datastore, FakeKms()).set_up() as shop:
            for position in range(8):
                shop.append(TENANT, position)
            with pytest.raises(SequencedItemConflictError):
                shop.append(TENANT, 0)
            rotate_keys(shop)
            assert reencrypt(shop).done == 8
            retired = retire(shop)
            assert (retired.done, retired.leftover) == (1, "")
            assert_sound(shop, places_of(TENANT, 8))
            assert shred(shop, scope_of(TENANT)).leftover == ""
            assert verify(shop).complete
        assert left_behind(pooled_url) == before
    assert [statement for statement in ran if OF_A_SESSION.match(statement)] == []
    assert any("SET LOCAL" in statement for statement in ran)


def test_a_reader_of_a_backup_leaves_the_server_connection_writable(pooled_url):
    before = left_behind(pooled_url)
    engine = make_engine(SQLAlchemySettings(pooled_url, pooler="transaction"), reads_only=True)
    with closing(engine.raw_connection()):
        assert left_behind(pooled_url) == before
    with engine.connect() as connection, pytest.raises(DBAPIError, match="read-only transaction"):
        connection.execute(text("CREATE TABLE written (id integer)"))
    engine.dispose()


def test_without_the_setting_the_error_names_it_and_no_append_is_lost_or_doubled(pooled_url):
    kms = FakeKms()
    with closing(datastore_at(pooled_url, pooler="transaction")) as datastore:
        SealedShop(datastore, kms).keyring.prepare([scope_of(TENANT)])
    with SealedShop(pooled_url, kms) as one, SealedShop(pooled_url, kms) as other:
        lengths, refused = {1: 0, 2: 0}, []
        for _ in range(20):
            for number, shop in ((1, one), (2, other)):
                try:
                    shop.append(TENANT, lengths[number], number=number)
                except ConfigurationError as error:
                    refused.append(error)
                else:
                    lengths[number] += 1
    assert refused
    assert {'pooler = "transaction"' in error.remedy for error in refused} == {True}
    with closing(datastore_at(pooled_url, pooler="transaction")) as datastore:
        places = places_of(TENANT, lengths[1], number=1) | places_of(TENANT, lengths[2], number=2)
        with SealedShop(datastore, kms) as shop:
            assert shop.readable_places() == places


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("42P05", 'prepared statement "_pg3_0" already exists'),
        ("26000", 'prepared statement "_pg3_0" does not exist'),
        ("26000", "unnamed prepared statement does not exist"),
        ("42P05", "vorbereitete Anweisung »_pg3_0« existiert bereits"),
        ("08P01", 'bind message supplies 2 parameters, but prepared statement "_pg3_0" requires 3'),
    ],
)
def test_every_mixed_up_statement_is_a_wrong_setting(state, said):
    class RefusedError(Exception):
        sqlstate = state

    error = store_error(DBAPIError("SELECT 1", {}, RefusedError(said)), "reading keys")
    assert isinstance(error, ConfigurationError)
    assert 'pooler = "transaction"' in error.remedy


def test_statement_mode_is_refused_with_its_remedy(postgres_url):
    with (
        pgbouncer(postgres_url, mode="statement") as url,
        closing(datastore_at(url, pooler="transaction")) as datastore,
        pytest.raises(ConfigurationError, match="statement pooling mode") as refused,
    ):
        datastore.setup_tables()
    assert "pool_mode" in refused.value.remedy


def test_an_option_that_the_pooler_does_not_pass_on_is_a_wrong_setting(pooled_url):
    with (
        closing(datastore_at(f"{pooled_url}?options=-csearch_path%3Dshop")) as datastore,
        pytest.raises(ConfigurationError, match="startup parameter") as refused,
    ):
        datastore.setup_connection()
    assert "ALTER ROLE" in refused.value.remedy


class TestDoctor:
    @staticmethod
    def found(url, pooler=None):
        engine = make_engine(SQLAlchemySettings(url, pooler=pooler))
        try:
            return list(check_pooler("items", engine, pooler))
        finally:
            engine.dispose()

    def test_a_direct_connection_is_no_finding(self, postgres_url):
        assert self.found(postgres_url) == []
        assert self.found(postgres_url, "transaction") == []

    @pytest.mark.parametrize(
        ("servers", "settings"), [(1, {}), (2, {}), (3, {"server_round_robin": 1, "min_pool_size": 3})]
    )
    def test_transaction_mode_must_be_set(self, postgres_url, servers, settings):
        with pgbouncer(postgres_url, servers=servers, **settings) as url:
            before = left_behind(url)
            (missing,) = self.found(url)
            (fine,) = self.found(url, "transaction")
            assert left_behind(url) == before
        assert (missing.severity, type(missing.cause)) == (Severity.ERROR, ConfigurationError)
        assert 'pooler = "transaction"' in missing.remedy
        assert (fine.severity, fine.text) == (
            Severity.OK,
            "items: reached through a pooler, and pooler = transaction",
        )

    def test_session_mode_needs_no_setting(self, postgres_url):
        with pgbouncer(postgres_url, mode="session") as url:
            (found,) = self.found(url)
        assert found.severity is Severity.NOTE

    @pytest.mark.slow
    def test_the_whole_diagnosis_has_the_finding_and_runs_through_the_pooler(
        self, postgres_url, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        LocalKmsAdapter.create("dev.key")
        monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key")
        with pgbouncer(postgres_url, servers=1) as url:
            monkeypatch.setenv("EVENTSEAL_STORE_URL", url)
            *_, last = diagnose()
            assert (last.area, last.severity) == ("database", Severity.ERROR)
            monkeypatch.setenv("EVENTSEAL_POOLER", "transaction")
            initialise()
            found = list(diagnose())
        assert "items and keys: reached through a pooler, and pooler = transaction" in [
            finding.text for finding in found
        ]
        assert Severity.ERROR not in {finding.severity for finding in found}
