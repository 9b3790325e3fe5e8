"""A process that re-encrypts need not be the one that rotated, and others may rotate while it works."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from eventseal.rotation import reencrypt, rotate_keys
from eventseal.rotation.passes import Passes

reencrypt_module = sys.modules["eventseal.rotation.reencrypt"]  # the package names the function so
LAST_LOOK = 3
"""Before it are the count with which a job is begun, and the look that begins its first pass."""
MOST_WAITS = 50


def test_items_go_to_the_key_that_another_process_has_just_made(shop) -> None:
    other = shop.again()
    items = shop.append(3)
    other.append(1)  # it seals under the key, and has leased items with it
    rotate_keys(shop.seal)
    result = reencrypt(other.seal)
    assert (result.done, result.left) == (4, 0)
    active = shop.seal.keyring.sealing_keys({"application": 0})["application"].key_id
    stored = shop.strategy().get_items(items[0].sequence_id)
    assert {item.key_id for item in stored} == {active}


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("until", ["run", "_work"], ids=["joins", "begins a pass"])
def test_a_run_that_comes_after_the_last_look_of_another_moves_its_own_items(
    shop, monkeypatch, until, settled
) -> None:
    """It joins the job, or begins a pass of it, between the other's look and the end of the job."""
    other = shop.again()
    shop.append(5)
    rotate_keys(shop.seal)
    if settled:
        shop.execute("UPDATE key_changes SET refresh_interval = 0")
    arrived, ended = threading.Event(), threading.Event()
    looks, waits, runs = [], [], []
    look, method = reencrypt_module.table_sources, getattr(Passes, until)

    def hooked_look(store, tables, keys):
        found = look(store, tables, keys)
        if store is shop.seal:
            looks.append(found)
            if len(looks) == LAST_LOOK:
                rotate_keys(other.seal)
                runs.append(pool.submit(reencrypt, other.seal))
                assert arrived.wait(60)
        return found

    def hooked_method(self):
        if self._store is other.seal and not arrived.is_set():
            arrived.set()
            assert ended.wait(60)
        return method(self)

    def waited(seconds):
        waits.append(seconds)
        assert len(waits) < MOST_WAITS, "it waits for what nobody does"

    monkeypatch.setattr(
        "eventseal.rotation.passes.time", SimpleNamespace(sleep=waited, monotonic=time.monotonic)
    )
    monkeypatch.setattr(reencrypt_module, "table_sources", hooked_look)
    monkeypatch.setattr(Passes, until, hooked_method)
    with ThreadPoolExecutor(1) as pool:
        try:
            first = reencrypt(shop.seal)
        finally:
            ended.set()
        second = runs[0].result(60)
    assert len(shop.execute("SELECT DISTINCT key_id FROM integer_sequenced_items")) == 1
    assert (first.left, first.complete) == (second.left, second.complete) == (0, settled)


def test_a_run_whose_job_another_ends_in_the_middle_of_a_pass_says_what_is_left(shop, monkeypatch) -> None:
    shop.append(5)
    rotate_keys(shop.seal)
    begin_pass, works = Passes._begin_pass, []

    def ended_by_another(self, sources):
        begun = begin_pass(self, sources)
        shop.execute("UPDATE reencryption_jobs SET state = 'finished'")
        return begun

    def counted(self):
        works.append(self)
        assert len(works) < MOST_WAITS, "it waits for what nobody does"

    with monkeypatch.context() as patch:
        patch.setattr(Passes, "_begin_pass", ended_by_another)
        patch.setattr(Passes, "_work", counted)
        result = reencrypt(shop.seal)
    assert (result.complete, result.left, result.job_id) == (False, 5, None)
    assert reencrypt(shop.seal).left == 0
