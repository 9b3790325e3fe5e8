"""A persistence module: the library's for plain Python objects, with event stores that map pages."""

from __future__ import annotations

from eventsourcing import popo

from eventseal.integrations.eventsourcing import event_store


class SealedPOPOFactory(event_store.SealedInfrastructure, popo.Factory):
    """The library's factory for plain Python objects; see ``SealedInfrastructure``."""
