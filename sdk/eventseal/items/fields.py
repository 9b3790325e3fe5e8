"""The personal-data fields of a page of items: sealed before the items are, opened after them."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from eventseal.cipher.context import ItemContext
from eventseal.cipher.fields import FieldContext
from eventseal.errors import (
    ConfigurationError,
    EncryptionRequiredError,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    SerializationError,
)
from eventseal.items.field_reading import stored_fields
from eventseal.items.masks import Masked

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from eventseal.cipher.aes import AESCipher
    from eventseal.cipher.envelopes import Opened
    from eventseal.items.field_reading import StoredField
    from eventseal.items.field_writing import ItemDraft
    from eventseal.items.item_fields import StoredItem
    from eventseal.items.json import JSONTranscoder
    from eventseal.items.places import PlaceNames


class PersonalFields:
    """
    Seals and opens the fields of many items at once: one question for keys, whatever their number.

    Args:
        cipher: Seals and opens; ``None`` where nothing may be sealed.
        json: Reads and writes fields as it does items.
        places: Put an item's place where subjects are looked for.
        collection: Of the items.
    """

    def __init__(
        self, cipher: AESCipher | None, json: JSONTranscoder, places: PlaceNames, collection: str
    ) -> None:
        self._cipher = cipher
        self._json = json
        self._places = places
        self._collection = collection

    def seal(self, drafts: list[tuple[StoredItem, ItemDraft | None]]) -> list[StoredItem]:
        """
        Fill the drafts of items with their sealed fields.

        Raises:
            EncryptionRequiredError: There are fields, and no cipher.
            SerializationError: A place has no canonical value.
            EventSealError: There is no key to seal with; see ``AESCipher.seal_fields``.
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
                f"{topic} has personal-data fields, and the mapper has no cipher",
                remedy="Give the mapper a cipher; its items may stay in plain: always_encrypt=False.",
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
        Read the JSON of items that hold sealed fields, with each field opened or masked.

        Args:
            items: By index, each with its JSON.
            other_collections: Names that the items may be bound to instead.

        Returns:
            By index the parsed JSON, or why a field of it does not open.
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
        Give the sealed fields of an item, each with its place, none of them opened.

        Args:
            item: As it is stored.
            data: Its JSON.

        Raises:
            IntegrityError: A field is not in the form in which fields are written.
            SerializationError: The data are no JSON.
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
                f"personal data of the item are sealed ({fields[0].path}), and the mapper has no cipher",
                remedy="Give the mapper the cipher that sealed them.",
            )
        return raw, fields

    def _value(self, field: StoredField, outcome: Opened | EventSealError) -> Any:
        if isinstance(outcome, EventSealError):
            if self._is_erased(field, outcome):
                return Masked(field.scope, field.name)
            error = copy(outcome)  # it may be other fields' outcome too
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
        """Whether the field's own subject was erased; the error's tombstone had its seal checked."""
        if not isinstance(error, KeyDestroyedError) or error.destroyed_by != "shredded":
            return False
        return error.scope == field.scope or (
            self._cipher is not None and error.scope == self._cipher.stored_scope(field.scope)
        )
