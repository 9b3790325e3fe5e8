"""What destroyed keys cost: a cold load of 1,000 keys of 1,000 scopes, and a refresh after a shred."""

from __future__ import annotations

import os
import time
from itertools import count
from statistics import median
from uuid import UUID

import pytest

from eventseal.keys import DataKey, Keyring
from eventseal.keys.revocation_tree import ROOT, RevocationTree
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.testing import FakeKms

pytestmark = pytest.mark.slow

KEYS, FEW, MANY, ROUNDS = 1_000, 1_000, 10_000_000, 40
BRANCHES, LEAVES = 128, 256
YARDSTICK = f"with {FEW:,} destroyed"


class Destroyed:
    """The change of a mark by which so many keys are destroyed that nobody ever had."""

    paths = (ROOT,)

    def __init__(self, seals, keys: int) -> None:
        self._seals = seals
        leaves = BRANCHES * LEAVES
        self._in_leaf = [keys // leaves + (leaf < keys % leaves) for leaf in range(leaves)]

    def __call__(self, mark, nodes):
        root, new = nodes.get(ROOT, b""), {}
        for branch in range(BRANCHES):
            ids = [
                UUID(bytes=os.urandom(14) + bytes((branch, leaf)))
                for leaf in range(LEAVES)
                for _ in range(self._in_leaf[branch * LEAVES + leaf])
            ]
            digest = self._seals.node_digest(ROOT, root)
            tree = RevocationTree({ROOT: root}, digest, self._seals.node_digest)
            new |= tree.changed([(key_id, "retired") for key_id in ids], {})
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
        ids = [key.key_id for key in keyring.sealing_keys({f"s:{n}": 1 for n in range(KEYS)}).values()]
        key_store.advance("shop", next_mark=Destroyed(keyring._store_key.seals(), keys))
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


def test_load_a_key(stores, side_by_side):
    work = {name: cold_load(*store[:3]) for name, store in stores.items()}
    side_by_side("load a key, 10,000,000 destroyed", work, KEYS)


def test_refresh_after_a_shred(stores, benchmark, report_line):
    work = [refresh_after_shred(*store[:3]) for store in stores.values()]
    benchmark.pedantic(lambda: None, rounds=1)
    taken = [[refresh() for refresh in work] for _ in range(ROUNDS)]
    many, few = (median(times) * 1000 for times in zip(*taken, strict=True))
    report_line(
        f"a refresh after a shred, {KEYS:,} keys held: {many:.2f} ms with {MANY:,} destroyed keys, "
        f"{few:.2f} ms with {FEW:,}, {many / few:.2f} x (medians of {ROUNDS})"
    )
