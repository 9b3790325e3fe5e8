"""Takes the personal data out of an event before it is written, and puts them back sealed."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from eventseal.items.field_values import STATE_MARKER, ObjectState, Placeholder, Rewritten
from eventseal.items.json_types import Refused, shallow
from eventseal.items.json_writer import is_written_as_pairs
from eventseal.items.masks import Masked
from eventseal.items.objects import attributes_of
from eventseal.items.personal import plan_of
from eventseal.items.pointers import joined
from eventseal.items.shapes import Choice, Elements, Positions, Sealed, Values, chosen, fits
from eventseal.items.subjects import NAME_SUBJECT, Enclosing, find_subject, subject_scope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventseal.items.json_writer import JSONWriter
    from eventseal.items.shapes import PersonalData, Shape

_SIMPLE = {str, int, float, bool, type(None), bytes, Masked}
_PLACEHOLDER = re.compile(r"\0(\d+)\0")


class FieldDraft(NamedTuple):
    """
    A field before it is sealed.

    Attributes:
        plaintext: Its JSON.
        path: Where it stands in the item: a JSON Pointer.
        scope: Of its subject.
    """

    plaintext: bytes
    path: str
    scope: str


class ItemDraft(NamedTuple):
    """
    An event's JSON with holes for its fields.

    Attributes:
        text: With a placeholder, which no JSON text holds, for each field.
        fields: By the number in their placeholder.
        compress: Whether the event's class lets compression show lengths.
    """

    text: str
    fields: Sequence[FieldDraft]
    compress: bool

    def filled(self, envelopes: Sequence[bytes]) -> bytes:
        """Put the sealed fields in."""
        texts = [b64encode(envelope).decode("ascii") for envelope in envelopes]
        return _PLACEHOLDER.sub(lambda match: texts[int(match[1])], self.text).encode()


class _Where(NamedTuple):
    """
    Where a value stands.

    Attributes:
        path: In the item's JSON, for the cipher.
        shown: In the event, for messages: keys of dictionaries are data and are counted instead.
        name: Of the attribute that it is, or is in.
    """

    path: str = ""
    shown: str = ""
    name: str = ""

    def attribute(self, name: str) -> _Where:
        return _Where(joined(self.path, name), f"{self.shown}.{name}", name)

    def element(self, index: int) -> _Where:
        return self._replace(path=joined(self.path, index), shown=f"{self.shown}[{index}]")

    def value(self, key: str, index: int) -> _Where:
        return self._replace(path=joined(self.path, key), shown=f"{self.shown}{{{index}}}")

    def inside(self, *steps: str | int) -> _Where:
        path = self.path
        for step in steps:
            path = joined(path, step)
        return self._replace(path=path)


class FieldWriter:
    """
    Writes events that hold personal data; of one event, for one time.

    Args:
        writer: Writes JSON.
    """

    def __init__(self, writer: JSONWriter) -> None:
        self._writer = writer
        self._fields: list[FieldDraft] = []

    def draft(
        self, cls: type[Any], attributes: dict[str, Any], whole: dict[str, Any], *, compress: bool
    ) -> ItemDraft:
        """
        Write an event's attributes, but for its personal data.

        Args:
            cls: The event's class.
            attributes: Those that are stored in the data.
            whole: Those and the place: where the subjects are looked for.
            compress: Whether compression may be tried.

        Raises:
            Refused: Something has no encoding, or no subject.
        """
        rewritten = self._attributes(attributes, plan_of(cls).fields, _Where(), [Enclosing("", whole)])
        return ItemDraft(shallow(self._writer.write_attributes(rewritten)), self._fields, compress)

    def _attributes(
        self,
        attributes: dict[str, Any],
        shapes: Mapping[str, Shape],
        where: _Where,
        around: Sequence[Enclosing],
    ) -> dict[str, Any]:
        as_pairs = is_written_as_pairs(attributes)
        rewritten: dict[str, Any] = {}
        for index, (name, value) in enumerate(attributes.items()):
            there = where.attribute(name)
            if as_pairs:
                there = there._replace(path=where.inside("$dict", index, 1).path)
            rewritten[name] = self._value(value, shapes.get(name), there, around)
        return rewritten

    def _value(self, value: Any, shape: Shape | None, where: _Where, around: Sequence[Enclosing]) -> Any:
        if isinstance(shape, Sealed):
            return self._sealed(value, shape.data, where, around)
        if isinstance(shape, Choice):
            try:
                shape = chosen(shape, value)
            except TypeError:
                raise _misfit(value, where) from None
        kind = type(value)
        if kind in _SIMPLE:
            if shape is not None and value is not None:
                raise _misfit(value, where)
            return value
        if shape is not None and not fits(shape, value):
            raise _misfit(value, where)
        if kind is list or kind is tuple:
            return self._elements(value, shape, where, around)
        if kind is dict:
            return self._values(value, shape, where, around)
        if kind is ObjectState:
            inside = where.inside(STATE_MARKER)
            inner = [*around, Enclosing(inside.path, value)]
            return ObjectState(self._attributes(value, value.shapes, inside, inner))
        if is_dataclass(kind) and not self._writer.knows(kind):
            attributes = attributes_of(value)
            inside = where.inside("$dataclass", 1)
            inner = [*around, Enclosing(inside.path, attributes)]
            return Rewritten(kind, self._attributes(attributes, plan_of(kind).fields, inside, inner))
        return value

    def _elements(self, value: Any, shape: Shape | None, where: _Where, around: Sequence[Enclosing]) -> Any:
        where = where.inside("$tuple") if type(value) is tuple else where
        shapes: Sequence[Shape | None]
        if isinstance(shape, Positions):
            shapes = shape.inner
        else:
            shapes = [shape.inner if isinstance(shape, Elements) else None] * len(value)
        return type(value)(
            [
                self._value(one, inner, where.element(index), around)
                for index, (one, inner) in enumerate(zip(value, shapes, strict=True))
            ]
        )

    def _values(
        self, value: dict[Any, Any], shape: Shape | None, where: _Where, around: Sequence[Enclosing]
    ) -> dict[Any, Any]:
        inner = shape.inner if isinstance(shape, Values) else None
        as_pairs = is_written_as_pairs(value)
        rewritten: dict[Any, Any] = {}
        for index, (key, one) in enumerate(value.items()):
            there = where.value("" if as_pairs else key, index)
            if as_pairs:
                there = there._replace(path=where.inside("$dict", index, 1).path)
            rewritten[key] = self._value(one, inner, there, around)
        return rewritten

    def _sealed(self, value: Any, data: PersonalData, where: _Where, around: Sequence[Enclosing]) -> Any:
        if _is_erased(value):
            return value
        subject = find_subject(data.subject, around)
        if subject is None or subject.value is None:
            if value is None:
                return None  # nobody's, and nothing
            is_none = "is None" if subject is not None else "is not there"
            raise _refused(f"has no subject: {data.subject!r} {is_none}", where, NAME_SUBJECT)
        try:
            scope = subject_scope(subject.value)
            if data.masks(value):
                return Masked(scope, where.name.lstrip("_"))
            plaintext = shallow(self._writer.write(value)).encode()
        except Refused as exc:
            exc.path.append(where.shown)
            raise
        self._fields.append(FieldDraft(plaintext, where.path, scope))
        return Placeholder(len(self._fields) - 1, subject.path)


def _is_erased(value: Any) -> bool:
    """Whether a value is a mask, or holds nothing else: there is nothing to be sealed, and for nobody."""
    if type(value) is Masked:
        return True
    if type(value) is dict:
        value = list(value.values())
    return type(value) in {list, tuple} and bool(value) and all(map(_is_erased, value))


def _misfit(value: object, where: _Where) -> Refused:
    return _refused(
        f"is a {type(value).__name__}, which its annotation, with personal data inside, does not allow",
        where,
        "Give it a value of the type that the annotation says, or correct the annotation.",
    )


def _refused(reason: str, where: _Where, remedy: str) -> Refused:
    refused = Refused(reason, remedy=remedy)
    refused.path.append(where.shown)
    return refused
