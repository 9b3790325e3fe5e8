"""Items from one key to another: opened, sealed again as they are, proven to open."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from uuid import UUID

from eventseal.cipher.compression import decompress
from eventseal.cipher.envelopes import misfit
from eventseal.errors import EventSealError, IntegrityError, KeyNotFoundError, SerializationError
from eventseal.suites.cbc_hmac import SUITES, open_many, seal_many
from eventseal.suites.envelope import (
    BLOCK_SIZE,
    HEADER_SIZE,
    CompressionId,
    build_header,
    envelope_problem,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.cipher.compression import Compression
    from eventseal.cipher.context import ItemBinder
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.source import KeySource
    from eventseal.suites.cbc_hmac import Suite

StoredItem: TypeAlias = "tuple[Any, ...]"
"""Sequence id, position, topic, envelope; whatever stands behind them is not looked at."""


@dataclass(frozen=True, slots=True)
class Resealed:
    """
    An item under its scope's active key.

    Attributes:
        data: The new envelope; it was opened again, to the same bytes.
        key_id: Of the active key.
    """

    data: bytes = field(repr=False)
    key_id: UUID


Outcome: TypeAlias = "Resealed | EventSealError | None"
"""``None``: the item opens, but its scope has no active key."""


class _Opened(NamedTuple):
    """An item between its keys: the compression it came with, its body as it was sealed, its place."""

    item: int
    compression: int
    body: bytes
    place: bytes


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

    def reseal_many(self, items: Sequence[StoredItem], collection: str) -> list[Outcome]:
        """Give each item under its scope's active key, or why not; see ``AESCipher.reseal_many``."""
        outcomes: list[Outcome] = [None] * len(items)
        by_scope: dict[str, list[_Opened]] = {}
        by_header = _by_header(items, outcomes)
        key_ids = {header: UUID(bytes=header[3:]) for header in by_header}
        keys = self._keys.opening_keys(set(key_ids.values())) if by_header else {}
        for header, indices in by_header.items():
            bound = self._bound(items, indices, collection, outcomes)
            opened = self._open(keys[key_ids[header]], header, items, bound, last_answer=False)
            if isinstance(opened, EventSealError):
                for index, _ in bound:
                    outcomes[index] = opened
                continue
            scope, bodies = opened
            group = by_scope.setdefault(scope, [])
            for (index, place), body in zip(bound, bodies, strict=True):
                if isinstance(body, IntegrityError):
                    outcomes[index] = body
                else:
                    group.append(_Opened(index, header[2], body, place))
        self._seal_scopes(by_scope, outcomes)
        return outcomes

    def _bound(
        self, items: Sequence[StoredItem], indices: list[int], collection: str, outcomes: list[Outcome]
    ) -> list[tuple[int, bytes]]:
        """Give the places of the items that have one; the others get their error."""
        bound: list[tuple[int, bytes]] = []
        places = self._binder.bind_many([items[index] for index in indices], collection)
        for index, place in zip(indices, places, strict=True):
            if isinstance(place, SerializationError):
                outcomes[index] = place
            else:
                bound.append((index, place))
        return bound

    def _open(
        self,
        key: DataKey | EventSealError,
        header: bytes,
        items: Sequence[StoredItem],
        bound: list[tuple[int, bytes]],
        *,
        last_answer: bool,
    ) -> tuple[str, list[bytes | IntegrityError]] | EventSealError:
        """Open the items of one header: give their scope and each one's body, or what stops all of them."""
        if isinstance(key, EventSealError):
            return key
        problem = misfit(key, self._binder.application)
        if problem is not None:
            return problem
        framed = [(items[index][3][HEADER_SIZE:], header + place) for index, place in bound]
        try:
            return key.scope, open_many(key.pool(SUITES[header[1]]), framed)
        except KeyNotFoundError as error:  # closed between being handed out and being used: ask once more
            again = error if last_answer else self._keys.opening_keys([key.key_id])[key.key_id]
        return self._open(again, header, items, bound, last_answer=True)

    def _seal_scopes(self, by_scope: dict[str, list[_Opened]], outcomes: list[Outcome]) -> None:
        wanted = {scope: len(opened) for scope, opened in by_scope.items() if opened}
        targets = self._keys.sealing_keys(wanted, make=False) if wanted else {}
        for scope, target in targets.items():
            self._seal(target, by_scope[scope], outcomes)

    def _seal(self, target: DataKey, opened: Sequence[_Opened], outcomes: list[Outcome]) -> None:
        pool = target.pool(self._suite)
        headers = _Headers(self._suite, target.key_id)
        framed: list[tuple[bytes, bytes]] = []
        indices: list[int] = []
        for index, compression, body, place in opened:
            fitting = self._fitted(compression, body)
            if isinstance(fitting, EventSealError):
                outcomes[index] = fitting
            else:
                framed.append((fitting[1], headers[fitting[0]] + place))
                indices.append(index)
        sealed = seal_many(pool, framed)
        again = open_many(pool, [(body, aad) for body, (_, aad) in zip(sealed, framed, strict=True)])
        key_id = target.key_id
        for index, body, (plain, aad), reopened in zip(indices, sealed, framed, again, strict=True):
            if reopened != plain:
                raise IntegrityError(
                    f"an item that was just sealed under key {key_id} does not open to the same bytes",
                    remedy="Nothing of the batch was written. Check this machine's memory and its OpenSSL.",
                )
            outcomes[index] = Resealed(aad[:HEADER_SIZE] + body, key_id)

    def _fitted(self, compression: int, body: bytes) -> tuple[int, bytes] | EventSealError:
        """Give the body under the cipher's compression: as it is, wherever it is that already, or plain."""
        if compression in (CompressionId.NONE, self._compression.id):
            return compression, body
        plaintext = decompress(compression, body, limit=self._limit)
        if not isinstance(plaintext, bytes):
            return plaintext
        if self._compression.id is not CompressionId.NONE:
            compressed = self._compression.compress(plaintext)
            if len(compressed) // BLOCK_SIZE < len(plaintext) // BLOCK_SIZE:
                return self._compression.id, compressed
        return CompressionId.NONE, plaintext


def _by_header(items: Sequence[StoredItem], outcomes: list[Outcome]) -> dict[bytes, list[int]]:
    """Group the items by their header; what is no envelope gets its error."""
    indices: dict[bytes, list[int]] = {}
    for index, item in enumerate(items):
        sealed = item[3]
        problem = envelope_problem(sealed)
        if problem is None:
            indices.setdefault(sealed[:HEADER_SIZE], []).append(index)
        else:
            outcomes[index] = problem
    return indices


class _Headers(dict[int, bytes]):
    """Headers under one key, by compression."""

    def __init__(self, suite: Suite, key_id: UUID) -> None:
        self._suite = suite
        self._key_id = key_id

    def __missing__(self, compression: int) -> bytes:
        header = self[compression] = build_header(self._suite.id, CompressionId(compression), self._key_id)
        return header
