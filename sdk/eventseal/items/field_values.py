"""What stands for values with personal data while an event is turned into JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventseal.items.shapes import Shape

SEALED_MARKER = "$sealed"
MASK_MARKER = "$mask"
STATE_MARKER = "$state"


class Placeholder(NamedTuple):
    """
    Stands for a field until it is sealed.

    Attributes:
        number: Which of the item's fields it is.
        subject_path: Where its subject stands in the item: a JSON Pointer.
    """

    number: int
    subject_path: str


class Rewritten(NamedTuple):
    """
    Stands for an object, its fields replaced.

    Attributes:
        cls: The object's class.
        attributes: Its attributes.
    """

    cls: type[Any]
    attributes: dict[str, Any]


class ObjectState(dict[str, Any]):
    """
    An object's attributes outside of the object: its personal data are sealed, and a dictionary comes back.

    Args:
        attributes: By name.
        shapes: Where they hold personal data.
        names: How it calls a subject that others call by another name.
    """

    __slots__ = ("names", "shapes")

    def __init__(
        self,
        attributes: Mapping[str, Any],
        shapes: Mapping[str, Shape] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(attributes)
        self.shapes = shapes or {}
        self.names = names or {}
