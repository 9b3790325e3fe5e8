"""
Re-encryption of the real log's events, beside the database that rewrites the same rows by itself.

``make bench`` measures with 100,000 items and 2,000 appends; ``BENCH_ITEMS=1000000`` and
``BENCH_APPENDS=20000`` are the sizes that the documentation states. Any other run is a small one.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import make_url

from eventseal.configuration import EventSeal
from eventseal.items import SequencedItem
from eventseal.rotation import reencrypt, rotate_keys, verify
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy
from eventseal_kms.local import LocalKmsAdapter

pytestmark = pytest.mark.slow

ROUNDS = 3
MOST_MEMORY = 300_000  # kilobytes
PROCESSES = Path(__file__).with_name("processes.py")
TABLE, COPY = "integer_sequenced_items", "rewritten_items"
COPY_IN = f"COPY {TABLE} (sequence_id, position, topic, data, key_id) FROM STDIN (FORMAT BINARY)"


class Bench(NamedTuple):
    """A store under a key file, and how other processes open it."""

    url: str
    key_file: Path
    seal: EventSeal
    open_store: functools.partial[EventSeal]


@pytest.fixture
def scale(request):
    """Give the larger number where something is measured, or what the environment says."""
    measured = request.config.getoption("benchmark_only")

    def choose(variable, when_measured, otherwise):
        return int(os.environ.get(variable, when_measured)) if measured else otherwise

    return choose


@pytest.fixture
def bench(tmp_path, request):
    def open_bench(url):
        key_file = tmp_path / "dev.key"
        LocalKmsAdapter.create(key_file)
        open_store = functools.partial(
            EventSeal.from_settings,
            store_url=url,
            kms_key=f"local://{key_file}",
            application="bench",
            unsealed_tables=[COPY],
        )
        seal = open_store()
        seal.datastore.setup_tables(application="bench")
        request.addfinalizer(seal.close)
        return Bench(url, key_file, seal, open_store)

    return open_bench


def connected(url):
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


def fill(bench, log, count):
    """Seal the log's events, again and again under new ids, and write them."""
    key_id = bench.seal.keyring.sealing_keys({"application": count})["application"].key_id
    for start in range(0, count, len(log)):
        renamed = {event.place.sequence_id: uuid4() for event in log}
        sealed = [
            (event.plaintext, replace(event.place, sequence_id=renamed[event.place.sequence_id]))
            for event in islice(log, count - start)
        ]
        items = [
            SequencedItem(place.sequence_id, place.position, place.topic, data, key_id)
            for (_, place), data in zip(sealed, bench.seal.cipher.encrypt_many(sealed), strict=True)
        ]
        if bench.url.startswith("postgresql"):
            copy_in(bench.url, items)
        else:
            session = bench.seal.datastore.session
            SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, session).append(items)


def copy_in(url, items):
    with connected(url) as connection, connection.cursor() as cursor, cursor.copy(COPY_IN) as copy:
        copy.set_types(["uuid", "int8", "text", "bytea", "uuid"])
        for item in items:
            copy.write_row(item)


def test_reencryption_beside_an_update(log, postgres_url, bench, scale, benchmark, report_line):
    count = scale("BENCH_ITEMS", 100_000, 3_000)
    bench = bench(postgres_url)
    fill(bench, log, count)
    own, rewritten = [], []
    context = multiprocessing.get_context("spawn")
    with connected(postgres_url) as connection, ProcessPoolExecutor(2, mp_context=context) as executor:
        workers = {"shards": 2, "executor": executor, "open_store": bench.open_store}
        connection.execute(f"CREATE TABLE {COPY} (LIKE {TABLE} INCLUDING ALL)")
        connection.execute(f"INSERT INTO {COPY} SELECT * FROM {TABLE}")

        def rested():
            connection.execute(f"VACUUM ANALYZE {TABLE}")
            connection.execute(f"VACUUM ANALYZE {COPY}")
            connection.execute("CHECKPOINT")
            return time.perf_counter()

        def round_of_both():
            started = rested()
            connection.execute(f"UPDATE {COPY} SET data = data || ''")
            rewritten.append(count / (time.perf_counter() - started))
            rotate_keys(bench.seal)
            started = rested()
            result = reencrypt(bench.seal, **workers)
            own.append(count / (time.perf_counter() - started))
            assert (result.done, result.left, result.failed) == (count, 0, 0)

        reencrypt(
            bench.seal, shards=2, executor=executor, open_store=bench.open_store
        )  # the workers' imports
        benchmark.pedantic(round_of_both, rounds=ROUNDS if count > 3_000 else 1)
        memory = [
            executor.submit(resource.getrusage, resource.RUSAGE_SELF).result().ru_maxrss for _ in "1234"
        ]
    assert max(memory) < MOST_MEMORY
    assert verify(bench.seal, sample=min(1.0, 10_000 / count)).failed == 0
    ratio = statistics.median(own) / statistics.median(rewritten)
    benchmark.extra_info.update(items=count, own=own, rewritten=rewritten, ratio=ratio, memory=max(memory))
    report_line(
        f"re-encryption of {count:,} items by two processes: {statistics.median(own):,.0f} items/s; "
        f"the server's own rewrite: {statistics.median(rewritten):,.0f} rows/s; ratio {ratio:.2f}; "
        f"at most {max(memory) // 1024} MB a worker"
    )


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_appends_during_a_reencryption(database, log, request, bench, scale, benchmark, report_line):
    appends = scale("BENCH_APPENDS", 2_000, 40)
    url = request.getfixturevalue("sqlite_url" if database == "sqlite" else "postgres_url")
    bench = bench(url)
    fill(bench, log, scale("BENCH_ITEMS", 100_000, 3_000))
    before, during = [], []

    def run():
        before.append(p99(latencies(bench, appends)))
        rotator = process(bench, "rotate", stdin=subprocess.PIPE)
        assert rotator.stdout.readline() == "ready\n"
        during.append(p99(latencies(bench, appends)))
        moved, _ = rotator.communicate("stop\n")
        assert rotator.returncode == 0
        return json.loads(moved)

    assert benchmark.pedantic(run, rounds=ROUNDS if appends > 40 else 1)
    calm, busy = statistics.median(before), statistics.median(during)
    benchmark.extra_info.update(appends=appends, before=before, during=during, ratio=busy / calm)
    report_line(
        f"p99 of {appends:,} appends on {database}: {calm * 1e3:.2f} ms; "
        f"during a re-encryption: {busy * 1e3:.2f} ms ({busy / calm:.2f} x)"
    )


def process(bench, *arguments, **options):
    what, *rest = arguments
    command = [sys.executable, str(PROCESSES), what, bench.url, str(bench.key_file), *map(str, rest)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def latencies(bench, count):
    child = process(bench, "append", count)
    output, _ = child.communicate()
    assert child.returncode == 0
    return json.loads(output)


def p99(seconds):
    return statistics.quantiles(seconds, n=100)[98]
