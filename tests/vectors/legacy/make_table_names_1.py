"""
Writes ``table-names-1-*.sql`` and its key file, with the code of commit 327fae5 and no other.

In a tree of that commit: ``PYTHONPATH=sdk:kms_adapters:. python make_table_names_1.py FOLDER``.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable
from tests.fixtures.sealed_shops import Noted, scope_of, stream_of, text_of

from eventseal.configuration import EventSeal
from eventseal.configuration.initialise import initialise
from eventseal.erasure import shred
from eventseal.erasure.ledger.lines import ledger_metadata
from eventseal.eventstore import EventStore
from eventseal.items import SequencedItemMapper
from eventseal.rotation import reencrypt, rotate_keys
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy
from eventseal.storage.items.tables import ActiveRecord
from eventseal.storage.jobs.tables import job_metadata
from eventseal.storage.keys.tables import fence_metadata, key_metadata

NAME = "table-names-1"
THEIRS = """
CREATE TABLE stored_events (originator_id TEXT, originator_version INTEGER, topic TEXT, state BLOB,
PRIMARY KEY (originator_id, originator_version)) WITHOUT ROWID
"""


def main(folder: Path) -> None:
    """Make the files in *folder*, where there are none yet."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    with closing(sqlite3.connect("items.sqlite")) as connection:
        connection.execute(THEIRS)
    initialise(
        kms_key="local://dev.key",
        store_url="sqlite:///items.sqlite",
        key_store_url="sqlite:///keys.sqlite",
        ledger="sqlite:///ledger.sqlite",
        application="shop",
        eventsourcing_tables=["stored_events"],
    )
    with EventSeal.from_settings() as seal:
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
        mapper = SequencedItemMapper(cipher=seal.cipher, key_scope=lambda event: scope_of(event.tenant))
        events = EventStore(strategy, mapper)
        for tenant in ("acme", "globex", "gone"):
            stream = stream_of(tenant)
            for position in range(2):
                said = {"tenant": tenant, "text": text_of(stream, position)}
                events.append(Noted(originator_id=stream, originator_version=position, **said))
        rotate_keys(seal, scopes=[scope_of("acme")])
        assert reencrypt(seal).failed == 0
        assert shred(seal, scope_of("gone"), ledger=seal.ledger).complete
    for database in ("items", "keys", "ledger"):
        with closing(sqlite3.connect(f"{database}.sqlite")) as connection:
            dump = "\n".join(connection.iterdump())
        Path(f"{NAME}-{database}.sql").write_text(f"{dump}\n", encoding="utf-8")
    shutil.move("dev.key", f"{NAME}.key")
    Path(f"{NAME}-postgresql.sql").write_text(definitions(), encoding="utf-8")


def definitions() -> str:
    """The same tables on PostgreSQL, without rows."""
    every = (key_metadata, fence_metadata, job_metadata, ledger_metadata, ActiveRecord.metadata)
    tables = [table for metadata in every for table in metadata.sorted_tables]
    made = [CreateTable(table) for table in tables]
    made += [CreateIndex(index) for table in tables for index in sorted(table.indexes, key=lambda i: i.name)]
    return "".join([f"{str(each.compile(dialect=postgresql.dialect())).strip()};\n" for each in made])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
