"""The tables of re-encryption jobs and of compromised keys. Any process can resume a job."""

from __future__ import annotations

from sqlalchemy import Column, Index, MetaData

from eventseal.storage.database.column_types import (
    BinaryUUID,
    Count,
    ExactBytes,
    Rate,
    Seconds,
    StoredJSON,
    StoredText,
    UTCTimestamp,
)
from eventseal.storage.database.table_setup import own_table

job_metadata = MetaData()
reencryption_jobs = own_table(
    "eventseal_reencryption_jobs",
    job_metadata,
    Column("job_id", BinaryUUID(), primary_key=True),
    Column("application", StoredText(), nullable=False),
    Column("layout", Count(), nullable=False),
    Column("release", StoredText(), nullable=False),
    Column("state", StoredText(), nullable=False),
    Column("options", StoredJSON(), nullable=False),
    Column("items_per_second", Rate()),
    Column("paced_until", Seconds()),
    Column("pass_number", Count(), nullable=False),
    Column("total", Count(), nullable=False),
    Column("stopped_runs", StoredJSON(), nullable=False),
    Column("created_at", UTCTimestamp(), nullable=False),
    Column("updated_at", UTCTimestamp(), nullable=False),
    Column("finished_at", UTCTimestamp()),
    Index("ix_eventseal_reencryption_jobs_state", "application", "state"),
)

reencryption_shards = own_table(
    "eventseal_reencryption_shards",
    job_metadata,
    Column("job_id", BinaryUUID(), primary_key=True),
    Column("number", Count(), primary_key=True, autoincrement=False),
    Column("pass_number", Count(), nullable=False),
    Column("phase", Count(), nullable=False),
    Column("table_name", StoredText(), nullable=False),
    Column("selection", StoredJSON(), nullable=False),
    Column("upto", StoredJSON()),
    Column("cursor", StoredJSON()),
    Column("state", StoredText(), nullable=False),
    Column("worker", StoredText()),
    Column("seen_at", UTCTimestamp()),
    Column("version", Count(), nullable=False),
    Column("counts", StoredJSON(), nullable=False),
)

reencrypted_keys = own_table(
    "eventseal_reencrypted_keys",
    job_metadata,
    Column("job_id", BinaryUUID(), primary_key=True),
    # By shard too, so that two workers never wait for each other's row.
    Column("number", Count(), primary_key=True, autoincrement=False),
    Column("key_id", BinaryUUID(), primary_key=True),
    Column("moved", Count(), nullable=False),
)

reencryption_failures = own_table(
    "eventseal_reencryption_failures",
    job_metadata,
    Column("job_id", BinaryUUID(), primary_key=True),
    Column("number", Count(), primary_key=True, autoincrement=False),
    Column("failure", Count(), primary_key=True, autoincrement=False),
    Column("pass_number", Count(), nullable=False),
    Column("said", StoredJSON(), nullable=False),
)

compromised_marks = own_table(
    "eventseal_compromised_marks",
    job_metadata,
    Column("key_id", BinaryUUID(), primary_key=True),
    Column("table_name", StoredText(), primary_key=True),
    Column("items_found", Count(), nullable=False),
    Column("high_water", Count()),
    Column("replaced_before", Count(), nullable=False),
    Column("recorded_at", UTCTimestamp(), nullable=False),
)

marked_envelopes = own_table(
    "eventseal_marked_envelopes",
    job_metadata,
    Column("key_id", BinaryUUID(), primary_key=True),
    Column("table_name", StoredText(), primary_key=True),
    Column("tag", ExactBytes(), primary_key=True),
    # The key is the whole row. Without a second copy of it, a row takes half the space.
    sqlite_with_rowid=False,
)
"""Filled on SQLite only. On PostgreSQL, rows show themselves when they were written."""

replaced_envelopes = own_table(
    "eventseal_replaced_envelopes",
    job_metadata,
    Column("key_id", BinaryUUID(), primary_key=True),
    Column("table_name", StoredText(), primary_key=True),
    Column("sha256", ExactBytes(32), primary_key=True),
    Column("sequence_id", StoredText(), primary_key=True),
    Column("position", StoredText(), primary_key=True),
    Column("replaced_at", UTCTimestamp(), nullable=False),
)
