"""Decorators for domain models: attributes that publish, mutator functions, commands that are tried again."""

from __future__ import annotations

import time
from functools import singledispatch, update_wrapper, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from eventseal.errors import ConfigurationError, SequencedItemConflictError

if TYPE_CHECKING:
    from collections.abc import Callable

    Mutate = Callable[[Any, Any], Any]

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
