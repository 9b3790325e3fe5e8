"""Seal and open the personal-data fields of a page of items."""

from __future__ import annotations

import re
from base64 import b64encode
from copy import copy
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from eventseal.cipher.aes import AESCipher
from eventseal.cipher.context import ItemContext
from eventseal.cipher.envelopes import FieldContext
from eventseal.errors import (
    ConfigurationError,
    EncryptionRequiredError,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    SerializationError,
)
from eventseal.items.item import tries_compression
from eventseal.items.json_writer import (
    STATE_MARKER,
    ObjectState,
    Placeholder,
    Refused,
    Rewritten,
    is_written_as_pairs,
    shallow,
)
from eventseal.items.markers import Choice, Elements, Masked, Positions, Sealed, Values, chosen, fits
from eventseal.items.objects import attributes_of
from eventseal.items.personal import plan_of
from eventseal.items.sealed_fields import (
    NAME_SUBJECT,
    Enclosing,
    find_subject,
    joined,
    stored_fields,
    subject_scope,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from eventseal.cipher.envelopes import Opened
    from eventseal.items.item import PlaceNames, StoredItem
    from eventseal.items.json import JSONTranscoder
    from eventseal.items.json_writer import JSONWriter
    from eventseal.items.markers import PersonalData, Shape
    from eventseal.items.sealed_fields import StoredField


CIPHER_NEEDED = "Pass cipher=AESCipher(keyring), or cipher=EventSeal.from_settings().cipher."
"""The remedy for a missing or a wrong cipher."""
_SIMPLE = {str, int, float, bool, type(None), bytes, Masked}
_PLACEHOLDER = re.compile(r"\0(\d+)\0")


class FieldDraft(NamedTuple):
    """
    A field before it is sealed.

    Attributes:
        plaintext: The JSON of the field.
        path: The place of the field in the item: a JSON Pointer.
        scope: The scope of its subject.
    """

    plaintext: bytes
    path: str
    scope: str


class ItemDraft(NamedTuple):
    """
    An event's JSON with holes for its fields.

    Attributes:
        text: The JSON, with a placeholder for each field. No JSON text contains a placeholder.
        fields: The fields, by the number in their placeholder.
        compress: Whether the event's class allows compression, which shows lengths.
    """

    text: str
    fields: Sequence[FieldDraft]
    compress: bool

    def filled(self, envelopes: Sequence[bytes]) -> bytes:
        """Return the JSON with the sealed fields."""
        texts = [b64encode(envelope).decode("ascii") for envelope in envelopes]
        return _PLACEHOLDER.sub(lambda match: texts[int(match[1])], self.text).encode()


class _Where(NamedTuple):
    """
    The place of a value.

    Attributes:
        path: The place in the item's JSON, for the cipher.
        shown: The place in the event, for messages. Keys of dictionaries are data, so it counts them instead.
        name: The attribute that the value is, or is in.
    """

    path: str = ""
    shown: str = ""
    name: str = ""

    def attribute(self, name: str, _: int) -> _Where:
        return _Where(joined(self.path, name), f"{self.shown}.{name}", name)

    def element(self, index: int) -> _Where:
        return self._replace(path=joined(self.path, index), shown=f"{self.shown}[{index}]")

    def value(self, key: Any, index: int) -> _Where:
        path = joined(self.path, key if type(key) is str else "")
        return self._replace(path=path, shown=f"{self.shown}{{{index}}}")

    def inside(self, *steps: str | int) -> _Where:
        path = self.path
        for step in steps:
            path = joined(path, step)
        return self._replace(path=path)


class FieldWriter:
    """
    Writes an event that holds personal data. Use each writer for one event.

    Args:
        writer: Writes JSON.
    """

    def __init__(self, writer: JSONWriter) -> None:
        self._writer = writer
        self._fields: list[FieldDraft] = []

    def draft(self, cls: type[Any], attributes: dict[str, Any], whole: dict[str, Any]) -> ItemDraft:
        """
        Write an event's attributes without its personal data.

        Args:
            cls: The class of the event.
            attributes: The attributes that the data hold.
            whole: These attributes and the place, to find the subjects.

        Raises:
            Refused: A value has no encoding, or a field has no subject.
        """
        rewritten = self._attributes(attributes, plan_of(cls).fields, _Where(), [Enclosing("", whole)])
        text = shallow(self._writer.write_attributes(rewritten))
        return ItemDraft(text, self._fields, compress=tries_compression(cls))

    def _attributes(
        self,
        attributes: dict[str, Any],
        shapes: Mapping[str, Shape],
        where: _Where,
        around: Sequence[Enclosing],
    ) -> dict[str, Any]:
        return self._members(attributes, shapes.get, where, where.attribute, around)

    def _members(
        self,
        members: dict[Any, Any],
        shape_of: Callable[[Any], Shape | None],
        where: _Where,
        member: Callable[[Any, int], _Where],
        around: Sequence[Enclosing],
    ) -> dict[Any, Any]:
        as_pairs = is_written_as_pairs(members)
        rewritten: dict[Any, Any] = {}
        for index, (key, value) in enumerate(members.items()):
            there = member(key, index)
            if as_pairs:
                there = there._replace(path=where.inside("$dict", index, 1).path)
            rewritten[key] = self._value(value, shape_of(key), there, around)
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
            inner_shape = shape.inner if isinstance(shape, Values) else None
            return self._members(value, lambda _: inner_shape, where, where.value, around)
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

    def _sealed(self, value: Any, data: PersonalData, where: _Where, around: Sequence[Enclosing]) -> Any:
        if _is_erased(value):
            return value
        subject = find_subject(data.subject, around)
        if subject is None or subject.value is None:
            if value is None:
                return None  # no subject and no value
            is_none = "is None" if subject is not None else "is missing"
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
    """Return whether a value is a mask, or holds nothing but masks."""
    if type(value) is Masked:  # stored as it is, because its subject's scope is closed (docs/decisions/0011)
        return True
    if type(value) is dict:
        value = list(value.values())
    return type(value) in {list, tuple} and bool(value) and all(map(_is_erased, value))


def _misfit(value: object, where: _Where) -> Refused:
    return _refused(
        f"is a {type(value).__name__}, which its annotation, with personal data inside, does not allow",
        where,
        "Use a value of the annotated type, or correct the annotation.",
    )


def _refused(reason: str, where: _Where, remedy: str) -> Refused:
    refused = Refused(reason, remedy=remedy)
    refused.path.append(where.shown)
    return refused


class PersonalFields:
    """
    Seals and opens the fields of many items, requesting keys once.

    Args:
        cipher: Seals and opens. ``None`` means that nothing may be sealed.
        json: Reads and writes the JSON of fields, as of items.
        places: Puts an item's place into the attributes, to find subjects.
        collection: The collection of the items.

    Raises:
        ConfigurationError: The cipher is no ``AESCipher``.
    """

    def __init__(
        self, cipher: AESCipher | None, json: JSONTranscoder, places: PlaceNames, collection: str
    ) -> None:
        if not isinstance(cipher, AESCipher | None):
            raise ConfigurationError(
                f"the cipher is a {type(cipher).__name__}, not an AESCipher", remedy=CIPHER_NEEDED
            )
        self._cipher = cipher
        self._json = json
        self._places = places
        self._collection = collection

    def seal(self, drafts: list[tuple[StoredItem, ItemDraft | None]]) -> list[StoredItem]:
        """
        Fill the drafts of items with their sealed fields.

        Raises:
            EncryptionRequiredError: There are fields, but no cipher.
            SerializationError: A place is invalid.
            EventSealError: There is no key to seal with. See ``AESCipher.seal_fields``.
        """
        wanted: list[tuple[bytes, FieldContext]] = []
        compress: list[bool] = []
        for item, draft in drafts:
            for field in () if draft is None else draft.fields:
                wanted.append((field.plaintext, self._context(item, field.path, field.scope)))
                compress.append(draft is not None and draft.compress)
        if wanted and self._cipher is None:
            topic = next(item.topic for item, draft in drafts if draft is not None and draft.fields)
            raise EncryptionRequiredError(
                f"{topic} has personal-data fields, but the mapper has no cipher",
                remedy=f"{CIPHER_NEEDED} Its items may stay plaintext: always_encrypt=False.",
            )
        envelopes = iter(self._cipher.seal_fields(wanted, compress=compress) if self._cipher else ())
        return [
            item
            if draft is None
            else item._replace(data=draft.filled([next(envelopes) for _ in draft.fields]))
            for item, draft in drafts
        ]

    def open(
        self, items: Mapping[int, tuple[StoredItem, bytes]], other_collections: Collection[str] = ()
    ) -> dict[int, Any | EventSealError]:
        """
        Read the JSON of items with sealed fields, opened or masked.

        Args:
            items: The items by index, each with its JSON.
            other_collections: Other collections that the items may be bound to.

        Returns:
            By index, the parsed JSON, or the error of a field that did not open.
        """
        outcomes: dict[int, Any | EventSealError] = {}
        wanted: list[tuple[int, StoredField]] = []
        plain = {index for index, (item, data) in items.items() if item.data == data}
        for index, (item, data) in items.items():
            try:
                outcomes[index], fields = self._parsed(item, data)
            except EventSealError as error:
                outcomes[index] = error
                continue
            wanted += [(index, field) for field in fields]
        placed = [(items[index][0], field, index in plain) for index, field in wanted]
        opened = self._opened(placed, other_collections)
        for (index, field), outcome in zip(wanted, opened, strict=True):
            if isinstance(outcomes[index], EventSealError):
                continue
            try:
                field.holder[field.key] = self._value(field, outcome)
            except EventSealError as error:
                outcomes[index] = error
        return outcomes

    def sealed_in(self, item: StoredItem, data: bytes) -> list[tuple[bytes, FieldContext]]:
        """
        Return the sealed fields of an item with their places, unopened.

        Args:
            item: The item as it is stored.
            data: The JSON of the item.

        Raises:
            IntegrityError: A field does not have the form that EventSeal writes.
            SerializationError: The data are not JSON.
        """
        _, fields = self._parsed(item, data)
        return [(field.envelope, self._context(item, field.path, field.scope)) for field in fields]

    def _opened(
        self, fields: Sequence[tuple[StoredItem, StoredField, bool]], other_collections: Collection[str]
    ) -> Sequence[Opened | EventSealError]:
        if self._cipher is None or not fields:
            return ()
        outcomes: dict[int, Opened | EventSealError] = {}
        refused = list(range(len(fields)))
        for collection in (self._collection, *other_collections):
            sealed = [
                (
                    field.envelope,
                    self._context(item, field.path, field.scope, collection, item_is_plain=is_plain),
                )
                for item, field, is_plain in map(fields.__getitem__, refused)
            ]
            outcomes.update(zip(refused, self._cipher.open_fields(sealed), strict=True))
            refused = [index for index in refused if isinstance(outcomes[index], IntegrityError)]
            if not refused:
                break
        return [outcomes[index] for index in range(len(fields))]

    def _parsed(self, item: StoredItem, data: bytes) -> tuple[Any, list[StoredField]]:
        raw = self._json.parse(data)
        if type(raw) is not dict:
            return raw, []
        whole = self._places.whole(raw, item.sequence_id, item.position, item.topic)
        fields = stored_fields(raw, whole)
        if fields and self._cipher is None:
            raise ConfigurationError(
                f"personal data of the item are sealed ({fields[0].path}), but the mapper has no cipher",
                remedy="Pass the cipher that sealed them to the mapper.",
            )
        return raw, fields

    def _value(self, field: StoredField, outcome: Opened | EventSealError) -> Any:
        if isinstance(outcome, EventSealError):
            if self._is_erased(field, outcome):
                return Masked(field.scope, field.name)
            error = copy(outcome)  # other fields may share this outcome
            error.add_note(f"field: {field.name}")
            raise error
        try:
            return self._json.parse(outcome.plaintext)
        except SerializationError as exc:
            exc.add_note(f"field: {field.name}")
            raise

    def _context(
        self,
        item: StoredItem,
        path: str,
        scope: str,
        collection: str | None = None,
        *,
        item_is_plain: bool = False,
    ) -> FieldContext:
        place = ItemContext(item.sequence_id, item.position, item.topic, collection or self._collection)
        return FieldContext(place, path, scope, item_is_plain)

    def _is_erased(self, field: StoredField, error: EventSealError) -> bool:
        """Return whether the field's own subject was erased. The error's tombstone was authenticated."""
        if not isinstance(error, KeyDestroyedError) or error.destroyed_by != "shredded":
            return False
        return self._cipher is not None and self._cipher.names_scope(field.scope, error.scope)
