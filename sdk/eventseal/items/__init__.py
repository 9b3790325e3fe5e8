"""The data path: domain events to sequenced items, and back."""

from eventseal.items.item import SequencedItem
from eventseal.items.json import JSONTranscoder
from eventseal.items.mapper import SequencedItemMapper
from eventseal.items.markers import Masked, NotPersonal, PersonalData
from eventseal.items.scopes import Erased
from eventseal.items.topics import register_alias, register_topic, resolve_topic, topic_of

__all__ = [
    "Erased",
    "JSONTranscoder",
    "Masked",
    "NotPersonal",
    "PersonalData",
    "SequencedItem",
    "SequencedItemMapper",
    "register_alias",
    "register_topic",
    "resolve_topic",
    "topic_of",
]
