"""
What the triggers and the index on the eventsourcing library's tables cost an append, by its own recorder.

The contenders take turns, each on the same table, with the triggers and the index dropped or there.
"""

from __future__ import annotations

import statistics
import time
from uuid import uuid4

import pytest
from tests.fixtures.eventsourcing_store import EVENTS, LibraryStore

from eventseal.storage.items.fences import has_fence_triggers
from eventseal.storage.items.key_id_indexes import index_name
from eventseal.testing import FakeKms

pytestmark = pytest.mark.slow

WITHOUT, INDEXED, FENCED = "bare", "indexed", "indexed and fenced"


class Appends:
    """A table of the library's, made bare or ready again, and how long appends to it take."""

    def __init__(self, store):
        self.store = store
        (self.table, _) = store.seal.datastore.described_eventsourcing_tables()

    def make(self, contender):
        self.store.make_ours()
        if contender != FENCED:
            for event in ("insert", "update"):
                on = f" ON {EVENTS}" if self.store.on_postgresql else ""
                self.store.execute(f"DROP TRIGGER eventseal_fence_{event}_{EVENTS}{on}")
        if contender == WITHOUT:
            name = index_name(self.store.seal.datastore.engine, self.table)
            self.store.execute(f"DROP INDEX {name}")
        with self.store.seal.datastore.engine.connect() as connection:
            assert has_fence_triggers(connection, self.table) is (contender == FENCED)
        self.store.execute(f"DELETE FROM {EVENTS}")

    def seconds(self, transactions, events):
        """Append, and give the seconds per event."""
        batches = [self.store.states(uuid4(), range(1, events + 1)) for _ in range(transactions)]
        started = time.perf_counter()
        for batch in batches:
            self.store.events.insert_events(batch)
        return (time.perf_counter() - started) / transactions / events


@pytest.mark.parametrize("events", [1, 10, 100])
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_the_triggers_cost_an_append(database, events, request, benchmark, report_line):
    measured = request.config.getoption("benchmark_only")
    url = request.getfixturevalue("sqlite_url" if database == "sqlite" else "postgres_url")
    store = LibraryStore(url, FakeKms()).make()
    request.addfinalizer(store.close)
    appends, transactions = Appends(store), 400 if measured else 2
    seconds = {contender: [] for contender in (WITHOUT, INDEXED, FENCED)}

    def round_of_all():
        for contender, found in seconds.items():
            appends.make(contender)
            appends.seconds(2, events)
            found.append(appends.seconds(max(2, transactions // events), events))

    benchmark.pedantic(round_of_all, rounds=7 if measured else 1)
    micros = {contender: 1e6 * statistics.median(found) for contender, found in seconds.items()}
    benchmark.extra_info.update(micros)
    report_line(
        f"an append of {events} events to {EVENTS} on {database}: "
        + ", ".join(f"{contender} {each:,.0f} µs/event" for contender, each in micros.items())
        + f"; {micros[FENCED] / micros[WITHOUT]:.2f} x"
    )
