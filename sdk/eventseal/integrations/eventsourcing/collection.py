"""Which collection an event belongs to: the events of aggregates, or their snapshots."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from eventsourcing.domain import CanSnapshotAggregate

from eventseal.errors import ConfigurationError

ITEMS, SNAPSHOTS = "items", "snapshots"

_CLASS_COLLECTION = "__collection__"


def collection_of(cls: type[Any]) -> str:
    """
    Give the collection of a class's events where no store says it.

    Snapshots are what the library's ``CanSnapshotAggregate`` is a base of, or what can ``take()`` a snapshot
    and ``mutate()`` into an aggregate; any class may say ``__collection__``.

    Raises:
        ConfigurationError: The class names a collection that the library has no table for.
    """
    return _collection_of(cls)  # type: ignore[arg-type]  # a class is hashable


@lru_cache(maxsize=4096)
def _collection_of(cls: type[Any]) -> str:
    said = getattr(cls, _CLASS_COLLECTION, None)
    if said is None:
        takes = callable(getattr(cls, "take", None)) and callable(getattr(cls, "mutate", None))
        return SNAPSHOTS if takes or issubclass(cls, CanSnapshotAggregate) else ITEMS
    if said not in (ITEMS, SNAPSHOTS):
        raise ConfigurationError(
            f"{_CLASS_COLLECTION} of {cls.__module__}:{cls.__qualname__} is {said!r}; "
            f"it can be {ITEMS!r} or {SNAPSHOTS!r}"
        )
    return str(said)
