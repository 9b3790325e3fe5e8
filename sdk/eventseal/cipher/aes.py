"""The cipher: where the data path meets the key path. Bytes and their place in, an envelope out, and back."""

from __future__ import annotations

from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING
from uuid import UUID

from eventseal.cipher.context import ItemBinder
from eventseal.cipher.envelopes import Opened, Zstd, open_under, seal_under, too_large
from eventseal.cipher.fields import FieldCipher
from eventseal.cipher.resealing import Resealer
from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    SerializationError,
)
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.keys.source import KeySource, StaticKey
from eventseal.suites.cbc_hmac import A256CBC_HS512
from eventseal.suites.envelope import BLOCK_SIZE, HEADER_SIZE, VERSION, CompressionId, envelope_problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from eventseal.cipher.context import ItemContext
    from eventseal.cipher.envelopes import Compression, Ready
    from eventseal.cipher.fields import FieldContext
    from eventseal.cipher.resealing import Moved, Outcome, StoredItems
    from eventseal.keys.data_key import DataKey
    from eventseal.suites.cbc_hmac import Suite

MAX_PLAINTEXT = 2**24
"""Bytes that an item may have in plain, unless the cipher is told otherwise."""


class AESCipher:
    """
    Seals and opens items. Methods may be called from several threads at once.

    Args:
        key: A keyring, or a static key of 16, 24 or 32 random bytes.
        suite: For a static key only: what to seal with, if not the suite of the key's size.
        compression: What items are compressed with before they are sealed; Zstandard if not given.
        application: For a static key only: the name that is bound to every item, ``default`` if not given.
        max_plaintext: Bytes that an item may have in plain, when it is sealed and when it is opened.

    Raises:
        ConfigurationError: The key is of another size or type, or an argument does not go with it.
    """

    def __init__(
        self,
        key: bytes | KeySource,
        *,
        suite: Suite | None = None,
        compression: Compression | None = None,
        application: str | None = None,
        max_plaintext: int = MAX_PLAINTEXT,
    ) -> None:
        if max_plaintext < 1:
            raise ConfigurationError(f"max_plaintext is {max_plaintext}; it must be at least 1 byte")
        self._keys = _key_source(key, suite, application)
        self._suite = self._keys.suite if isinstance(self._keys, StaticKey) else A256CBC_HS512
        self._compression = compression or Zstd()
        self._max_plaintext = max_plaintext
        self._binder = ItemBinder(self._keys.application)
        self._resealer = Resealer(
            self._keys,
            suite=self._suite,
            compression=self._compression,
            binder=self._binder,
            limit=max_plaintext,
        )

        self._fields = FieldCipher(
            self._keys,
            suite=self._suite,
            compression=self._compression,
            binder=self._binder,
            limit=max_plaintext,
        )

    def with_keys(self, keys: KeySource) -> AESCipher:
        """Give a cipher that differs in its keys alone."""
        return AESCipher(keys, compression=self._compression, max_plaintext=self._max_plaintext)

    @property
    def application(self) -> str:
        """The application whose items this cipher seals and opens."""
        return self._binder.application

    def stored_scope(self, scope: str) -> str:
        """Give a scope as keys name it, to be compared with an opened item's; see ``KeySource``."""
        return self._keys.stored_scope(scope)

    @property
    def has_keyring(self) -> bool:
        """Whether its keys come and go; if not, one static key seals everything."""
        return not isinstance(self._keys, StaticKey)

    def add_place(self, name: str, collection: str) -> None:
        """Note that a place beside the registered tables holds items; see ``KeySource``."""
        self._keys.add_place(name, collection)

    def refresh(self) -> None:
        """Look at once for keys whose state changed."""
        self._keys.refresh()

    def encrypt(
        self, plaintext: bytes, context: ItemContext, *, scope: str = DEFAULT_SCOPE, compress: bool = True
    ) -> bytes:
        """Seal one item, as :meth:`encrypt_many` does."""
        return self._seal({scope: self._ready(((plaintext, context),), (compress,))})[scope][0]

    def decrypt(self, sealed: bytes, context: ItemContext) -> bytes:
        """
        Open one item, as :meth:`open_many` does.

        Raises:
            EventSealError: What :meth:`open_many` gives as an item's outcome.
        """
        outcome = self.open_many(((sealed, context),))[0]
        if isinstance(outcome, EventSealError):
            raise outcome
        return outcome.plaintext

    def encrypt_many(
        self,
        items: Sequence[tuple[bytes, ItemContext]],
        *,
        scopes: str | Sequence[str] = DEFAULT_SCOPE,
        compress: bool | Sequence[bool] = True,
    ) -> list[bytes]:
        """
        Seal items, all or none, those of a scope under one key.

        Args:
            items: Plaintext and place of each.
            scopes: One for all items, or one for each.
            compress: Whether compression is tried: for all items, or for each.

        Returns:
            The envelopes, in order.

        Raises:
            SerializationError: A place has no canonical value, or a plaintext is not bytes.
            ItemTooLargeError: A plaintext is over ``max_plaintext``.
            EventSealError: There is no key to seal with; ``KeySource.sealing_keys`` says why.
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

    def open_many(self, items: Sequence[tuple[bytes, ItemContext]]) -> list[Opened | EventSealError]:
        """
        Open items, each with an outcome of its own.

        Args:
            items: Envelope and place of each.

        Returns:
            For each item, in order, what was opened or why it was not: ``UnknownFormatError``,
            ``SerializationError``, ``WrongApplicationError``, ``IntegrityError``, ``ItemTooLargeError``, or
            what ``KeySource.opening_keys`` gives for its key.

        Raises:
            StoreError: The key store refused or failed.
        """
        outcomes: dict[int, Opened | EventSealError] = {}
        indices: dict[bytes, list[int]] = {}
        for index, (sealed, _) in enumerate(items):
            problem = envelope_problem(sealed)
            if problem is None:
                indices.setdefault(sealed[:HEADER_SIZE], []).append(index)
            else:
                outcomes[index] = problem
        key_ids = {header: _key_id(header) for header in indices}
        keys = self._keys.opening_keys(set(key_ids.values())) if indices else {}
        for header, of_header in indices.items():
            opened = self._open(keys[key_ids[header]], header, [items[index] for index in of_header])
            outcomes.update(zip(of_header, opened, strict=True))
        return [outcomes[index] for index in range(len(items))]

    def bind_many(self, items: Sequence[tuple[bytes, ItemContext]]) -> list[tuple[bytes, bytes]]:
        """
        Give the associated data of items, without the header, each with its envelope.

        Raises:
            SerializationError: A place has no canonical value.
        """
        return [(self._binder.bind(context), sealed) for sealed, context in items]

    def bind_fields(self, fields: Sequence[tuple[bytes, FieldContext]]) -> list[tuple[bytes, bytes]]:
        """Give the associated data of fields, as :meth:`bind_many` does that of items."""
        return self._fields.bind_many(fields)

    def reseal_many(
        self, items: StoredItems, collection: str, *, moved: Moved | None = None
    ) -> list[Outcome]:
        """
        Seal items again under the active keys of their scopes; no key is made.

        An item keeps its compression if that is the cipher's own or none: what was left uncompressed may have
        been so on purpose. Each new envelope is opened again, to the same bytes, before it is given.

        Args:
            items: Their places and envelopes, column by column.
            collection: Of all of them.
            moved: What an item is bound to that comes from another collection; ``None``: none does.

        Returns:
            For each item, in order, its new envelope, ``None`` if its scope has no active key, or why it does
            not open, as in :meth:`open_many`.

        Raises:
            IntegrityError: What was just sealed does not open to the same bytes.
            KeyNotFoundError: A key was closed while it sealed.
            EventSealError: ``KeySource.sealing_keys`` says why there is no key to seal with.
        """
        return self._resealer.reseal_many(items, collection, moved)

    @property
    def heads(self) -> tuple[bytes, ...]:
        """How the envelopes begin that :meth:`reseal_many` would not change but for their key: 3 bytes."""
        compressions = dict.fromkeys((self._compression.id, CompressionId.NONE))
        return tuple(bytes((VERSION, self._suite.id, compression)) for compression in compressions)

    def seal_fields(
        self, fields: Sequence[tuple[bytes, FieldContext]], *, compress: Sequence[bool]
    ) -> list[bytes]:
        """
        Seal fields of items, all or none, each under its subject's key of purpose ``field``.

        Args:
            fields: Plaintext and place of each; its scope names the subject.
            compress: For each, whether compression is tried, where it may be worth it.

        Returns:
            The envelopes, in order.

        Raises:
            SerializationError: A place has no canonical value.
            ItemTooLargeError: A plaintext is over ``max_plaintext``.
            EventSealError: There is no key to seal with; ``KeySource.sealing_keys`` says why.
        """
        return self._fields.seal_many(fields, compress)

    def open_fields(self, fields: Sequence[tuple[bytes, FieldContext]]) -> list[Opened | EventSealError]:
        """
        Open fields, each with an outcome of its own, as :meth:`open_many` opens items.

        Args:
            fields: Envelope and place of each.

        Raises:
            StoreError: The key store refused or failed.
        """
        return self._fields.open_many(fields)

    def _ready(self, items: Iterable[tuple[bytes, ItemContext]], compress: Iterable[bool]) -> list[Ready]:
        limit, compression, bind = self._max_plaintext, self._compression, self._binder.bind
        compresses = compression.id is not CompressionId.NONE
        ready: list[Ready] = []
        for (plaintext, context), wanted in zip(items, compress, strict=False):
            if not isinstance(plaintext, bytes):
                raise SerializationError(f"a plaintext is bytes, not {type(plaintext).__name__}")
            size = len(plaintext)
            if size > limit:
                raise too_large(size, limit)
            place = bind(context)
            if wanted and compresses:
                compressed = compression.compress(plaintext)
                # Kept only if the envelope gets smaller, and ciphertext comes in whole blocks.
                if len(compressed) // BLOCK_SIZE < size // BLOCK_SIZE:
                    ready.append((compression.id, compressed, place))
                    continue
            ready.append((CompressionId.NONE, plaintext, place))
        return ready

    def _seal(self, by_scope: Mapping[str, Sequence[Ready]]) -> dict[str, list[bytes]]:
        keys = self._keys.sealing_keys({scope: len(items) for scope, items in by_scope.items()})
        return {scope: self._seal_scope(scope, keys[scope], items) for scope, items in by_scope.items()}

    def _seal_scope(self, scope: str, key: DataKey, items: Sequence[Ready]) -> list[bytes]:
        try:
            return seal_under(key, self._suite, items, application=self.application)
        except KeyNotFoundError:
            # Closed between being handed out and being used: ask once more, and take that answer.
            key = self._keys.sealing_keys({scope: len(items)})[scope]
        return seal_under(key, self._suite, items, application=self.application)

    def _open(
        self,
        key: DataKey | EventSealError,
        header: bytes,
        items: Sequence[tuple[bytes, ItemContext]],
        *,
        last_answer: bool = False,
    ) -> list[Opened | EventSealError]:
        if isinstance(key, KeyDestroyedError) and key.scope_reopened:
            return self._erased(key, items)
        if isinstance(key, EventSealError):
            return [key] * len(items)
        try:
            return open_under(key, header, items, binder=self._binder, limit=self._max_plaintext)
        except KeyNotFoundError as error:
            # Closed between being handed out and being used: ask once more, and take that answer.
            again = error if last_answer else self._keys.opening_keys([key.key_id])[key.key_id]
        return self._open(again, header, items, last_answer=True)

    def _erased(
        self, error: KeyDestroyedError, items: Sequence[tuple[bytes, ItemContext]]
    ) -> list[Opened | EventSealError]:
        """Tell what was erased in a scope that was reopened since from what somebody put there later."""
        outcomes: list[Opened | EventSealError] = []
        bound: list[tuple[bytes, bytes]] = []
        for sealed, context in items:
            try:
                bound.append((self._binder.bind(context), sealed))
            except SerializationError as problem:
                outcomes.append(problem)
            else:
                outcomes.append(error)
        listed = iter(self._keys.are_listed_as_erased(bound))
        return [
            outcome if outcome is not error or next(listed) else IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
            for outcome in outcomes
        ]


@lru_cache(maxsize=1024)
def _key_id(header: bytes) -> UUID:
    return UUID(bytes=header[3:])


def _key_source(key: bytes | KeySource, suite: Suite | None, application: str | None) -> KeySource:
    if not isinstance(key, KeySource):
        return StaticKey(key, application="default" if application is None else application, suite=suite)
    if suite is not None or application is not None:
        raise ConfigurationError(
            "suite and application are for a static key only",
            remedy="Leave them out: a keyring has its application's name, and its keys select the suite.",
        )
    return key


def _check_count(name: str, values: Sequence[object], items: Sequence[object]) -> None:
    if len(values) != len(items):
        raise ConfigurationError(
            f"{name} holds {len(values)} values for {len(items)} items",
            remedy=f"Give one value of {name} for all items, or one for each.",
        )
