"""Whose key seals an event, and what a reader gets for an item whose key was destroyed."""

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
    Stands for an item whose key was shredded, where the mapper was told ``on_erased="mask"``.

    Its place and topic are those of the row, which nothing authenticates any more.

    Attributes:
        sequence_id: Of the item.
        position: Of the item.
        topic: Names the class of the event that it was.
        key_id: The key that was shredded.
        scope: What was erased: that key's scope, as the application has it.
    """

    sequence_id: Any
    position: Any
    topic: str
    key_id: UUID
    scope: str

    @classmethod
    def of(cls, item: StoredItem, key_id: UUID, scope: str) -> Self:
        """Let it stand for an item."""
        return cls(item.sequence_id, item.position, item.topic, key_id, scope)

    @property
    def originator_id(self) -> Any:
        """The sequence id, as entities call it."""
        return self.sequence_id

    @property
    def originator_version(self) -> Any:
        """The position, as entities call it."""
        return self.position


class ErasureRule:
    """
    Decides what a reader gets for an item whose key was destroyed.

    Args:
        on_erased: What an erased item is: raised, masked or skipped.
        key_scope: The mapper's; a string says which scope is expected.
        erased_scope: Gives the scope that is expected of an item, from the item alone. It comes first.

    Raises:
        ConfigurationError: The arguments are of no use together.
    """

    def __init__(
        self, on_erased: OnErased, *, key_scope: object, erased_scope: Callable[[Any], str] | None
    ) -> None:
        if on_erased not in ("raise", "mask", "skip"):
            raise ConfigurationError(f"on_erased is 'raise', 'mask' or 'skip', not {on_erased!r}")
        if erased_scope is not None and not callable(erased_scope):
            raise ConfigurationError(
                f"erased_scope is a function of an item, not {type(erased_scope).__name__}"
            )
        self.skips = on_erased == "skip"
        self._raises = on_erased == "raise"
        self._expected = key_scope if isinstance(key_scope, str) and key_scope != DEFAULT_SCOPE else None
        self._erased_scope = erased_scope

    def erased_scope(self, item: Any, error: EventSealError, cipher: AESCipher) -> str | None:
        """
        Give the scope of which an item's shredded key was, if the item is to be shown as erased.

        The scope ``application`` is expected only where ``erased_scope`` names it. *error* comes from a
        tombstone whose seal was checked.

        Returns:
            ``None`` if it is not to be shown so: its key was not shredded, nothing says what is expected, or
            the key was another scope's.
        """
        if self._raises or not isinstance(error, KeyDestroyedError):
            return None
        if error.destroyed_by != "shredded" or error.key_id is None:
            return None
        # The item's class is not asked: nothing authenticates its topic any more (docs/decisions/0011).
        expected = self._expected if self._erased_scope is None else self._erased_scope(item)
        return expected if expected is not None and cipher.names_scope(expected, error.scope) else None


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

    def check(self, event: Any, opened: Opened, cipher: AESCipher) -> None:
        """
        Compare the scope that an event belongs to with that of the key that sealed it.

        Raises:
            IntegrityError: They differ.
        """
        scope = self(event)
        if opened.scope != scope and not cipher.names_scope(scope, opened.scope):
            raise IntegrityError(
                f"key {opened.key_id} sealed the item, but is no key of the scope that the event belongs to",
                remedy="If key_scope, or the class's __key_scope__, was changed, change it back; "
                "else find out who holds that scope's key.",
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
    except TypeError:  # not hashable, so not a string either
        return checked_scope(scope)
