"""The sequenced item: an event as stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from uuid import UUID


EVENTS, TIMED_EVENTS = "items", "timestamp_items"
"""The collections of EventSeal's own tables of events: by version, and in order of time."""


class SequencedItem(NamedTuple):
    """
    A stored event.

    Attributes:
        sequence_id: The stream: a UUID or a string.
        position: In the stream: an integer or a Decimal.
        topic: Names the event's class.
        data: An envelope, or plain JSON where no encryption is required.
        key_id: The data key that opens it; ``None`` for a plain item.
    """

    sequence_id: Any
    position: Any
    topic: str
    data: bytes
    key_id: UUID | None = None
