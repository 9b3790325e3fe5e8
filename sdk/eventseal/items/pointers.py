"""JSON Pointers (RFC 6901): where a value stands in an item's JSON."""

from __future__ import annotations

from typing import Any


def joined(path: str, step: str | int) -> str:
    """Go one step further: to a member of an object, or to an element of an array."""
    if isinstance(step, int):
        return f"{path}/{step}"
    if "~" in step or "/" in step:
        step = step.replace("~", "~0").replace("/", "~1")
    return f"{path}/{step}"


def found_at(root: Any, path: str) -> Any:
    """
    Find what stands at a place.

    Args:
        root: JSON, as Python has it.
        path: A pointer.

    Raises:
        LookupError: Nothing does, or it is no pointer.
    """
    if path and not path.startswith("/"):
        raise LookupError(path)
    value = root
    for step in path.split("/")[1:]:
        if isinstance(value, dict):
            value = value[step.replace("~1", "/").replace("~0", "~")]
        elif isinstance(value, list) and step.isdecimal() and step.isascii():
            value = value[int(step)]
        else:
            raise LookupError(path)
    return value
