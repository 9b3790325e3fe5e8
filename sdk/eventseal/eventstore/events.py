"""Domain events, how they are published, and the decorators of models that make and take them."""

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
    Something that happened. Its attributes are the arguments of its constructor, and do not change.

    Its repr shows which event it is, not what it holds: logs and tracebacks are not sealed.
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
        # Its place alone: the other attributes need not be hashable.
        return hash((type(self), *(self.__dict__.get(name) for name in _PLACE)))

    def __repr__(self) -> str:
        place = "".join(f" {name}={self.__dict__[name]}" for name in _PLACE if name in self.__dict__)
        return f"<{type(self).__qualname__}{place}>"

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class EventWithOriginatorID(DomainEvent):
    """
    Of an entity.

    Args:
        originator_id: The entity's id: its stream.
    """

    def __init__(self, *, originator_id: UUID | str, **attributes: Any) -> None:
        super().__init__(originator_id=originator_id, **attributes)


class EventWithOriginatorVersion(DomainEvent):
    """
    Of an entity that counts its events.

    Args:
        originator_version: The entity's version when it happened: its position, from 0.
    """

    def __init__(self, *, originator_version: int, **attributes: Any) -> None:
        super().__init__(originator_version=originator_version, **attributes)


class EventWithTimestamp(DomainEvent):
    """
    At a time.

    Args:
        timestamp: Seconds since the epoch, of at most 6 places; now by default.
    """

    def __init__(self, *, timestamp: Decimal | None = None, **attributes: Any) -> None:
        super().__init__(timestamp=now() if timestamp is None else timestamp, **attributes)


class Created(DomainEvent):
    """An entity came to be."""


class AttributeChanged(DomainEvent):
    """An attribute of an entity has a new value: ``name``, ``value``."""


class Discarded(DomainEvent):
    """An entity is no more."""


class Logged(EventWithTimestamp, EventWithOriginatorID):
    """Something worth noting in a stream that is in order of time."""


def now() -> Decimal:
    """
    The time in seconds since the epoch, to the microsecond.

    No two calls in a process give the same: it is a position in a stream that is in order of time.
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
    Call every handler whose predicate holds, in the order of their subscription.

    Args:
        event: A domain event, or a list of them that belong together.
    """
    for handler, predicate in tuple(_subscriptions):
        if predicate is None or predicate(event):
            handler(event)


def subscribe(handler: Handler, predicate: Predicate | None = None) -> None:
    """Have *handler* called with what is published, if *predicate* holds for it."""
    _subscriptions.append((handler, predicate))


def unsubscribe(handler: Handler, predicate: Predicate | None = None) -> None:
    """End a subscription; one that does not exist is no error."""
    if (handler, predicate) in _subscriptions:
        _subscriptions.remove((handler, predicate))


@contextmanager
def owned_by(owner: object | None) -> Iterator[None]:
    """
    Publish, and create entities, in the name of *owner* while the block runs.

    Args:
        owner: An application or an event store; ``None`` for nobody's.
    """
    token = _owner.set(owner)
    try:
        yield
    finally:
        _owner.reset(token)


def current_owner() -> object | None:
    """In whose name the event that is being handled was published."""
    return _owner.get()


P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound="Callable[[Any, Any], Any]")


class mutator:  # noqa: N801 - a decorator
    """
    A function of an entity and an event that is chosen by the event's class.

    ::

        @mutator
        def mutate_order(initial, event):
            return mutate_entity(initial, event)

        @mutate_order.register(Order.LineAdded)
        def _(self, event):
            self.lines.append(event.line)
            return self

    Args:
        default: For events of any other class.
    """

    def __init__(self, default: Mutate) -> None:
        self._dispatch = singledispatch(lambda event, initial: default(initial, event))
        update_wrapper(self, default)

    def register(self, event_class: type[Any]) -> Callable[[F], F]:
        """Use the decorated function for events of *event_class* and of its subclasses."""

        def decorate(function: F) -> F:
            self._dispatch.register(event_class, lambda event, initial: function(initial, event))
            return function

        return decorate

    def __call__(self, initial: Any, event: Any) -> Any:
        """
        Apply *event*.

        Args:
            initial: The entity, or its class if there is none yet.
            event: What happened.

        Returns:
            The entity, or ``None`` if it is no more.
        """
        return self._dispatch(event, initial)


def attribute(getter: Callable[[Any], Any]) -> property:
    """
    Make a method into a property of the entity's attribute ``_name``, which publishes when it is set.

    Args:
        getter: Gives the property its name and docstring; it is not called.
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
    Call a command again if it fails by *exc*; it must get its entities from their repository itself.

    Args:
        exc: What is worth another try: a conflict, by default.
        max_attempts: How often the command is called at most, 1 or more; the last failure is raised.
        wait: Seconds before each further try.

    Raises:
        ConfigurationError: *max_attempts* or *wait* is out of range.
    """
    if max_attempts < 1 or wait < 0:
        raise ConfigurationError(
            f"a command is tried 1 time or more, after 0 s or more; not {max_attempts}, {wait}"
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
