"""
The mapper of events that are stored by tags (dynamic consistency boundaries), where the release has them.

Such an event has no place of its own when it is sealed: the recorder gives it a position later. So its type
and its tags are bound, and not the position: that an event was moved to another one is not noticed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from eventsourcing.utils import resolve_topic

from eventseal.cipher import ItemContext
from eventseal.errors import ConfigurationError, EventSealError
from eventseal.integrations.eventsourcing.sealing import Sealing, SealingOptions, placed
from eventseal.items.protection import refuse_replaced_methods
from eventseal.keys.records import DEFAULT_SCOPE

try:
    from eventsourcing.dcb.api import DCBEvent
    from eventsourcing.dcb.persistence import DCBMapper
except ModuleNotFoundError as error:
    raise ConfigurationError(
        f"this release of the eventsourcing library has no events by tags: there is no {error.name}",
        remedy="Install release 9.5 or later: pip install 'eventsourcing>=9.5'",
    ) from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from eventsourcing.dcb.domain import Tagged

    from eventseal.items.scopes import KeyScope
    from eventseal.rotation.sealed_store import SealedStore

COLLECTION = "dcb"
Inner: TypeAlias = "str | Callable[[], DCBMapper[Any]]"


class EncryptingDCBMapper(DCBMapper[Any]):
    """
    Maps tagged decisions to events whose data are sealed, and back. Threads may share it.

    Data are bound to the application, the event's type and its set of tags, and not to the position.

    Raises:
        ConfigurationError: The settings are wrong, or the inner mapper cannot be made.
    """

    options: ClassVar[SealingOptions] = SealingOptions()
    inner: ClassVar[tuple[Inner]] = ("eventsourcing.dcb.msgpack:MessagePackMapper",)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Refuse a class that replaces EventSeal's methods."""
        refuse_replaced_methods(cls, EncryptingDCBMapper)
        return super().__new__(cls)

    def __init__(self) -> None:
        self._sealing = Sealing(self.options)
        self._inner = _made(self.inner[0])
        refuse_replaced_methods(type(self), EncryptingDCBMapper)  # again: __new__ may be another class's

    @classmethod
    def using(
        cls,
        seal: SealedStore | None = None,
        *,
        inner: Inner | None = None,
        key_scope: KeyScope = DEFAULT_SCOPE,
    ) -> type[Self]:
        """
        Give a mapper class with choices of its own, to be named as a topic or made in code.

        Args:
            seal: Such as ``EventSeal``; ``None``: the process's settings say it, when the mapper is made.
            inner: The mapper that turns decisions into bytes, or its topic; by default the library's own,
                for MessagePack.
            key_scope: Whose key seals a decision whose class does not say: a scope, or a function of it.

        Raises:
            ConfigurationError: A choice is none.
        """
        options = SealingOptions(seal=seal, key_scope=key_scope)
        members = {"options": options, "inner": cls.inner if inner is None else (inner,)}
        return type(cls.__name__, (cls,), {**members, "__doc__": cls.__doc__})

    def to_dcb_event(self, event: Tagged[Any]) -> DCBEvent:
        """
        Map a tagged decision.

        Raises:
            EventSealError: There is no key to seal with; see ``AESCipher.encrypt_many``.
        """
        plain = self._inner.to_dcb_event(event)
        (data,) = self._sealing.seal_events([event.decision], [(plain.data, _context(plain))])
        return DCBEvent(type=plain.type, data=data, tags=plain.tags)

    def to_domain_event(self, event: DCBEvent) -> Tagged[Any]:
        """Map an event back; see :meth:`to_domain_events`."""
        return self.to_domain_events((event,))[0]

    def to_domain_events(self, events: Iterable[DCBEvent]) -> list[Tagged[Any]]:
        """
        Map a page of events back; the first that cannot be is raised.

        Raises:
            IntegrityError: Data are not what was sealed with this type and these tags.
            EventSealError: Data do not open; see ``AESCipher.open_many``.
        """
        given = list(events)
        contexts = [_context(event) for event in given]
        outcomes = self._sealing.cipher.open_many(
            [(event.data, context) for event, context in zip(given, contexts, strict=True)]
        )
        mapped = []
        for event, context, outcome in zip(given, contexts, outcomes, strict=True):
            try:
                if isinstance(outcome, EventSealError):
                    raise outcome
                tagged = self._inner.to_domain_event(
                    DCBEvent(type=event.type, data=outcome.plaintext, tags=event.tags)
                )
                self._sealing.check_scope(tagged.decision, outcome)
            except EventSealError as error:
                raise placed(error, context) from None
            mapped.append(tagged)
        return mapped


def _context(event: DCBEvent) -> ItemContext:
    # Tags are a set: recorders may give them back in another order.
    tags = json.dumps(sorted(set(event.tags)), ensure_ascii=False, separators=(",", ":"))
    return ItemContext(sequence_id=tags, position=0, topic=event.type, collection=COLLECTION)


def _made(inner: Inner) -> DCBMapper[Any]:
    made = (resolve_topic(inner) if isinstance(inner, str) else inner)()
    if not isinstance(made, DCBMapper):
        raise ConfigurationError(f"inner is a DCBMapper, not a {type(made).__name__}")
    return made
