"""
The library's persistence module for plain Python objects, with sealing.

Its event stores map pages of events.
"""

from __future__ import annotations

from eventsourcing import popo

from eventseal.integrations.eventsourcing import event_store


class SealedPOPOFactory(event_store.SealedInfrastructure, popo.Factory):
    """The library's factory for plain Python objects. See ``SealedInfrastructure``."""
