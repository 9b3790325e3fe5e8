"""
JSON with more types: the types that events consist of.

JSON's own types keep their form. Every other value is an object with one key that begins with ``$``, such as
``{"$uuid":"..."}``. A user's dictionary may look like one, or have keys that are not strings. Such a
dictionary is written as ``{"$dict":[[key,value],...]}``, so that no reader mistakes it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import is_dataclass
from enum import Enum, Flag
from functools import partial
from json.decoder import JSONDecoder
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from eventseal.errors import REPAIR_ROW, ConfigurationError, EventSealError, SerializationError
from eventseal.items.event_modules import EventModules, refuse_methods
from eventseal.items.fields import FieldWriter
from eventseal.items.json_writer import (
    MASK_MARKER,
    REFUSED_ENCODING,
    SEALED_MARKER,
    STANDARD_TYPES,
    STATE_MARKER,
    HoldsPersonalData,
    JSONWriter,
    Refused,
    nested_too_deeply,
    shallow,
)
from eventseal.items.markers import Masked
from eventseal.items.objects import restore
from eventseal.items.personal import refuse_personal
from eventseal.items.topics import class_name, resolve_topic, topic_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventseal.items.fields import ItemDraft
    from eventseal.items.topics import Resolve

    Readers = dict[str, Callable[[Any], Any]]


T = TypeVar("T")
_NO_MODULES = EventModules().resolve


class JSONTranscoder:
    """
    Writes values as compact UTF-8, and reads back their exact types.

    It knows these types, in any depth:

    - the types of JSON, with finite numbers only
    - dictionaries, lists, tuples, sets and frozen sets
    - bytes, UUIDs and decimals
    - datetimes with and without a zone, dates, times and time deltas
    - enumerations and dataclasses

    A subclass of one of these is a different type, which you must register. A zone comes back as its offset.
    """

    def __init__(self) -> None:
        self._writer = JSONWriter()
        self._readers: Readers = {
            "$dict": dict,
            "$tuple": tuple,
            "$set": set,
            "$frozenset": frozenset,
            MASK_MARKER: lambda value: Masked(*value),
            SEALED_MARKER: _refuse_sealed,
            STATE_MARKER: lambda value: value,
        }
        self._decoders: dict[Resolve, tuple[JSONDecoder, Readers]] = {}
        self._parser = JSONDecoder(parse_constant=_refuse_constant)
        for cls, name, encode, decode in STANDARD_TYPES:
            self.register(cls, name, encode, decode)

    def register(
        self, cls: type[T], name: str, encode: Callable[[T], Any], decode: Callable[[Any], T]
    ) -> None:
        """
        Register a type, before its first use.

        Args:
            cls: The class itself. Its subclasses are not registered.
            name: The marker of stored values. It must never change.
            encode: Returns a value that can be encoded.
            decode: Returns the object for such a value.

        Raises:
            ConfigurationError: The type or the name is registered already.
        """
        marker = f"${name}"
        refuse_personal(cls, *REFUSED_ENCODING, lenient=True)  # the import of its module may not be complete
        if self._writer.knows(cls) or marker in self._readers or marker in CLASS_READERS:
            raise ConfigurationError(
                f"{class_name(cls)} as {name!r}: the type or the name is registered already"
            )
        self._writer.register(cls, marker, encode)
        self._readers[marker] = decode
        self._decoders.clear()

    def encode(self, value: Any) -> bytes:
        """
        Write any value.

        Raises:
            SerializationError: A part of it has no encoding. The message names its place and its type.
        """
        return _encoded(self._writer.write, value, "value")

    def encode_attributes(self, attributes: dict[str, Any], *, owner: str) -> bytes:
        """
        Write an object's attributes.

        Args:
            attributes: The attributes by name.
            owner: The owner of the attributes. An error shows it at the start of the path.

        Raises:
            SerializationError: An attribute has no encoding. The message names the attribute and its type.
        """
        return _encoded(self._writer.write_attributes, attributes, owner)

    def decode(self, data: bytes, *, resolve: Resolve = _NO_MODULES) -> Any:
        """
        Read a value from its JSON.

        Args:
            data: The bytes that :meth:`encode` returned.
            resolve: Finds the class of a topic. For authenticated data, pass :func:`resolve_topic`.

        Raises:
            SerializationError: The data are not JSON of this form, or name an unknown type.
        """
        decoder, _ = self._decoders.get(resolve) or self._decoder(resolve)
        return _decoded(decoder, data)

    def draft(self, cls: type[Any], attributes: dict[str, Any], whole: dict[str, Any]) -> ItemDraft:
        """
        Write an event's attributes, with holes for the personal data to seal.

        Args:
            cls: The class of the event.
            attributes: The attributes that the data hold.
            whole: These attributes and the place, to find the subjects.

        Raises:
            SerializationError: An attribute has no encoding, or personal data have no subject.
        """
        writer = FieldWriter(self._writer)
        return _written(lambda: writer.draft(cls, attributes, whole), topic_of(cls))

    def parse(self, data: bytes) -> Any:
        """
        Parse the JSON only. Markers of types stay until :meth:`build`.

        Raises:
            SerializationError: The data are not JSON.
        """
        return _decoded(self._parser, data)

    def build(self, raw: Any, *, resolve: Resolve = _NO_MODULES) -> Any:
        """
        Build the value that parsed JSON represents.

        Args:
            raw: The result of :meth:`parse`. Values in it that JSON does not have stay as they are.
            resolve: Finds the class of a topic, as for :meth:`decode`.

        Raises:
            SerializationError: The JSON names an unknown type, or cannot be read.
        """
        _, readers = self._decoders.get(resolve) or self._decoder(resolve)
        with suppress(RecursionError):
            return _built(readers, raw)
        raise nested_too_deeply()  # raised here, because the cause would hold the plaintext

    def _decoder(self, resolve: Resolve) -> tuple[JSONDecoder, Readers]:
        readers = dict(self._readers)
        for marker, read in CLASS_READERS.items():
            readers[marker] = partial(_read_of_class, read, resolve)
        hook = partial(_read_object, readers)
        decoder = JSONDecoder(object_hook=hook, parse_constant=_refuse_constant), readers
        self._decoders[resolve] = decoder
        return decoder


_CHANGED_REMEDY = "If the class was changed, register an encoding that reads both of its forms."


def _built(readers: Readers, raw: Any) -> Any:
    # Loops, because a comprehension takes one more level of the stack on Python 3.11.
    if type(raw) is dict:
        built = {}
        for key, value in raw.items():
            built[key] = _built(readers, value)
        return _read_object(readers, built)
    if type(raw) is list:
        elements = []
        for value in raw:
            elements.append(_built(readers, value))  # noqa: PERF401
        return elements
    return raw


def _read_object(readers: Readers, value: dict[str, Any]) -> Any:
    if len(value) != 1:
        return value
    (marker,) = value
    if not marker.startswith("$"):
        return value
    read = readers.get(marker)
    if read is None:
        raise SerializationError(
            f"no type is registered under {marker[1:]!r}",
            remedy="Register it with JSONTranscoder.register().",
        )
    try:
        return read(value[marker])
    except EventSealError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        pass  # raised below, because the cause may hold the plaintext
    raise SerializationError(f"a stored {marker[1:]!r} cannot be read", remedy=_CHANGED_REMEDY)


def _decoded(decoder: JSONDecoder, data: bytes) -> Any:
    is_deep = False
    try:
        text = str(data, "utf-8").strip()
        value, end = decoder.scan_once(text, 0)  # type: ignore[attr-defined]  # raw_decode() is slower
        if end == len(text):
            return value
    except EventSealError:
        raise
    except RecursionError:
        is_deep = True
    except (StopIteration, ValueError):
        pass  # raised below, because the cause would hold the plaintext
    if is_deep:
        raise nested_too_deeply()
    raise SerializationError(
        f"{len(data)} bytes are not the JSON of an event",
        remedy=f"Read the item with the cipher that encrypted it. If the row was edited: {REPAIR_ROW}",
    )


def _encoded(write: Callable[[Any], str], value: Any, root: str) -> bytes:
    return _written(lambda: shallow(write(value)), root).encode()


def _written(write: Callable[[], T], root: str) -> T:
    try:
        return write()
    except Refused as exc:
        refused = exc
    except RecursionError:
        refused = Refused("is nested too deeply, or holds itself")
    # Raised here, because a cause would have the frames that hold the plaintext.
    path = root + "".join(reversed(refused.path))
    raise SerializationError(
        f"{path} {refused.reason}",
        remedy=refused.remedy,
        path=path,
        holds_personal_data=isinstance(refused, HoldsPersonalData),
    )


def class_named_in(stored: object) -> str:
    """
    Return the topic in the value of a marker of :data:`CLASS_READERS`.

    Raises:
        SerializationError: The value is not a topic with a value.
    """
    if type(stored) is not list or len(stored) != _TOPIC_AND_VALUE or type(stored[0]) is not str:
        raise SerializationError("a stored type does not name its class", remedy=_CHANGED_REMEDY)
    return stored[0]


def _read_of_class(read: Callable[[type[Any], Any], Any], resolve: Resolve, stored: list[Any]) -> Any:
    cls, value = resolve(class_named_in(stored)), stored[1]
    found = read(cls, value)
    if resolve is not resolve_topic and type(value) is dict:  # an unauthenticated item, in its current form
        refuse_methods(cls, value)
    return found


def _read_enum(cls: type[Any], member: Any) -> Enum:
    if not issubclass(cls, Enum):
        raise SerializationError(f"{class_name(cls)} is not an enumeration", remedy=_CHANGED_REMEDY)
    return cls(member) if issubclass(cls, Flag) else cls[member]


def _read_dataclass(cls: type[Any], attributes: Any) -> Any:
    if not is_dataclass(cls):
        raise SerializationError(f"{class_name(cls)} is not a dataclass", remedy=_CHANGED_REMEDY)
    return restore(cls, attributes)


CLASS_READERS: dict[str, Callable[[type[Any], Any], Any]] = {
    "$enum": _read_enum,
    "$dataclass": _read_dataclass,
}
"""Reads the value of a marker from a class and a value. The topic of the class is stored with the value."""

_TOPIC_AND_VALUE = 2


def _refuse_sealed(_: object) -> NoReturn:
    raise SerializationError(
        "a personal-data field is sealed here, and only a mapper opens it",
        remedy="Read the item with the mapper of its table.",
    )


def _refuse_constant(constant: str) -> NoReturn:
    raise SerializationError(f"JSON has no {constant}")


class ClassChecks:
    """
    Refuses items that name foreign classes, or hide methods.

    An item may only name the application's classes, and replace none of their methods. After the migration
    has sealed it, an item counts as authentic.

    Args:
        modules: Looks up the classes.
        is_library: Whether the eventsourcing library reads the items. Its JSON has no marker for classes.
    """

    def __init__(self, modules: EventModules, *, is_library: bool = False) -> None:
        self._modules = modules
        # It accepts everything that a reader accepts: NaN, control characters, numbers too long for an int.
        hook = None if is_library else self._checked
        self._decoder = JSONDecoder(object_hook=hook, parse_int=float, strict=False)

    def check(self, topic: str, plaintext: bytes) -> None:
        """
        Check all classes that an item names, and the names of attributes.

        Args:
            topic: The topic of the item.
            plaintext: The JSON of the item. Bytes that are not JSON name no classes.

        Raises:
            ConfigurationError: A module is missing.
            SerializationError: A class is not one of the application's, an attribute has the name of a
                method, or the JSON is nested too deeply to check.
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
        if is_deep:  # raised here, because the cause would hold the plaintext
            raise SerializationError(
                "the item's JSON is nested too deeply to check the classes that it names",
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
            elif marker == "$dict":  # a reader uses its keys as names of attributes
                with suppress(TypeError, ValueError):
                    return dict(stored)
                raise SerializationError("a stored 'dict' cannot be read")
        return value
