"""A persistence module: the library's for SQLite, with event stores that map pages."""

from __future__ import annotations

from eventsourcing import sqlite

from eventseal.integrations.eventsourcing import factories


class SealedSQLiteFactory(factories.SealedInfrastructure, sqlite.SQLiteFactory):
    """The library's factory for SQLite; see ``SealedInfrastructure``."""
