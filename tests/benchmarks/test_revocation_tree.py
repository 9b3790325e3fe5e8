"""
What destroyed keys cost: a cold load of 1,000 keys of 1,000 scopes, and a refresh after a shred.

Each destroyed key is the only one of a scope that was shredded. Of the live keys, half are of scopes in which
no key was ever destroyed; in each of the other scopes there was one.
"""

from __future__ import annotations

import os
import time
from itertools import count
from statistics import median
from uuid import UUID

import pytest

from eventseal.keys import DataKey, Keyring
from eventseal.keys.revocation_tree import ROOT, RevocationTree, ScopeState, node_digest
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.testing import FakeKms

pytestmark = pytest.mark.slow

KEYS, FEW, MANY, ROUNDS, BRANCHES = 1_000, 1_000, 10_000_000, 40, 128
YARDSTICK = f"with {FEW:,} destroyed"


class Destroyed:
    """A next mark that destroys a number of keys that never were."""

    paths = (ROOT,)

    def __init__(self, seals, keys: int) -> None:
        self._seals = seals
        self._below = [keys // BRANCHES + (branch < keys % BRANCHES) for branch in range(BRANCHES)]

    def __call__(self, mark, nodes):
        root, new = nodes.get(ROOT, b""), {}
        for branch, below in enumerate(self._below):
            ids = [UUID(bytes=os.urandom(14) + bytes((branch, leaf))) for leaf in os.urandom(below)]
            names = [os.urandom(8) + key_id.bytes[-2:] for key_id in ids]
            tree = RevocationTree({ROOT: root}, node_digest(root))
            closed = dict.fromkeys(names, ScopeState(closed=True, number=1))
            new |= tree.changed([(key_id, "shredded") for key_id in ids], closed)
            root = new.get(ROOT, root)
        return self._seals.next_mark(mark, root), new


@pytest.fixture
def stores(tmp_path, request):
    """A store with many destroyed keys, and one with few; each with live keys."""
    many = MANY if request.config.getoption("benchmark_only") else FEW
    opened = {}
    for name, keys in (("EventSeal", many), (YARDSTICK, FEW)):
        datastore = SQLAlchemyDatastore(SQLAlchemySettings(f"sqlite:///{tmp_path / name[-9:]}.sqlite"))
        datastore.setup_tables()
        kms, key_store = FakeKms(), SQLAlchemyKeyStore(datastore)
        keyring = Keyring(kms, key_store, application="shop", branches=8)
        used, unused = ([f"{kind}:{n}" for n in range(KEYS)] for kind in ("used", "unused"))
        keyring.prepare([*used, *unused])
        key_store.advance("shop", next_mark=Destroyed(keyring._ring.store_key.seals(), keys))
        replaced = [key.key_id for key in keyring.sealing_keys(dict.fromkeys(used, 1)).values()]
        keyring.rotate_many(used)
        keyring.destroyer.retire(replaced)
        ids = {
            kind: [key.key_id for key in keyring.sealing_keys(dict.fromkeys(scopes, 1)).values()]
            for kind, scopes in (("used", used), ("unused", unused))
        }
        opened[name] = (kms, key_store, ids, datastore)
    yield opened
    for *_, datastore in opened.values():
        datastore.close()


def cold_load(kms, key_store, ids):
    def load() -> None:
        found = Keyring(kms, key_store, application="shop", branches=8).opening_keys(ids)
        assert all(isinstance(key, DataKey) for key in found.values())

    return load


def refresh_after_shred(kms, key_store, ids):
    """Give a call that shreds a scope elsewhere, and says how long a refresh takes then."""
    keyring = Keyring(kms, key_store, application="shop", branches=8)
    keyring.opening_keys(ids)
    other, numbers = Keyring(kms, key_store, application="shop", branches=8), count()

    def refresh() -> float:
        other.prepare([scope := f"x:{next(numbers)}"])
        other.shred(scope)
        started = time.perf_counter()
        keyring.refresh()
        return time.perf_counter() - started

    return refresh


@pytest.mark.parametrize("kind", ["unused", "used"])
def test_load_a_key(stores, side_by_side, kind):
    work = {name: cold_load(kms, store, ids[kind]) for name, (kms, store, ids, _) in stores.items()}
    where = "none" if kind == "unused" else "one"
    side_by_side(f"load a key, 10,000,000 destroyed, {where} in its scope", work, KEYS)


def test_refresh_after_a_shred(stores, benchmark, report_line):
    work = [refresh_after_shred(kms, store, ids["used"]) for kms, store, ids, _ in stores.values()]
    benchmark.pedantic(lambda: None, rounds=1)
    taken = [[refresh() for refresh in work] for _ in range(ROUNDS)]
    many, few = (median(times) * 1000 for times in zip(*taken, strict=True))
    report_line(
        f"a refresh after a shred, {KEYS:,} keys held: {many:.2f} ms with {MANY:,} destroyed keys, "
        f"{few:.2f} ms with {FEW:,}, {many / few:.2f} x (medians of {ROUNDS})"
    )
