"""A command to run, in an empty folder, without settings of the machine's; and a store that it made."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner

from eventseal.cli.app import app
from eventseal.configuration import EventSeal
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.testing import Result

    from eventseal.items import SequencedItem


@pytest.fixture(autouse=True)
def _empty_surroundings(tmp_path, monkeypatch):
    for name in os.environ:
        if name.upper().startswith("EVENTSEAL_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run() -> Callable[..., Result]:
    """Runs ``eventseal`` with the given words and checks its exit code."""

    def run_one(*words: str, exits: int = 0, **named: Any) -> Result:
        result = CliRunner().invoke(app, list(words), prog_name="eventseal", **named)
        assert result.exit_code == exits, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
        return result

    return run_one


@pytest.fixture
def run_json(run) -> Callable[..., Any]:
    """Runs ``eventseal --json`` and gives what it printed."""
    return lambda *words, **named: json.loads(run("--json", *words, **named).stdout)


class Order:
    def __init__(self, originator_id: UUID, originator_version: int, customer: str) -> None:
        self.originator_id = originator_id
        self.originator_version = originator_version
        self.customer = customer


@pytest.fixture
def sqlite_url() -> str:
    return "sqlite:///shop.sqlite"


@pytest.fixture
def store(run, sqlite_url) -> Callable[..., list[SequencedItem]]:
    """A store in ``shop.sqlite``; calling it appends sealed events and gives their items."""
    run(
        "init",
        "--kms-key",
        "local://dev.key",
        "--store-url",
        sqlite_url,
        "--application",
        "shop",
    )

    def append(count: int = 1) -> list[SequencedItem]:
        with EventSeal.from_settings() as seal:
            strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
            order = uuid4()
            items = seal.mapper.to_sequenced_items([Order(order, n, "Ada") for n in range(count)])
            strategy.append(items)
            return items

    return append


@pytest.fixture
def with_ledger(store, run, monkeypatch) -> Callable[..., list[SequencedItem]]:
    """The store with an erasure ledger, so that `doctor` has nothing to say."""
    monkeypatch.setenv("EVENTSEAL_LEDGER", "erasures.jsonl")
    run("init")
    return store


@pytest.fixture
def query() -> Callable[..., list[tuple[Any, ...]]]:
    """Runs SQL on the SQLite file, behind everybody's back."""

    def execute(sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect("shop.sqlite")) as connection, connection:
            return connection.execute(sql, parameters).fetchall()

    return execute
