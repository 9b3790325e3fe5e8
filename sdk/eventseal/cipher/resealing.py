"""Items from one key to another: opened, sealed again as they are, and proven to open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from uuid import UUID

from eventseal.cipher.envelopes import decompress, misfit
from eventseal.errors import EventSealError, IntegrityError, KeyNotFoundError, SerializationError
from eventseal.suites.cbc_hmac import SUITES, open_many, reopens, seal_many
from eventseal.suites.envelope import (
    BLOCK_SIZE,
    HEADER_SIZE,
    CompressionId,
    build_header,
    envelope_problem,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventseal.cipher.context import ItemBinder
    from eventseal.cipher.envelopes import Compression
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.source import KeySource
    from eventseal.suites.cbc_hmac import Suite

Outcome: TypeAlias = "bytes | EventSealError | None"
"""A new envelope, why there is none, or ``None``: the item opens, but its scope has no active key."""


class StoredItems(Protocol):
    """Items with their places, column by column, as a table has them; they belong to one collection."""

    @property
    def sequence_ids(self) -> Sequence[Any]:
        """One for each item; equal neighbours had best be one object."""
        ...

    @property
    def positions(self) -> Sequence[Any]:
        """One for each item."""
        ...

    @property
    def topics(self) -> Sequence[Any]:
        """One for each item."""
        ...

    @property
    def envelopes(self) -> Sequence[Any]:
        """One for each item, or whatever stands in its place."""
        ...


@dataclass(frozen=True, slots=True)
class Moved:
    """
    Where items were before that are being moved to another collection.

    Attributes:
        collection: What an item is bound to that does not open in the one it is moved to.
        rewritten: Gives what an item says there: what is bound to the collection inside of it, too. Takes its
            number and its plaintext.
    """

    collection: str
    rewritten: Callable[[int, bytes], bytes | EventSealError]


class _Opened:
    """Items of one scope between their keys, column by column."""

    __slots__ = ("bodies", "compressions", "numbers", "places")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.compressions: list[int] = []
        self.bodies: list[bytes] = []
        self.places: list[bytes] = []


class Resealer:
    """
    Seals items again. A body keeps its compression, if that is the cipher's own or none.

    Args:
        keys: Open and seal; no key is made.
        suite: To seal with.
        compression: To compress with what comes under another one.
        binder: Gives a place's bytes.
        limit: Bytes that an item may have in plain, where one is decompressed.
    """

    def __init__(
        self, keys: KeySource, *, suite: Suite, compression: Compression, binder: ItemBinder, limit: int
    ) -> None:
        self._keys = keys
        self._suite = suite
        self._compression = compression
        self._binder = binder
        self._limit = limit

    def reseal_many(self, items: StoredItems, collection: str, moved: Moved | None = None) -> list[Outcome]:
        """Give each item under its scope's active key, or why not; see ``AESCipher.reseal_many``."""
        outcomes: list[Outcome] = [None] * len(items.envelopes)
        by_header = _by_header(items.envelopes, outcomes)
        if not by_header:
            return outcomes
        places = self._binder.bind_many(items, collection)
        former = None if moved is None else self._binder.bind_many(items, moved.collection)
        key_ids = {header: UUID(bytes=header[3:]) for header in by_header}
        keys = self._keys.opening_keys(set(key_ids.values()))
        by_scope: dict[str, _Opened] = {}
        for header, numbers in by_header.items():
            framed: list[tuple[bytes, bytes]] = []
            bound: list[int] = []
            for number in numbers:
                place = places[number]
                if isinstance(place, SerializationError):
                    outcomes[number] = place
                else:
                    framed.append((items.envelopes[number][HEADER_SIZE:], header + place))
                    bound.append(number)
            opened = self._open(keys[key_ids[header]], header, framed, last_answer=False)
            if isinstance(opened, EventSealError):
                for number in bound:
                    outcomes[number] = opened
                continue
            scope, bodies = opened
            into = by_scope.setdefault(scope, _Opened())
            if moved is None or former is None:
                _collect(into, header[2], bound, framed, bodies, outcomes)
                continue
            refused = [index for index, body in enumerate(bodies) if isinstance(body, IntegrityError)]
            # A place has a value in both collections or in none.
            again = [(framed[index][0], header + former[bound[index]]) for index in refused]  # type: ignore[operator]
            opened = self._open(keys[key_ids[header]], header, again, last_answer=False)
            if not isinstance(opened, EventSealError):
                for index, body in zip(refused, opened[1], strict=True):
                    bodies[index] = body
            self._collect_moved(into, header[2], bound, framed, bodies, outcomes, moved)
        self._seal_scopes(by_scope, outcomes)
        return outcomes

    def _open(
        self,
        key: DataKey | EventSealError,
        header: bytes,
        framed: list[tuple[bytes, bytes]],
        *,
        last_answer: bool,
    ) -> tuple[str, list[bytes | IntegrityError]] | EventSealError:
        """Open the items of one header: give their scope and each one's body, or what stops all of them."""
        if isinstance(key, EventSealError):
            return key
        problem = misfit(key, self._binder.application)
        if problem is not None:
            return problem
        try:
            return key.scope, open_many(key.pool(SUITES[header[1]]), framed)
        except KeyNotFoundError as error:  # closed between being handed out and being used: ask once more
            again = error if last_answer else self._keys.opening_keys([key.key_id])[key.key_id]
        return self._open(again, header, framed, last_answer=True)

    def _collect_moved(
        self,
        into: _Opened,
        compression: int,
        numbers: list[int],
        framed: list[tuple[bytes, bytes]],
        bodies: list[bytes | IntegrityError],
        outcomes: list[Outcome],
        moved: Moved,
    ) -> None:
        """Add what was opened to its scope, each as it is written in the collection that it is moved to."""
        for number, frame, body in zip(numbers, framed, bodies, strict=True):
            plaintext = decompress(compression, body, limit=self._limit) if isinstance(body, bytes) else body
            written = moved.rewritten(number, plaintext) if isinstance(plaintext, bytes) else plaintext
            if isinstance(written, EventSealError):
                outcomes[number] = written
            elif written is plaintext and isinstance(body, bytes):
                _collect(into, compression, [number], [frame], [body], outcomes)
            else:
                kept, packed = self._compressed(written, tried=compression != CompressionId.NONE)
                _collect(into, kept, [number], [frame], [packed], outcomes)

    def _seal_scopes(self, by_scope: dict[str, _Opened], outcomes: list[Outcome]) -> None:
        wanted = {scope: len(opened.numbers) for scope, opened in by_scope.items() if opened.numbers}
        targets = self._keys.sealing_keys(wanted, make=False) if wanted else {}
        for scope, target in targets.items():
            self._seal(target, by_scope[scope], outcomes)

    def _seal(self, target: DataKey, opened: _Opened, outcomes: list[Outcome]) -> None:
        pool = target.pool(self._suite)
        headers = {
            compression: build_header(self._suite.id, compression, target.key_id)
            for compression in (CompressionId.NONE, self._compression.id)
        }
        framed: list[tuple[bytes, bytes]] = []
        numbers: list[int] = []
        for number, compression, body, place in zip(
            opened.numbers, opened.compressions, opened.bodies, opened.places, strict=True
        ):
            header = headers.get(compression)  # type: ignore[call-overload]
            if header is not None:
                framed.append((body, header + place))
                numbers.append(number)
                continue
            fitted = self._recompressed(compression, body)
            if isinstance(fitted, EventSealError):
                outcomes[number] = fitted
            else:
                framed.append((fitted[1], headers[fitted[0]] + place))
                numbers.append(number)
        sealed = seal_many(pool, framed)
        if not reopens(pool, sealed, framed):
            raise IntegrityError(
                f"items that were just sealed under key {target.key_id} do not open to the same bytes",
                remedy="Nothing of the batch was written. Check this machine's memory and its OpenSSL.",
                key_id=target.key_id,
            )
        for number, body, (_, aad) in zip(numbers, sealed, framed, strict=True):
            outcomes[number] = aad[:HEADER_SIZE] + body

    def _recompressed(self, compression: int, body: bytes) -> tuple[CompressionId, bytes] | EventSealError:
        """Give a body under the cipher's compression, if that makes it smaller, or plain."""
        plaintext = decompress(compression, body, limit=self._limit)
        if not isinstance(plaintext, bytes):
            return plaintext
        return self._compressed(plaintext, tried=True)

    def _compressed(self, plaintext: bytes, *, tried: bool) -> tuple[CompressionId, bytes]:
        if tried and self._compression.id is not CompressionId.NONE:
            compressed = self._compression.compress(plaintext)
            if len(compressed) // BLOCK_SIZE < len(plaintext) // BLOCK_SIZE:
                return self._compression.id, compressed
        return CompressionId.NONE, plaintext


def _by_header(envelopes: Sequence[Any], outcomes: list[Outcome]) -> dict[bytes, list[int]]:
    """Number the items by their header; what is no envelope gets its error."""
    numbers: dict[bytes, list[int]] = {}
    for number, problem in enumerate(map(envelope_problem, envelopes)):
        if problem is None:
            header = envelopes[number][:HEADER_SIZE]
            if header in numbers:
                numbers[header].append(number)
            else:
                numbers[header] = [number]
        else:
            outcomes[number] = problem
    return numbers


def _collect(
    opened: _Opened,
    compression: int,
    numbers: list[int],
    framed: list[tuple[bytes, bytes]],
    bodies: list[bytes | IntegrityError],
    outcomes: list[Outcome],
) -> None:
    """Add what was opened under one header to its scope; what was not gets its error."""
    if {*map(type, bodies)} == {bytes}:  # as nearly always
        opened.numbers += numbers
        opened.compressions += [compression] * len(numbers)
        opened.bodies += bodies  # type: ignore[arg-type]
        opened.places += [aad[HEADER_SIZE:] for _, aad in framed]
        return
    for number, (_, aad), body in zip(numbers, framed, bodies, strict=True):
        if isinstance(body, bytes):
            opened.numbers.append(number)
            opened.compressions.append(compression)
            opened.bodies.append(body)
            opened.places.append(aad[HEADER_SIZE:])
        else:
            outcomes[number] = body
