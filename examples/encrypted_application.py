"""
Run an encrypted and an unencrypted application on one table.

Run it: ``python examples/encrypted_application.py``. It uses a temporary folder, and leaves no data there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from eventseal import AESCipher, InMemoryKeyStore, Keyring, SQLAlchemyDatastore, SQLAlchemySettings
from eventseal.example import construct_example_application
from eventseal.storage import IntegerSequencedItemRecord
from eventseal_kms.local import LocalKmsAdapter

HIDDEN = "secret info"


def show(title: str, cipher: AESCipher, folder: Path) -> None:
    """
    Store events in an encrypted and an unencrypted application.

    Then look at the items in the database. Only the encrypted one stores the secret.
    """
    print(title)
    database = folder / "example.sqlite"
    datastore = SQLAlchemyDatastore(
        settings=SQLAlchemySettings(uri=f"sqlite:///{database}"), tables=(IntegerSequencedItemRecord,)
    )
    datastore.setup_connection()
    datastore.setup_tables()

    with construct_example_application(datastore.session, always_encrypt=True, cipher=cipher) as app:
        example = app.create_new_example(foo=HIDDEN)
        example.foo = f"more {HIDDEN}"
        for item in app.entity_event_store.active_record_strategy.get_items(example.id):
            print(f"  {item.position}  {item.topic}  key {item.key_id}  {item.data[:24].hex()}...")
            prove("every encrypted item has a key id", item.key_id is not None)
            prove("the item does not contain the secret", HIDDEN.encode() not in item.data)
        prove("the entity comes back unchanged", app.example_repository[example.id] == example)
    files = [file.read_bytes() for file in folder.glob("example.sqlite*")]
    prove(
        "the database does not contain the secret",
        files and not any(HIDDEN.encode() in file for file in files),
    )
    print(f"  The database does not contain {HIDDEN!r}, and the application reads {example.foo!r}")

    with construct_example_application(datastore.session) as app:
        plain = app.create_new_example(foo="no secret")
        item = app.entity_event_store.active_record_strategy.get_item(plain.id, eq=0)
        print(f"  {item.position}  {item.topic}  key {item.key_id}  {item.data.decode()}")
        prove("the unencrypted one stores plaintext", b"no secret" in item.data and item.key_id is None)
        prove("the unencrypted one finds its entity too", app.example_repository[plain.id] == plain)
    datastore.close()
    print()


def prove(claim: str, holds: object) -> None:
    """Stop if *claim* does not hold."""
    if not holds:
        raise SystemExit(f"failed: {claim}")


def main() -> None:
    """Show a static key, and a keyring over a local key file."""
    with tempfile.TemporaryDirectory() as name:
        show("Under a static key", AESCipher(b"0123456789abcdef"), Path(name))
    with tempfile.TemporaryDirectory() as name:
        kms = LocalKmsAdapter.create(Path(name) / "dev.key")
        keyring = Keyring(kms=kms, key_store=InMemoryKeyStore(), application="example")
        show("Under a keyring", AESCipher(keyring), Path(name))
        keyring.close()


if __name__ == "__main__":
    main()
