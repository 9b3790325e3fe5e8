"""A persistence module: the library's for SQLite, with event stores that map pages."""

from __future__ import annotations

from eventsourcing import sqlite

from eventseal.integrations.eventsourcing import event_store


class SealedSQLiteFactory(event_store.SealedInfrastructure, sqlite.Factory):
    """The library's factory for SQLite; see ``SealedInfrastructure``."""
