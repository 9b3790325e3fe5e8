"""The cipher, where the data path meets the key path: seals items, opens them, and seals them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

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
from eventseal.keys.source import KeySource, StaticKey
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
"""Bytes that an item may have in plain, unless the cipher is told otherwise."""

Outcome: TypeAlias = "bytes | EventSealError | None"
"""A new envelope, why there is none, or ``None``: the item opens, but its scope has no active key."""

_Row: TypeAlias = "tuple[int, CompressionId, bytes, bytes]"
"""An item between its keys: its number, how its body is compressed, the body, and its place as bytes."""


@dataclass(frozen=True, slots=True)
class FormerCollection:
    """
    Where items were before that are being moved to another collection.

    Attributes:
        collection: What an item is bound to that does not open in the one it is moved to.
        rewritten: Gives what an item says there: what is bound to the collection inside of it, too. Takes its
            number and its plaintext.
    """

    collection: str
    rewritten: Callable[[int, bytes], bytes | EventSealError]


class AESCipher(EnvelopeSealer[ItemContext]):
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
        source = _key_source(key, suite, application)
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
        """Give a cipher that differs in its keys alone."""
        return AESCipher(keys, compression=self._compression, max_plaintext=self._limit)

    @property
    def application(self) -> str:
        """The application whose items this cipher seals and opens."""
        return self._keys.application

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

    def bind_fields(self, fields: Sequence[tuple[bytes, FieldContext]]) -> list[tuple[bytes, bytes]]:
        """Give the associated data of fields, as :meth:`bind_many` does that of items."""
        return self._fields.bind_many(fields)

    def reseal_many(
        self, items: StoredItems, collection: str, *, moved: FormerCollection | None = None
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
                if is_kept and type(body) is bytes:  # as nearly always
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
        scopes = [context.scope for _, context in fields]
        return self._fields.encrypt_many(fields, scopes=scopes, compress=compress)

    def open_fields(self, fields: Sequence[tuple[bytes, FieldContext]]) -> list[Opened | EventSealError]:
        """
        Open fields, each with an outcome of its own, as :meth:`open_many` opens items.

        Args:
            fields: Envelope and place of each.

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
        """Open the items of one header: give their scope and each one's body, or what stops all of them."""
        if isinstance(key, EventSealError):
            return key
        problem = misfit(key, self._keys.application)
        if problem is not None:
            return problem
        try:
            return key.scope, open_many(key.pool(SUITES[header[1]]), framed)
        except KeyNotFoundError as error:  # closed between being handed out and being used: ask once more
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
        """Open, where they were before, the items that did not open where they are moved to."""
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
        """Give a body as it is to be sealed: as it is, or under the cipher's compression if that helps."""
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
                remedy="Nothing of the batch was written. Check this machine's memory and its OpenSSL.",
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
    """Number the items by their header; what is no envelope gets its error."""
    numbers: dict[bytes, list[int]] = {}
    for number, problem in enumerate(map(envelope_problem, envelopes)):
        if problem is None:
            numbers.setdefault(envelopes[number][:HEADER_SIZE], []).append(number)
        else:
            outcomes[number] = problem
    return numbers
