"""A persistence module: the library's for PostgreSQL, with event stores that map pages."""

from __future__ import annotations

from eventsourcing import postgres

from eventseal.integrations.eventsourcing import factories


class SealedPostgresFactory(factories.SealedInfrastructure, postgres.PostgresFactory):
    """The library's factory for PostgreSQL; see ``SealedInfrastructure``."""
