"""
Ten million items are verified in runs that are interrupted, and one edited row among them is found.

Six minutes on two cores, two of them to seal the items, and 3 GB of a disk.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from uuid import uuid4

import pytest

from eventseal.cipher import ItemContext
from eventseal.configuration import EventSeal
from eventseal.storage import IntegerSequencedItemRecord

ITEMS, STREAM, KEYS = 10_000_000, 5_000, 20
WORKERS, FIRST_INTERRUPT = 2, 20.0
TABLE = IntegerSequencedItemRecord.__tablename__
EVENT = b'{"sku":"A-1042","quantity":3,"note":"packed by hand, leave with the neighbour at number twelve"}'


def eventseal(*words: str, interrupt_after: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; interrupt it as a person does, if it takes longer than so many seconds."""
    command = [sys.executable, "-m", "eventseal", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=interrupt_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def fill(file: str) -> None:
    """Seal the items under several keys, and insert them a stream at a time."""
    with EventSeal.from_settings() as seal, sqlite3.connect(file) as database:
        database.execute("PRAGMA synchronous = OFF")
        for number in range(ITEMS // STREAM):
            if number % (ITEMS // STREAM // KEYS) == 0:
                seal.keyring.rotate()
            stream = uuid4()
            places = [ItemContext(stream, position, "shop:Packed") for position in range(STREAM)]
            envelopes = seal.cipher.encrypt_many([(EVENT, place) for place in places])
            database.executemany(
                f"INSERT INTO {TABLE} (sequence_id, position, topic, data, key_id) VALUES (?, ?, ?, ?, ?)",
                [
                    (stream.bytes, place.position, place.topic, envelope, envelope[3:19])
                    for place, envelope in zip(places, envelopes, strict=True)
                ],
            )
            database.commit()


@pytest.mark.soak
@pytest.mark.timeout(14_400)
@pytest.mark.filterwarnings("default::eventseal_kms.local.DevelopmentKeyWarning")
def test_ten_million_items_are_verified_by_runs_that_were_interrupted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    store = ["--store-url", "sqlite:///shop.sqlite", "--application", "shop"]
    assert eventseal("init", "--kms-key", "local://dev.key", *store).returncode == 0
    fill("shop.sqlite")
    words = ["verify", "--workers", str(WORKERS), "--resume", "state.json", "--receipt", "receipt.json"]
    began, runs, patience = time.perf_counter(), 0, FIRST_INTERRUPT
    while (run := eventseal(*words, interrupt_after=patience)).returncode == 130:
        runs, patience = runs + 1, patience * 1.5
        assert "It continues from" in run.stderr
    seconds = time.perf_counter() - began
    assert run.returncode == 0, run.stderr
    assert runs >= 2
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert receipt["tables"][TABLE]["done"] == sum(receipt["keys"].values()) == ITEMS
    assert eventseal("receipt", "check", "receipt.json").returncode == 0
    with sqlite3.connect("shop.sqlite") as database:
        database.execute(f"UPDATE {TABLE} SET position = -position - 1 WHERE rowid = {ITEMS // 3}")
    (tmp_path / "receipt.json").unlink()
    run = eventseal("--json", "verify", "--workers", str(WORKERS))
    assert run.returncode == 1
    (failure,) = json.loads(run.stdout)["failures"]
    assert int(failure["row"]["position"]) < 0
    with capsys.disabled():
        print(
            f"\n{ITEMS:,} items: {seconds:.0f} s in {runs + 1} runs with {WORKERS} workers, "
            f"{seconds / ITEMS * 1e6:.0f} µs an item"
        )
