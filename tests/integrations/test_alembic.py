"""A team's project under Alembic, whose database also holds a store of EventSeal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, create_engine, inspect, make_url

from eventseal import EventSeal
from eventseal.configuration.initialise import initialise
from eventseal.configuration.setup_sql import setup_sql
from eventseal.configuration.upgrade import own_tables
from eventseal.errors import ConfigurationError
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.storage.database.layout import PREFIX

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    # SQLAlchemy warns that it cannot reflect an index on an expression.
    pytest.mark.filterwarnings("ignore:Skipped unsupported reflection:sqlalchemy.exc.SAWarning"),
]

MODELS = """
from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from eventseal.storage import IntegerSequencedColumns


class Base(DeclarativeBase):
    pass


class OrderEvent(IntegerSequencedColumns, Base):
    __tablename__ = "order_events"
    __collection__ = "orders"


class Outbox(Base):
    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(primary_key=True)
    message: Mapped[str] = mapped_column(String(50))
"""
ENV = """
from alembic import context
from sqlalchemy import NullPool, create_engine
from shop_models import Base
from eventseal.alembic import include_object, render_item

url = context.config.get_main_option("sqlalchemy.url")
named = {"target_metadata": Base.metadata, "include_object": include_object, "render_item": render_item}
if context.is_offline_mode():
    context.configure(url=url, literal_binds=True, **named)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, **named)
        with context.begin_transaction():
            context.run_migrations()
"""
TEMPLATE = '''"""${message}"""

from alembic import op
import sqlalchemy as sa
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
'''
STORE = '''"""The tables of EventSeal."""

from alembic import op
import eventseal.alembic

revision = "store"
down_revision = {before!r}
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.{operation}({arguments})


def downgrade() -> None:
    op.drop_eventseal_tables({arguments})
'''
OWN = sorted(table.name for table in own_tables() if not table.name.endswith("ledger"))


class Project:
    """The folder of a team's project."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        (folder / "shop_models.py").write_text(MODELS)
        (folder / "migrations" / "versions").mkdir(parents=True)
        (folder / "migrations" / "env.py").write_text(ENV)
        (folder / "migrations" / "script.py.mako").write_text(TEMPLATE)
        self.config = Config()
        self.config.set_main_option("script_location", str(folder / "migrations"))
        self.config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))

    def autogenerate(self) -> str:
        """Write a migration, and return it."""
        command.revision(self.config, message="changes", autogenerate=True)
        newest = max(self.folder.glob("migrations/versions/*.py"), key=lambda path: path.stat().st_mtime_ns)
        return newest.read_text()

    def add_store(self, arguments: str = "", *, operation: str = "create_eventseal_tables") -> None:
        """Add a migration for EventSeal's tables."""
        before = None
        for path in self.folder.glob("migrations/versions/*_changes.py"):
            before = path.name.partition("_")[0]
        content = STORE.format(before=before, arguments=arguments, operation=operation)
        (self.folder / "migrations" / "versions" / "store.py").write_text(content)

    def tables(self) -> list[str]:
        return sorted(inspect(create_engine(self.url, poolclass=NullPool)).get_table_names())

    def init(self) -> None:
        initialise(
            kms_key="local://dev.key",
            store_url=self.url,
            tables=["shop_models:OrderEvent"],
            event_modules=["tests.integrations.test_alembic"],
        )


@pytest.fixture
def project(tmp_path, monkeypatch, store_url):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shop_models", raising=False)
    yield Project(tmp_path, str(store_url))
    sys.modules.pop("shop_models", None)


@pytest.mark.slow
def test_autogenerate_proposes_nothing_of_eventseals(project):
    project.autogenerate()
    command.upgrade(project.config, "head")  # with EventSeal's column types
    project.init()
    proposed = project.autogenerate()
    assert "op." not in proposed.partition("def upgrade")[2]
    assert {"outbox", "order_events", f"{PREFIX}encryption_keys"} <= set(project.tables())


@pytest.mark.slow
def test_upgrade_and_downgrade_run(project):
    project.add_store()
    command.upgrade(project.config, "head")
    assert project.tables() == sorted([*OWN, "alembic_version"])
    command.downgrade(project.config, "base")
    assert project.tables() == ["alembic_version"]


@pytest.mark.slow
def test_tables_with_keys_are_not_dropped(project):
    project.add_store()
    command.upgrade(project.config, "head")
    project.init()
    with pytest.raises(ConfigurationError, match="has rows, so no table was dropped"):
        command.downgrade(project.config, "base")
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare([DEFAULT_SCOPE])
    assert set(OWN) <= set(project.tables())


@pytest.mark.slow
def test_init_indexes_a_table_that_a_migration_created(project):
    project.autogenerate()
    command.upgrade(project.config, "head")
    project.init()
    assert not any(setup_sql().values())


@pytest.mark.parametrize("arguments", ["'keys'", "['keys', 'snapshots']"])
def test_a_wrong_part_is_refused(project, arguments):
    project.add_store(arguments)
    with pytest.raises(ConfigurationError, match="items, keys, ledger"):
        command.upgrade(project.config, "head")


def test_the_sql_of_a_migration_is_written(project, capsys):
    project.add_store("['keys']")
    command.upgrade(project.config, "head", sql=True)
    written = capsys.readouterr().out
    assert f"CREATE TABLE {PREFIX}encryption_keys" in written
    assert f"{PREFIX}key_fences" not in written
    with pytest.raises(ConfigurationError, match="cannot be written as SQL"):
        command.downgrade(project.config, "store:base", sql=True)


@pytest.mark.slow
@pytest.mark.postgres
def test_a_schema_holds_the_tables(project):
    if make_url(project.url).get_backend_name() == "sqlite":
        pytest.skip("SQLite has no schemas")
    run(project.url, 'CREATE SCHEMA "Own shop"')
    project.add_store('schema="Own shop"')
    command.upgrade(project.config, "head")
    assert project.tables() == ["alembic_version"]
    initialise(kms_key="local://dev.key", store_url=project.url, database_schema="Own shop")
    assert project.tables() == ["alembic_version"]


@pytest.mark.slow
def test_a_migration_upgrades_tables_with_older_names(project):
    project.add_store()
    command.upgrade(project.config, "head")
    renamed = [name for name in OWN if name != f"{PREFIX}key_claims"]
    for name in renamed:
        run(project.url, f"ALTER TABLE {name} RENAME TO {name.removeprefix(PREFIX)}")
    run(project.url, f"DROP TABLE {PREFIX}key_claims")
    run(project.url, "DELETE FROM alembic_version")
    project.add_store(operation="upgrade_eventseal_tables")
    command.upgrade(project.config, "head")
    assert project.tables() == sorted([*OWN, "alembic_version"])


@pytest.mark.slow
@pytest.mark.postgres
def test_after_the_sql_init_needs_no_right_to_create(postgres_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"kms_key": "local://dev.key", "store_url": postgres_url}
    (statements,) = setup_sql(**options).values()
    assert statements
    assert not list(tmp_path.iterdir())  # nothing else was done
    run(postgres_url, *statements)
    assert list(setup_sql(**options).values()) == [[]]
    role = f"shop_{make_url(postgres_url).database}"
    run(
        postgres_url,
        f'CREATE ROLE "{role}" LOGIN',
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{role}"',
        "REVOKE CREATE ON SCHEMA public FROM public",
    )
    limited = make_url(postgres_url).set(username=role).render_as_string(hide_password=False)
    try:
        initialise(kms_key="local://dev.key", store_url=limited)
        with EventSeal.from_settings() as seal:
            seal.keyring.prepare([DEFAULT_SCOPE])
    finally:
        run(postgres_url, f'DROP OWNED BY "{role}"', f'DROP ROLE "{role}"')


def test_the_sql_of_a_file_that_does_not_exist_creates_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (statements,) = setup_sql(kms_key="local://dev.key", store_url="sqlite:///new.sqlite").values()
    assert not list(tmp_path.iterdir())
    run("sqlite:///new.sqlite", *statements)
    initialise(kms_key="local://dev.key", store_url="sqlite:///new.sqlite")
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare([DEFAULT_SCOPE])


def run(url: str, *statements: str) -> None:
    with create_engine(url, poolclass=NullPool).begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
