"""
The mapper of events that are stored by tags (dynamic consistency boundaries).

It needs a release of the library that has them. Such an event has no position when it is sealed: the recorder
assigns one later. So the envelope is bound to the event's type and tags, but not to its position. If an event
is moved to another position, EventSeal does not detect it.
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
        f"this release of the eventsourcing library has no events by tags: {error.name} is missing",
        remedy="Run: pip install 'eventsourcing>=9.5,<10'",
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
    Maps tagged decisions to events with sealed data, and back.

    Threads may share it. The data are bound to the application, the event's type and its set of tags, but not
    to its position.

    Raises:
        ConfigurationError: The settings are invalid, or the inner mapper cannot be created.
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
        refuse_replaced_methods(type(self), EncryptingDCBMapper)  # again: a subclass may bypass __new__

    @classmethod
    def using(
        cls,
        seal: SealedStore | None = None,
        *,
        inner: Inner | None = None,
        key_scope: KeyScope = DEFAULT_SCOPE,
    ) -> type[Self]:
        """
        Return a mapper class with these options.

        Use its topic in the settings, or create the mapper in code.

        Args:
            seal: An ``EventSeal``, or another ``SealedStore``. ``None``: the process's settings create one
                together with the mapper.
            inner: The mapper that turns decisions into bytes, or its topic. By default, the library's own
                mapper for MessagePack.
            key_scope: The scope for decisions whose class does not name one, or a function that returns the
                scope of a decision.

        Raises:
            ConfigurationError: An option is invalid.
        """
        options = SealingOptions(seal=seal, key_scope=key_scope)
        members = {"options": options, "inner": cls.inner if inner is None else (inner,)}
        return type(cls.__name__, (cls,), {**members, "__doc__": cls.__doc__})

    def to_dcb_event(self, event: Tagged[Any]) -> DCBEvent:
        """
        Map a tagged decision.

        Raises:
            EventSealError: There is no key to seal with. See ``AESCipher.encrypt_many``.
        """
        plain = self._inner.to_dcb_event(event)
        (data,) = self._sealing.seal_events([event.decision], [(plain.data, _context(plain))])
        return DCBEvent(type=plain.type, data=data, tags=plain.tags)

    def to_domain_event(self, event: DCBEvent) -> Tagged[Any]:
        """Map an event back. See :meth:`to_domain_events`."""
        return self.to_domain_events((event,))[0]

    def to_domain_events(self, events: Iterable[DCBEvent]) -> list[Tagged[Any]]:
        """
        Map a page of events back.

        The first event that does not open ends it with an error.

        Raises:
            IntegrityError: The data were changed, or not sealed with this type and these tags.
            EventSealError: The data do not open. See ``AESCipher.open_many``.
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
    # Tags are a set: recorders may return them in another order.
    tags = json.dumps(sorted(set(event.tags)), ensure_ascii=False, separators=(",", ":"))
    return ItemContext(sequence_id=tags, position=0, topic=event.type, collection=COLLECTION)


def _made(inner: Inner) -> DCBMapper[Any]:
    made = (resolve_topic(inner) if isinstance(inner, str) else inner)()
    if not isinstance(made, DCBMapper):
        raise ConfigurationError(
            f"inner must create a DCBMapper, not a {type(made).__name__}",
            remedy="Pass a DCBMapper class or its topic as inner=.",
        )
    return made
