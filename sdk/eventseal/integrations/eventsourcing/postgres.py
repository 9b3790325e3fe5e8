"""A persistence module: the library's for PostgreSQL, with event stores that map pages."""

from __future__ import annotations

from eventsourcing import postgres

from eventseal.integrations.eventsourcing import event_store


class SealedPostgresFactory(event_store.SealedInfrastructure, postgres.Factory):
    """The library's factory for PostgreSQL; see ``SealedInfrastructure``."""
