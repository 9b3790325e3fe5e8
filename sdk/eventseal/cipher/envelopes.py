"""Items under one key: ready bytes to envelopes, and envelopes back to plaintext."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from eventseal.cipher.compression import decompress
from eventseal.errors import (
    EventSealError,
    IntegrityError,
    SerializationError,
    WrongApplicationError,
)
from eventseal.keys.states import KeyPurpose
from eventseal.suites.cbc_hmac import SUITES, open_many, seal_many
from eventseal.suites.envelope import HEADER_SIZE, build_header

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.suites.cbc_hmac import Suite
    from eventseal.suites.envelope import CompressionId

_Place = TypeVar("_Place", contravariant=True)  # noqa: PLC0105 - one name for the protocol and its users
_WHAT_SEALS = {
    KeyPurpose.DATA: "only data keys seal and open items",
    KeyPurpose.FIELD: "only field keys seal and open fields",
}

Ready: TypeAlias = "tuple[CompressionId, bytes, bytes]"
"""An item before it meets its key: how its body is compressed, the body, and its place as bytes."""


@dataclass(frozen=True, slots=True)
class Opened:
    """
    An opened item.

    Attributes:
        plaintext: As it was sealed.
        key_id: The key that opened it.
        scope: That key's scope; a reader compares it with the scope that it expects.
    """

    plaintext: bytes = field(repr=False)
    key_id: UUID
    scope: str


class Binder(Protocol[_Place]):
    """Writes places as associated data, for one application."""

    @property
    def application(self) -> str:
        """Its name is part of all associated data."""
        ...

    def bind(self, context: _Place, /) -> bytes:
        """
        Give the associated data but for the envelope's header, which goes before it.

        Raises:
            SerializationError: A part has no canonical value.
        """
        ...


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
        IntegrityError: It is not a key of this purpose.
        KeyNotFoundError: It was closed meanwhile.
    """
    problem = misfit(key, application, purpose)
    if problem is not None:
        raise problem
    used = {compression for compression, _, _ in items}
    headers = {compression: build_header(suite.id, compression, key.key_id) for compression in used}
    framed = [(body, headers[compression] + place) for compression, body, place in items]
    bodies = seal_many(key.pool(suite), framed)
    return [aad[:HEADER_SIZE] + body for (_, aad), body in zip(framed, bodies, strict=True)]


def open_under(
    key: DataKey,
    header: bytes,
    items: Sequence[tuple[bytes, _Place]],
    *,
    binder: Binder[_Place],
    limit: int,
    purpose: KeyPurpose = KeyPurpose.DATA,
) -> list[Opened | EventSealError]:
    """
    Open items, or fields, that have one header in common, each with an outcome of its own.

    Args:
        key: The key that the header names.
        header: 19 bytes that this release knows.
        items: Whole envelopes and their places.
        binder: Gives a place's bytes; its application must be the key's.
        limit: Bytes that an item may have in plain.
        purpose: Of the keys that seal what is opened.

    Raises:
        KeyNotFoundError: The key was closed meanwhile.
    """
    problem = misfit(key, binder.application, purpose)
    if problem is not None:
        return [problem] * len(items)
    framed: list[tuple[bytes, bytes]] = []
    refused: dict[int, SerializationError] = {}
    bind = binder.bind
    for index, (sealed, context) in enumerate(items):
        try:
            framed.append((sealed[HEADER_SIZE:], header + bind(context)))
        except SerializationError as error:
            refused[index] = error
    opened = open_many(key.pool(SUITES[header[1]]), framed)
    outcomes = _decompressed(opened, key, header[2], limit)
    for index, refusal in refused.items():
        outcomes.insert(index, refusal)
    return outcomes


def _decompressed(
    opened: Sequence[bytes | IntegrityError], key: DataKey, compression: int, limit: int
) -> list[Opened | EventSealError]:
    key_id, scope = key.key_id, key.scope
    outcomes: list[Opened | EventSealError] = []
    for body in opened:
        outcome = decompress(compression, body, limit=limit) if isinstance(body, bytes) else body
        outcomes.append(Opened(outcome, key_id, scope) if isinstance(outcome, bytes) else outcome)
    return outcomes


def misfit(key: DataKey, application: str, purpose: KeyPurpose = KeyPurpose.DATA) -> EventSealError | None:
    """Say why *key* may neither seal nor open for *application*; asked before any tag is checked."""
    if key.application != application:
        return WrongApplicationError(
            f"key {key.key_id} belongs to the application {key.application!r}, not to {application!r}",
            expected=application,
            found=key.application,
        )
    if key.purpose is not purpose:
        return IntegrityError(
            f"key {key.key_id} is of purpose {key.purpose}; {_WHAT_SEALS[purpose]}",
            key_id=key.key_id,
        )
    return None
