"""Looks for personal data in the classes that annotations name: nothing would seal it there."""

from __future__ import annotations

from collections import deque
from dataclasses import is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from eventseal.errors import ConfigurationError
from eventseal.items.annotation_reading import Held, read
from eventseal.items.annotations import UnresolvedAnnotationError, annotations_of, package_of
from eventseal.items.class_members import UNMARKED_PACKAGES, annotations_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterable


class _Own(NamedTuple):
    """
    What a class annotates itself.

    Attributes:
        marked: The place of personal data.
        unread: The place in its body that cannot be read, and why.
        held: The classes that it names.
    """

    marked: str | None = None
    unread: str | None = None
    held: tuple[type[Any], ...] = ()


_owns: dict[type[Any], _Own] = {}


def refuse_held(where: str, held: Iterable[Held], *, in_dataclasses: bool) -> None:
    """
    Refuse personal data in classes whose objects a place may hold.

    A plain class is looked at and not followed: its objects need an encoding of their own, and whoever
    registers one has the type checked with all that it holds.

    Args:
        where: The place, for messages.
        held: The classes.
        in_dataclasses: Whether dataclasses are looked at, and every class is followed. Else the objects of
            dataclasses are sealed by their own annotations.

    Raises:
        ConfigurationError: One of them marks personal data.
        UnresolvedAnnotationError: The body of a dataclass, or of a typed dictionary, cannot be read.
    """
    wanted = deque(held)
    seen: set[Held] = set()
    while wanted:
        one = wanted.popleft()
        if one in seen or _is_unmarked(one.cls) or (is_dataclass(one.cls) and not in_dataclasses):
            continue
        seen.add(one)
        own = _owns.get(one.cls) or _read_own(one.cls)
        if own.marked is not None:
            raise ConfigurationError(
                f"{where} holds a {one.cls.__qualname__}, and {own.marked} is personal data, "
                "which nothing would seal there",
                remedy=f"Make {one.cls.__qualname__} a dataclass, and store it with a SequencedItemMapper.",
            )
        is_record = is_dataclass(one.cls) or hasattr(one.cls, "__required_keys__")
        if is_record and own.unread is not None and not one.lenient:
            raise UnresolvedAnnotationError(
                f"{where} holds a {one.cls.__qualname__}, and {own.unread}",
                remedy="Correct that annotation, or write Annotated[..., NotPersonal('why')] there or here.",
            )
        if in_dataclasses or is_record or hasattr(one.cls, "_fields"):
            lenient = one.lenient or not is_record
            wanted += (Held(cls, lenient) for cls in own.held)


def _is_unmarked(cls: type[Any]) -> bool:
    return package_of(cls) in UNMARKED_PACKAGES or issubclass(cls, Enum)


def _read_own(cls: type[Any]) -> _Own:
    held: dict[type[Any], None] = {}
    unread: str | None = None
    is_complete = True
    try:
        for is_body, annotations in ((True, annotations_of(cls)), (False, annotations_elsewhere(cls))):
            for said in annotations:
                try:
                    reading = read(said, lenient=True)
                except ConfigurationError:
                    return _Own(said.where)
                if reading.shape is not None:
                    return _Own(said.where)
                is_complete &= reading.is_complete
                if is_body and not reading.is_complete:
                    unread = f"{said.where} cannot be resolved"
                held.update(dict.fromkeys(one.cls for one in reading.held))
    except Exception as error:  # noqa: BLE001 - code of other packages runs here
        unread = f"its annotations cannot be read: {type(error).__name__}"
    own = _Own(None, unread, tuple(held))
    if is_complete and unread is None:  # else its module may still be being imported
        _owns[cls] = own
    return own
