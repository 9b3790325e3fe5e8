"""
Publish and subscribe, within the process.

An entity has an owner: the application, or the event store, that it was loaded from or in whose name it was
created. What it publishes is published in its owner's name, so that two applications side by side never store
each other's events.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Handler = Callable[[Any], object]
    Predicate = Callable[[Any], bool]

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
