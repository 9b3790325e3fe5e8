"""
The library's persistence module for PostgreSQL, with sealing.

Its event stores map pages of events.
"""

from __future__ import annotations

from eventsourcing import postgres

from eventseal.integrations.eventsourcing import event_store


class SealedPostgresFactory(event_store.SealedInfrastructure, postgres.Factory):
    """The library's factory for PostgreSQL. See ``SealedInfrastructure``."""
