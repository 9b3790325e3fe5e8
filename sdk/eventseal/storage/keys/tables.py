"""
The key tables with the registry, and the table of fences.

No row MAC is computed or checked here.
"""

from __future__ import annotations

from sqlalchemy import (
    Column,
    ForeignKey,
    Index,
    MetaData,
    UniqueConstraint,
)

from eventseal.storage.database.column_types import (
    BinaryUUID,
    Count,
    ExactBytes,
    Seconds,
    StoredJSON,
    StoredText,
    UTCTimestamp,
)
from eventseal.storage.database.table_setup import ADDED, own_table

DEFAULT_REFRESH_INTERVAL = 60.0
"""Seconds: the refresh interval in a new application's row of ``eventseal_key_changes``."""

EVERY_APPLICATION = ""
"""
Replaces the application in ``eventseal_sealed_tables`` for tables of every application.

The items of such a table belong to the application that sealed them.
"""

UNKNOWN_VERSION = ""
"""
Replaces an unknown KEK version in ``eventseal_key_wrappings``.

No part of a primary key is NULL.
"""

EVERY_VERSION = ""
"""Replaces the version in ``eventseal_kek_fences`` if all versions are closed."""

key_metadata = MetaData()
fence_metadata = MetaData()

encryption_keys = own_table(
    "eventseal_encryption_keys",
    key_metadata,
    Column("key_id", BinaryUUID(), primary_key=True),
    Column("application", StoredText(), nullable=False),
    Column("scope", StoredText(), nullable=False),
    Column("purpose", StoredText(), nullable=False),
    Column("state", StoredText(), nullable=False),
    Column("active_scope", StoredText()),
    Column("binding", ExactBytes(), nullable=False),
    Column("items_reserved", Count(), nullable=False),
    Column("created_at", UTCTimestamp(), nullable=False),
    Column("deactivated_at", UTCTimestamp()),
    Column("compromised_at", UTCTimestamp()),
    Column("destroyed_at", UTCTimestamp()),
    Column("destroyed_by", StoredText()),
    Column("row_version", Count(), nullable=False),
    Column("change", Count(), nullable=False),
    Column("seal", ExactBytes(), nullable=False),
    # A UNIQUE constraint treats NULLs as different, so keys that hold no slot do not conflict.
    UniqueConstraint(
        "application", "purpose", "active_scope", name="uq_eventseal_encryption_keys_active_scope"
    ),
    Index("ix_eventseal_encryption_keys_scope", "application", "scope"),
    Index("ix_eventseal_encryption_keys_change", "application", "change"),
)

key_wrappings = own_table(
    "eventseal_key_wrappings",
    key_metadata,
    Column("key_id", BinaryUUID(), ForeignKey(encryption_keys.c.key_id), primary_key=True),
    Column("kek_uri", StoredText(), primary_key=True),
    Column("kek_version", StoredText(), primary_key=True, default=UNKNOWN_VERSION),
    Column("wrapped", ExactBytes(), nullable=False),
    Column("created_at", UTCTimestamp(), nullable=False),
    Column("verified_at", UTCTimestamp()),
    Index("ix_eventseal_key_wrappings_kek", "kek_uri", "kek_version"),
)

kek_fences = own_table(
    "eventseal_kek_fences",
    key_metadata,
    Column("kek_uri", StoredText(), primary_key=True),
    Column("kek_version", StoredText(), primary_key=True, default=EVERY_VERSION),
    Column("closed_at", UTCTimestamp(), nullable=False),
)

epochs = own_table(
    "eventseal_epochs",
    key_metadata,
    Column("application", StoredText(), primary_key=True),
    Column("begun_at", UTCTimestamp(), nullable=False),
    Column("kek_versions", StoredJSON(), nullable=False),
    # NULL in rows of the first release.
    Column("number", Count(), info=ADDED),
    Column("shreds", Count(), info=ADDED),
    Column("branch_keys", StoredJSON(), info=ADDED),
    Column("finished_at", UTCTimestamp(), info=ADDED),
    Column("seal", ExactBytes(), info=ADDED),
)

key_changes = own_table(
    "eventseal_key_changes",
    key_metadata,
    Column("application", StoredText(), primary_key=True),
    Column("counter", Count(), nullable=False),
    Column("revoked", ExactBytes(), nullable=False),
    Column("seal", ExactBytes(), nullable=False),
    Column("refresh_interval", Seconds(), nullable=False, default=DEFAULT_REFRESH_INTERVAL),
)

revocation_nodes = own_table(
    "eventseal_revocation_nodes",
    key_metadata,
    Column("application", StoredText(), primary_key=True),
    Column("path", ExactBytes(), primary_key=True),
    Column("content", ExactBytes(), nullable=False),
)

key_claims = own_table(
    "eventseal_key_claims",
    key_metadata,
    Column("place", StoredText(), primary_key=True),
    Column("slot", ExactBytes(32), nullable=False),
    Column("owner", BinaryUUID(), nullable=False),
    Column("ends_at", Seconds(), nullable=False),
)

erased_items = own_table(
    "eventseal_erased_items",
    key_metadata,
    Column("application", StoredText(), primary_key=True),
    Column("digest", ExactBytes(32), primary_key=True),
)

sealed_tables = own_table(
    "eventseal_sealed_tables",
    key_metadata,
    Column("application", StoredText(), primary_key=True, default=EVERY_APPLICATION),
    Column("database_name", StoredText(), primary_key=True),
    Column("table_name", StoredText(), primary_key=True),
    Column("collection", StoredText(), nullable=False),
    Column("columns", StoredJSON(), nullable=False),
    Column("old_formats", StoredJSON(none_as_null=True)),
)

key_fences = own_table(
    "eventseal_key_fences",
    fence_metadata,
    Column("key_id", BinaryUUID(), primary_key=True),
    Column("state", StoredText(), nullable=False),
)
