"""
What a stored event is bound to, and what its class says: its collection, or that it may not be stored.

The library's states are sealed as a whole, not by their fields: so classes that mark personal data are
refused. The library creates event classes from the methods that ``@event`` decorates, and may lose an
annotation of such a method. So EventSeal looks at the aggregates of an event class too.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import lru_cache, wraps
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from eventsourcing import domain
from eventsourcing.domain import CanSnapshotAggregate
from eventsourcing.persistence import ApplicationRecorder, EventStore
from eventsourcing.utils import resolve_topic

from eventseal.cipher import ItemContext
from eventseal.errors import ConfigurationError
from eventseal.items.annotations import package_of
from eventseal.items.item import tries_compression
from eventseal.items.personal import UNMARKED_PACKAGES, refuse_personal
from eventseal.items.scopes import CLASS_RULE, KEEPS_SCOPE
from eventseal.items.topics import class_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from eventsourcing.persistence import StoredEvent


ITEMS, SNAPSHOTS = "items", "snapshots"

_COLLECTION = "__collection__"


class EventClass(NamedTuple):
    """
    What is to be known of a class to seal its events.

    Attributes:
        collection: Of its events where no store says it: that of snapshots if the library's
            ``CanSnapshotAggregate`` is a base of it, or if it can ``take()`` a snapshot and ``mutate()`` into
            an aggregate; any class may say ``__collection__``.
        compress: Whether compression is tried: not if it says ``__compress__ = False``.
        has_scope: Whether it says the scope of its events itself.
    """

    collection: str
    compress: bool
    has_scope: bool


def event_class(cls: type[Any]) -> EventClass:
    """
    Look at an event's class.

    Raises:
        ConfigurationError: It names a collection that the library has no table for.
    """
    return _event_class(cls)  # type: ignore[arg-type]  # mypy does not take a class for hashable


@lru_cache(maxsize=4096)
def _event_class(cls: type[Any]) -> EventClass:
    return EventClass(
        collection=_collection_of(cls),
        compress=tries_compression(cls),
        has_scope=getattr(cls, CLASS_RULE, None) is not None or bool(getattr(cls, KEEPS_SCOPE, False)),
    )


def _collection_of(cls: type[Any]) -> str:
    said = getattr(cls, _COLLECTION, None)
    if said is None:
        takes = callable(getattr(cls, "take", None)) and callable(getattr(cls, "mutate", None))
        return SNAPSHOTS if takes or issubclass(cls, CanSnapshotAggregate) else ITEMS
    if said not in (ITEMS, SNAPSHOTS):
        raise ConfigurationError(
            f"{_COLLECTION} of {class_name(cls)} is {said!r}; it can be {ITEMS!r} or {SNAPSHOTS!r}"
        )
    return str(said)


_DIGITS = re.compile("[0-9a-f]{32}")
_OTHER = {ITEMS: SNAPSHOTS, SNAPSHOTS: ITEMS}


def context_of(stored: StoredEvent, collection: str) -> ItemContext:
    """Give the place of a stored event of a collection."""
    return ItemContext(stored.originator_id, stored.originator_version, stored.topic, collection)


def otherwise(context: ItemContext, *, collection: bool, uuid: bool) -> ItemContext | None:
    """
    Give a place as it may have been bound instead; ``None``: it cannot.

    Args:
        context: As it was read.
        collection: Whether in the other collection.
        uuid: Whether by the UUID that the id's digits are.
    """
    other = with_uuid(context) if uuid else context
    if other is not None and collection:
        return replace(other, collection=_OTHER[other.collection])
    return other


def with_uuid(context: ItemContext) -> ItemContext | None:
    """Give a place whose id is the bare digits of a UUID with that UUID; ``None``: it is no such id."""
    uuid = uuid_of_digits(context.sequence_id)
    return None if uuid is None else replace(context, sequence_id=uuid)


def uuid_of_digits(an_id: object) -> UUID | None:
    """Give the UUID whose bare digits an id is; ``None``: it is no such id."""
    return UUID(an_id) if isinstance(an_id, str) and _DIGITS.fullmatch(an_id) else None


def tell_collections(mapper_class: type[Any]) -> None:
    """
    Let each of the library's event stores tell such a mapper which collection its table holds.

    A stored event does not say which table it comes from, and the library gives one mapper to the store of
    events and to that of snapshots: without this, the one would pass for the other.

    Args:
        mapper_class: Whose mappers are told, and those of its subclasses: ``over()`` gives one for a table.
    """
    # Nothing else of the library knows both table and mapper (docs/decisions/0022).
    make = EventStore.__init__

    @wraps(make)
    def told(self: Any, mapper: Any, recorder: Any, *rest: Any, **named: Any) -> None:
        collection = _collection_of_recorder(recorder) if isinstance(mapper, mapper_class) else None
        make(self, mapper if collection is None else mapper.over(collection), recorder, *rest, **named)

    EventStore.__init__ = told  # type: ignore[method-assign]


def _collection_of_recorder(recorder: Any) -> str | None:
    """Say what a recorder's table holds; ``None``: it does not say."""
    if isinstance(recorder, ApplicationRecorder):
        return ITEMS
    name = getattr(recorder, "events_table_name", "")
    return SNAPSHOTS if isinstance(name, str) and name.strip('"').endswith(SNAPSHOTS) else None


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
