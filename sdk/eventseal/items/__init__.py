"""The data path: domain events to sequenced items, and back."""

from eventseal.items.item import SequencedItem
from eventseal.items.json import JSONTranscoder
from eventseal.items.mapper import SequencedItemMapper
from eventseal.items.topics import register_alias, register_topic, resolve_topic, topic_of

__all__ = [
    "JSONTranscoder",
    "SequencedItem",
    "SequencedItemMapper",
    "register_alias",
    "register_topic",
    "resolve_topic",
    "topic_of",
]
