"""Whether a value is of an annotation's type, as far as that can be told."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType, Union, get_args, get_origin

from eventseal.items.annotations import Unresolved, alias_of, alias_value

if TYPE_CHECKING:
    from collections.abc import Callable


def conforms(value: object, hint: Any, resolved: Callable[[Any], Any]) -> bool:
    """
    Whether *value* is of the type that *hint* names.

    Args:
        value: Any.
        hint: An annotation, or a part of one.
        resolved: Gives an object for a part that is text.

    Returns:
        Whether it is; ``True`` where nobody can tell, such as of a protocol.
    """
    hint = resolved(hint)
    if isinstance(hint, NewType):
        return conforms(value, hint.__supertype__, resolved)
    alias = alias_of(hint)
    if alias is not None:
        return conforms(value, alias_value(alias, hint)[0], resolved)
    if hint is None:
        hint = type(None)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return conforms(value, arguments[0], resolved)
    if origin in (Union, types.UnionType):
        return any(conforms(value, argument, resolved) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin is not None:
        return _is_instance(value, origin) and _elements_conform(value, origin, arguments, resolved)
    return _is_instance(value, hint)


def _is_instance(value: object, cls: Any) -> bool:
    if not isinstance(cls, type) or isinstance(cls, Unresolved):
        return True
    if isinstance(value, bool) and cls in (int, float):
        return False
    if cls is float and isinstance(value, int):
        return True
    try:
        return isinstance(value, cls)
    except TypeError:  # a protocol that is not checked at run time
        return True


def _elements_conform(
    value: Any, origin: Any, arguments: tuple[Any, ...], resolved: Callable[[Any], Any]
) -> bool:
    if isinstance(value, dict) and arguments:
        keys, values = arguments
        return all(
            conforms(key, keys, resolved) and conforms(one, values, resolved) for key, one in value.items()
        )
    if origin is tuple and Ellipsis not in arguments:
        return len(value) == len(arguments) and all(
            conforms(one, argument, resolved) for one, argument in zip(value, arguments, strict=True)
        )
    if isinstance(value, list | tuple | set | frozenset) and arguments:
        return all(conforms(one, arguments[0], resolved) for one in value)
    return True
