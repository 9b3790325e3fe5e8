"""Which older formats a reader accepts, until when, and what an item is in one of them."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eventseal.errors import (
    ConfigurationError,
    EncryptionRequiredError,
    EventSealError,
    IntegrityError,
    KeyNotFoundError,
    UnknownFormatError,
)
from eventseal.items.formats import OldFormat
from eventseal.suites.envelope import HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from decimal import Decimal
    from uuid import UUID

    from eventseal.cipher.context import ItemContext

_KEY_ID = slice(3, HEADER_SIZE)


@dataclass(frozen=True, slots=True)
class OldItem:
    """
    An item that opened in an older format.

    Attributes:
        plaintext: Its JSON.
        format: That it was in.
    """

    plaintext: bytes = field(repr=False)
    format: OldFormat


class Before:
    """
    An older format, at positions before the migration only: nobody slips such an item in behind them.

    Args:
        format: Of the items there.
        before: The first position at which it is refused, in any sequence; or a function of an item's place
            that says whether it is accepted there.
    """

    def __init__(self, format: OldFormat, before: int | Decimal | Callable[[ItemContext], bool]) -> None:  # noqa: A002 - what it is
        self._format = format
        self._before = before
        self.name = format.name
        self.key_id = format.key_id

    def open(self, data: bytes, context: ItemContext) -> bytes:
        """
        Open an item at such a place; see ``OldFormat``.

        Raises:
            EncryptionRequiredError: It is at another place.
        """
        before = self._before
        if before(context) if callable(before) else context.position < before:
            return self._format.open(data, context)
        raise EncryptionRequiredError(
            f"at position {context.position} no item may be in the format {self.name} any more",
            remedy="If the old application still wrote there, raise the position and migrate again; "
            "else find out who wrote the row.",
        )

    def __repr__(self) -> str:
        return f"<Before {self._format!r}>"


class AcceptedFormats:
    """
    The older formats that a reader accepts while a migration lasts. False if there are none.

    Args:
        formats: Tried in order, after the envelope, each by its own authentication or parse.
        current: Asked before one is tried: gives the names of those that are still accepted in a collection;
            ``None``: all of them, always.

    Raises:
        ConfigurationError: Something given is no format.
    """

    def __init__(
        self,
        formats: Collection[OldFormat] = (),
        *,
        current: Callable[[str], Collection[str]] | None = None,
    ) -> None:
        for given in formats:
            if not isinstance(given, OldFormat):
                raise ConfigurationError(
                    f"{type(given).__name__} is not an older format",
                    remedy="Give objects of eventseal.items.formats, such as PlainJSON().",
                )
        self.formats = tuple(formats)
        self._current = current

    @classmethod
    def of(cls, accept: AcceptedFormats | Collection[OldFormat]) -> AcceptedFormats:
        """Take what a mapper was given as ``accept=``."""
        return accept if isinstance(accept, AcceptedFormats) else cls(accept)

    def __bool__(self) -> bool:
        return bool(self.formats)

    def open(
        self, data: bytes, context: ItemContext, outcome: EventSealError, *, key_id: UUID | None = None
    ) -> OldItem | EventSealError:
        """
        Open an item that the cipher did not, or say why not: what every mapper and the migration call.

        Args:
            data: As stored.
            context: The item's place.
            outcome: What the cipher gave for it.
            key_id: What stands beside it in a column of its own, if there is one.

        Returns:
            The item; or *outcome*, if it says that this is an envelope, or names a key that is not there; or
            ``IntegrityError`` where it looks like an accepted format and does not open, with one message
            whatever failed; or ``UnknownFormatError``, or ``EncryptionRequiredError`` where none is accepted
            here or any more.
        """
        if not self.formats or not self._may_be_old(data, outcome, key_id):
            return outcome
        formats = self._accepted_in(context.collection)
        refusals: list[EventSealError] = []
        for accepted in formats:
            try:
                return OldItem(accepted.open(data, context), accepted)
            except EventSealError as error:
                refusals.append(error)
        if formats:
            return self._refusal(outcome, refusals)
        # Looks like an envelope: that its key is missing is what to find out, not how to accept it again.
        return outcome if isinstance(outcome, KeyNotFoundError) else _not_any_more(context.collection)

    def _accepted_in(self, collection: str) -> tuple[OldFormat, ...]:
        if self._current is None:
            return self.formats
        names = self._current(collection)
        return tuple(accepted for accepted in self.formats if accepted.name in names)

    def _may_be_old(self, data: bytes, outcome: EventSealError, key_id: UUID | None) -> bool:
        """Whether an older format can be meant: none says of itself what it is."""
        # Bytes are an envelope only if their key is known; about every 256th item of releases 8 and 9 begins
        # like one. What names a key in a column was an envelope: here, only a static key's can be accepted.
        if not isinstance(outcome, UnknownFormatError | KeyNotFoundError):
            return False
        if key_id is None:
            return True
        return key_id in self._key_ids and data[_KEY_ID] == key_id.bytes

    @property
    def _key_ids(self) -> set[Any]:
        return {accepted.key_id for accepted in self.formats}

    def _refusal(self, outcome: EventSealError, refusals: list[EventSealError]) -> EventSealError:
        names = ", ".join(accepted.name for accepted in self.formats)
        if isinstance(outcome, KeyNotFoundError):
            return KeyNotFoundError(
                f"{outcome}; nor does it open as {names}", key_id=outcome.key_id, remedy=outcome.remedy
            )
        for kind in (IntegrityError, EncryptionRequiredError):
            for refusal in refusals:
                if isinstance(refusal, kind):
                    return copy(refusal)
        others = [refusal for refusal in refusals if not isinstance(refusal, UnknownFormatError)]
        if others:
            return copy(others[0])
        return UnknownFormatError(
            f"the item is neither an envelope nor {names}",
            remedy="Name the format that wrote it, with its key.",
            offset=getattr(outcome, "offset", None),
        )


def _not_any_more(collection: str) -> EncryptionRequiredError:
    return EncryptionRequiredError(
        f"the item is no envelope, and no older format is accepted in the collection {collection}",
        remedy="Begin the migration with `eventseal migrate begin`; if it has ended, find out who wrote "
        "the row.",
    )


NO_FORMATS = AcceptedFormats()
"""Accepts nothing but envelopes."""
