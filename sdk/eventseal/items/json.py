"""
JSON with the types that events are made of.

What JSON has stands as it is. Everything else is an object with one key that begins with ``$``, such as
``{"$uuid":"..."}``; a dictionary that looks like one, or whose keys are not all strings, is written as
``{"$dict":[[key,value],...]}``, so that no dictionary of a user's is ever mistaken.
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
    Turns values into compact UTF-8 and back, each type exactly as it was.

    It knows what JSON has (finite numbers only), dictionaries, lists, tuples, sets, frozen sets, bytes,
    UUIDs, decimals, datetimes with and without a zone, dates, times, time deltas, enumerations and
    dataclasses, in any depth. A subclass of one of these is another type: register it. A zone comes back as
    its offset.
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
        Teach the transcoder a type, before it is used.

        Args:
            cls: The very class, not its subclasses.
            name: What stored values are marked with; it must stay what it is.
            encode: Gives a value that can be encoded.
            decode: Gives the object back.

        Raises:
            ConfigurationError: The type or the name is taken.
        """
        marker = f"${name}"
        refuse_personal(cls, *REFUSED_ENCODING, lenient=True)  # its module may still be being imported
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
            SerializationError: Something in it has no encoding; the message says where and of what type.
        """
        return _encoded(self._writer.write, value, "value")

    def encode_attributes(self, attributes: dict[str, Any], *, owner: str) -> bytes:
        """
        Write an object's attributes.

        Args:
            attributes: By name.
            owner: Whose they are: begins the path that an error shows.

        Raises:
            SerializationError: One of them has no encoding; the message says which and of what type.
        """
        return _encoded(self._writer.write_attributes, attributes, owner)

    def decode(self, data: bytes, *, resolve: Resolve = _NO_MODULES) -> Any:
        """
        Read what was written.

        Args:
            data: As :meth:`encode` gives it.
            resolve: Finds the class of a topic. For authenticated data, give :func:`resolve_topic`.

        Raises:
            SerializationError: It is not JSON of this form, or names a type that is not known here.
        """
        decoder, _ = self._decoders.get(resolve) or self._decoder(resolve)
        return _decoded(decoder, data)

    def draft(self, cls: type[Any], attributes: dict[str, Any], whole: dict[str, Any]) -> ItemDraft:
        """
        Write an event's attributes but for its personal data, which are sealed before they are put in.

        Args:
            cls: The event's class.
            attributes: Those that are stored in the data.
            whole: Those and the place: where the subjects are looked for.

        Raises:
            SerializationError: One of them has no encoding, or personal data have no subject.
        """
        writer = FieldWriter(self._writer)
        return _written(lambda: writer.draft(cls, attributes, whole), topic_of(cls))

    def parse(self, data: bytes) -> Any:
        """
        Read the JSON alone: markers of types stay what they are until :meth:`build`.

        Raises:
            SerializationError: It is not JSON.
        """
        return _decoded(self._parser, data)

    def build(self, raw: Any, *, resolve: Resolve = _NO_MODULES) -> Any:
        """
        Make the value that parsed JSON stands for.

        Args:
            raw: As :meth:`parse` gives it; whatever JSON does not have in it stays as it is.
            resolve: As for :meth:`decode`.

        Raises:
            SerializationError: It names a type that is not known here, or cannot be read.
        """
        _, readers = self._decoders.get(resolve) or self._decoder(resolve)
        with suppress(RecursionError):
            return _built(readers, raw)
        raise nested_too_deeply()  # here: the cause would hold the plaintext

    def _decoder(self, resolve: Resolve) -> tuple[JSONDecoder, Readers]:
        readers = dict(self._readers)
        for marker, read in CLASS_READERS.items():
            readers[marker] = partial(_read_of_class, read, resolve)
        hook = partial(_read_object, readers)
        decoder = JSONDecoder(object_hook=hook, parse_constant=_refuse_constant), readers
        self._decoders[resolve] = decoder
        return decoder


_CHANGED_REMEDY = "If the class was changed, register an encoding that reads both forms."


def _built(readers: Readers, raw: Any) -> Any:
    # Loops, since a comprehension takes a level of the stack of its own on Python 3.11.
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
        pass  # raised below: the cause may hold the plaintext
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
        pass  # raised below: the cause would hold the plaintext
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
    # Raised here: a cause would hold the frames that hold the plaintext.
    path = root + "".join(reversed(refused.path))
    raise SerializationError(
        f"{path} {refused.reason}",
        remedy=refused.remedy,
        path=path,
        holds_personal_data=isinstance(refused, HoldsPersonalData),
    )


def class_named_in(stored: object) -> str:
    """
    Give the topic in the value of a marker of :data:`CLASS_READERS`.

    Raises:
        SerializationError: The value is not a topic with a value.
    """
    if type(stored) is not list or len(stored) != _TOPIC_AND_VALUE or type(stored[0]) is not str:
        raise SerializationError("a stored type does not name its class", remedy=_CHANGED_REMEDY)
    return stored[0]


def _read_of_class(read: Callable[[type[Any], Any], Any], resolve: Resolve, stored: list[Any]) -> Any:
    cls, value = resolve(class_named_in(stored)), stored[1]
    found = read(cls, value)
    if resolve is not resolve_topic and type(value) is dict:  # of an unauthenticated item, in today's form
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
"""Reads what a marker stands for, from a class and a value; its topic is stored with the value."""

_TOPIC_AND_VALUE = 2


def _refuse_sealed(_: object) -> NoReturn:
    raise SerializationError(
        "a personal-data field is sealed here, which only a mapper opens",
        remedy="Read the item with its mapper.",
    )


def _refuse_constant(constant: str) -> NoReturn:
    raise SerializationError(f"JSON has no {constant}")


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
