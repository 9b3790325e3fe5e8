"""The cipher, where data meets keys: it seals, opens and re-encrypts items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from eventseal.cipher.compression import Zstd, decompress
from eventseal.cipher.context import ItemBinder, ItemContext
from eventseal.cipher.envelopes import EnvelopeSealer, FieldSealer, Opened, key_id_in, misfit
from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KeyNotFoundError,
    SerializationError,
)
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.keys.source import WHERE_KEYS_COME_FROM, KeySource, StaticKey
from eventseal.suites.cbc_hmac import A256CBC_HS512, SUITES, open_many, reopens, seal_many
from eventseal.suites.envelope import (
    BLOCK_SIZE,
    HEADER_SIZE,
    VERSION,
    CompressionId,
    build_header,
    envelope_problem,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventseal.cipher.compression import Compression
    from eventseal.cipher.context import StoredItems
    from eventseal.cipher.envelopes import FieldContext
    from eventseal.keys.data_key import DataKey
    from eventseal.suites.cbc_hmac import Suite


MAX_PLAINTEXT = 2**24
"""The default limit of an item's plaintext, in bytes."""

Outcome: TypeAlias = "bytes | EventSealError | None"
"""
The result for one item: its new envelope, or an error.

``None``: the item opens, but its scope has no active key.
"""

_Row: TypeAlias = "tuple[int, CompressionId, bytes, bytes]"
"""An item between two keys: number, compression, body, and place as bytes."""


@dataclass(frozen=True, slots=True)
class FormerCollection:
    """
    The collection that items are moved from.

    Attributes:
        collection: The former collection. Items are bound to it if they do not open in their new collection.
        rewritten: Returns the plaintext of an item for its new collection. It also rewrites the parts inside
            that are bound to the collection. It takes the item's number and its plaintext.
    """

    collection: str
    rewritten: Callable[[int, bytes], bytes | EventSealError]


class AESCipher(EnvelopeSealer[ItemContext]):
    """
    Seals and opens items.

    Several threads may call its methods at the same time.

    Args:
        key: A keyring, or a static key of 16, 24 or 32 random bytes.
        suite: The cipher suite of a static key. By default it is the suite of the key's size.
        compression: How items are compressed before they are sealed. The default is Zstandard.
        application: The application's name for a static key, which is bound to every item. The default is
            ``default``.
        max_plaintext: The limit of an item's plaintext in bytes, for sealing and for opening.

    Raises:
        ConfigurationError: The key has another size or type, or an argument does not fit this kind of key.
    """

    def __new__(cls, *_: object, **named: object) -> Self:
        """Refuse the names that the old library had for the key."""
        if old_names := sorted(named.keys() & {"aes_key", "cipher_key"}):
            named.clear()  # no traceback of the error below shows the key
            raise ConfigurationError(
                f"AESCipher has no argument {old_names[0]}. The key is its first argument.",
                remedy=WHERE_KEYS_COME_FROM,
            )
        return super().__new__(cls)

    def __init__(
        self,
        key: bytes | KeySource,
        *,
        suite: Suite | None = None,
        compression: Compression | None = None,
        application: str | None = None,
        max_plaintext: int = MAX_PLAINTEXT,
    ) -> None:
        try:
            source = _key_source(key, suite, application)
        except ConfigurationError as error:
            raise error.with_traceback(None) from None  # without the frames that hold the key
        finally:
            del key  # no traceback of an error shows it
        if max_plaintext < 1:
            raise ConfigurationError(f"max_plaintext is {max_plaintext}, but it must be at least 1 byte")
        sealing_suite = source.suite if isinstance(source, StaticKey) else A256CBC_HS512
        compression = compression or Zstd()
        self._binder = binder = ItemBinder(source.application)
        super().__init__(
            source, suite=sealing_suite, compression=compression, bind=binder.bind, limit=max_plaintext
        )
        self._fields = FieldSealer(
            source, suite=sealing_suite, compression=compression, binder=binder, limit=max_plaintext
        )

    def with_keys(self, keys: KeySource) -> AESCipher:
        """Return a cipher that differs only in its keys."""
        return AESCipher(keys, compression=self._compression, max_plaintext=self._limit)

    @property
    def application(self) -> str:
        """The application whose items this cipher seals and opens."""
        return self._keys.application

    def stored_scope(self, scope: str) -> str:
        """
        Return a scope as keys name it (see ``KeySource``).

        Compare the result with the scope of an opened item.
        """
        return self._keys.stored_scope(scope)

    @property
    def has_keyring(self) -> bool:
        """Whether a keyring supplies its keys. Otherwise one static key seals everything."""
        return not isinstance(self._keys, StaticKey)

    def add_place(self, name: str, collection: str) -> None:
        """Note a place of items outside the registered tables (see ``KeySource``)."""
        self._keys.add_place(name, collection)

    def refresh(self) -> None:
        """Look immediately for keys whose state changed."""
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
            EventSealError: The item does not open. :meth:`open_many` lists the errors.
        """
        outcome = self.open_many(((sealed, context),))[0]
        if isinstance(outcome, EventSealError):
            raise outcome
        return outcome.plaintext

    def bind_fields(self, fields: Sequence[tuple[bytes, FieldContext]]) -> list[tuple[bytes, bytes]]:
        """Return the associated data of fields, as :meth:`bind_many` does for items."""
        return self._fields.bind_many(fields)

    def reseal_many(
        self, items: StoredItems, collection: str, *, moved: FormerCollection | None = None
    ) -> list[Outcome]:
        """
        Re-encrypt items under the active keys of their scopes.

        This creates no key. An item keeps its compression if that is the cipher's own or none: an item may be
        uncompressed on purpose. Each new envelope is opened again and compared before it is returned.

        Args:
            items: The places and envelopes of the items, column by column.
            collection: The collection of all items.
            moved: The collection that items may come from. ``None`` means that no item is moved.

        Returns:
            For each item, in order, its new envelope, or the error of :meth:`open_many` if it does not open.
            The value ``None`` means that its scope has no active key.

        Raises:
            IntegrityError: A new envelope does not open to the same bytes.
            KeyNotFoundError: A key was closed while it sealed.
            EventSealError: A scope has no key to seal with. ``KeySource.sealing_keys`` lists the reasons.
        """
        outcomes: list[Outcome] = [None] * len(items.envelopes)
        by_header = _by_header(items.envelopes, outcomes)
        if not by_header:
            return outcomes
        places = self._binder.bind_many(items, collection)
        former = None if moved is None else self._binder.bind_many(items, moved.collection)
        keys = self._keys.opening_keys({key_id_in(header) for header in by_header})
        by_scope: dict[str, list[_Row]] = {}
        for header, numbers in by_header.items():
            key, bound, framed = keys[key_id_in(header)], [], []
            for number in numbers:
                place = places[number]
                if isinstance(place, SerializationError):
                    outcomes[number] = place
                else:
                    bound.append(number)
                    framed.append((items.envelopes[number][HEADER_SIZE:], header + place))
            opened = self._bodies(key, header, framed)
            if isinstance(opened, EventSealError):
                for number in bound:
                    outcomes[number] = opened
                continue
            scope, bodies = opened
            if former is not None:
                places_before = [former[number] for number in bound]
                self._open_former(key, header, framed, bodies, places_before)
            rows = by_scope.setdefault(scope, [])
            compression = CompressionId(header[2])
            is_kept = moved is None and compression in (CompressionId.NONE, self._compression.id)
            for number, (_, aad), body in zip(bound, framed, bodies, strict=True):
                if is_kept and type(body) is bytes:  # nearly always
                    rows.append((number, compression, body, aad[HEADER_SIZE:]))
                    continue
                written = self._written(number, compression, body, moved)
                if isinstance(written, EventSealError):
                    outcomes[number] = written
                else:
                    rows.append((number, *written, aad[HEADER_SIZE:]))
        wanted = {scope: len(rows) for scope, rows in by_scope.items() if rows}
        targets = self._keys.sealing_keys(wanted, make=False) if wanted else {}
        for scope, target in targets.items():
            self._seal_rows(target, by_scope[scope], outcomes)
        return outcomes

    @property
    def heads(self) -> tuple[bytes, ...]:
        """The first 3 bytes of envelopes where :meth:`reseal_many` changes only the key."""
        compressions = dict.fromkeys((self._compression.id, CompressionId.NONE))
        return tuple(bytes((VERSION, self._suite.id, compression)) for compression in compressions)

    def seal_fields(
        self, fields: Sequence[tuple[bytes, FieldContext]], *, compress: Sequence[bool]
    ) -> list[bytes]:
        """
        Seal fields of items, all or none.

        Each is sealed under its subject's key of purpose ``field``.

        Args:
            fields: The plaintext and the place of each field. The scope in the place names the subject.
            compress: For each field, whether to try compression. Short fields are never compressed.

        Returns:
            The envelopes, in order.

        Raises:
            SerializationError: A place has no canonical value.
            ItemTooLargeError: A plaintext is over ``max_plaintext``.
            EventSealError: A subject has no key to seal with. ``KeySource.sealing_keys`` lists the reasons.
        """
        scopes = [context.scope for _, context in fields]
        return self._fields.encrypt_many(fields, scopes=scopes, compress=compress)

    def open_fields(self, fields: Sequence[tuple[bytes, FieldContext]]) -> list[Opened | EventSealError]:
        """
        Open fields, each with its own outcome.

        It opens them as :meth:`open_many` opens items.

        Args:
            fields: The envelope and the place of each field.

        Raises:
            StoreError: The key store refused or failed.
        """
        return self._fields.open_many(fields)

    def _bodies(
        self,
        key: DataKey | EventSealError,
        header: bytes,
        framed: Sequence[tuple[bytes, bytes]],
        *,
        last_answer: bool = False,
    ) -> tuple[str, list[bytes | IntegrityError]] | EventSealError:
        """
        Open items that have one header in common.

        Returns:
            Their scope, and for each its body or its error. Or the one error that stops all of them.
        """
        if isinstance(key, EventSealError):
            return key
        problem = misfit(key, self._keys.application)
        if problem is not None:
            return problem
        try:
            return key.scope, open_many(key.pool(SUITES[header[1]]), framed)
        except KeyNotFoundError as error:  # closed after it was handed out: fetch it once more
            again = error if last_answer else self._keys.opening_keys([key.key_id])[key.key_id]
        return self._bodies(again, header, framed, last_answer=True)

    def _open_former(
        self,
        key: DataKey | EventSealError,
        header: bytes,
        framed: Sequence[tuple[bytes, bytes]],
        bodies: list[bytes | IntegrityError],
        former: Sequence[Any],
    ) -> None:
        """Open items in their former collection, if the new one refuses them."""
        refused = [index for index, body in enumerate(bodies) if isinstance(body, IntegrityError)]
        # A place has a value in both collections or in none.
        opened = self._bodies(key, header, [(framed[index][0], header + former[index]) for index in refused])
        if not isinstance(opened, EventSealError):
            for index, body in zip(refused, opened[1], strict=True):
                bodies[index] = body

    def _written(
        self,
        number: int,
        compression: CompressionId,
        body: bytes | IntegrityError,
        moved: FormerCollection | None,
    ) -> tuple[CompressionId, bytes] | EventSealError:
        """Return a body for sealing, compressed by the cipher if that helps."""
        plaintext = decompress(compression, body, limit=self._limit) if isinstance(body, bytes) else body
        written = moved.rewritten(number, plaintext) if moved and isinstance(plaintext, bytes) else plaintext
        if isinstance(written, EventSealError):
            return written
        own = self._compression.id
        if written is plaintext and isinstance(body, bytes) and compression in (CompressionId.NONE, own):
            return compression, body
        if CompressionId.NONE not in (compression, own):
            compressed = self._compression.compress(written)
            if len(compressed) // BLOCK_SIZE < len(written) // BLOCK_SIZE:
                return own, compressed
        return CompressionId.NONE, written

    def _seal_rows(self, target: DataKey, rows: Sequence[_Row], outcomes: list[Outcome]) -> None:
        pool = target.pool(self._suite)
        headers = {
            compression: build_header(self._suite.id, compression, target.key_id)
            for compression in (CompressionId.NONE, self._compression.id)
        }
        framed = [(body, headers[compression] + place) for _, compression, body, place in rows]
        sealed = seal_many(pool, framed)
        if not reopens(pool, sealed, framed):
            raise IntegrityError(
                f"items that were just sealed under key {target.key_id} do not open to the same bytes",
                remedy="No item of the batch was written. Check this machine's memory and its OpenSSL.",
                key_id=target.key_id,
            )
        for (number, *_), body, (_, aad) in zip(rows, sealed, framed, strict=True):
            outcomes[number] = aad[:HEADER_SIZE] + body


def _key_source(key: bytes | KeySource, suite: Suite | None, application: str | None) -> KeySource:
    if not isinstance(key, KeySource):
        return StaticKey(key, application="default" if application is None else application, suite=suite)
    if suite is not None or application is not None:
        raise ConfigurationError(
            "suite and application are for a static key only",
            remedy="Leave them out: a keyring has its application's name, and its keys select the suite.",
        )
    return key


def _by_header(envelopes: Sequence[Any], outcomes: list[Outcome]) -> dict[bytes, list[int]]:
    """Group the items by header. Bytes that are no envelope get an error."""
    numbers: dict[bytes, list[int]] = {}
    for number, problem in enumerate(map(envelope_problem, envelopes)):
        if problem is None:
            numbers.setdefault(envelopes[number][:HEADER_SIZE], []).append(number)
        else:
            outcomes[number] = problem
    return numbers
