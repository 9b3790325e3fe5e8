"""
The library's persistence module for SQLite, with sealing.

Its event stores map pages of events.
"""

from __future__ import annotations

from eventsourcing import sqlite

from eventseal.integrations.eventsourcing import event_store


class SealedSQLiteFactory(event_store.SealedInfrastructure, sqlite.Factory):
    """The library's factory for SQLite. See ``SealedInfrastructure``."""
