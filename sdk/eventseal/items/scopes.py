"""Which key scope an event belongs to: one for all, or a function of the event; a class may have its own."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from eventseal.errors import ConfigurationError
from eventseal.items.topics import class_name
from eventseal.keys.records import checked_scope

if TYPE_CHECKING:
    from collections.abc import Callable

KeyScope: TypeAlias = "str | Callable[[Any], str]"
"""A scope, or a function that gives an event's."""

CLASS_RULE = "__key_scope__"
"""The attribute of an event class that says the key scope of its events."""

KEEPS_SCOPE = "__keeps_key_scope__"
"""The attribute of a class whose objects keep their scope, in ``key_scope``, for mappers with one for all."""

_checked = lru_cache(maxsize=4096)(checked_scope)


class ScopeRule:
    """
    Gives the scope of an event, the same when it is written and when it is read.

    An event class may have a rule of its own, ``__key_scope__``, which its subclasses inherit and ``None``
    takes back: a scope, or a function of the event, such as a method.

    Args:
        key_scope: For events whose class has no rule: a scope, or a function of the event. It uses the
            event's attributes and nothing else: an event whose scope comes out differently on reading is
            refused.

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
            ConfigurationError: A class's rule is none, or a rule gave a scope that is not allowed.
        """
        if isinstance(self._key_scope, str) and not any(
            getattr(cls, CLASS_RULE, None) is not None or getattr(cls, KEEPS_SCOPE, False)
            for cls in set(map(type, events))
        ):
            return self._key_scope
        return [self(event) for event in events]

    def __call__(self, event: Any) -> str:
        """
        Give the scope of *event*.

        Raises:
            ConfigurationError: Its class's rule is none, or a rule gave a scope that is not allowed.
        """
        rule = getattr(type(event), CLASS_RULE, None)
        if rule is None:
            rule = self._key_scope
            if isinstance(rule, str):
                kept = vars(event).get("key_scope") if getattr(type(event), KEEPS_SCOPE, False) else None
                return rule if kept is None else _scope_by(kept, event)
        return _scope_by(rule, event)


def _scope_by(rule: object, event: object) -> str:
    if callable(rule):
        scope = rule(event)
    elif isinstance(rule, str):
        scope = rule
    else:
        cls = type(event)
        raise ConfigurationError(
            f"{CLASS_RULE} of {class_name(cls)} is a {type(rule).__name__}, "
            "neither a string nor a function of the event"
        )
    try:
        return _checked(scope)
    except TypeError:  # not hashable, so not a string either
        return checked_scope(scope)
