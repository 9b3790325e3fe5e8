"""Personal-data fields: values inside an item, each under its subject's key and bound to its place there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from eventseal.cipher.context import DOMAIN, framed_text
from eventseal.cipher.envelopes import Opened, open_under, seal_under, too_large
from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
)
from eventseal.keys.states import KeyPurpose
from eventseal.suites.envelope import BLOCK_SIZE, HEADER_SIZE, CompressionId, envelope_problem
from eventseal.suites.hkdf import length_prefixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.cipher.context import ItemBinder, ItemContext
    from eventseal.cipher.envelopes import Compression, Ready
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.source import KeySource
    from eventseal.suites.cbc_hmac import Suite

FIELD_DOMAIN = b"field"
LEAST_COMPRESSED = 256
"""Bytes from which compression is tried: names and addresses do not get shorter by it."""

_ITEM_DOMAIN_SIZE = len(length_prefixed(DOMAIN))


@dataclass(frozen=True, slots=True)
class FieldContext:
    """
    The place of a field. It must be equal when the field is opened.

    Args:
        item: The place of the item that holds it.
        path: Where it stands in the item: a JSON Pointer.
        scope: The subject whose key seals it, as a key scope.
        item_is_plain: Whether the item is not encrypted, so that only the field is authenticated.
    """

    item: ItemContext
    path: str
    scope: str
    item_is_plain: bool = field(default=False, compare=False)


class FieldCipher:
    """
    Seals and opens fields, those of a whole page or append with one question for keys.

    Args:
        keys: Give keys of purpose ``field``.
        suite: What seals.
        compression: Tried where *compress* says so.
        binder: Binds the item's place, which is part of the field's.
        limit: Bytes that a field may have in plain.
    """

    def __init__(
        self,
        keys: KeySource,
        *,
        suite: Suite,
        compression: Compression,
        binder: ItemBinder,
        limit: int,
    ) -> None:
        self._keys = keys
        self._suite = suite
        self._compression = compression
        self._binder = _FieldBinder(binder)
        self._limit = limit

    def seal_many(
        self, fields: Sequence[tuple[bytes, FieldContext]], compress: Sequence[bool]
    ) -> list[bytes]:
        """Seal fields, all or none, those of a subject under one key; see ``AESCipher.seal_fields``."""
        by_scope: dict[str, list[Ready]] = {}
        for (plaintext, context), wanted in zip(fields, compress, strict=True):
            by_scope.setdefault(context.scope, []).append(self._ready(plaintext, context, wanted))
        if not by_scope:
            return []
        counts = {scope: len(items) for scope, items in by_scope.items()}
        keys = self._keys.sealing_keys(counts, purpose=KeyPurpose.FIELD)
        sealed = {
            scope: iter(self._seal_scope(scope, keys[scope], items)) for scope, items in by_scope.items()
        }
        return [next(sealed[context.scope]) for _, context in fields]

    def open_many(self, fields: Sequence[tuple[bytes, FieldContext]]) -> list[Opened | EventSealError]:
        """Open fields, each with an outcome of its own; see ``AESCipher.open_fields``."""
        outcomes: dict[int, Opened | EventSealError] = {}
        by_header: dict[bytes, list[int]] = {}
        for index, (sealed, _) in enumerate(fields):
            problem = envelope_problem(sealed)
            if problem is None:
                by_header.setdefault(sealed[:HEADER_SIZE], []).append(index)
            else:
                outcomes[index] = problem
        key_ids = {header: UUID(bytes=header[3:]) for header in by_header}
        wanted = set(key_ids.values())
        keys = self._keys.opening_keys(wanted, purpose=KeyPurpose.FIELD) if wanted else {}
        for header, indices in by_header.items():
            of_header = [fields[index] for index in indices]
            opened = self._open(keys[key_ids[header]], header, of_header)
            outcomes.update(zip(indices, opened, strict=True))
        return [outcomes[index] for index in range(len(fields))]

    def _ready(self, plaintext: bytes, context: FieldContext, wanted: bool) -> Ready:
        size = len(plaintext)
        if size > self._limit:
            raise too_large(size, self._limit)
        place = self._binder.bind(context)
        if wanted and size >= LEAST_COMPRESSED:
            compressed = self._compression.compress(plaintext)
            if len(compressed) // BLOCK_SIZE < size // BLOCK_SIZE:
                return self._compression.id, compressed, place
        return CompressionId.NONE, plaintext, place

    def _seal_scope(self, scope: str, key: DataKey, items: Sequence[Ready]) -> list[bytes]:
        try:
            return self._seal(key, items)
        except KeyNotFoundError:
            # Closed between being handed out and being used: ask once more, and take that answer.
            again = self._keys.sealing_keys({scope: len(items)}, purpose=KeyPurpose.FIELD)
            return self._seal(again[scope], items)

    def _seal(self, key: DataKey, items: Sequence[Ready]) -> list[bytes]:
        application = self._binder.application
        return seal_under(key, self._suite, items, application=application, purpose=KeyPurpose.FIELD)

    def _open(
        self,
        key: DataKey | EventSealError,
        header: bytes,
        fields: Sequence[tuple[bytes, FieldContext]],
        *,
        last_answer: bool = False,
    ) -> list[Opened | EventSealError]:
        if isinstance(key, KeyDestroyedError) and key.scope_reopened:
            return self._erased(key, fields)
        if isinstance(key, EventSealError):
            return [key] * len(fields)
        try:
            opened = open_under(
                key, header, fields, binder=self._binder, limit=self._limit, purpose=KeyPurpose.FIELD
            )
        except KeyNotFoundError as error:
            if last_answer:
                return [error] * len(fields)
            # Closed between being handed out and being used: ask once more, and take that answer.
            again = self._keys.opening_keys([key.key_id], purpose=KeyPurpose.FIELD)[key.key_id]
            return self._open(again, header, fields, last_answer=True)
        return [
            self._of_subject(outcome, context) for outcome, (_, context) in zip(opened, fields, strict=True)
        ]

    def bind_many(self, fields: Sequence[tuple[bytes, FieldContext]]) -> list[tuple[bytes, bytes]]:
        """Give the associated data of fields, without the header; see ``AESCipher.bind_many``."""
        return [(self._binder.bind(context), sealed) for sealed, context in fields]

    def _erased(
        self, error: KeyDestroyedError, fields: Sequence[tuple[bytes, FieldContext]]
    ) -> list[Opened | EventSealError]:
        """Tell what was erased in a scope that was reopened since from what somebody put there later."""
        # An encrypted item vouches for its fields.
        alone = [each for each in fields if each[1].item_is_plain]
        listed = iter(self._keys.are_listed_as_erased(self.bind_many(alone)) if alone else ())
        return [
            error if not context.item_is_plain or next(listed) else IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
            for _, context in fields
        ]

    def _of_subject(self, outcome: Opened | EventSealError, context: FieldContext) -> Opened | EventSealError:
        # The scope is bound, so this is never so unless another subject's key was used to seal for this one.
        if (
            isinstance(outcome, Opened)
            and outcome.scope != context.scope
            and outcome.scope != self._keys.stored_scope(context.scope)
        ):
            return IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
        return outcome


class _FieldBinder:
    """Gives the associated data of a field: its item's under another domain tag, then path and scope."""

    def __init__(self, binder: ItemBinder) -> None:
        self._binder = binder
        self._domain = length_prefixed(FIELD_DOMAIN)

    @property
    def application(self) -> str:
        return self._binder.application

    def bind(self, context: FieldContext) -> bytes:
        item = self._binder.bind(context.item)[_ITEM_DOMAIN_SIZE:]
        return self._domain + item + framed_text("path", context.path) + framed_text("scope", context.scope)
