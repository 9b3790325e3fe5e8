"""
Refuses classes that mark personal data: the library's states are sealed as a whole, not by their fields.

The library creates event classes from the methods that ``@event`` decorates, and may lose an annotation of
such a method. So EventSeal looks at the aggregates of an event class too.
"""

from __future__ import annotations

import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any

from eventsourcing import domain
from eventsourcing.utils import resolve_topic

from eventseal.integrations.eventsourcing.stored_events import SNAPSHOTS, event_class
from eventseal.items.annotations import package_of
from eventseal.items.class_annotations import UNMARKED_PACKAGES
from eventseal.items.personal import refuse_personal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_WHY = "the eventsourcing library's mappers seal no fields one by one, so it could not be erased alone"
_REMEDY = (
    "Store such events with a SequencedItemMapper. Or remove PersonalData, and seal whole events under "
    "the key of their person: see __key_scope__."
)

_FUNCTION, _METHOD = "decorated_func", "decorated_method"  # the latter in release 9.3

_UNMARKED_PACKAGES = UNMARKED_PACKAGES | {"eventsourcing"}

_unmarked: set[type[Any]] = set()


def refuse_marked_event(event: Any) -> None:
    """
    Refuse an event, or a snapshot, whose class marks personal data.

    Raises:
        ConfigurationError: The class marks some, or its aggregate does, or a class in an annotation.
    """
    cls = type(event)
    refuse_marked_class(cls)
    if event_class(cls).collection == SNAPSHOTS and isinstance(getattr(event, "topic", None), str):
        refuse_marked_class(resolve_topic(event.topic))


def refuse_marked_class(cls: type[Any]) -> None:
    """
    Refuse a class of events, of decisions, or of aggregates that marks personal data.

    Raises:
        ConfigurationError: It marks some, or an aggregate that it belongs to does.
    """
    if cls in _unmarked:
        return
    refuse_personal(cls, _WHY, _REMEDY, functions=_methods(cls))
    for owner in _owners(cls):
        refuse_personal(owner, _WHY, _REMEDY, functions=_methods(owner), lenient=True)
    _unmarked.add(cls)


def refuse_marked_types(types: Iterable[type[Any]]) -> None:
    """
    Refuse types that a transcoder has an encoding for.

    Raises:
        ConfigurationError: One of them marks personal data.
    """
    for cls in types:
        if cls not in _unmarked:
            refuse_personal(cls, _WHY, _REMEDY, lenient=True)
            _unmarked.add(cls)


def _owners(cls: type[Any]) -> Iterator[type[Any]]:
    """Find the application's aggregates that have a class of events."""
    tagged = sys.modules.get("eventsourcing.dcb.domain")
    roots = [getattr(domain, "BaseAggregate", domain.Aggregate), *([tagged.Perspective] if tagged else ())]
    for owner in (one for root in roots for one in _subclasses(root)):
        members = [*vars(owner).values(), *(one.given_event_cls for one in _decorators(owner))]
        if not owner.__module__.startswith("eventsourcing.") and any(
            one in cls.__mro__ for one in members if isinstance(one, type)
        ):
            yield owner


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for one in type.__subclasses__(cls):
        yield one
        yield from _subclasses(one)


def _methods(cls: type[Any]) -> list[object]:
    """List the methods of an aggregate, whose arguments its events may keep."""
    if not hasattr(cls, "collect_events") and not _decorators(cls):
        return []
    bases = [base for base in cls.__mro__ if package_of(base) not in _UNMARKED_PACKAGES]
    decorated = [
        vars(one).get(_FUNCTION) or vars(one)[_METHOD] for base in bases for one in _decorators(base)
    ]
    members = [getattr(member, "fset", None) or member for base in bases for member in vars(base).values()]
    return [
        *decorated,
        *(one for one in members if isinstance(one, FunctionType | classmethod | staticmethod)),
    ]


def _decorators(cls: type[Any]) -> list[Any]:
    members = [getattr(member, "fset", None) or member for member in vars(cls).values()]
    return [member for member in members if isinstance(member, domain.CommandMethodDecorator)]
