"""One of several processes that race for branch keys; the test that starts it reads what it prints."""

from __future__ import annotations

import json
import sys

from eventseal.keys import Keyring
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal_kms.local import LocalKmsAdapter


def main(url: str, key_file: str, name: str) -> None:
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(url))
    keyring = Keyring(LocalKmsAdapter(key_file), SQLAlchemyKeyStore(datastore), branches=4)
    keyring.refresh()
    print("ready", flush=True)
    sys.stdin.readline()
    keys = keyring.sealing_keys({f"{name}:{number}": 1 for number in range(40)} | {"shared": 1})
    print(json.dumps({scope: str(key.key_id) for scope, key in keys.items()}), flush=True)
    keyring.close()
    datastore.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
