"""An application of the eventsourcing library beside an EventSeal that the environment describes."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url

from eventseal.configuration import EventSeal
from eventseal.integrations.eventsourcing.sealing import process_seal
from eventseal_kms.local import LocalKmsAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAPPER = "eventseal.integrations.eventsourcing:EncryptingMapper"
LIBRARY = "eventsourcing"
OURS = "eventseal.integrations.eventsourcing"
knows_mapper_topic = pytest.mark.skipif(
    version("eventsourcing").startswith("9.3."), reason="release 9.3 does not know MAPPER_TOPIC"
)
knows_text_ids = pytest.mark.skipif(
    version("eventsourcing").startswith(("9.3.", "9.4.")), reason="ids are UUIDs before release 9.5"
)
BOTH = [pytest.param(LIBRARY, marks=knows_mapper_topic), OURS]


def library_environment(url: str) -> dict[str, str]:
    """What the library's modules for SQLite and PostgreSQL read."""
    parts = make_url(url)
    if parts.get_backend_name() == "sqlite":
        return {"SQLITE_DBNAME": parts.database or ""}
    return {
        "POSTGRES_DBNAME": parts.database or "",
        "POSTGRES_HOST": str(parts.query.get("host") or parts.host),
        "POSTGRES_PORT": str(parts.port or 5432),
        "POSTGRES_USER": parts.username or "postgres",
        "POSTGRES_PASSWORD": parts.password or "",
    }


@pytest.fixture(autouse=True)
def _empty_surroundings(tmp_path, monkeypatch):
    for name in os.environ:
        if name.upper().startswith(("EVENTSEAL_", "POSTGRES_", "SQLITE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sealed_process(tmp_path, monkeypatch) -> Iterator[Callable[..., EventSeal]]:
    """Configures this process for a database, makes EventSeal's tables there, and gives another EventSeal."""
    opened: list[EventSeal] = []

    def configure(url: str, **settings: str) -> EventSeal:
        if not (tmp_path / "dev.key").exists():
            LocalKmsAdapter.create(tmp_path / "dev.key")
        names = {
            "kms_key": f"local://{tmp_path}/dev.key",
            "store_url": url,
            "application": "shop",
            **settings,
        }
        for name, value in names.items():
            monkeypatch.setenv(f"EVENTSEAL_{name.upper()}", value)
        seal = EventSeal.from_settings()
        opened.append(seal)
        seal.datastore.setup_tables(application="shop")
        return seal

    yield configure
    process_seal.close()
    for seal in opened:
        seal.close()


@pytest.fixture(params=["popo", "sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest) -> str:
    """The library's name of a kind of database."""
    return str(request.param)


@pytest.fixture(params=BOTH, ids=["one by one", "pages"])
def package(request: pytest.FixtureRequest) -> str:
    """Whose persistence modules are used."""
    return str(request.param)


@pytest.fixture
def environment(
    request: pytest.FixtureRequest, database: str, package: str, sealed_process: Any
) -> dict[str, str]:
    """The environment of an application on an empty database, of which EventSeal has its tables too."""
    url = request.getfixturevalue("postgres_url" if database == "postgres" else "sqlite_url")
    sealed_process(url)
    of_library = {} if database == "popo" else library_environment(url)
    return {"PERSISTENCE_MODULE": f"{package}.{database}", "MAPPER_TOPIC": MAPPER, **of_library}
