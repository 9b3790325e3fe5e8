"""
Refuses classes that say personal data: under the library, a state is sealed as a whole and not by its fields.

The library makes event classes from the methods that ``@event`` decorates, and an annotation of such a method
may be lost on the way. So the aggregates that an event class belongs to are looked at too.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from eventsourcing import domain
from eventsourcing.utils import resolve_topic

from eventseal.integrations.eventsourcing.event_class import SNAPSHOTS, event_class
from eventseal.items.personal import refuse_personal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_WHY = "the eventsourcing library's mappers seal no fields one by one, so it could not be erased alone"
_REMEDY = (
    "Store such events with a SequencedItemMapper. Or take PersonalData away, and seal whole events under "
    "the key of their person: see __key_scope__."
)

_FUNCTION, _METHOD = "decorated_func", "decorated_method"  # the latter in release 9.3

_unmarked: set[type[Any]] = set()
_snapshots: set[type[Any]] = set()


def refuse_marked_event(event: Any) -> None:
    """
    Refuse an event, or a snapshot, whose class says personal data.

    Raises:
        ConfigurationError: It does, or its aggregate does, or a class that is held by annotation.
    """
    cls = type(event)
    if cls in _unmarked and cls not in _snapshots:
        return
    refuse_marked_class(cls)
    if event_class(cls).collection == SNAPSHOTS:
        _snapshots.add(cls)
        if isinstance(getattr(event, "topic", None), str):
            refuse_marked_class(resolve_topic(event.topic))


def refuse_marked_class(cls: type[Any]) -> None:
    """
    Refuse a class of events, of decisions, or of aggregates that says personal data.

    Raises:
        ConfigurationError: It does, or an aggregate that it belongs to.
    """
    if cls in _unmarked:
        return
    for one in (cls, *_owners(cls)):
        refuse_personal(one, _WHY, _REMEDY, functions=_decorated(one))
    _unmarked.add(cls)


def refuse_marked_types(types: Iterable[type[Any]]) -> None:
    """
    Refuse types that a transcoder has an encoding for.

    Raises:
        ConfigurationError: One of them says personal data.
    """
    for cls in types:
        if cls not in _unmarked:
            refuse_personal(cls, _WHY, _REMEDY, lenient=True)
            _unmarked.add(cls)


def _owners(cls: type[Any]) -> Iterator[type[Any]]:
    """Give the application's aggregates whose events are of a class."""
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


def _decorated(cls: type[Any]) -> list[object]:
    return [
        vars(one).get(_FUNCTION) or vars(one)[_METHOD] for base in cls.__mro__ for one in _decorators(base)
    ]


def _decorators(cls: type[Any]) -> list[Any]:
    members = [getattr(member, "fset", None) or member for member in vars(cls).values()]
    return [member for member in members if isinstance(member, domain.CommandMethodDecorator)]
