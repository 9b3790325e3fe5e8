"""
Encrypt an application of the eventsourcing library, on its own tables.

Run it: ``python examples/eventsourcing_library.py``. It needs the extra ``eventsourcing``. Only the
environment of the application changes. The example creates a folder with a SQLite file and a local key. If an
event was lost or a swap was not detected, it exits with 1.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
import warnings
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.cryptography import AESCipher
from eventsourcing.domain import Aggregate, event

from eventseal import EventSeal
from eventseal.configuration.initialise import initialise
from eventseal.errors import IntegrityError
from eventseal.rotation import (
    begin_migration,
    finish_migration,
    migrate,
    reencrypt,
    retire,
    rotate_keys,
    verify,
)
from eventseal_kms.local import DevelopmentKeyWarning

if TYPE_CHECKING:
    from collections.abc import Mapping

TABLES = ["stored_events", "stored_snapshots"]


class Account(Aggregate):
    """An account at a bank."""

    @event("Opened")
    def __init__(self, holder: str) -> None:
        self.holder = holder
        self.balance = 0

    @event("Credited")
    def credit(self, amount: int) -> None:
        self.balance += amount


class Bank(Application[UUID]):
    """The application, whose code does not know EventSeal."""

    is_snapshotting_enabled = True

    def open(self, holder: str, amount: int) -> UUID:
        account = Account(holder)
        account.credit(amount)
        self.save(account)
        return account.id

    def credit(self, account_id: UUID, amount: int) -> None:
        account: Account = self.repository.get(account_id)
        account.credit(amount)
        self.save(account)
        self.take_snapshot(account_id)

    def balance(self, account_id: UUID) -> tuple[str, int]:
        account: Account = self.repository.get(account_id)
        return account.holder, account.balance


def swap_states(database: Path, one: UUID, other: UUID) -> None:
    """Swap two accounts' credits, as an attacker with write access can."""
    with closing(sqlite3.connect(database)) as connection, connection:
        rows = connection.execute(
            "SELECT originator_id, state FROM stored_events WHERE originator_version = 2"
        ).fetchall()
        states = {UUID(row[0]): row[1] for row in rows}
        for to, of in ((one, other), (other, one)):
            connection.execute(
                "UPDATE stored_events SET state = ? WHERE originator_id = ? AND originator_version = 2",
                (states[of], to.hex),
            )


def notices_a_swap(
    environment: Mapping[str, str], database: Path, accounts: Mapping[UUID, tuple[str, int]]
) -> bool:
    """
    Swap two accounts' credits, and return whether the application notices it.

    Then put the credits back.
    """
    one, other = list(accounts)[:2]
    swap_states(database, one, other)
    try:
        with Bank(env=environment) as bank:
            for account_id, expected in accounts.items():
                print(f"    {bank.balance(account_id)} instead of {expected}")
    except IntegrityError as error:
        print(f"    {error}")
        return True
    else:
        return False
    finally:
        swap_states(database, one, other)


def is_whole(environment: Mapping[str, str], accounts: Mapping[UUID, tuple[str, int]]) -> bool:
    """Return whether every account replays to its expected state."""
    with Bank(env=environment) as bank:
        return all(bank.balance(account_id) == expected for account_id, expected in accounts.items())


def rotate(seal: EventSeal) -> str:
    """Replace the key of all stored events, and return a summary."""
    rotate_keys(seal)
    moved = reencrypt(seal)
    retired = retire(
        seal
    )  # if other processes write, wait until they have seen the rotation, as rotate_keys.py does
    return f"{moved.done} events and snapshots are under the new key, old keys destroyed: {retired.done}"


def main() -> int:
    """Run the demonstration, and return the exit code."""
    warnings.simplefilter("ignore", DevelopmentKeyWarning)
    folder = Path(tempfile.mkdtemp(prefix="eventsourcing-library-"))
    database, settings = folder / "bank.sqlite", folder / "eventseal.toml"
    store = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(database)}
    before = {
        **store,
        "CIPHER_TOPIC": "eventsourcing.cryptography:AESCipher",
        "CIPHER_KEY": AESCipher.create_key(32),
        "COMPRESSOR_TOPIC": "eventsourcing.compressor:ZlibCompressor",
    }
    after = {
        **store,
        "PERSISTENCE_MODULE": "eventseal.integrations.eventsourcing.sqlite",  # or keep the library's own, and
        "MAPPER_TOPIC": "eventseal.integrations.eventsourcing:EncryptingMapper",
    }

    print("An application whose one key never changes:")
    with Bank(env=before) as bank:
        accounts = {
            bank.open(holder, amount): (holder, amount) for holder, amount in (("Ada", 10), ("Bob", 99))
        }
    if notices_a_swap(before, database, accounts):
        return 1

    print("EventSeal gets its tables and the old key:")
    os.environ["EVENTSEAL_CONFIG"] = str(settings)
    os.environ["OLD_CIPHER_KEY"] = before["CIPHER_KEY"]
    initialise(
        settings,
        application="bank",
        kms_key=f"local://{folder}/dev.key",
        store_url=f"sqlite:///{database}",
        eventsourcing_tables=TABLES,
        old_formats=["eventsourcing-gcm+zlib key=env:OLD_CIPHER_KEY"],
    )
    with EventSeal.from_settings() as seal:
        print(f"    {begin_migration(seal).left} events are in the old format")
        with Bank(env=after) as bank:  # writes envelopes, reads both
            ada = next(iter(accounts))
            bank.credit(ada, 5)  # this also takes a snapshot
            accounts[ada] = ("Ada", 15)
        print(f"    {migrate(seal).done} events are envelopes now")
        print(f"    nothing old is left: {finish_migration(seal).complete}. Readers refuse older formats now")
        print(f"    {rotate(seal)}")
        proved = verify(seal)
        print(f"    {proved.done} events and snapshots open, {proved.failed} do not")

    print("The same swap again:")
    noticed = notices_a_swap(after, database, accounts)
    whole = is_whole(after, accounts) and proved.failed == 0
    print(f"All files are in {folder}")
    print(
        "Proved: nothing was lost, and nothing can be swapped."
        if noticed and whole
        else "Something is wrong."
    )
    return 0 if noticed and whole else 1


if __name__ == "__main__":
    sys.exit(main())
