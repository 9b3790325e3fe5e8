"""What stands where something was erased: a mask for a field, an event of its own for a whole item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from eventseal.errors import ConfigurationError, KeyDestroyedError
from eventseal.keys.records import DEFAULT_SCOPE

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from eventseal.items.item import StoredItem

OnErased: TypeAlias = Literal["raise", "mask", "skip"]


class Masked(str):
    """
    The mask of a personal-data field whose subject was erased.

    It is an empty string to whatever takes strings, JSON among them, so it is falsy. But it is equal to no
    string: only to itself, which is the mask of the same field of the same subject.

    Attributes:
        scope: The subject's scope.
        field: The name of the attribute that was erased.
    """

    __slots__ = ("field", "scope")

    field: str
    scope: str

    def __new__(cls, scope: str, field: str) -> Self:
        """
        Make an empty string that says what it stands for.

        Args:
            scope: The subject's scope.
            field: The name of the attribute that was erased.
        """
        self = super().__new__(cls)
        self.scope = scope
        self.field = field
        return self

    def __eq__(self, other: object) -> bool:
        return type(other) is Masked and (other.scope, other.field) == (self.scope, self.field)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((Masked, self.scope, self.field))

    def __repr__(self) -> str:
        return f"<erased {self.field}>"  # whose it was is for the log to forget

    def __reduce__(self) -> tuple[type[Masked], tuple[str, str]]:
        return Masked, (self.scope, self.field)


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


class ErasedItems:
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

    def scope_of(self, item: Any, error: KeyDestroyedError) -> str | None:
        """
        Give the scope of which an item's shredded key must be for it to be shown as erased.

        The scope ``application`` is expected only where ``erased_scope`` names it. *error* comes from a
        tombstone whose seal was checked.

        Returns:
            ``None`` if it is not to be shown so: its key was not shredded, or nothing says what is expected.
        """
        if self._raises or error.destroyed_by != "shredded" or error.key_id is None:
            return None
        return self._expected if self._erased_scope is None else self._erased_scope(item)
