"""The cipher: where the data path meets the key path. Bytes and their place in, an envelope out, and back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from eventseal.cipher.compression import Compression, Zstd, decompress, too_large
from eventseal.cipher.context import ItemBinder, ItemContext
from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KeyNotFoundError,
    SerializationError,
    UnknownFormatError,
    WrongApplicationError,
)
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.keys.states import KeyPurpose
from eventseal.keys.static_key import StaticKey
from eventseal.suites.cbc_hmac import A256CBC_HS512, SUITES, Suite, open_many, seal_many
from eventseal.suites.envelope import BLOCK_SIZE, HEADER_SIZE, CompressionId, build_header, parse_envelope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.source import KeySource

MAX_PLAINTEXT = 2**24


@dataclass(frozen=True, slots=True)
class Opened:
    """
    An opened item.

    Attributes:
        plaintext: As it was sealed.
        key_id: The key that opened it.
        scope: That key's scope; a reader compares it with the scope that it expects.
    """

    plaintext: bytes
    key_id: UUID
    scope: str


class AESCipher:
    """
    Seals and opens items. Methods may be called from several threads at once.

    Args:
        key: A keyring, or a static key of 16, 24 or 32 random bytes.
        suite: Static keys only: what to seal with, if not the suite of the key's size.
        compression: Zstandard by default.
        application: Static keys only: the name that is bound to every item; ``default`` by default.
        max_plaintext: Bytes that an item may have in plain, sealing and opening.

    Raises:
        ConfigurationError: The key has another size or type, or an argument is for static keys only.
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
        if isinstance(key, bytes):
            key = StaticKey(key, application=application or "default", suite=suite)
        elif suite is not None or application is not None:
            raise ConfigurationError(
                "suite and application are for static keys only",
                remedy="Leave them out: the keyring has an application's name, and its keys select the suite.",
            )
        self._keys: KeySource = key
        self._suite = key.suite if isinstance(key, StaticKey) else A256CBC_HS512
        self._compression = compression or Zstd()
        self._max_plaintext = max_plaintext
        self._binder = ItemBinder(key.application)

    @property
    def application(self) -> str:
        """The application whose items this cipher seals and opens."""
        return self._keys.application

    def refresh(self) -> None:
        """Look at once for keys whose state changed."""
        self._keys.refresh()

    def encrypt(
        self, plaintext: bytes, context: ItemContext, *, scope: str = DEFAULT_SCOPE, compress: bool = True
    ) -> bytes:
        """Seal one item; see :meth:`encrypt_many`."""
        return self.encrypt_many([(plaintext, context)], scopes=scope, compress=compress)[0]

    def decrypt(self, sealed: bytes, context: ItemContext) -> bytes:
        """
        Open one item; see :meth:`open_many`.

        Raises:
            EventSealError: What :meth:`open_many` gives as the item's outcome.
        """
        outcome = self.open_many([(sealed, context)])[0]
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
        Seal items, all or none, each scope's under one key.

        Args:
            items: Plaintext and place.
            scopes: Of all items, or of each.
            compress: Whether compression is tried, for all items or for each.

        Returns:
            The envelopes, in order.

        Raises:
            SerializationError: A place has no canonical value, or a plaintext is not bytes.
            ItemTooLargeError: A plaintext is over ``max_plaintext``.
            EventSealError: There is no key to seal with; see ``KeySource.sealing_keys``.
        """
        scope_of = [scopes] * len(items) if isinstance(scopes, str) else list(scopes)
        compress_of = [compress] * len(items) if isinstance(compress, bool) else list(compress)
        if not len(items) == len(scope_of) == len(compress_of):
            raise ConfigurationError(
                "encrypt_many takes one scope and one compress for all items, or one for each"
            )
        prepared = [self._prepare(*item, wanted) for item, wanted in zip(items, compress_of, strict=True)]
        by_scope: dict[str, list[int]] = {}
        for index, scope in enumerate(scope_of):
            by_scope.setdefault(scope, []).append(index)
        keys = self._keys.sealing_keys(Counter(scope_of))
        sealed: list[bytes] = [b""] * len(items)
        for scope, indices in by_scope.items():
            group = [prepared[index] for index in indices]
            for index, envelope in zip(indices, self._seal_group(scope, keys[scope], group), strict=True):
                sealed[index] = envelope
        return sealed

    def open_many(self, items: Sequence[tuple[bytes, ItemContext]]) -> list[Opened | EventSealError]:
        """
        Open items, each with an outcome of its own.

        Args:
            items: Envelope and place.

        Returns:
            For each item, in order, what was opened or why not: ``UnknownFormatError``, ``SerializationError``,
            ``WrongApplicationError``, ``KeyNotFoundError`` and the like of ``KeySource.opening_keys``,
            ``IntegrityError``, ``ItemTooLargeError``.

        Raises:
            StoreError: The key store refused or failed.
        """
        outcomes: list[Opened | EventSealError | None] = [None] * len(items)
        by_header: dict[bytes, list[int]] = {}
        for index, (sealed, _) in enumerate(items):
            try:
                parse_envelope(sealed)
            except UnknownFormatError as error:
                outcomes[index] = error
            else:
                by_header.setdefault(sealed[:HEADER_SIZE], []).append(index)
        key_ids = {header: UUID(bytes=header[3:]) for header in by_header}
        keys = self._keys.opening_keys(set(key_ids.values())) if key_ids else {}
        for header, indices in by_header.items():
            self._open_group(header, keys[key_ids[header]], items, indices, outcomes)
        return outcomes  # type: ignore[return-value]

    def _prepare(
        self, plaintext: bytes, context: ItemContext, wanted: bool
    ) -> tuple[bytes, CompressionId, bytes]:
        if not isinstance(plaintext, bytes):
            raise SerializationError(f"a plaintext is bytes, not {type(plaintext).__name__}")
        if len(plaintext) > self._max_plaintext:
            raise too_large(len(plaintext), self._max_plaintext)
        bound = self._binder.bind(context)
        if wanted:
            compressed = self._compression.compress(plaintext)
            if len(compressed) // BLOCK_SIZE < len(plaintext) // BLOCK_SIZE:
                return compressed, self._compression.id, bound
        return plaintext, CompressionId.NONE, bound

    def _seal_group(
        self, scope: str, key: DataKey, group: list[tuple[bytes, CompressionId, bytes]]
    ) -> list[bytes]:
        try:
            return self._seal(key, group)
        except KeyNotFoundError:
            if not key.closed:
                raise
        key = self._keys.sealing_keys({scope: len(group)})[scope]
        return self._seal(key, group)

    def _seal(self, key: DataKey, group: list[tuple[bytes, CompressionId, bytes]]) -> list[bytes]:
        problem = self._unfit(key)
        if problem is not None:
            raise problem
        headers = {
            compression: build_header(self._suite.id, compression, key.key_id)
            for compression in (CompressionId.NONE, self._compression.id)
        }
        framed = [(body, headers[compression] + bound) for body, compression, bound in group]
        bodies = seal_many(key.pool(self._suite), framed)
        return [aad[:HEADER_SIZE] + body for (_, aad), body in zip(framed, bodies, strict=True)]

    def _open_group(
        self,
        header: bytes,
        key: DataKey | EventSealError,
        items: Sequence[tuple[bytes, ItemContext]],
        indices: list[int],
        outcomes: list[Opened | EventSealError | None],
    ) -> None:
        problem = key if isinstance(key, EventSealError) else self._unfit(key)
        if problem is not None:
            for index in indices:
                outcomes[index] = problem
            return
        framed: list[tuple[bytes, bytes]] = []
        bound: list[int] = []
        for index in indices:
            sealed, context = items[index]
            try:
                framed.append((sealed[HEADER_SIZE:], header + self._binder.bind(context)))
                bound.append(index)
            except SerializationError as error:
                outcomes[index] = error
        suite, compression = SUITES[header[1]], CompressionId(header[2])
        for index, opened in zip(bound, open_many(key.pool(suite), framed), strict=True):
            if isinstance(opened, IntegrityError):
                outcomes[index] = opened
                continue
            try:
                plaintext = decompress(compression, opened, limit=self._max_plaintext)
                outcomes[index] = Opened(plaintext, key.key_id, key.scope)
            except EventSealError as error:
                outcomes[index] = error

    def _unfit(self, key: DataKey) -> EventSealError | None:
        if key.application != self.application:
            return WrongApplicationError(
                f"key {key.key_id} belongs to the application {key.application!r}, not to {self.application!r}",
                expected=self.application,
                found=key.application,
            )
        if key.purpose is not KeyPurpose.DATA:
            return IntegrityError(
                f"key {key.key_id} is of purpose {key.purpose}; only data keys seal and open items"
            )
        return None
