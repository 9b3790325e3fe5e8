"""
The example application of the old library's chapter on encryption.

It shows an application that is encrypted, or is not, over a table that you can look into. Your own
application has its own entities: copy what you need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventseal.eventstore import (
    ApplicationWithPersistencePolicies,
    EventSourcedRepository,
    TimestampedVersionedEntity,
    attribute,
)
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

    from eventseal.cipher import AESCipher
    from eventseal.eventstore import ActiveRecordStrategy, EventStore, SnapshotStrategy


class Example(TimestampedVersionedEntity):
    """
    An entity with attributes that publish an event when they are set.

    Args:
        foo: Any value that JSON supports, as are *a* and *b*.
        a: Another value.
        b: A value that never changes.
        arguments: The arguments of the base class.
    """

    class Event(TimestampedVersionedEntity.Event):
        """The base of an example's events."""

    class Created(Event, TimestampedVersionedEntity.Created):
        """An example was created."""

    class AttributeChanged(Event, TimestampedVersionedEntity.AttributeChanged):
        """An attribute of an example has a new value."""

    class Discarded(Event, TimestampedVersionedEntity.Discarded):
        """An example was discarded."""

    def __init__(self, foo: Any = "", a: Any = "", b: Any = "", **arguments: Any) -> None:
        super().__init__(**arguments)
        self._foo = foo
        self._a = a
        self._b = b

    @attribute
    def foo(self) -> Any:
        """A value that you can change."""

    @attribute
    def a(self) -> Any:
        """Another value that you can change."""

    @property
    def b(self) -> Any:
        """A value that never changes."""
        return self._b


class ExampleRepository(EventSourcedRepository):
    """
    Finds examples by their ids.

    It also reads events that an old library's example application wrote, once they are migrated.

    Args:
        event_store: The store of their events.
        snapshot_strategy: The store of their snapshots.
    """

    def __init__(self, event_store: EventStore, snapshot_strategy: SnapshotStrategy | None = None) -> None:
        # Releases 1 to 3 of the old library did not store the class of an entity in its first event.
        mutator = Example._mutate  # noqa: SLF001 - the repository's own entity
        super().__init__(event_store, mutator, snapshot_strategy)


class ExampleApplication(ApplicationWithPersistencePolicies):
    """
    Creates examples, and finds them again.

    Args:
        entity_active_record_strategy: Reads and writes the items of the examples' events.
        always_encrypt: Whether every item is encrypted, and every other item is refused.
        cipher: Encrypts and decrypts the items.

    Raises:
        ConfigurationError: *always_encrypt* is set without a cipher.
    """

    def __init__(
        self,
        *,
        entity_active_record_strategy: ActiveRecordStrategy,
        always_encrypt: bool = False,
        cipher: AESCipher | None = None,
    ) -> None:
        super().__init__(
            entity_active_record_strategy=entity_active_record_strategy,
            always_encrypt=always_encrypt,
            cipher=cipher,
        )
        self.example_repository = ExampleRepository(self.entity_event_store)

    def create_new_example(self, foo: Any = "", a: Any = "", b: Any = "") -> Example:
        """Create an example, and store its event."""
        with self.publishing():
            return Example.create(foo=foo, a=a, b=b)


def construct_example_application(
    session: scoped_session[Session] | Session, always_encrypt: bool = False, cipher: AESCipher | None = None
) -> ExampleApplication:
    """
    Create an application over the table ``integer_sequenced_items``.

    Args:
        session: The session of a datastore that has the table: ``datastore.session``. Or any other session of
            its database.
        always_encrypt: Whether every event is encrypted. If not, only events of classes with
            ``__always_encrypt__ = True`` are encrypted, and an example's classes do not have it.
        cipher: Encrypts and decrypts the events.

    Raises:
        ConfigurationError: *session* is not a SQLAlchemy session, *cipher* is not an ``AESCipher``, or
            *always_encrypt* is set without a cipher.
    """
    return ExampleApplication(
        entity_active_record_strategy=SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, session),
        always_encrypt=always_encrypt,
        cipher=cipher,
    )


__all__ = ["Example", "ExampleApplication", "ExampleRepository", "construct_example_application"]
