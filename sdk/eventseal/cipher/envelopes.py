"""Sealing and opening: items under data keys, fields under field keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import repeat
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar
from uuid import UUID

from eventseal.cipher.compression import decompress, too_large
from eventseal.cipher.context import DOMAIN, framed_text
from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    SerializationError,
    WrongApplicationError,
)
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.keys.states import KeyPurpose
from eventseal.suites.cbc_hmac import SUITES, open_many, seal_many
from eventseal.suites.envelope import BLOCK_SIZE, HEADER_SIZE, CompressionId, build_header, envelope_problem
from eventseal.suites.hkdf import length_prefixed
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from eventseal.cipher.compression import Compression
    from eventseal.cipher.context import ItemBinder, ItemContext
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.source import KeySource
    from eventseal.suites.cbc_hmac import Suite

FIELD_DOMAIN = b"field"
LEAST_COMPRESSED = 256
"""The smallest field, in bytes, that is compressed. Compression does not shorten names and addresses."""

_ITEM_DOMAIN_SIZE = len(length_prefixed(DOMAIN))
_FRAMED_FIELD_DOMAIN = length_prefixed(FIELD_DOMAIN)
_Place = TypeVar("_Place")
_WHAT_SEALS = {
    KeyPurpose.DATA: "only data keys seal and open items",
    KeyPurpose.FIELD: "only field keys seal and open fields",
}

Ready: TypeAlias = "tuple[CompressionId, bytes, bytes]"
"""An item without its key: its compression, body, and place as bytes."""


@dataclass(frozen=True, slots=True)
class Opened:
    """
    An opened item.

    Attributes:
        plaintext: The bytes that were sealed.
        key_id: The key that opened it.
        scope: The scope of that key. A reader compares it with the scope that it expects.
    """

    plaintext: bytes = field(repr=False)
    key_id: UUID
    scope: str


class EnvelopeSealer(Generic[_Place]):
    """
    Seals and opens under keys of one purpose.

    Several threads may call its methods at the same time.

    Args:
        suite: The cipher suite that seals.
        compression: How plaintexts are compressed before they are sealed.
        bind: Returns a place as associated data, without the header.
        limit: The limit of a plaintext in bytes.
    """

    _purpose = KeyPurpose.DATA
    _least_compressed = 0

    def __init__(
        self,
        keys: KeySource,
        *,
        suite: Suite,
        compression: Compression,
        bind: Callable[[_Place], bytes],
        limit: int,
    ) -> None:
        self._keys = keys
        self._suite = suite
        self._compression = compression
        self._bind = bind
        self._limit = limit

    def encrypt_many(
        self,
        items: Sequence[tuple[bytes, _Place]],
        *,
        scopes: str | Sequence[str] = DEFAULT_SCOPE,
        compress: bool | Sequence[bool] = True,
    ) -> list[bytes]:
        """
        Seal items, all or none.

        All items of a scope are sealed under one key.

        Args:
            items: The plaintext and the place of each item.
            scopes: One scope for all items, or one for each.
            compress: Whether to try compression, for all items or for each.

        Returns:
            The envelopes, in order.

        Raises:
            SerializationError: A place has no canonical value, or a plaintext is not bytes.
            ItemTooLargeError: A plaintext is over ``max_plaintext``.
            EventSealError: A scope has no key to seal with. ``KeySource.sealing_keys`` lists the reasons.
        """
        if isinstance(compress, bool):
            ready = self._ready(items, repeat(compress))
        else:
            _check_count("compress", compress, items)
            ready = self._ready(items, compress)
        if not ready:
            return []
        if isinstance(scopes, str):
            return self._seal({scopes: ready})[scopes]
        _check_count("scopes", scopes, items)
        by_scope: dict[str, list[Ready]] = {}
        for scope, item in zip(scopes, ready, strict=True):
            by_scope.setdefault(scope, []).append(item)
        sealed = {scope: iter(envelopes) for scope, envelopes in self._seal(by_scope).items()}
        return [next(sealed[scope]) for scope in scopes]

    def open_many(self, items: Sequence[tuple[bytes, _Place]]) -> list[Opened | EventSealError]:
        """
        Open items, each with its own outcome.

        Args:
            items: The envelope and the place of each item.

        Returns:
            For each item, in order, the opened item or its error: ``UnknownFormatError``,
            ``SerializationError``, ``WrongApplicationError``, ``IntegrityError``, ``ItemTooLargeError``, or
            the error that ``KeySource.opening_keys`` returns for its key.

        Raises:
            StoreError: The key store refused or failed.
        """
        outcomes: dict[int, Opened | EventSealError] = {}
        indices: dict[bytes, list[int]] = {}
        for index, (sealed, _) in enumerate(items):  # inline, not in a function: single items pass here too
            problem = envelope_problem(sealed)
            if problem is None:
                indices.setdefault(sealed[:HEADER_SIZE], []).append(index)
            else:
                outcomes[index] = problem
        key_ids = {header: key_id_in(header) for header in indices}
        keys = self._keys.opening_keys(set(key_ids.values()), purpose=self._purpose) if indices else {}
        for header, of_header in indices.items():
            opened = self._open(keys[key_ids[header]], header, [items[index] for index in of_header])
            outcomes.update(zip(of_header, opened, strict=True))
        return [outcomes[index] for index in range(len(items))]

    def bind_many(self, items: Sequence[tuple[bytes, _Place]]) -> list[tuple[bytes, bytes]]:
        """
        Return items' associated data, without the header, with their envelopes.

        Raises:
            SerializationError: A place has no canonical value.
        """
        return [(self._bind(context), sealed) for sealed, context in items]

    def names_scope(self, scope: str, stored: str | None) -> bool:
        """Return whether *stored* is a scope or its digest (see ``KeySource``)."""
        return stored == scope or stored == self._keys.stored_scope(scope)

    def _ready(self, items: Iterable[tuple[bytes, _Place]], compress: Iterable[bool]) -> list[Ready]:
        limit, compression, bind, least = self._limit, self._compression, self._bind, self._least_compressed
        compresses = compression.id is not CompressionId.NONE
        ready: list[Ready] = []
        for (plaintext, context), wanted in zip(items, compress, strict=False):
            if not isinstance(plaintext, bytes):
                raise SerializationError(f"a plaintext is bytes, not {type(plaintext).__name__}")
            size = len(plaintext)
            if size > limit:
                raise too_large(size, limit)
            place = bind(context)
            if wanted and compresses and size >= least:
                compressed = compression.compress(plaintext)
                # Kept only if it saves a block: ciphertext comes in whole blocks (docs/decisions/0004).
                if len(compressed) // BLOCK_SIZE < size // BLOCK_SIZE:
                    ready.append((compression.id, compressed, place))
                    continue
            ready.append((CompressionId.NONE, plaintext, place))
        return ready

    def _seal(self, by_scope: Mapping[str, Sequence[Ready]]) -> dict[str, list[bytes]]:
        counts = {scope: len(items) for scope, items in by_scope.items()}
        keys = self._keys.sealing_keys(counts, purpose=self._purpose)
        return {scope: self._seal_scope(scope, keys[scope], items) for scope, items in by_scope.items()}

    def _seal_scope(self, scope: str, key: DataKey, items: Sequence[Ready]) -> list[bytes]:
        application, purpose = self._keys.application, self._purpose
        try:
            return seal_under(key, self._suite, items, application=application, purpose=purpose)
        except KeyNotFoundError:
            # Closed after it was handed out: fetch it once more, and use that answer.
            key = self._keys.sealing_keys({scope: len(items)}, purpose=purpose)[scope]
        return seal_under(key, self._suite, items, application=application, purpose=purpose)

    def _open(
        self,
        key: DataKey | EventSealError,
        header: bytes,
        items: Sequence[tuple[bytes, _Place]],
        *,
        last_answer: bool = False,
    ) -> list[Opened | EventSealError]:
        """Open items that have one header in common."""
        if isinstance(key, KeyDestroyedError) and key.scope_reopened:
            return self._erased(key, items)
        if isinstance(key, EventSealError):
            return [key] * len(items)
        try:
            return self._open_under(key, header, items)
        except KeyNotFoundError as error:
            # Closed after it was handed out: fetch it once more, and use that answer.
            again = (
                error
                if last_answer
                else self._keys.opening_keys([key.key_id], purpose=self._purpose)[key.key_id]
            )
        return self._open(again, header, items, last_answer=True)

    def _open_under(
        self, key: DataKey, header: bytes, items: Sequence[tuple[bytes, _Place]]
    ) -> list[Opened | EventSealError]:
        problem = misfit(key, self._keys.application, self._purpose)
        if problem is not None:
            return [problem] * len(items)
        framed: list[tuple[bytes, bytes]] = []
        refused: dict[int, SerializationError] = {}
        bind = self._bind
        for index, (sealed, context) in enumerate(items):
            try:
                framed.append((sealed[HEADER_SIZE:], header + bind(context)))
            except SerializationError as error:
                refused[index] = error
        compression, limit, key_id, scope = header[2], self._limit, key.key_id, key.scope
        outcomes: list[Opened | EventSealError] = []
        for body in open_many(key.pool(SUITES[header[1]]), framed):
            outcome = decompress(compression, body, limit=limit) if isinstance(body, bytes) else body
            outcomes.append(Opened(outcome, key_id, scope) if isinstance(outcome, bytes) else outcome)
        for index, refusal in refused.items():
            outcomes.insert(index, refusal)
        return outcomes

    def _erased(
        self, error: KeyDestroyedError, items: Sequence[tuple[bytes, _Place]]
    ) -> list[Opened | EventSealError]:
        """
        Return the errors of items under a reopened scope's destroyed key.

        An item that was erased with the scope gets *error*. Bytes that somebody put there later get an
        ``IntegrityError``.
        """
        outcomes: list[EventSealError | None] = []
        bound: list[tuple[bytes, bytes]] = []
        for sealed, context in items:
            if self._is_vouched_for(context):
                outcomes.append(error)
                continue
            try:
                bound.append((self._bind(context), sealed))
            except SerializationError as problem:
                outcomes.append(problem)
            else:
                outcomes.append(None)
        listed = iter(self._keys.are_listed_as_erased(bound) if bound else ())
        return [
            outcome or (error if next(listed) else IntegrityError(OPAQUE_INTEGRITY_MESSAGE))
            for outcome in outcomes
        ]

    def _is_vouched_for(self, context: _Place) -> bool:  # noqa: ARG002 - nothing is around an item
        """Whether the item around it was authenticated."""
        return False


@dataclass(frozen=True, slots=True)
class FieldContext:
    """
    The place of a field. It must be equal when the field is opened.

    Args:
        item: The place of the item that holds it.
        path: The field's place in the item, as a JSON Pointer.
        scope: The subject whose key seals the field, as a key scope.
        item_is_plain: Whether the item is not encrypted, so that only the field is authenticated.
    """

    item: ItemContext
    path: str
    scope: str
    item_is_plain: bool = field(default=False, compare=False)


class FieldSealer(EnvelopeSealer[FieldContext]):
    """
    Seals and opens personal-data fields of items, each under its subject's key.

    Args:
        keys: The source of keys of purpose ``field``.
        suite: The cipher suite that seals.
        compression: The compression for long fields, unless *compress* excludes them.
        binder: Binds the item's place, which is part of the field's place.
        limit: The limit of a field's plaintext in bytes.
    """

    _purpose = KeyPurpose.FIELD
    _least_compressed = LEAST_COMPRESSED

    def __init__(
        self, keys: KeySource, *, suite: Suite, compression: Compression, binder: ItemBinder, limit: int
    ) -> None:
        bind = partial(_bind_field, binder)
        super().__init__(keys, suite=suite, compression=compression, bind=bind, limit=limit)

    def open_many(self, items: Sequence[tuple[bytes, FieldContext]]) -> list[Opened | EventSealError]:
        """Open fields, each with its own outcome. A field opens only if its own subject's key sealed it."""
        opened = super().open_many(items)
        return [
            self._of_subject(outcome, context) for outcome, (_, context) in zip(opened, items, strict=True)
        ]

    def _is_vouched_for(self, context: FieldContext) -> bool:
        return not context.item_is_plain  # an encrypted item vouches for its fields

    def _of_subject(self, outcome: Opened | EventSealError, context: FieldContext) -> Opened | EventSealError:
        # The scope is bound, so they differ only if another subject's key was used to seal for this subject.
        if isinstance(outcome, Opened) and not self.names_scope(context.scope, outcome.scope):
            return IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
        return outcome


def _bind_field(binder: ItemBinder, context: FieldContext) -> bytes:
    """Return a field's associated data: domain, the item's parts, path and scope."""
    item = binder.bind(context.item)[_ITEM_DOMAIN_SIZE:]
    return (
        _FRAMED_FIELD_DOMAIN + item + framed_text("path", context.path) + framed_text("scope", context.scope)
    )


def seal_under(
    key: DataKey,
    suite: Suite,
    items: Sequence[Ready],
    *,
    application: str,
    purpose: KeyPurpose = KeyPurpose.DATA,
) -> list[bytes]:
    """
    Seal items, or fields, under one key.

    Raises:
        WrongApplicationError: The key belongs to another application.
        IntegrityError: The key has another purpose.
        KeyNotFoundError: The key was closed in the meantime.
    """
    problem = misfit(key, application, purpose)
    if problem is not None:
        raise problem
    used = {compression for compression, _, _ in items}
    headers = {compression: build_header(suite.id, compression, key.key_id) for compression in used}
    framed = [(body, headers[compression] + place) for compression, body, place in items]
    bodies = seal_many(key.pool(suite), framed)
    return [aad[:HEADER_SIZE] + body for (_, aad), body in zip(framed, bodies, strict=True)]


def misfit(key: DataKey, application: str, purpose: KeyPurpose = KeyPurpose.DATA) -> EventSealError | None:
    """
    Return the error if *key* may not serve *application* for this purpose.

    This is checked before any tag.
    """
    if key.application != application:
        return WrongApplicationError(
            f"key {key.key_id} belongs to the application {key.application!r}, not to {application!r}",
            expected=application,
            found=key.application,
        )
    if key.purpose is not purpose:
        return IntegrityError(
            f"key {key.key_id} has the purpose {key.purpose}, but {_WHAT_SEALS[purpose]}",
            key_id=key.key_id,
        )
    return None


@lru_cache(maxsize=1024)
def key_id_in(header: bytes) -> UUID:
    """Return the id of the key that a header names."""
    return UUID(bytes=header[3:])


def _check_count(name: str, values: Sequence[object], items: Sequence[object]) -> None:
    if len(values) != len(items):
        raise ConfigurationError(
            f"{name} holds {counted(len(values), 'value')} for {counted(len(items), 'item')}",
            remedy=f"Pass one value of {name} for all items, or one for each.",
        )
