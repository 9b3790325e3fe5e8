"""Each role does its work with the grants printed for it, needs all of them, and does nothing else."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from typer.testing import CliRunner

from eventseal.cli.app import app
from eventseal.configuration import EventSeal
from eventseal.configuration.assembly import Stores
from eventseal.configuration.diagnosis import diagnose
from eventseal.configuration.loading import load_settings
from eventseal.configuration.roles import Role, store_policies
from eventseal.errors import KeyDestroyedError, StoreForbiddenError, UnknownFormatError
from eventseal.eventstore.events import (
    EventWithOriginatorID,
    EventWithOriginatorVersion,
    EventWithTimestamp,
)
from eventseal.items import SequencedItemMapper
from eventseal.storage import (
    IntegerSequencedItemRecord,
    SQLAlchemyActiveRecordStrategy,
    TimestampSequencedItemRecord,
)
from eventseal.storage.items.swaps_on_postgresql import _Array, _ArrayDumper
from eventseal.storage.items.tables import OWN_RECORDS
from eventseal_kms.local import LocalKmsAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sqlalchemy.engine import URL, Connection

    from eventseal.configuration.roles import StorePolicy

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

DENIED = "permission denied for table"
ITEM_TABLES = {record.__tablename__ for record in OWN_RECORDS}
TABLE = IntegerSequencedItemRecord.__tablename__
KEPT, ERASED = "tenant:kept", "tenant:erased"
VARIABLES = {
    "items": "EVENTSEAL_STORE_URL",
    "keys": "EVENTSEAL_KEY_STORE_URL",
    "ledger": "EVENTSEAL_LEDGER",
}
STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|LOCK)\b")


class Noted(EventWithOriginatorVersion, EventWithOriginatorID):
    """An event."""


class Timed(EventWithTimestamp, EventWithOriginatorID):
    """An event whose position is its time."""


@dataclass
class Site:
    """
    Three databases, with a user of its own for each role.

    Attributes:
        urls: Of the databases, by content, as their owner connects.
        folder: Where the key files are.
        prefix: Of the names of the users.
        seen: The statements of each role in each database, with parameters of one execution.
    """

    urls: dict[str, str]
    folder: Path
    prefix: str
    seen: dict[tuple[Role, str], dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))

    def user(self, role: Role) -> str:
        return f"{self.prefix}_{role}"

    @contextmanager
    def settings(self, role: Role | None = None, *, keks: Sequence[str] = ("dev.key",)) -> Iterator[None]:
        """Set everything in the environment; connect as a role's user, or as the owner."""
        with pytest.MonkeyPatch.context() as patch:
            for name in os.environ:
                if name.upper().startswith("EVENTSEAL_"):
                    patch.delenv(name)
            patch.chdir(self.folder)
            patch.setenv("EVENTSEAL_KMS_KEY", ",".join(f"local://{kek}" for kek in keks))
            patch.setenv("EVENTSEAL_CACHE_REFRESH_INTERVAL", "0.001")
            patch.setenv("EVENTSEAL_ROTATION_MAX_ITEMS", "8")
            for what, url in self.urls.items():
                named = make_url(url) if role is None else make_url(url).set(username=self.user(role))
                patch.setenv(VARIABLES[what], named.render_as_string(hide_password=False))
            yield

    @contextmanager
    def acting(self, role: Role, **more: Any) -> Iterator[None]:
        """Log in as a role, and note what it sends to which database."""
        names = {make_url(url).database: what for what, url in self.urls.items()}

        def note(connection, _cursor, statement, parameters, _context, executemany):
            sent = parameters[0] if executemany else parameters
            what = names.get(connection.engine.url.database)  # a backup has another name
            if what is not None:
                self.seen[role, what].setdefault(statement, sent)

        event.listen(Engine, "before_cursor_execute", note)
        try:
            with self.settings(role, **more):
                yield
        finally:
            event.remove(Engine, "before_cursor_execute", note)

    @contextmanager
    def owner(self, what: str) -> Iterator[Connection]:
        """Connect as the owner of a database."""
        engine = create_engine(self.urls[what], poolclass=NullPool)
        with engine.begin() as connection:
            yield connection
        engine.dispose()

    def grants(self, role: Role) -> list[StorePolicy]:
        with self.settings(), closing(Stores(load_settings())) as stores:
            return store_policies(stores, role)


def run(*words: str, exits: int = 0) -> str:
    result = CliRunner().invoke(app, list(words), prog_name="eventseal")
    assert result.exit_code == exits, f"{words}\n{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result.stdout + result.stderr


def mapper_for(seal: EventSeal, record: type) -> SequencedItemMapper:
    return SequencedItemMapper(
        cipher=seal.cipher,
        key_scope=lambda event: event.scope,
        erased_scope=lambda _: ERASED,
        collection=record.__collection__,
        sequence_id_attr_name="originator_id",
        position_attr_name="timestamp" if is_timed(record) else "originator_version",
    )


def amiss(role: Role) -> list[str]:
    """Say what `doctor` finds wrong for a role, except that the tests' server does not wait for its disk."""
    found = [finding for finding in diagnose(role=role) if finding.severity.asks_for_action]
    return [finding.remedy for finding in found if "fsync is off" not in finding.text]


def is_timed(record: type) -> bool:
    return record is TimestampSequencedItemRecord


def append(scope: str) -> UUID:
    """Append events to each table of items, in one stream, and return its id."""
    stream = uuid4()
    with EventSeal.from_settings() as seal:
        for record in OWN_RECORDS:
            strategy = SQLAlchemyActiveRecordStrategy(record, seal.datastore.session)
            if is_timed(record):
                events = [Timed(originator_id=stream, scope=scope)]
            else:
                events = [Noted(originator_id=stream, originator_version=n, scope=scope) for n in range(3)]
            strategy.append(mapper_for(seal, record).to_sequenced_items(events))
    return stream


def read() -> int:
    """Open every event, as a program that has no key yet. Return how many are not erased."""
    opened = 0
    with EventSeal.from_settings() as seal:
        for record in OWN_RECORDS:
            strategy = SQLAlchemyActiveRecordStrategy(record, seal.datastore.session)
            mapper, others = mapper_for(seal, record), strategy.other_collections("default")
            for item in strategy.all_items():
                with suppress(KeyDestroyedError, UnknownFormatError):
                    opened += len(mapper.from_sequenced_items([item], other_collections=others))
    return opened


@pytest.fixture(scope="module")
def site(new_postgres_database, tmp_path_factory) -> Iterator[Site]:
    """A store whose roles have done everything, each as a user that has only its role's grants."""
    urls = {what: new_postgres_database() for what in VARIABLES}
    site = Site(urls, tmp_path_factory.mktemp("roles"), f"role_{uuid4().hex[:8]}")
    with site.settings():
        run("init", "--yes")
        for name in ("new.key", "last.key", "spare.key"):
            LocalKmsAdapter.create(name)
    with site.owner("keys") as connection:
        connection.execute(text("UPDATE eventseal_key_changes SET refresh_interval = 0"))
        for role in Role:
            connection.execute(text(f"CREATE ROLE {site.user(role)} LOGIN"))
    for role in Role:
        for policy in site.grants(role):
            with site.owner(policy.holds) as connection:
                for statement in policy.statements(site.user(role)):
                    connection.execute(text(statement))
    work(site)
    yield site
    for what in ("items", "keys"):
        url = make_url(urls[what])
        run_on_server(url, f"DROP DATABASE {url.database}_backup WITH (FORCE)")
    for role in Role:
        for what in site.urls:
            with site.owner(what) as connection:
                connection.execute(text(f"DROP OWNED BY {site.user(role)}"))
        with site.owner("items") as connection:
            connection.execute(text(f"DROP ROLE {site.user(role)}"))


def work(site: Site) -> None:
    """Do everything that each role does, in an order in which each finds work."""
    with site.acting(Role.WRITER):
        append(KEPT)
        append(ERASED)
        stream = append(KEPT)
    with site.acting(Role.READER):
        assert read() == 21
    with site.owner("items") as connection:
        query = text(f"SELECT key_id FROM {TABLE} WHERE sequence_id = :stream AND position = 0")
        first_key = str(connection.execute(query, {"stream": stream}).scalar_one())
    backup = {what: copy(site, what) for what in ("items", "keys")}
    with site.acting(Role.ROTATOR):
        run("rotate", "--yes", "--reencrypt")
        run("rotate", "--yes", "--scope", KEPT, "--compromised")
    damage(site, stream, position=0)
    with site.acting(Role.ROTATOR):
        run("reencrypt", "--yes", exits=1)
    with site.acting(Role.CUSTODIAN):
        repair = ("repair", "--from-backup", backup["items"], "--backup-keys", backup["keys"], "--yes")
        run(*repair)
    with site.acting(Role.ROTATOR):
        run("rotate", "--yes", "--compromised", "--key", first_key)
    with damaged(site, stream, position=2), site.acting(Role.CUSTODIAN):
        assert "may be forged" in run(*repair, exits=1)
    with site.acting(Role.ROTATOR):
        run("reencrypt", "--yes")
        run("retire", "--yes")
        run("rotate", "--yes", "--scope", KEPT, "--compromised", "--reencrypt")
    with site.acting(Role.CUSTODIAN):
        run("retire", "--yes")
        run("shred", ERASED, "--yes")
    with site.settings(Role.ROTATOR):
        assert DENIED in run("reopen", ERASED, "--yes", exits=2)
    with site.acting(Role.CUSTODIAN):
        run("reopen", ERASED, "--yes")
    with site.acting(Role.READER):
        assert read() == 14
    with site.acting(Role.WRITER):
        append(ERASED)
    with site.acting(Role.ROTATOR):
        run("verify")
    damage(site, stream, position=1)
    with site.acting(Role.CUSTODIAN):
        run("set-aside", "--every-damaged-row", "--table", TABLE, "--reason", "a test", "--yes")
    move(site)
    with site.acting(Role.AUDITOR, keks=("last.key",)):
        run("verify", "--receipt", "verification.json")
        run("receipt", "check", "verification.json")
        run("status")
        run("keys")
    for role in Role:
        with site.acting(role, keks=("last.key",)):
            assert amiss(role) == []


def copy(site: Site, what: str) -> str:
    """Copy a database, and return the URL for a custodian."""
    url = make_url(site.urls[what])
    copied = url.set(database=f"{url.database}_backup", username=site.user(Role.CUSTODIAN))
    run_on_server(url, f"CREATE DATABASE {copied.database} TEMPLATE {url.database}")
    return copied.render_as_string(hide_password=False)


def run_on_server(url: URL, statement: str) -> None:
    """Run a statement that takes no part in a transaction."""
    engine = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def damage(site: Site, stream: UUID, *, position: int) -> None:
    """Cut an item."""
    change(site, "substr(data, 1, 70)", stream=stream, position=position)


@contextmanager
def damaged(site: Site, stream: UUID, *, position: int) -> Iterator[None]:
    """Turn the bits of one byte of an item over, until the block ends."""
    turned = "set_byte(data, 60, 255 - get_byte(data, 60))"
    change(site, turned, stream=stream, position=position)
    yield
    change(site, turned, stream=stream, position=position)


def change(site: Site, data: str, **place: Any) -> None:
    statement = f"UPDATE {TABLE} SET data = {data} WHERE sequence_id = :stream AND position = :position"
    with site.owner("items") as connection:
        connection.execute(text(statement), place)


def move(site: Site) -> None:
    """Move all keys, and the ledger's, to another KEK."""
    both = ("dev.key", "new.key")
    with site.acting(Role.ROTATOR, keks=both):
        assert "erasure_ledger" in run("rewrap", exits=2)  # only a custodian writes the ledger
    with site.acting(Role.WRITER, keks=both):
        read()
    with site.acting(Role.CUSTODIAN, keks=(*both, "last.key")):
        run("roll-epoch", "--to", "local://last.key", "--yes")


@pytest.mark.parametrize("role", Role)
def test_a_role_needs_every_privilege_that_is_printed_for_it(site, role):
    printed, needed = set(), set()
    for policy in site.grants(role):
        sent = [each for each in site.seen[role, policy.holds].items() if STATEMENT.match(each[0])]
        with site.owner(policy.holds) as connection:
            connection.connection.driver_connection.adapters.register_dumper(_Array, _ArrayDumper)
            for grant in policy.grants:
                using = [each for each in sent if re.search(rf"\b{grant.name}\b", each[0])]
                # A role may have to write to any table of items, as a writer does.
                of = "items" if grant.name in ITEM_TABLES else grant.name
                for privilege in grant.privileges:
                    revoking = f"REVOKE {privilege} ON {grant.name} FROM {site.user(role)}"
                    printed.add((privilege, of))
                    if is_missed(connection, revoking, site.user(role), using):
                        needed.add((privilege, of))
    assert printed - needed == set()


def is_missed(connection, revoking: str, user: str, statements: list[tuple[str, Any]]) -> bool:
    """Say whether one of the statements is denied without a privilege. Nothing is changed."""
    with connection.begin_nested() as whole:
        connection.exec_driver_sql(revoking)
        connection.exec_driver_sql(f"SET LOCAL ROLE {user}")
        try:
            return any(is_denied(connection, *each) for each in statements)
        finally:
            whole.rollback()


def is_denied(connection, words: str, values: Any) -> bool:
    point = connection.begin_nested()
    try:
        connection.exec_driver_sql(words if words.startswith("LOCK") else f"EXPLAIN {words}", values)
    except DBAPIError as error:
        return "permission denied" in str(error)
    finally:
        point.rollback()
    return False


@pytest.mark.parametrize(
    ("role", "words"),
    [
        (Role.WRITER, ["reencrypt", "--yes"]),
        (Role.WRITER, ["retire", "--yes"]),
        (Role.AUDITOR, ["rotate", "--yes"]),
        (Role.ROTATOR, ["shred", KEPT, "--yes"]),
        (Role.ROTATOR, ["roll-epoch", "--to", "local://spare.key", "--yes"]),
        (Role.CUSTODIAN, ["reencrypt", "--yes"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_the_work_of_another_role_is_denied_before_it_destroys_anything(site, role, words):
    with site.acting(Role.READER, keks=("last.key",)):
        before = read()
    with site.settings(role, keks=("last.key", "spare.key")):
        said = run(*words, exits=2)
    assert DENIED in said
    assert "`eventseal policy --role ROLE` prints all grants of a role." in said
    with site.acting(Role.READER, keks=("last.key",)):
        assert read() == before


def test_a_reader_that_appends_is_told_to_ask_for_the_privilege(site):
    with site.settings(Role.READER, keks=("last.key",)), pytest.raises(StoreForbiddenError) as denied:
        append(KEPT)
    assert DENIED in str(denied.value)


@pytest.mark.parametrize(
    ("role", "privilege"), [(Role.WRITER, "INSERT"), (Role.READER, "SELECT"), (Role.ROTATOR, "DELETE")]
)
def test_doctor_names_the_grant_that_a_role_lacks(site, role, privilege):
    user = site.user(role)
    with site.owner("keys") as connection:
        connection.execute(text(f"REVOKE {privilege} ON eventseal_key_wrappings FROM {user}"))
    try:
        with site.settings(role, keks=("last.key",)):
            assert amiss(role) == [f"GRANT {privilege} ON eventseal_key_wrappings TO {user};"]
            run("doctor", "--role", role, exits=2)
    finally:
        with site.owner("keys") as connection:
            connection.execute(text(f"GRANT {privilege} ON eventseal_key_wrappings TO {user}"))


def test_doctor_finds_nothing_for_a_reader_who_cannot_write(site):
    with site.settings(Role.READER, keks=("last.key",)):
        found = json.loads(run("--json", "doctor", "--role", "reader"))
        assert found["healthy"]
        assert {finding["area"] for finding in found["findings"]}.isdisjoint({"fences", "ledger", "jobs"})
        run("doctor", exits=2)  # which asks for everything
