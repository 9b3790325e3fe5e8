"""One row that does not open, among many that do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from sqlalchemy import update
from tests.fixtures.sealed_shops import APPLICATION, TENANTS, SealedShop, scope_of, stream_of

from eventseal.keys.states import KeyState
from eventseal.rotation import reencrypt, retire, rotate_keys
from eventseal.storage import IntegerSequencedItemRecord
from eventseal_kms.local import LocalKmsAdapter

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.profiles import Profile

TABLE = "integer_sequenced_items"
_BATCH = 500


def rotate_around_a_corrupt_row(url: str, profile: Profile, folder: Path) -> None:
    """
    Corrupt one row, rotate: all others move, the row is named, and its key, and no other, stays.

    Args:
        url: An empty database.
        profile: How many rows there are.
        folder: For the KEK's file.
    """
    key_file = folder / "kek.key"
    LocalKmsAdapter.create(key_file)
    each = profile.corrupt_among // len(TENANTS)
    corrupt = stream_of(TENANTS[0]), each // 2
    with SealedShop(url, LocalKmsAdapter.from_uri(f"local://{key_file}")) as shop:
        shop.set_up()
        for start in range(0, each, _BATCH):
            shop.append_for_all(start, min(each, start + _BATCH))
        _corrupt(shop, *corrupt)
        old = shop.active_keys()
        rotate_keys(shop)
        moved = reencrypt(shop)
        assert (moved.done, moved.failed, moved.left) == (profile.corrupt_among - 1, 1, 0), moved
        (failure,) = moved.failures
        kept = old[scope_of(TENANTS[0])]
        assert (failure.table, failure.key_id, failure.error) == (TABLE, kept, "IntegrityError")
        assert failure.row == {"sequence_id": str(corrupt[0]), "position": str(corrupt[1])}
        assert (retire(shop).done, retire(shop).left) == (len(TENANTS) - 1, 1)
        (record,) = shop.key_store.get([kept]).values()
        assert record.state is KeyState.DEACTIVATED
        assert shop.items_by_key()[kept] == 1
    done = _command(url, key_file, "--json", "reencrypt", "--yes")
    assert done.returncode == 1, done.stderr
    (named,) = json.loads(done.stdout)["failures"]
    assert (named["table"], named["row"], named["key_id"]) == (TABLE, dict(failure.row), str(kept))


def _corrupt(shop: SealedShop, sequence_id: object, position: int) -> None:
    record = IntegerSequencedItemRecord
    (item,) = shop.strategy.get_items(sequence_id, gte=position, limit=1)
    edited = item.data[:-1] + bytes([item.data[-1] ^ 1])
    here = update(record).where(record.sequence_id == sequence_id, record.position == position)
    with shop.datastore.engine.begin() as connection:
        assert connection.execute(here.values(data=edited)).rowcount == 1


def _command(url: str, key_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {"KMS_KEY": f"local://{key_file}", "STORE_URL": url, "APPLICATION": APPLICATION}
    return subprocess.run(
        [sys.executable, "-c", "from eventseal.cli import main; main()", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=key_file.parent,
        env={**os.environ, **{f"EVENTSEAL_{name}": value for name, value in settings.items()}},
        timeout=120,
    )
