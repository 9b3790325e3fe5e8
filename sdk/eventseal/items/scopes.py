"""The scopes of events, and the reading of erased items."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from eventseal.errors import ConfigurationError, EventSealError, IntegrityError, KeyDestroyedError
from eventseal.items.topics import class_name
from eventseal.keys.records import DEFAULT_SCOPE, checked_scope

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from eventseal.cipher.aes import AESCipher
    from eventseal.cipher.envelopes import Opened
    from eventseal.items.item import StoredItem


OnErased: TypeAlias = Literal["raise", "mask", "skip"]


@dataclass(frozen=True)
class Erased:
    """
    The replacement of an item whose key was shredded.

    A mapper with ``on_erased="mask"`` returns it. Its place and topic are those of the row. Nothing
    authenticates them any more.

    Attributes:
        sequence_id: The sequence id of the item.
        position: The position of the item.
        topic: The name of the event's class.
        key_id: The key that was shredded.
        scope: The erased scope: that of the key, in the application's form.
    """

    sequence_id: Any
    position: Any
    topic: str
    key_id: UUID
    scope: str

    @classmethod
    def of(cls, item: StoredItem, key_id: UUID, scope: str) -> Self:
        """Create the replacement of an item."""
        return cls(item.sequence_id, item.position, item.topic, key_id, scope)

    @property
    def originator_id(self) -> Any:
        """The sequence id, under the name that entities use."""
        return self.sequence_id

    @property
    def originator_version(self) -> Any:
        """The position, under the name that entities use."""
        return self.position


class ErasureRule:
    """
    Decides the result for an item whose key was destroyed.

    Args:
        on_erased: The result for an erased item: raise, mask or skip.
        key_scope: The mapper's key scope. If it is a string, it is the expected scope.
        erased_scope: A function that returns the expected scope of an item, from the item only. It takes
            precedence.

    Raises:
        ConfigurationError: The arguments contradict each other.
    """

    def __init__(
        self, on_erased: OnErased, *, key_scope: object, erased_scope: Callable[[Any], str] | None
    ) -> None:
        if on_erased not in ("raise", "mask", "skip"):
            raise ConfigurationError(f"on_erased must be 'raise', 'mask' or 'skip', not {on_erased!r}")
        if erased_scope is not None and not callable(erased_scope):
            raise ConfigurationError(
                f"erased_scope must be a function of an item, not {type(erased_scope).__name__}"
            )
        self.skips = on_erased == "skip"
        self._raises = on_erased == "raise"
        self._expected = key_scope if isinstance(key_scope, str) and key_scope != DEFAULT_SCOPE else None
        self._erased_scope = erased_scope

    def erased_scope(self, item: Any, error: EventSealError, cipher: AESCipher) -> str | None:
        """
        Return the scope of an item's shredded key, or ``None``.

        The scope ``application`` is expected only if ``erased_scope`` names it. *error* comes from a
        tombstone that was authenticated.

        Returns:
            ``None`` if the item does not count as erased: its key was not shredded, there is no expected
            scope, or the key was another scope's.
        """
        if self._raises or not isinstance(error, KeyDestroyedError):
            return None
        if error.destroyed_by != "shredded" or error.key_id is None:
            return None
        # This does not use the item's class, because nothing authenticates its topic (docs/decisions/0011).
        expected = self._expected if self._erased_scope is None else self._erased_scope(item)
        return expected if expected is not None and cipher.names_scope(expected, error.scope) else None


KeyScope: TypeAlias = "str | Callable[[Any], str]"
"""A scope, or a function that returns the scope of an event."""


CLASS_RULE = "__key_scope__"
"""The attribute of an event class that names its events' key scope."""


KEEPS_SCOPE = "__keeps_key_scope__"
"""
The attribute of a class whose objects store their scope, in ``key_scope``.

A mapper uses the stored scope if its own *key_scope* is one scope for all events.
"""


_checked = lru_cache(maxsize=4096)(checked_scope)


class ScopeRule:
    """
    Returns the scope of an event, the same for writers and readers.

    An event class may have its own rule, ``__key_scope__``: a scope, or a function of the event, such as a
    method. Its subclasses inherit the rule, and ``None`` removes it.

    Args:
        key_scope: The rule for events whose class has none: a scope, or a function of the event. The function
            may only use the event's attributes. If the scope is different on reading, the event is refused.

    Raises:
        ConfigurationError: It is neither, or a scope that is not allowed.
    """

    def __init__(self, key_scope: KeyScope) -> None:
        if not isinstance(key_scope, str) and not callable(key_scope):
            raise ConfigurationError(
                f"key_scope must be a string or function, not {type(key_scope).__name__}"
            )
        self._key_scope = checked_scope(key_scope) if isinstance(key_scope, str) else key_scope

    def of_all(self, events: list[Any]) -> str | list[str]:
        """
        Return the scope that all events share, or a list of scopes.

        Raises:
            ConfigurationError: The rule of a class is invalid, or returned a scope that is not allowed.
        """
        if isinstance(self._key_scope, str) and not any(
            getattr(cls, CLASS_RULE, None) is not None or getattr(cls, KEEPS_SCOPE, False)
            for cls in set(map(type, events))
        ):
            return self._key_scope
        return [self(event) for event in events]

    def __call__(self, event: Any) -> str:
        """
        Return the scope of *event*.

        Raises:
            ConfigurationError: The rule of its class is invalid, or returned a scope that is not allowed.
        """
        rule = getattr(type(event), CLASS_RULE, None)
        if rule is None:
            rule = self._key_scope
            if isinstance(rule, str):
                kept = vars(event).get("key_scope") if getattr(type(event), KEEPS_SCOPE, False) else None
                return rule if kept is None else _scope_by(kept, event)
        return _scope_by(rule, event)

    def check(self, event: Any, opened: Opened, cipher: AESCipher) -> None:
        """
        Compare the scope of an event with the scope of its key.

        Raises:
            IntegrityError: They differ.
        """
        scope = self(event)
        if opened.scope != scope and not cipher.names_scope(scope, opened.scope):
            raise IntegrityError(
                f"key {opened.key_id} sealed the item, but is not a key of the event's scope",
                remedy="If key_scope, or the class's __key_scope__, was changed, change it back. "
                "Otherwise find out who holds that scope's key.",
            )


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
    except TypeError:  # not hashable, so not a string
        return checked_scope(scope)
