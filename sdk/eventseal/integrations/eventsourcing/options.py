"""What an application may choose: whose keys seal its events, and what an erased one is on reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventseal.integrations.eventsourcing.stored_events import uuid_of_digits
from eventseal.items.masks import Erased, ErasedItems, OnErased
from eventseal.items.places import KeyScope, ScopeRule
from eventseal.keys.records import DEFAULT_SCOPE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from eventseal.rotation.sealed_store import SealedStore


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingOptions:
    """
    The choices of ``using()``.

    Attributes:
        seal: Whose keys and databases are used; ``None``: the process's settings say it.
        key_scope: Whose key seals an event whose class has no ``__key_scope__``.
        on_erased: What an event is on reading whose key was shredded.
        erased_scope: Gives the scope that an erased event must be of, from what was stored alone.
        event_modules: Whose classes an event in an older format may name; ``None``: those of the seal.
    """

    seal: SealedStore | None = None
    key_scope: KeyScope = DEFAULT_SCOPE
    on_erased: OnErased = "raise"
    erased_scope: Callable[[Any], str] | None = None
    event_modules: Collection[str] | None = None

    def scope_rule(self) -> ScopeRule:
        """
        Give what says the scope of an event.

        Raises:
            ConfigurationError: *key_scope* is none.
        """
        return ScopeRule(self.key_scope)

    def erased_items(self) -> ErasedItems:
        """
        Give what decides over erased events.

        Raises:
            ConfigurationError: *on_erased* or *erased_scope* is none.
        """
        return ErasedItems(self.on_erased, key_scope=self.key_scope, erased_scope=self.erased_scope)


def stream_scope(event: Any) -> str:
    """
    Give each aggregate keys of its own, so that it can be erased alone.

    Takes domain events, snapshots and stored events alike: it is a ``key_scope`` and an ``erased_scope``.
    """
    return f"stream:{uuid_of_digits(event.originator_id) or event.originator_id}"
