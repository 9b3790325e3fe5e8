"""What the tests' applications are about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from eventsourcing.application import Application
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.domain import Aggregate, event
from eventsourcing.system import ProcessApplication

if TYPE_CHECKING:
    from uuid import UUID


class Dog(Aggregate):
    @event("Registered")
    def __init__(self, name: str, owner: str = "nobody") -> None:
        self.name = name
        self.owner = owner
        self.tricks: list[str] = []

    @event("TrickAdded")
    def add_trick(self, trick: str) -> None:
        self.tricks.append(trick)


class DogSchool(Application):
    is_snapshotting_enabled = True

    def register(self, name: str, *tricks: str, owner: str = "nobody") -> UUID:
        dog = Dog(name, owner)
        for trick in tricks:
            dog.add_trick(trick)
        self.save(dog)
        return dog.id

    def teach(self, dog_id: UUID, trick: str) -> None:
        dog: Dog = self.repository.get(dog_id)
        dog.add_trick(trick)
        self.save(dog)

    def tricks(self, dog_id: UUID) -> list[str]:
        dog: Dog = self.repository.get(dog_id)
        return dog.tricks


class Diploma(Aggregate):
    def __init__(self, name: str) -> None:
        self.name = name


class Diplomas(ProcessApplication):
    """Writes a diploma for every dog that a school registers."""

    @singledispatchmethod
    def policy(self, domain_event: Any, processing_event: Any) -> None:
        """Do nothing about other events."""

    @policy.register
    def _(self, domain_event: Dog.Registered, processing_event: Any) -> None:
        processing_event.collect_events(Diploma(name=domain_event.name))


class OldPrice(Aggregate):
    """As it was at first."""

    @event("Set")
    def __init__(self, amount: int) -> None:
        self.amount = amount


class Price(Aggregate):
    """As it is now: its event has learned a currency."""

    class Set(Aggregate.Created):
        amount: int
        currency: str
        class_version: ClassVar[int] = 2

        @staticmethod
        def upcast_v1_v2(state: dict[str, Any]) -> None:
            state["currency"] = "EUR"

    @event(Set)
    def __init__(self, amount: int, currency: str) -> None:
        self.amount = amount
        self.currency = currency


@dataclass(frozen=True)
class BookPut:
    """An event of a stream whose id is text."""

    originator_id: str
    originator_version: int
    book: str
