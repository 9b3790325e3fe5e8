"""The data path: domain events to sequenced items, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.lazy_names import lazy_names

_HOMES = {
    "Erased": "scopes",
    "JSONTranscoder": "json",
    "Masked": "markers",
    "NotPersonal": "markers",
    "PersonalData": "markers",
    "SequencedItem": "item",
    "SequencedItemMapper": "mapper",
    "register_alias": "topics",
    "register_topic": "topics",
    "resolve_topic": "topics",
    "topic_of": "topics",
}

if TYPE_CHECKING:
    from eventseal.items.item import SequencedItem
    from eventseal.items.json import JSONTranscoder
    from eventseal.items.mapper import SequencedItemMapper
    from eventseal.items.markers import Masked, NotPersonal, PersonalData
    from eventseal.items.scopes import Erased
    from eventseal.items.topics import register_alias, register_topic, resolve_topic, topic_of
else:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)

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
