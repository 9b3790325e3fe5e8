"""
Find the binding of a stored event, and check its class.

The class may name the collection. The library's states are sealed as a whole, not field by field, so classes
that mark personal data are refused. The library creates event classes from methods with the decorator
``@event``, and may lose an annotation of such a method. So EventSeal also checks the aggregates of an event
class.
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
    The facts about a class that are needed to seal its events.

    Attributes:
        collection: The collection of its events, if no event store decides it. A class may name it with
            ``__collection__``. Otherwise, it is the collection of snapshots for a subclass of the library's
            ``CanSnapshotAggregate``, and for a class with ``take()`` and ``mutate()``.
        compress: Whether compression is tried. False if the class has ``__compress__ = False``.
        has_scope: Whether the class names the scope of its events itself.
    """

    collection: str
    compress: bool
    has_scope: bool


def event_class(cls: type[Any]) -> EventClass:
    """
    Return the facts about an event's class.

    Raises:
        ConfigurationError: The class names a collection for which the library has no table.
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
            f"{_COLLECTION} of {class_name(cls)} is {said!r}, but it must be {ITEMS!r} or {SNAPSHOTS!r}",
            remedy=f"Correct or remove {_COLLECTION} in the class.",
        )
    return str(said)


_DIGITS = re.compile("[0-9a-f]{32}")
_OTHER = {ITEMS: SNAPSHOTS, SNAPSHOTS: ITEMS}


def context_of(stored: StoredEvent, collection: str) -> ItemContext:
    """Return the place of a stored event in a collection."""
    return ItemContext(stored.originator_id, stored.originator_version, stored.topic, collection)


def otherwise(context: ItemContext, *, collection: bool, uuid: bool) -> ItemContext | None:
    """
    Return another possible binding of a place, or ``None``.

    Args:
        context: The place, as it was read.
        collection: Whether to use the other collection.
        uuid: Whether to use the UUID whose bare digits the id is.
    """
    other = with_uuid(context) if uuid else context
    if other is not None and collection:
        return replace(other, collection=_OTHER[other.collection])
    return other


def with_uuid(context: ItemContext) -> ItemContext | None:
    """
    Return a place with the UUID whose bare digits its id is.

    It is ``None`` if the id is not the bare digits of a UUID.
    """
    uuid = uuid_of_digits(context.sequence_id)
    return None if uuid is None else replace(context, sequence_id=uuid)


def uuid_of_digits(an_id: object) -> UUID | None:
    """Return the UUID whose bare digits an id is, else ``None``."""
    return UUID(an_id) if isinstance(an_id, str) and _DIGITS.fullmatch(an_id) else None


def tell_collections(mapper_class: type[Any]) -> None:
    """
    Let the library's event stores bind their mapper to their collection.

    A stored event does not say which table it comes from. The library passes the same mapper to the event
    store and to the snapshot store. Without this binding, an event could pass for a snapshot, or the reverse.

    Args:
        mapper_class: The class whose mappers are bound, and those of its subclasses. Its ``over()`` returns
            the mapper for a table.
    """
    # Nothing else in the library knows both table and mapper (docs/decisions/0022).
    make = EventStore.__init__

    @wraps(make)
    def told(self: Any, mapper: Any, recorder: Any, *rest: Any, **named: Any) -> None:
        collection = _collection_of_recorder(recorder) if isinstance(mapper, mapper_class) else None
        make(self, mapper if collection is None else mapper.over(collection), recorder, *rest, **named)

    EventStore.__init__ = told  # type: ignore[method-assign]


def _collection_of_recorder(recorder: Any) -> str | None:
    """Return the collection of a recorder's table, or ``None`` if unknown."""
    if isinstance(recorder, ApplicationRecorder):
        return ITEMS
    name = getattr(recorder, "events_table_name", "")
    return SNAPSHOTS if isinstance(name, str) and name.strip('"').endswith(SNAPSHOTS) else None


_WHY = "the eventsourcing library's mappers do not encrypt single fields, so it could not be erased alone"
_REMEDY = (
    "Store such events with a SequencedItemMapper. Or remove PersonalData, and set __key_scope__ of the "
    "class, so that whole events are encrypted under their subject's key."
)

_FUNCTION, _METHOD = "decorated_func", "decorated_method"  # the latter in release 9.3

_UNMARKED_PACKAGES = UNMARKED_PACKAGES | {"eventsourcing"}

_unmarked: set[type[Any]] = set()


def refuse_marked_event(event: Any) -> None:
    """
    Refuse an event, or a snapshot, whose class marks personal data.

    Raises:
        ConfigurationError: The class, its aggregate or a class in an annotation marks personal data.
    """
    cls = type(event)
    refuse_marked_class(cls)
    if event_class(cls).collection == SNAPSHOTS and isinstance(getattr(event, "topic", None), str):
        refuse_marked_class(resolve_topic(event.topic))


def refuse_marked_class(cls: type[Any]) -> None:
    """
    Refuse a class that marks personal data.

    It may be a class of events, of decisions, or of aggregates.

    Raises:
        ConfigurationError: The class marks personal data, or an aggregate to which it belongs does.
    """
    if cls in _unmarked:
        return
    refuse_personal(cls, _WHY, _REMEDY, functions=_methods(cls))
    for owner in _owners(cls):
        refuse_personal(owner, _WHY, _REMEDY, functions=_methods(owner), lenient=True)
    _unmarked.add(cls)


def refuse_marked_types(types: Iterable[type[Any]]) -> None:
    """
    Refuse a transcoder's types if they mark personal data.

    Raises:
        ConfigurationError: A type marks personal data.
    """
    for cls in types:
        if cls not in _unmarked:
            refuse_personal(cls, _WHY, _REMEDY, lenient=True)
            _unmarked.add(cls)


def _owners(cls: type[Any]) -> Iterator[type[Any]]:
    """Yield the application's aggregates that have this class of events."""
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
    """Return the methods of an aggregate whose arguments its events may keep."""
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
