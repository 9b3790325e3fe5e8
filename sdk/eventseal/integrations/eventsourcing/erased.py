"""What stands for an event of an aggregate that was erased."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eventseal.items.masks import Erased


@dataclass(frozen=True)
class ErasedEvent(Erased):
    """
    Stands for a stored event whose key was shredded, where the mapper was told ``on_erased="mask"``.

    The library's projector can take it: an aggregate of which all is erased is not found, and one that lost
    some of its events goes on behind them. Its place and topic are those of the row, which nothing
    authenticates any more.
    """

    def mutate(self, aggregate: Any) -> Any:
        """Count as an event that changed nothing."""
        if aggregate is not None:
            aggregate.version = self.originator_version
        return aggregate
