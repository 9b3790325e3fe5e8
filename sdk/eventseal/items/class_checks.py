"""Looks up the classes that an item names, in its topic and its JSON, before it is sealed."""

from __future__ import annotations

from contextlib import suppress
from json.decoder import JSONDecoder
from typing import TYPE_CHECKING, Any

from eventseal.errors import SerializationError
from eventseal.items.attribute_names import refuse_methods
from eventseal.items.field_values import STATE_MARKER
from eventseal.items.json import CLASS_READERS, class_named_in

if TYPE_CHECKING:
    from eventseal.items.event_modules import EventModules


class ClassChecks:
    """
    Refuses items that name other classes than the application's, or replace a method of theirs.

    Once sealed, an item counts as authentic.

    Args:
        modules: Looks up the classes.
        is_library: Whether the eventsourcing library reads the items: its JSON has no marker of a class.
    """

    def __init__(self, modules: EventModules, *, is_library: bool = False) -> None:
        self._modules = modules
        # It accepts whatever a reader accepts: NaN, control characters, numbers that are too long for an int.
        hook = None if is_library else self._checked
        self._decoder = JSONDecoder(object_hook=hook, parse_int=float, strict=False)

    def check(self, topic: str, plaintext: bytes) -> None:
        """
        Look up all classes that an item names, and the names of their attributes.

        Args:
            topic: The item's.
            plaintext: Its JSON. Bytes that are not JSON name no classes.

        Raises:
            ConfigurationError: A module is not there.
            SerializationError: A class is not the application's, an attribute has the name of a method, or
                the JSON is nested too deeply to look.
        """
        cls = self._modules.resolve(topic)
        is_deep = False
        raw: Any = None
        try:
            raw = self._decoder.raw_decode(str(plaintext, "utf-8").strip())[0]
        except SerializationError:
            raise
        except RecursionError:
            is_deep = True
        except ValueError:
            return
        if is_deep:  # raised here: the cause would hold the plaintext
            raise SerializationError(
                "the item's JSON is nested too deeply to look for the classes that it names",
                remedy="Migrate with a higher sys.setrecursionlimit(), or find out who wrote the row.",
            )
        if type(raw) is dict:
            self._modules.check_attributes(cls, raw)

    def _checked(self, value: dict[str, Any]) -> Any:
        if len(value) == 1:
            ((marker, stored),) = value.items()
            if marker in CLASS_READERS:
                cls = self._modules.resolve(class_named_in(stored))
                if type(stored[1]) is dict:
                    refuse_methods(cls, stored[1])
            elif marker == STATE_MARKER:
                return stored
            elif marker == "$dict":  # whose keys a reader takes as the names of attributes
                with suppress(TypeError, ValueError):
                    return dict(stored)
                raise SerializationError("a stored 'dict' cannot be read")
        return value
