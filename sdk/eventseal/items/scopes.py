"""Which key scope an event belongs to: one for all, or a function of the event."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from eventseal.errors import ConfigurationError
from eventseal.keys.records import checked_scope

if TYPE_CHECKING:
    from collections.abc import Callable

KeyScope: TypeAlias = "str | Callable[[Any], str]"
"""A scope, or a function that gives an event's."""

_checked = lru_cache(maxsize=4096)(checked_scope)


class ScopeRule:
    """
    Gives the scope of an event, the same when it is written and when it is read.

    Args:
        key_scope: The scope of all events, or a function of the event. It uses the event's attributes and
            nothing else: an event whose scope comes out differently on reading is refused.

    Raises:
        ConfigurationError: It is neither, or a scope that is not allowed.
    """

    def __init__(self, key_scope: KeyScope) -> None:
        if not isinstance(key_scope, str) and not callable(key_scope):
            raise ConfigurationError(f"key_scope is a string or a function, not {type(key_scope).__name__}")
        self._key_scope = checked_scope(key_scope) if isinstance(key_scope, str) else key_scope

    def of_all(self, events: list[Any]) -> str | list[str]:
        """
        Give the scope that all events have, else that of each.

        Raises:
            ConfigurationError: The function gave a scope that is not allowed.
        """
        return self._key_scope if isinstance(self._key_scope, str) else [self(event) for event in events]

    def __call__(self, event: Any) -> str:
        """
        Give the scope of *event*.

        Raises:
            ConfigurationError: The function gave a scope that is not allowed.
        """
        key_scope = self._key_scope
        if isinstance(key_scope, str):
            return key_scope
        scope = key_scope(event)
        try:
            return _checked(scope)
        except TypeError:  # not hashable, so not a string either
            return checked_scope(scope)
