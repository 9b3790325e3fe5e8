"""Domain events, their publication, and decorators for models."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from functools import singledispatch, update_wrapper, wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from eventseal.errors import ConfigurationError, SequencedItemConflictError
from eventseal.items.topics import with_known_subclasses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    Handler = Callable[[Any], object]
    Predicate = Callable[[Any], bool]

    Mutate = Callable[[Any, Any], Any]


@with_known_subclasses
class DomainEvent:
    """
    Something that happened.

    Its attributes are the arguments of its constructor, and they do not change. Its repr shows which event it
    is, but not its data, because logs and tracebacks are not encrypted.
    """

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(
            f"{type(self).__qualname__} is a domain event: its attribute {name!r} does not change"
        )

    def __delattr__(self, name: str) -> NoReturn:
        DomainEvent.__setattr__(self, name, None)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    def __hash__(self) -> int:
        # Only the place of the event: the other attributes may not be hashable.
        return hash((type(self), *(self.__dict__.get(name) for name in _PLACE)))

    def __repr__(self) -> str:
        place = "".join(f" {name}={self.__dict__[name]}" for name in _PLACE if name in self.__dict__)
        return f"<{type(self).__qualname__}{place}>"

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class EventWithOriginatorID(DomainEvent):
    """
    An event of an entity.

    Args:
        originator_id: The id of the entity, which is also its stream.
    """

    def __init__(self, *, originator_id: UUID | str, **attributes: Any) -> None:
        super().__init__(originator_id=originator_id, **attributes)


class EventWithOriginatorVersion(DomainEvent):
    """
    An event of an entity that counts its events.

    Args:
        originator_version: The entity's version before the event, which is the event's position, from 0.
    """

    def __init__(self, *, originator_version: int, **attributes: Any) -> None:
        super().__init__(originator_version=originator_version, **attributes)


class EventWithTimestamp(DomainEvent):
    """
    An event with a time.

    Args:
        timestamp: The time in seconds since the epoch, with at most 6 decimal places. Now by default.
    """

    def __init__(self, *, timestamp: Decimal | None = None, **attributes: Any) -> None:
        super().__init__(timestamp=now() if timestamp is None else timestamp, **attributes)


class Created(DomainEvent):
    """An entity was created."""


class AttributeChanged(DomainEvent):
    """An attribute of an entity has a new value: ``name``, ``value``."""


class Discarded(DomainEvent):
    """An entity was discarded."""


class Logged(EventWithTimestamp, EventWithOriginatorID):
    """An event for a log: a stream in order of time."""


def now() -> Decimal:
    """
    Return the time in seconds since the epoch, to the microsecond.

    No two calls in a process return the same time, because it is a position in a stream in order of time.
    """
    with _clock_lock:
        _last[0] = max(time.time_ns() // 1000, _last[0] + 1)
        return Decimal(_last[0]).scaleb(-6)


_PLACE = ("originator_id", "originator_version", "timestamp")
_clock_lock = threading.Lock()
_last = [0]


_subscriptions: list[tuple[Handler, Predicate | None]] = []
_owner: ContextVar[object | None] = ContextVar("eventseal_owner", default=None)


def publish(event: Any) -> None:
    """
    Call every handler whose predicate accepts the event.

    The handlers are called in the order of their subscription.

    Args:
        event: A domain event, or a list of events that belong together.
    """
    for handler, predicate in tuple(_subscriptions):
        if predicate is None or predicate(event):
            handler(event)


def subscribe(handler: Handler, predicate: Predicate | None = None) -> None:
    """Call *handler* with each published event that *predicate* accepts."""
    _subscriptions.append((handler, predicate))


def unsubscribe(handler: Handler, predicate: Predicate | None = None) -> None:
    """End a subscription, if it exists."""
    if (handler, predicate) in _subscriptions:
        _subscriptions.remove((handler, predicate))


@contextmanager
def owned_by(owner: object | None) -> Iterator[None]:
    """
    Publish and create entities for *owner* while the block runs.

    Args:
        owner: An application or an event store. ``None``: no owner.
    """
    token = _owner.set(owner)
    try:
        yield
    finally:
        _owner.reset(token)


def current_owner() -> object | None:
    """Return the owner for which the current event was published."""
    return _owner.get()


P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound="Callable[[Any, Any], Any]")


class mutator:  # noqa: N801 - a decorator
    """
    A function of an entity and an event.

    The event's class selects the registered function that is called.

    ::

        @mutator
        def mutate_order(initial, event):
            return mutate_entity(initial, event)

        @mutate_order.register(Order.LineAdded)
        def _(self, event):
            self.lines.append(event.line)
            return self

    Args:
        default: The function for events of all other classes.
    """

    def __init__(self, default: Mutate) -> None:
        self._dispatch = singledispatch(lambda event, initial: default(initial, event))
        update_wrapper(self, default)

    def register(self, event_class: type[Any]) -> Callable[[F], F]:
        """Use the decorated function for *event_class* and its subclasses."""

        def decorate(function: F) -> F:
            self._dispatch.register(event_class, lambda event, initial: function(initial, event))
            return function

        return decorate

    def __call__(self, initial: Any, event: Any) -> Any:
        """
        Apply *event*.

        Args:
            initial: The entity, or its class if there is no entity yet.
            event: The event to apply.

        Returns:
            The entity, or ``None`` if it was discarded.
        """
        return self._dispatch(event, initial)


def attribute(getter: Callable[[Any], Any]) -> property:
    """
    Replace a method by a property that publishes changes.

    The property ``name`` reads the entity's attribute ``_name``. Setting it publishes an event.

    Args:
        getter: The method that names and documents the property. It is not called.
    """
    name = f"_{getter.__name__}"

    def read(entity: Any) -> Any:
        return getattr(entity, name)

    def write(entity: Any, value: Any) -> None:
        entity.change_attribute(name, value)

    return property(read, write, doc=getter.__doc__)


def retry(
    exc: type[Exception] | tuple[type[Exception], ...] = SequencedItemConflictError,
    max_attempts: int = 3,
    wait: float = 0.0,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """
    Call a command again if it raises *exc*.

    The command itself must get its entities from their repository.

    Args:
        exc: The exceptions that are worth another attempt. By default, a conflict.
        max_attempts: The highest number of calls, 1 or more. The last failure is raised.
        wait: The seconds before each further attempt.

    Raises:
        ConfigurationError: *max_attempts* or *wait* is out of range.
    """
    if max_attempts < 1 or wait < 0:
        raise ConfigurationError(
            f"max_attempts must be 1 or more, and wait 0 s or more, not {max_attempts} and {wait}",
            remedy="Correct max_attempts= or wait=.",
        )

    def decorate(command: Callable[P, T]) -> Callable[P, T]:
        @wraps(command)
        def try_again(*args: P.args, **kwargs: P.kwargs) -> T:
            for _ in range(max_attempts - 1):
                try:
                    return command(*args, **kwargs)
                except exc:
                    time.sleep(wait)
            return command(*args, **kwargs)

        return try_again

    return decorate
