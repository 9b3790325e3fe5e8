"""Stores in a known state, again and again: copies of one that was prepared once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Engine


class SQLiteCopies:
    """Copies of a file that nobody uses, at one place."""

    def __init__(self, url: str) -> None:
        self._original = Path(str(make_url(url).database))
        self._copy = self._original.with_name("copy.sqlite")
        self.url = f"sqlite:///{self._copy}"

    def renew(self) -> None:
        for file in self._copy.parent.glob(f"{self._copy.name}*"):
            file.unlink()
        shutil.copyfile(self._original, self._copy)


class PostgresCopies:
    """Copies of a database that nobody uses, at one place."""

    def __init__(self, url: str, admin: Engine) -> None:
        original = make_url(url)
        self._original = original.database
        self._copy = f"{original.database}_copy"
        self._admin = admin
        self.url = original.set(database=self._copy).render_as_string(hide_password=False)

    def renew(self) -> None:
        with self._admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {self._copy} WITH (FORCE)"))
            connection.execute(text(f"CREATE DATABASE {self._copy} TEMPLATE {self._original}"))


@pytest.fixture
def sqlite_copies() -> type[SQLiteCopies]:
    """Makes a place for copies of a store."""
    return SQLiteCopies


@pytest.fixture
def postgres_copies(postgres_server: str) -> Iterator[Callable[[str], PostgresCopies]]:
    """Makes a place for copies of a store."""
    engine = create_engine(postgres_server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    yield lambda url: PostgresCopies(url, engine)
    engine.dispose()
