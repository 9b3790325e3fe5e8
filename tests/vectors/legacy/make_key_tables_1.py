"""
Writes ``key-tables-1.sqlite``, its key file and what it holds, with the code of commit eafc5d9 and no other.

In a tree of that commit: ``PYTHONPATH=sdk:kms_adapters:. python make_key_tables_1.py FOLDER``.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fixtures.sealed_shops import SealedShop, scope_of

from eventseal.erasure import reopen, shred
from eventseal.keys.states import KeyPurpose
from eventseal.rotation import reencrypt, retire
from eventseal_kms.local import LocalKmsAdapter

if TYPE_CHECKING:
    from collections.abc import Sequence

TENANTS = ("active", "rotated", "compromised", "retired", "leaked", "gone", "back")
NAME = "key-tables-1"


def main(folder: Path) -> None:
    """Make the files in *folder*, where there are none yet."""
    path = folder / f"{NAME}.sqlite"
    kms = LocalKmsAdapter.create(folder / f"{NAME}.key")
    with SealedShop(f"sqlite:///{path}", kms, branches=2) as shop:
        shop.set_up()
        for tenant in TENANTS:
            shop.append(tenant, 0, 2)
        execute(path, "UPDATE key_changes SET refresh_interval = 0")
        first = {tenant: active(shop, tenant) for tenant in TENANTS}
        # Two keys that are retired at last: what a backup of the time before has of them.
        for tenant in ("retired", "leaked"):
            shop.keyring.rotate(scope_of(tenant))
        copies = {tenant: copied(path, first[tenant]) for tenant in ("retired", "leaked")}
        shop.keyring.compromise([first["leaked"]])
        assert reencrypt(shop).complete
        assert retire(shop).done == len(copies)
        shop.keyring.rotate(scope_of("rotated"))
        shop.keyring.rotate(scope_of("compromised"), compromised=True)
        for tenant in ("active", "gone"):
            shop.keyring.sealing_keys({scope_of(tenant): 1}, purpose=KeyPurpose.FIELD)
        for tenant in ("rotated", "compromised"):
            shop.append(tenant, 2)
        copies["gone"] = copied(path, first["gone"])
        assert shred(shop, scope_of("gone")).complete
        assert shred(shop, scope_of("back")).complete
        assert reopen(shop, scope_of("back")).complete
        shop.append("back", 2)
        shop.keyring.rotate_branches()
        execute(path, "UPDATE key_changes SET refresh_interval = 60")
    said = {"first_keys": {tenant: str(key_id) for tenant, key_id in first.items()}, "copies": copies}
    (folder / f"{NAME}.json").write_text(json.dumps(said, indent=1) + "\n")
    # Many small tables: small pages make the file a third of the size.
    execute(path, "PRAGMA journal_mode = DELETE", "PRAGMA page_size = 1024", "VACUUM")


def active(shop: SealedShop, tenant: str) -> Any:
    """Give the id of a tenant's active key."""
    return shop.key_store.active("shop", [scope_of(tenant)])[scope_of(tenant)].key_id


def copied(path: Path, key_id: Any) -> dict[str, list[dict[str, Any]]]:
    """Copy a key's row and wrappings as they stand in the file, bytes in hex."""
    tables = ("encryption_keys", "key_wrappings")
    return {
        table: execute(path, f"SELECT * FROM {table} WHERE key_id = ?", values=[key_id.bytes])
        for table in tables
    }


def execute(path: Path, *statements: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Run statements in a connection of their own; give the rows of the last."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        *before, last = statements
        for statement in before:
            connection.execute(statement)
        found = connection.execute(last, values).fetchall()
    return [
        {name: value.hex() if isinstance(value, bytes) else value for name, value in dict(row).items()}
        for row in found
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
